from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.sources import archive
from pipeline.sources.archive import list_archive, read_archive
from pipeline.sources.base import Problem


def member(
    name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = link
    info.size = len(data) if kind == tarfile.REGTYPE else 0
    return info, data


def write_archive(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for info, data in members:
            file.addfile(info, io.BytesIO(data))
    return path


@dataclass(frozen=True)
class Hostile:
    id: str
    name: str
    kind: bytes
    link: str
    reason: str


HOSTILE = [
    Hostile("absolute", "/a/2.jpg", tarfile.REGTYPE, "", "absolute"),
    Hostile("parent", "a/../../2.jpg", tarfile.REGTYPE, "", ".."),
    Hostile("symbolic_link", "a/2.jpg", tarfile.SYMTYPE, "/etc/passwd", "link"),
    Hostile("hard_link", "a/2.jpg", tarfile.LNKTYPE, "a/1.jpg", "link"),
    Hostile("device", "a/2.jpg", tarfile.CHRTYPE, "", "neither a file nor a folder"),
    Hostile("pipe", "a/2.jpg", tarfile.FIFOTYPE, "", "neither a file nor a folder"),
]


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: case.id)
def test_members_that_could_do_harm_are_refused(case: Hostile, tmp_path: Path) -> None:
    path = write_archive(tmp_path / "x.tar", [member("a/1.jpg"), member(case.name, b"y", case.kind, case.link)])

    listing = list_archive(path)

    assert listing.files == ("a/1.jpg",)
    assert [problem.name for problem in listing.refused] == [case.name]
    assert case.reason in listing.refused[0].reason
    everything = {"a/1.jpg", "a/2.jpg", "a/../../2.jpg", "/a/2.jpg"}
    assert list(read_archive(path, everything)) == [("a/1.jpg", b"x")]


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tgz", "tar.xz"])
def test_every_kind_of_archive_is_read(suffix: str, tmp_path: Path) -> None:
    mode = {"tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.xz": "w:xz"}[suffix]
    members = [member("./b/1.jpg", b"one"), member("./a/2.jpg", b"two")]
    path = write_archive(tmp_path / f"x.{suffix}", members, mode)

    assert list_archive(path).files == ("b/1.jpg", "a/2.jpg")
    assert list(read_archive(path, {"a/2.jpg"})) == [("a/2.jpg", b"two")]


def test_hidden_members_are_left_out(tmp_path: Path) -> None:
    names = ["a/1.jpg", "a/._1.jpg", ".git/a/1.jpg", "__MACOSX/a/1.jpg", "a/.DS_Store"]
    path = write_archive(tmp_path / "x.tar", [member(name) for name in names])

    listing = list_archive(path)

    assert listing.files == ("a/1.jpg",)
    assert listing.refused == ()


def test_a_name_that_is_no_utf_8_becomes_text_that_can_be_printed(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "x.tar", [member("caf\udce9/1.jpg")])

    assert list_archive(path).files == ("caf\\xe9/1.jpg",)
    assert list(read_archive(path, {"caf\\xe9/1.jpg"})) == [("caf\\xe9/1.jpg", b"x")]


def test_a_file_that_is_there_twice_is_an_error(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "x.tar", [member("a/1.jpg"), member("./a/1.jpg", b"y")])

    with pytest.raises(DataError, match=r"holds a/1\.jpg twice"):
        list_archive(path)


def test_a_huge_member_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_FILE_SIZE_BYTES", 10)
    path = write_archive(tmp_path / "x.tar", [member("a/1.jpg", b"x" * 11), member("a/2.jpg", b"x" * 10)])

    first, second = read_archive(path, {"a/1.jpg", "a/2.jpg"})

    assert isinstance(first[1], Problem)
    assert "more than the limit of 10" in first[1].reason
    assert second == ("a/2.jpg", b"x" * 10)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.xz"])
@pytest.mark.parametrize("keep", [0.0, 0.5], ids=["empty", "cut"])
def test_a_damaged_archive_is_an_error(suffix: str, keep: float, tmp_path: Path) -> None:
    mode = {"tar": "w", "tar.gz": "w:gz", "tar.xz": "w:xz"}[suffix]
    noise = bytes(index * 7919 % 251 for index in range(30_000))
    path = write_archive(tmp_path / f"x.{suffix}", [member(f"a/{i}.jpg", noise[i:]) for i in range(3)], mode)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])

    with pytest.raises(DataError, match="can't be read as an archive"):
        list_archive(path)


def test_text_that_calls_itself_an_archive_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(b"not an archive" * 100)

    with pytest.raises(DataError, match="can't be read as an archive"):
        list_archive(path)
