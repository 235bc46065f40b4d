"""The courier's handlers, without a connection: files arrive whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devices.board.courier import LOCK_DIRECTORY_VARIABLE, Courier
from devices.board.launch import write_program
from devices.board.storage import Busy, NoSpace, Refused, WrongDigest
from devices.board.wheels import unpack_plain, unpack_wheel

DATA = bytes(range(256)) * 40
SHA256 = hashlib.sha256(DATA).hexdigest()
OFFER = {"folder": f"files/{SHA256}", "name": "m.tflite", "sha256": SHA256, "size": len(DATA), "reserve": 0}


def open_files() -> dict[int, str]:
    """The paths of this process's open files, by descriptor."""
    links = list(Path("/proc/self/fd").iterdir())
    return {int(link.name): str(link.resolve()) for link in links if link.exists()}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(LOCK_DIRECTORY_VARIABLE, str(tmp_path))
    before = open_files()
    yield tmp_path / "board"
    for fd in set(open_files()) - set(before):  # a courier keeps what ends with its process
        os.close(fd)


def ask(courier: Courier, method: str, **params: Any) -> Any:
    return courier.handlers()[method](params)


def write(courier: Courier, data: bytes, offset: int = 0) -> Any:
    return ask(courier, "write", sha256=SHA256, offset=offset, data=base64.b64encode(data).decode())


def test_a_file_becomes_visible_when_it_is_whole(root: Path) -> None:
    courier = Courier(str(root))
    offered = ask(courier, "offer", **OFFER)
    assert offered == {"path": str(root / "files" / SHA256 / "m.tflite"), "whole": False, "offset": 0}
    assert write(courier, DATA[:1000]) == {"offset": 1000}
    assert not Path(offered["path"]).exists()
    write(courier, DATA[1000:], 1000)
    assert not Path(offered["path"]).exists()
    ask(courier, "finish", sha256=SHA256)
    assert Path(offered["path"]).read_bytes() == DATA
    assert ask(courier, "offer", **OFFER)["whole"]
    assert list((root / "incoming").iterdir()) == []


def test_another_courier_goes_on_where_one_stopped(root: Path) -> None:
    first = Courier(str(root))
    ask(first, "offer", **OFFER)
    write(first, DATA[:1000])
    with pytest.raises(Busy):
        ask(Courier(str(root)), "offer", **OFFER)
    os.close(first._incoming[SHA256]._fd)  # as its end would
    second = Courier(str(root))
    assert ask(second, "offer", **OFFER)["offset"] == 1000
    with pytest.raises(Refused, match="lost its place"):
        write(second, DATA[:1000], 0)
    write(second, DATA[1000:], 1000)
    ask(second, "finish", sha256=SHA256)
    assert (root / "files" / SHA256 / "m.tflite").read_bytes() == DATA


def test_a_wrong_digest_leaves_nothing(root: Path) -> None:
    courier = Courier(str(root))
    ask(courier, "offer", **OFFER)
    write(courier, b"x" * len(DATA))
    with pytest.raises(WrongDigest, match=r"m\.tflite arrived with SHA-256"):
        ask(courier, "finish", sha256=SHA256)
    assert [path for path in root.rglob("*") if path.is_file()] == []
    assert ask(courier, "offer", **OFFER)["offset"] == 0


def test_a_file_that_was_damaged_on_the_board_is_sent_again(root: Path) -> None:
    courier = Courier(str(root))
    ask(courier, "offer", **OFFER)
    write(courier, DATA)
    ask(courier, "finish", sha256=SHA256)
    path = root / "files" / SHA256 / "m.tflite"
    path.write_bytes(DATA[:-1] + b"?")
    assert not ask(courier, "offer", **OFFER)["whole"]
    assert not ask(Courier(str(root / ".." / "board2")), "offer", **OFFER)["whole"]


@pytest.mark.parametrize("arrived", [0, 1000], ids=["at_once", "in_the_middle"])
def test_space_is_checked_first(arrived: int, root: Path) -> None:
    courier = Courier(str(root))
    if arrived:
        ask(courier, "offer", **OFFER)
        write(courier, DATA[:arrived])
    with pytest.raises(NoSpace, match="must stay free"):
        ask(courier, "offer", **{**OFFER, "reserve": 1 << 60})
    assert list((root / "incoming").iterdir()) == []
    with pytest.raises(NoSpace):
        ask(courier, "room", size=1 << 60, reserve=0)


@pytest.mark.parametrize("changes", [{"name": "../x"}, {"name": ".."}, {"name": "a/b"}, {"folder": "files/../../etc"},
                                     {"folder": "run/0123456789abcdef"}, {"sha256": "../x"}], ids=str)  # fmt: skip
def test_nothing_is_written_outside(changes: dict[str, str], root: Path) -> None:
    with pytest.raises(Refused):
        ask(Courier(str(root)), "offer", **{**OFFER, **changes})


def test_one_user_holds_the_board_at_a_time(root: Path) -> None:
    ann, ben = Courier(str(root)), Courier(str(root / "../of_another_user"))
    assert ask(ann, "hold", who="ann") == {"held": True}
    assert ask(ann, "hold", who="ann") == {"held": True}
    refused = ask(ben, "hold", who="ben")
    assert not refused["held"]
    assert '"who": "ann"' in refused["holder"]
    ask(ann, "release")
    assert ask(ben, "hold", who="ben") == {"held": True}


def test_names_of_couriers_that_are_gone_are_removed(root: Path) -> None:
    living, dead = Courier(str(root)), Courier(str(root))
    for fd, path in open_files().items():
        if path == dead.lifeline:
            os.close(fd)
    third = Courier(str(root))
    names = {path.name for path in (root / "run").iterdir()}
    assert names == {Path(living.lifeline).name, Path(third.lifeline).name}


def test_what_nobody_used_for_long_is_removed(root: Path) -> None:
    courier = Courier(str(root))
    ask(courier, "offer", **OFFER)
    write(courier, DATA)
    ask(courier, "finish", sha256=SHA256)
    for name in ("files/old", "envs/old", "incoming/old", "envs/of-the-program"):
        (root / name).mkdir()
    write_program(str(root), str(root / "envs" / "of-the-program" / "site-packages"))
    long_ago = root.stat().st_mtime - 100 * 86400
    for path in [*root.glob("files/*"), *root.glob("envs/*"), *root.glob("incoming/*")]:
        os.utime(path, (long_ago, long_ago))
    assert ask(courier, "offer", **OFFER)["whole"]
    Courier(str(root))
    assert [path.name for path in root.glob("files/*")] == [SHA256]
    assert [path.name for path in root.glob("envs/*")] == ["of-the-program"]
    assert [*root.glob("incoming/*")] == []


def test_a_service_may_run_what_lies_there_and_read_nothing_else(root: Path) -> None:
    for name in ("agents", "envs"):
        (root / name).mkdir(parents=True, mode=0o700)  # as earlier versions left them
    Courier(str(root))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in root.iterdir() if path.is_dir()}
    assert modes == {"agents": 0o755, "envs": 0o755, "files": 0o700, "incoming": 0o700, "run": 0o700}


def make_wheel(path: Path, files: dict[str, str], *, executable: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (0o755 if name == executable else 0o644) << 16
            archive.writestr(info, text)
    return path


def test_a_wheel_is_unpacked_as_it_would_be_installed(tmp_path: Path) -> None:
    files = {
        "space/one/__init__.py": "",
        "space/lib/tool": "x",
        "tiny-1.dist-info/METADATA": "",
        "tiny-1.data/purelib/pure.py": "",
        "tiny-1.data/platlib/native.so": "",
        "tiny-1.data/scripts/run": "#!python",
        "tiny-1.data/data/share/tiny.txt": "",
        "tiny-1.data/headers/tiny.h": "",
    }
    unpack_wheel(
        str(make_wheel(tmp_path / "tiny-1-py3-none-any.whl", files, executable="space/lib/tool")), str(tmp_path / "env")
    )
    unpack_wheel(str(make_wheel(tmp_path / "more-1-py3-none-any.whl", {"space/two.py": ""})), str(tmp_path / "env"))
    found = {str(path.relative_to(tmp_path / "env")) for path in (tmp_path / "env").rglob("*") if path.is_file()}
    assert found == {
        "site-packages/space/one/__init__.py", "site-packages/space/two.py", "site-packages/space/lib/tool",
        "site-packages/tiny-1.dist-info/METADATA", "site-packages/pure.py", "site-packages/native.so",
        "bin/run", "share/tiny.txt", "include/tiny.h",
    }  # fmt: skip
    for name, executable in (
        ("bin/run", True),
        ("site-packages/space/lib/tool", True),
        ("site-packages/pure.py", False),
    ):
        assert bool((tmp_path / "env" / name).stat().st_mode & stat.S_IXUSR) is executable


@pytest.mark.parametrize("name", ["../out.py", "/out.py", "a/../../out.py", "x-1.data/odd/y"])
def test_archives_that_lead_outside_are_refused(name: str, tmp_path: Path) -> None:
    archive = str(make_wheel(tmp_path / "bad-1-py3-none-any.whl", {name: ""}))
    with pytest.raises(Refused):
        unpack_wheel(archive, str(tmp_path / "env"))
    if not name.startswith("x"):
        with pytest.raises(Refused):
            unpack_plain(archive, str(tmp_path / "env"))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["bad-1-py3-none-any.whl"]


def test_a_half_made_folder_is_removed_the_next_time(root: Path, tmp_path: Path) -> None:
    courier = Courier(str(root))
    half_made = root / "envs" / ".making-999"
    half_made.mkdir()
    (half_made / "x").write_text("")
    folder = "envs/0123456789abcdef"
    assert ask(courier, "find", folder=folder) == {"path": None}
    bad = make_wheel(tmp_path / "bad-1-py3-none-any.whl", {"good.py": "", "../x": ""})
    with pytest.raises(Refused):
        ask(courier, "unpack", folder=folder, archives=[str(bad)], wheels=True, reserve=0)
    assert {path.name for path in (root / "envs").iterdir()} == {".lock"}
    (tmp_path / "sent").mkdir()
    good = make_wheel(tmp_path / "sent" / "good-1-py3-none-any.whl", {"x.py": ""})
    path = ask(courier, "unpack", folder=folder, archives=[str(good)], wheels=True, reserve=0)["path"]
    assert path == ask(courier, "find", folder=folder)["path"] == str(root / folder)
    assert not good.exists()
