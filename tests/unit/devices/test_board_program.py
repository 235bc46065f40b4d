"""`edgeship-board` as one file: it runs where nothing of ours is installed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from devices.board.release_home import linked
from devices.board.start import lasting_path
from devices.board_program import PROGRAM, agent_archive, board_program
from tests.board_server import serving
from tests.bundles import PARTS, make_bundle, make_key, opened, part_files, signer_line, trust
from tests.conftest import clean_environment
from tests.releases import NAME, fake_model, image_manifest, put
from tests.ssh_board import wait_for

PROGRAM_PART = {"program": PROGRAM}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "stick" / PROGRAM
    path.parent.mkdir()
    path.write_bytes(board_program())
    return path


def bare_environment() -> dict[str, str]:
    """Nothing leads to the sources from here."""
    return {name: value for name, value in clean_environment().items() if name != "PYTHONPATH"}


def run(program: Path, *arguments: str, cwd: str | Path = "/", code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(program), *arguments],
        cwd=cwd,
        env=bare_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done


def put_with_program(root: Path, scratch: Path, *, seed: int = 0) -> Path:
    """Installs a model whose release has the program; returns the program's path in the release in use."""
    model = fake_model(scratch / f"model-{seed}.fake", seed=seed)
    (scratch / PROGRAM).write_bytes(board_program())
    put(root, image_manifest(model, schema_version=3, **PROGRAM_PART), model, scratch / PROGRAM)
    return root / NAME / "current" / PROGRAM


def test_it_is_the_same_each_time_and_nothing_in_it_is_compressed() -> None:
    made = board_program()
    board_program.cache_clear()
    assert board_program() == made
    with zipfile.ZipFile(io.BytesIO(made)) as archive:
        members = archive.infolist()
        assert archive.testzip() is None
    assert {member.date_time for member in members} == {(1980, 1, 1, 0, 0, 0)}
    assert {member.compress_type for member in members} == {zipfile.ZIP_STORED}
    names = [member.filename for member in members]
    assert names[1:] == sorted(names[1:])
    assert {"__main__.py", "board/serving/server.py", "board/runners/litert.py"} <= set(names)
    assert not any("__pycache__" in name for name in names)
    with zipfile.ZipFile(io.BytesIO(agent_archive())) as archive:
        assert archive.namelist() == names


def test_it_tells_what_is_on_an_image(tmp_path: Path) -> None:
    program = put_with_program(tmp_path / "root", tmp_path)
    np.save(tmp_path / "i.npy", np.zeros((8, 8, 3), np.uint8))
    done = run(program, "infer", str(tmp_path / "i.npy"), "--root", str(tmp_path / "root"), "--json")
    told = json.loads(done.stdout)
    assert told["model"] == NAME
    assert len(told["images"][0]["labels"]) == 4
    assert run(program, "infer", "none.npy", "--root", str(tmp_path / "root"), code=2).stderr


def test_it_serves_on_when_the_release_that_it_came_with_is_gone(tmp_path: Path) -> None:
    root = tmp_path / "root"
    program = put_with_program(root, tmp_path)
    with serving(root, program=program) as server:
        first = server.ask(f"/v2/models/{NAME}").json()
        old = linked(str(root / NAME / "current"))
        put_with_program(root, tmp_path, seed=1)
        new = linked(str(root / NAME / "current"))
        (root / NAME / "releases" / str(old) / PROGRAM).unlink()
        assert not wait_for(lambda: server.ask(f"/v2/models/{NAME}").json()["versions"] == [new])
        assert first["versions"] == [old]
        assert server.ask("/v2/health/ready").status == 200
        assert server.ask("/metrics").status == 200
        assert server.stop() == 0


def test_its_unit_names_a_path_that_a_switch_does_not_change(tmp_path: Path, program: Path) -> None:
    root = tmp_path / "root"
    used = put_with_program(root, tmp_path)
    for place in (used, used.resolve()):
        unit = run(place, "unit", "--root", str(root)).stdout
        (line,) = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
        assert line.startswith(f"ExecStart={sys.executable} {used} serve --root {root} ")
        assert "PYTHONPATH" not in unit
    assert f" {program} serve " in run(program, "unit", "--root", str(root)).stdout
    assert lasting_path(str(program)) == str(program)


def test_a_bundle_that_comes_by_hand(tmp_path: Path, program: Path) -> None:
    root, bundles = tmp_path / "root", []
    for seed in (1, 2):
        bundle = make_bundle(tmp_path / f"{seed}.edgeship", seed, files=part_files(seed), **PARTS)
        bundles.append((bundle, opened(bundle).digest))
    where = ("--root", str(root))
    assert run(program, "status", *where).stdout == f"nothing is installed in {root}\n"
    assert "not signed" in run(program, "install", str(bundles[0][0]), *where, code=2).stderr
    assert run(program, "trust", "--allow-unsigned", *where).stdout == "trusts 0 keys, takes unsigned bundles\n"
    tried = json.loads(run(program, "install", str(bundles[0][0]), *where, "--dry-run", "--json").stdout)
    assert (tried["changed"], tried["measured"]["form"]) == (False, "fake")
    assert not (root / "net").exists()
    # Relative, as one types it beside the file.
    done = run(Path(PROGRAM), "install", str(bundles[0][0]), *where, cwd=program.parent)
    assert done.stdout == f"installed net, release {bundles[0][1]}; runs as fake\n"
    assert "edgeship-board: self-test" in done.stderr
    assert "already in use: net" in run(program, "install", str(bundles[0][0]), *where).stdout
    lasting = root / "net" / "current" / PROGRAM  # from here on the board's own
    run(lasting, "install", str(bundles[1][0]), *where)
    assert (
        f"net: {bundles[1][1]} in use, {bundles[0][1]} before it, 2 kept; runs as fake"
        in run(lasting, "status", *where).stdout
    )
    assert f"net is back at release {bundles[0][1]}" in run(lasting, "rollback", "net", *where).stdout
    (row,) = json.loads(run(lasting, "status", *where, "--json").stdout)["releases"]
    assert row["current_digest"] == bundles[0][1]
    assert [entry["action"] for entry in row["history"]] == ["install", "install", "rollback"]


def test_what_it_refuses(tmp_path: Path, program: Path) -> None:
    root = trust(tmp_path / "root", signers=signer_line(make_key(tmp_path / "key")))
    where = ("--root", str(root))
    (tmp_path / "none").write_text("no bundle")
    unfit = make_bundle(tmp_path / "unfit", key=tmp_path / "key", requires={"runtime": "nonesuch>=1"})
    assert "no bundle" in run(program, "install", str(tmp_path / "none"), *where, code=2).stderr
    assert "can't be written" not in run(program, "install", str(tmp_path / "missing"), *where, code=3).stdout
    assert "at the step 'fit'" in run(program, "install", str(unfit), *where, code=3).stderr
    assert "never deployed" in run(program, "rollback", "net", *where, code=3).stderr
    assert "No such file" in run(program, "trust", "--allowed-signers", "/none", *where, code=3).stderr
    told = json.loads(run(program, "trust", *where, "--json").stdout)
    assert (told["signers"], told["settings"]["allow_unsigned"]) == (1, False)


def test_a_python_without_numpy(tmp_path: Path, program: Path) -> None:
    """What concerns releases works, and the rest says what is missing."""
    root = trust(tmp_path / "root", allow_unsigned=True)
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'numpy':\n"
        "            raise ModuleNotFoundError(\"No module named 'numpy'\", name='numpy')\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    environment = {**bare_environment(), "PYTHONPATH": str(tmp_path)}

    def without(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(program), *arguments, "--root", str(root)]
        return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)

    assert without("status").returncode == 0
    done = without("infer", "i.npy")
    assert done.returncode == 3
    assert "has no numpy: install it with" in done.stderr
    assert "Traceback" not in done.stderr


def test_its_first_lines_are_read_by_every_python() -> None:
    with zipfile.ZipFile(io.BytesIO(board_program())) as archive:
        source = archive.read("__main__.py").decode()
    head, _, rest = source.partition("# The file itself")
    assert "sys.version_info < (3, 9)" in head
    assert "from board" not in head
    assert "from board.start import main" in rest
    assert os.linesep == "\n"
