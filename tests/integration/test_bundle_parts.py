"""Bundles with wheels, a compiled form and the program, of a real model, here, over SSH and by hand."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from devices.board.bundle import write_bundle
from tests.board_server import serving
from tests.bundles import opened
from tests.integration.test_releases import Place, place, write_network
from tests.wheels import write_wheel

__all__ = ["place"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no OpenSSH client on this machine"),
]

PACKAGES = ("numpy", "onnxruntime", "pillow")
FORMS = ("--set", "compile.forms=[ort]", "--set", "compile.starts=0")


@pytest.fixture(scope="module")
def made(place: Place) -> dict[str, Any]:
    """A bundle with everything, for a board whose only source of packages is a directory of this machine.

    Its wheels say that they are those that are installed, and hold nothing, so that what runs is what is installed.
    """
    for name in PACKAGES:
        write_wheel(place.directory / "house", name, version(name), files={f"from_the_bundle_{name}.py": ""})
    profile = YAML(typ="safe").load((place.directory / "board.yaml").read_text())
    profile["transport"]["wheelhouse"] = str(place.directory / "house")
    YAML().dump(profile, place.directory / "wheels.yaml")
    write_network(place.directory / "net.onnx", 5)
    arguments = ("package", "net.yaml", "--device", "wheels.yaml", *FORMS, "--wheels", "-o")
    told = place.told(*arguments, "full.edgeship")
    place.told(*arguments, "again.edgeship")
    one, two = ((place.directory / f"{name}.edgeship").read_bytes() for name in ("full", "again"))
    assert one == two
    place.told("trust", "--device", "wheels.yaml", "--allow-unsigned")
    return told


def unpacked(place: Place, name: str = "full.edgeship") -> Path:
    directory = place.directory / f"{name}.unpacked"
    if not directory.exists():
        directory.mkdir()
        subprocess.run(["tar", "-xf", place.directory / name, "-C", directory], check=True)
    return directory


def test_what_is_in_it(place: Place, made: dict[str, Any]) -> None:
    told = place.told("verify", "full.edgeship")
    assert told["parts"]["wheels"] == {name: version(name) for name in PACKAGES}
    assert told["parts"]["compiled"] == {"form": "ort", "package": "onnxruntime", "version": version("onnxruntime")}
    assert told["parts"]["requires"]["abi"] == f"cp3{sys.version_info[1]}"
    assert told["self_test"]["form"] == "ort"
    words = place.edgeship("verify", "full.edgeship", "--no-self-test").stdout
    assert "program: edgeship-board.pyz" in words
    assert f"compiled form: ort, by onnxruntime {version('onnxruntime')}" in words
    directory = unpacked(place)
    assert "Apache License" in (directory / "LICENSE").read_text()
    licences = (directory / "LICENSES.md").read_text()
    assert f"| onnxruntime-{version('onnxruntime')}-py3-none-any.whl |" in licences
    assert "`edgeship-board.pyz` is Edgeship" in licences
    assert "model.ort" in (directory / "MODEL_CARD.md").read_text()


def test_a_board_takes_it_without_a_package_index(place: Place, made: dict[str, Any]) -> None:
    shutil.rmtree(place.server.root / "envs", ignore_errors=True)
    profile = YAML(typ="safe").load((place.directory / "wheels.yaml").read_text())
    (place.directory / "empty").mkdir(exist_ok=True)
    profile["transport"]["wheelhouse"] = str(place.directory / "empty")
    profile["runtimes"] = {"onnxruntime": "onnxruntime>=999"}
    YAML().dump(profile, place.directory / "offline.yaml")
    told = place.told("deploy", "full.edgeship", "--device", "offline.yaml")
    assert told["changed"]
    assert (told["measured"]["form"], told["measured"]["form_reason"]) == ("ort", "")
    assert list((place.server.root / "envs").glob("[0-9a-f]*")) == [], "the host provided no packages"
    root = place.server.home / ".local" / "share" / "edgeship"
    (found,) = (root / ".environments").glob("*/site-packages/from_the_bundle_numpy.py")
    assert found.is_file()
    (row,) = place.told("status", "--device", "offline.yaml")["releases"]
    assert (row["form"], row["form_reason"]) == ("ort", "")


def test_its_own_program_runs_it(place: Place, made: dict[str, Any], tmp_path: Path) -> None:
    root = tmp_path / "root"
    loose = unpacked(place) / "edgeship-board.pyz"

    def board(*arguments: str) -> str:
        command = [sys.executable, str(loose), *arguments, "--root", str(root)]
        done = subprocess.run(
            command, cwd="/", env={"PATH": "/usr/bin:/bin", "HOME": "/"}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    board("trust", "--allow-unsigned")
    assert "runs as ort" in board("install", str(place.directory / "full.edgeship"))
    loose = root / "own-net" / "current" / "edgeship-board.pyz"
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    np.save(tmp_path / "i.npy", image)
    told = json.loads(board("infer", str(tmp_path / "i.npy"), "--top", "10", "--json"))
    assert (told["runtime"], len(told["images"][0]["labels"])) == ("onnxruntime", 10)
    with serving(root, program=loose) as server:
        assert server.ask("/v2/models/own-net/ready").status == 200
        assert server.stop() == 0


def test_a_compiled_form_of_another_version_is_left_alone(place: Place, made: dict[str, Any], tmp_path: Path) -> None:
    """The plain model is run, and the installation goes well."""
    directory = shutil.copytree(unpacked(place), tmp_path / "changed")
    record = json.loads((directory / "compiled.json").read_text())
    record["version"] = "1.0.0"
    (directory / "compiled.json").write_text(json.dumps(record))
    rewritten(place, directory, "old-form.edgeship")
    assert place.told("verify", "old-form.edgeship")["self_test"]["form"] == "plain"
    told = place.told("deploy", "old-form.edgeship", "--device", "wheels.yaml")
    assert told["measured"]["form"] == "plain"
    assert "made by onnxruntime 1.0.0, and the device has onnxruntime" in told["measured"]["form_reason"]
    (row,) = place.told("status", "--device", "wheels.yaml")["releases"]
    assert row["form"] == "plain"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("edgeship-board.pyz", b"no program", "is not the board's program"),
        (f"numpy-{version('numpy')}-py3-none-any.whl", b"no wheel", "is no wheel"),
        ("compiled.json", b"{}", "is no manifest of a compiled file"),
        ("model.ort", b"another", "made of another model, or is another file"),
    ],
    ids=["program", "wheel", "record", "compiled form"],
)
def test_parts_that_are_not_what_they_are_called(
    name: str, content: bytes, words: str, place: Place, made: dict[str, Any], tmp_path: Path
) -> None:
    directory = shutil.copytree(unpacked(place), tmp_path / "changed")
    assert (directory / name).exists()
    (directory / name).write_bytes(content)
    rewritten(place, directory, "odd.edgeship")
    assert words in place.edgeship("verify", "odd.edgeship", "--no-self-test", code=2).stderr


def test_a_requirement_that_a_board_can_not_judge(place: Place, made: dict[str, Any]) -> None:
    profile = YAML(typ="safe").load((place.directory / "board.yaml").read_text())
    profile["runtimes"] = {"onnxruntime": "onnxruntime!=1.0.*"}
    YAML().dump(profile, place.directory / "odd.yaml")
    stopped = place.edgeship(
        "package", "net.yaml", "--device", "odd.yaml", "--artifact", "onnxruntime/float32", code=2
    ).stderr
    assert "is no requirement that a board can judge" in stopped


def rewritten(place: Place, directory: Path, name: str) -> None:
    """A bundle of the files of a directory, whose manifest states their digests."""
    manifest = opened(place.directory / "full.edgeship").manifest
    files = {path.name: path for path in directory.iterdir() if path.name != "release.json"}
    manifest["files"] = {inner: hashlib.sha256(path.read_bytes()).hexdigest() for inner, path in files.items()}
    with (place.directory / name).open("wb") as stream:
        write_bundle(
            stream, json.dumps(manifest, sort_keys=True).encode(), None, {key: str(path) for key, path in files.items()}
        )
