"""Releases on emulated boards through SSH: trust, deploy, go back, and a service that a client hammers meanwhile.

`make test-board` runs this first, on boards that nothing was installed on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from devices import release
from devices.board.bundle import digest_of, write_bundle
from devices.bundle_signing import sign
from devices.errors import BundleError
from devices.measurement import Case, SampleFile, predict
from devices.profile import DeviceProfile, load_profile
from devices.transport_config import VirtualTransport
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
    """A board, and a directory of this machine that holds its profile, keys and bundles."""

    directory: Path
    profile: DeviceProfile
    board: plan.VirtualBoard
    home: str
    root: str
    digests: dict[str, str] = field(default_factory=dict)


class CommandLine:
    """As somebody types it; each command connects anew."""

    def __init__(self, place: Place) -> None:
        self._place = place
        home = {"kind": "virtual", "architecture": place.board.architecture, "directory": place.home}
        profile = {"extends": place.profile.name, "name": "board", "transport": home}
        YAML().dump(profile, place.directory / "board.yaml")

    def _told(self, *arguments: str) -> Any:
        board = ("--device", "board.yaml", "--root", self._place.root, "--json")
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *arguments, *board],
            cwd=self._place.directory, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False, timeout=500,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    def trust(self) -> int:
        return int(self._told("trust", "--allowed-signers", "signers")["signers"])

    def deploy(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self._told("deploy", f"{name}.edgeship")
        return found

    def status(self) -> dict[str, Any]:
        (row,) = self._told("status")["releases"]
        return dict(row)

    def rollback(self) -> str:
        return str(self._told("rollback", NAME)["current"])


class Library:
    """The same without a command line, over one connection."""

    def __init__(self, place: Place) -> None:
        self._place, self._at = place, (place.profile, Path(place.root))

    def trust(self) -> int:
        return int(release.set_trust(*self._at, allowed_signers=self._place.directory / "signers")["signers"])

    def deploy(self, name: str) -> dict[str, Any]:
        return release.install(*self._at, self._place.directory / f"{name}.edgeship")

    def status(self) -> dict[str, Any]:
        (row,) = release.status(*self._at)[1]
        return asdict(row)

    def rollback(self) -> str:
        return release.rollback(*self._at, NAME)


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
    assert isinstance(profile.transport, VirtualTransport)
    home = profile.transport.directory
    place = Place(directory, profile, plan.BOARDS[profile.transport.architecture], home, f"~/{home}/releases-{runtime}")
    make_key(directory / "key")
    (directory / "signers").write_text(signer_line(directory / "key"))
    for name, precision in (("one", "float32"), ("two", "int8")):
        model = network / "mobilenet_v2" / runtime / precision / FILES[runtime]
        write_real_bundle(place, name, model, runtime, precision, network / "images.npy")
    return place


class Server:
    """`edgeship-board serve` on a board, started as its user would."""

    def __init__(self, place: Place) -> None:
        running = start_board(place.board, CACHE)
        command = f"echo $$; exec {place.home}/edgeship-board serve --root {place.root} --port 0"
        self._board, self.process = place.board, subprocess.Popen(
            [*plan.login_command(running.files, running.port), command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self._pid, self.url = (self.process.stdout.readline().strip() for _ in range(2))
        assert self.url, "it did not start"

    def stop(self) -> int:
        """Ends it as a service manager would; returns its exit status."""
        on_board(self._board, f"kill {self._pid}")
        return self.process.wait(120)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.mark.parametrize(("runtime", "way"), [("litert", CommandLine), ("onnxruntime", Library)])
def test_no_request_fails_while_releases_come_and_go(
    runtime: str,
    way: type[CommandLine] | type[Library],
    profiles: dict[str, DeviceProfile],
    network: Path,
    tmp_path: Path,
) -> None:
    place = make_place(tmp_path, profiles["virtual-arm64"], runtime, network)
    one, two = place.digests["one"], place.digests["two"]
    board = way(place)
    assert board.trust() == 1
    first = board.deploy("one")
    assert (first["changed"], first["digest"]) == (True, one)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(contextlib.closing(Server(place)))
        client = Hammer([sys.executable, "-m", "tests.hammer", server.url, NAME])
        stack.callback(client.kill)
        client.wait_for(one)
        second = board.deploy("two")
        assert (second["changed"], second["signed_by"]) == (True, "builder@example.org")
        client.wait_for(two)
        row = board.status()
        assert (row["current_digest"], row["previous_digest"]) == (two, one)
        assert board.rollback() == one
        client.wait_for(one)
        summary = client.end()
        assert server.stop() == 0
    assert (summary["failures"], summary["unlike"], summary["releases"]) == ([], [], [one, two, one])
    assert summary["requests"] >= 20


def test_releases_of_tflite_runtime(profiles: dict[str, DeviceProfile], network: Path, tmp_path: Path) -> None:
    place = make_place(tmp_path, profiles["virtual-armhf"], "litert", network)
    board = Library(place)
    with pytest.raises(BundleError, match="trusts nobody"):
        board.deploy("one")
    assert board.trust() == 1
    for name in ("one", "two"):
        told = board.deploy(name)
        assert (told["changed"], told["digest"]) == (True, place.digests[name])
        assert told["measured"]["latency_p50_ms"] > 0
    assert board.rollback() == place.digests["one"]
    row = board.status()
    assert row["current_digest"] == place.digests["one"]
    assert [(entry["action"], entry["result"]) for entry in row["history"]] == [
        ("install", "done"), ("install", "done"), ("rollback", "done"),
    ]  # fmt: skip
    paint = "import sys; sys.stdout.buffer.write(b'P6 64 64 255 ' + bytes(64 * 64 * 3))"
    image = f"{place.home}/image.ppm"
    infer = f"{place.home}/edgeship-board infer --json --root {place.root} {image}"
    found = json.loads(on_board(place.board, f"python3 -c {shlex.quote(paint)} >{image} && {infer}"))
    assert found["release"] == place.digests["one"]
    assert len(found["images"][0]["labels"]) == 5
