"""Releases on emulated boards through SSH: trust, deploy, go back, and a service that a client hammers meanwhile.

`make test-board` runs this first, on boards that nothing was installed on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from devices.board.bundle import digest_of, write_bundle
from devices.bundle_signing import sign
from devices.measurement import Case, SampleFile, predict
from devices.profile import DeviceProfile, load_profile
from devices.virtual import plan
from devices.virtual.control import start_board
from tests.board.conftest import CACHE, FILES, on_board
from tests.bundles import make_key, signer_line
from tests.conftest import ROOT
from tests.hammer import Hammer
from tests.releases import NAME, image_manifest

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("boards")]

NUM_GOLDEN = 2
TOLERANCE = {"float32": 0.001, "int8": 0.3}
"""Of golden values; other instructions round int8 otherwise, and a few values show it most."""


@dataclass
class Place:
    """A board as somebody uses it from the command line, in a directory that holds profile, keys and bundles."""

    directory: Path
    board: plan.VirtualBoard
    home: str
    root: str
    digests: dict[str, str] = field(default_factory=dict)

    def edgeship(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *arguments, "--device", "board.yaml", "--root", self.root],
            cwd=self.directory, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, timeout=500,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == code, done.stderr[-3000:]
        assert "Traceback" not in done.stderr
        return done

    def told(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.edgeship(*arguments, "--json").stdout)
        return found


def write_real_bundle(place: Place, name: str, model: Path, runtime: str, precision: str, images: Path) -> None:
    """A signed bundle of an exported network; what this machine answers is what the board has to answer."""
    case = Case(id=name, runtime=runtime, path=str(model))
    golden_input, labels = place.directory / f"{name}.images.npy", place.directory / "labels.npy"
    np.save(golden_input, np.load(images)[:NUM_GOLDEN])
    np.save(labels, np.zeros(NUM_GOLDEN, np.int64))
    prediction = predict(
        load_profile("local"), case, [SampleFile(path=str(golden_input))], labels, str(place.directory)
    )
    golden = Path(prediction.outputs[0].path)
    files = {model.name: model, "input.npy": golden_input, "output.npy": golden}
    size = np.load(images).shape[1]
    manifest = {
        **image_manifest(model, target=runtime, size=size, classes=10, precision=precision),
        "golden_tolerance": TOLERANCE[precision],
        "inputs": [{"name": "image", "file": "input.npy", "transform": None}],
        "outputs": [{"name": "logits", "file": "output.npy"}],
        "requires": {"architecture": place.board.machine},
        "files": {member: hashlib.sha256(path.read_bytes()).hexdigest() for member, path in files.items()},
    }
    text = json.dumps(manifest, sort_keys=True).encode()
    with (place.directory / f"{name}.edgeship").open("wb") as stream:
        signature = sign(text, place.directory / "key")
        write_bundle(stream, text, signature, {member: str(path) for member, path in files.items()})
    place.digests[name] = digest_of(text)


def make_place(directory: Path, profile: DeviceProfile, runtime: str, network: Path) -> Place:
    """With the bundles `one` and `two`, of a network in float32 and in int8."""
    home = str(profile.transport.directory)  # type: ignore[union-attr]
    place = Place(directory, plan.BOARDS[profile.transport.architecture], home, f"~/{home}/releases-{runtime}")  # type: ignore[union-attr]
    make_key(directory / "key")
    (directory / "signers").write_text(signer_line(directory / "key"))
    transport = {"kind": "virtual", "architecture": place.board.architecture, "directory": home}
    YAML().dump({"extends": profile.name, "name": "board", "transport": transport}, directory / "board.yaml")
    for name, precision in (("one", "float32"), ("two", "int8")):
        model = network / "mobilenet_v2" / runtime / precision / FILES[runtime]
        write_real_bundle(place, name, model, runtime, precision, network / "images.npy")
    return place


@pytest.fixture
def hammered(tmp_path: Path) -> Iterator[list[Any]]:
    """What is ended after a test: clients first, then servers."""
    opened: list[Any] = []
    yield opened
    for each in reversed(opened):
        each.kill()


class Server:
    """`edgeship-board serve` on a board, started as its user would."""

    def __init__(self, place: Place) -> None:
        running = start_board(place.board, CACHE)
        command = f"exec {place.home}/edgeship-board serve --root {place.root} --port 0"
        self.process = subprocess.Popen(
            [*plan.login_command(running.files, running.port), command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url, "it did not start"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime"])
def test_no_request_fails_while_releases_come_and_go(
    runtime: str, profiles: dict[str, DeviceProfile], network: Path, tmp_path: Path, hammered: list[Any]
) -> None:
    place = make_place(tmp_path, profiles["virtual-arm64"], runtime, network)
    one, two = place.digests["one"], place.digests["two"]
    assert place.told("trust", "--allowed-signers", "signers")["signers"] == 1
    first = place.told("deploy", "one.edgeship")
    assert (first["changed"], first["digest"]) == (True, one)
    server = Server(place)
    hammered.append(server)
    client = Hammer([sys.executable, "-m", "tests.hammer", server.url, NAME])
    hammered.append(client)
    client.wait_for(one)
    second = place.told("deploy", "two.edgeship")
    assert (second["changed"], second["signed_by"]) == (True, "builder@example.org")
    client.wait_for(two)
    (row,) = place.told("status")["releases"]
    assert (row["current_digest"], row["previous_digest"]) == (two, one)
    assert place.told("rollback", NAME)["current"] == one
    client.wait_for(one)
    summary = client.end()
    assert (summary["failures"], summary["unlike"], summary["releases"]) == ([], [], [one, two, one])
    assert summary["requests"] >= 20


def test_releases_of_tflite_runtime(profiles: dict[str, DeviceProfile], network: Path, tmp_path: Path) -> None:
    place = make_place(tmp_path, profiles["virtual-armhf"], "litert", network)
    refused = place.edgeship("deploy", "one.edgeship", code=2)
    assert "trusts nobody" in refused.stderr
    assert place.told("trust", "--allowed-signers", "signers")["signers"] == 1
    for name in ("one", "two"):
        tried = place.told("deploy", f"{name}.edgeship")
        assert (tried["changed"], tried["digest"]) == (True, place.digests[name])
        assert tried["measured"]["latency_p50_ms"] > 0
    assert place.told("rollback", NAME)["current"] == place.digests["one"]
    (row,) = place.told("status")["releases"]
    assert row["current_digest"] == place.digests["one"]
    assert [(entry["action"], entry["result"]) for entry in row["history"]] == [
        ("install", "done"), ("install", "done"), ("rollback", "done"),
    ]  # fmt: skip
    paint = "import sys; sys.stdout.buffer.write(b'P6 64 64 255 ' + bytes(64 * 64 * 3))"
    image = f"{place.home}/image.ppm"
    infer = f"{place.home}/edgeship-board infer --json --root {place.root} {image}"
    command = f"python3 -c {shlex.quote(paint)} >{image} && {infer}"
    told = json.loads(on_board(place.board, command))
    assert told["release"] == place.digests["one"]
    assert len(told["images"][0]["labels"]) == 5
