"""The form of a bundle: one right value for every byte, and every path in it is harmless."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devices.board.bundle import blocks_of, header, kept_files, read_bundle, write_bundle
from devices.board.release_errors import BadBundle
from tests.bundles import make_bundle, manifest_of, opened, release_files


def read_all(data: bytes) -> None:
    """What the installer reads, with every digest."""
    stream = io.BytesIO(data)
    bundle = read_bundle(stream)
    for member in bundle.members:
        for _ in blocks_of(stream, member, bundle.manifest["files"][member.name]):
            pass


def archive(members: list[tuple[str, bytes]]) -> bytes:
    return b"".join(header(name, len(data)) + data + bytes(-len(data) % 512) for name, data in members) + bytes(1024)


def whole(extra: tuple[tuple[str, bytes], ...] = (), **changes: Any) -> bytes:
    files = release_files(1) | dict(extra)
    text = json.dumps(manifest_of(files, **changes)).encode()
    return archive([("release.json", text), *sorted(files.items())])


def test_the_same_input_gives_the_same_bytes_that_tar_reads(tmp_path: Path) -> None:
    one, two = (make_bundle(tmp_path / name).read_bytes() for name in ("one", "two"))
    assert one == two
    read_all(one)
    with tarfile.open(fileobj=io.BytesIO(one)) as read:
        assert {(member.mode, member.uid, member.mtime, member.type) for member in read} == {(0o644, 0, 0, b"0")}
        found = {member.name: read.extractfile(member).read() for member in read}  # type: ignore[union-attr]
    assert found.pop("release.json")
    assert found == release_files(1)


def test_a_bundle_of_other_contents_is_another_release(tmp_path: Path) -> None:
    assert opened(make_bundle(tmp_path / "one", 1)).digest != opened(make_bundle(tmp_path / "two", 2)).digest


def tar_of(kind: bytes, name: str = "model.fake", **fields: Any) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as written:
        text = json.dumps(manifest_of(release_files(1))).encode()
        info = tarfile.TarInfo("release.json")
        info.size = len(text)
        written.addfile(info, io.BytesIO(text))
        member = tarfile.TarInfo(name)
        member.type = kind
        for field, value in fields.items():
            setattr(member, field, value)
        written.addfile(member)
    return stream.getvalue()[: -len(stream.getvalue()) % 512 or None]


@dataclass(frozen=True)
class Hostile:
    id: str
    make: Callable[[], bytes]


HOSTILE = (
    Hostile("path upwards", lambda: whole((("../evil", b"x"),))),
    Hostile("absolute path", lambda: whole((("/etc/evil", b"x"),))),
    Hostile("path in a directory", lambda: whole((("a/b", b"x"),))),
    Hostile("hidden file", lambda: whole(((".board", b"x"),))),
    Hostile("dots", lambda: whole((("..", b"x"),))),
    Hostile("option as a name", lambda: whole((("-rf", b"x"),))),
    Hostile("line end in a name", lambda: whole((("a\nb", b"x"),))),
    Hostile("backslash", lambda: whole((("..\\evil", b"x"),))),
    Hostile("symbolic link", lambda: tar_of(tarfile.SYMTYPE, linkname="/etc/passwd")),
    Hostile("hard link", lambda: tar_of(tarfile.LNKTYPE, linkname="../../evil")),
    Hostile("character device", lambda: tar_of(tarfile.CHRTYPE, devmajor=1, devminor=5)),
    Hostile("block device", lambda: tar_of(tarfile.BLKTYPE, devmajor=8)),
    Hostile("pipe", lambda: tar_of(tarfile.FIFOTYPE)),
    Hostile("directory", lambda: tar_of(tarfile.DIRTYPE)),
    Hostile("sparse file", lambda: tar_of(tarfile.GNUTYPE_SPARSE)),
    Hostile("executable", lambda: tar_of(tarfile.REGTYPE, mode=0o6755)),
    Hostile("long name", lambda: tar_of(tarfile.REGTYPE, name="n" * 300)),
    Hostile("owner", lambda: tar_of(tarfile.REGTYPE, uid=1000)),
    Hostile("twice", lambda: archive([("release.json", b"{}"), ("a", b""), ("a", b"")])),
    Hostile("twice but for case", lambda: whole((("MODEL.FAKE", b"x"),))),
    Hostile("manifest in other letters", lambda: whole((("Release.json", b"x"),))),
    Hostile("manifest again", lambda: archive([("release.json", b"{}"), ("release.json", b"{}")])),
    Hostile("not sorted", lambda: archive([("release.json", b"{}"), ("b", b""), ("a", b"")])),
    Hostile("no manifest", lambda: archive(sorted(release_files(1).items()))),
    Hostile("nothing", lambda: b""),
    Hostile("only the end", lambda: bytes(1024)),
    Hostile("appended", lambda: whole() + bytes(512)),
    Hostile("cut off", lambda: whole()[:-1024]),
    Hostile("compressed", lambda: b"\x1f\x8b" + bytes(1022)),
    Hostile("too many files", lambda: archive([("release.json", b"{}"), *((f"f{n:05}", b"") for n in range(1000))])),
    Hostile("size beyond the end", lambda: header("release.json", 8 * 2**30 - 1) + bytes(1024)),
    Hostile("huge manifest", lambda: archive([("release.json", b" " * (2**20 + 1))])),
    Hostile("deep manifest", lambda: archive([("release.json", b"[" * 500_000)])),
    Hostile("long number", lambda: archive([("release.json", b"1" * 900_000)])),
    Hostile("not a number", lambda: whole(golden_tolerance=float("nan"))),
    Hostile("infinite tolerance", lambda: whole(golden_tolerance=1e400)),
    Hostile("key twice", lambda: archive([("release.json", b'{"a": 1, "a": 2}')])),
    Hostile("not UTF-8", lambda: archive([("release.json", b"\xff\xfe")])),
    Hostile("list", lambda: archive([("release.json", b"[]")])),
    Hostile("name upwards", lambda: whole(name="..")),
    Hostile("name of a path", lambda: whole(name="a/b")),
    Hostile("name of the settings", lambda: whole(name=".board")),
    Hostile("name is a number", lambda: whole(name=1)),
    Hostile("model elsewhere", lambda: whole(model="../other/model.fake")),
    Hostile("model not there", lambda: whole(model="model.tflite")),
    Hostile("golden file elsewhere", lambda: whole(outputs=[{"name": "logits", "file": "/etc/passwd"}])),
    Hostile("no golden samples", lambda: whole(inputs=[])),
    Hostile("tolerance of all", lambda: whole(golden_tolerance=1e9)),
    Hostile("budget of words", lambda: whole(budget={"latency_p50_ms": "fast"})),
    Hostile("unknown budget", lambda: whole(budget={"speed": 1})),
    Hostile("threads", lambda: whole(threads=10**6)),
    Hostile("program elsewhere", lambda: whole(program="../evil.pyz")),
    Hostile("program is a list", lambda: whole(program=["model.fake"])),
    Hostile("wheels of words", lambda: whole(wheels="x.whl")),
    Hostile("wheel elsewhere", lambda: whole(wheels=["../evil.whl"])),
    Hostile("wheel that is not there", lambda: whole(wheels=["evil-1-py3-none-any.whl"])),
    Hostile("model as a wheel", lambda: whole(wheels=["model.fake"])),
    Hostile("wheel twice", lambda: whole((("x.whl", b"x"),), wheels=["x.whl", "x.whl"])),
    Hostile("golden samples as a wheel", lambda: whole(
        (("x.whl", b"x"),), wheels=["x.whl"], inputs=[{"name": "image", "file": "x.whl", "transform": None}])),
    Hostile("compiled form without files", lambda: whole(compiled={"form": "fake"})),
    Hostile("compiled form is a list", lambda: whole(compiled=["fake"])),
    Hostile("compiled form elsewhere", lambda: whole(
        compiled={"form": "fake", "model": "/etc/passwd", "record": "labels.txt"})),
    Hostile("model as its compiled form", lambda: whole(
        compiled={"form": "fake", "model": "model.fake", "record": "labels.txt"})),
    Hostile("compiled form as its record", lambda: whole(
        compiled={"form": "fake", "model": "labels.txt", "record": "labels.txt"})),
    Hostile("the board's own note", lambda: whole((("form.json", b"{}"),))),
    Hostile("requirement is a list", lambda: whole(requires=[])),
    Hostile("requirement of numbers", lambda: whole(requires={"runtime": 1})),
    Hostile("ABI that is none", lambda: whole(requires={"abi": "../../x"})),
    Hostile("C library that is none", lambda: whole(requires={"libc": "glibc"*9})),
    Hostile("form true", lambda: whole(schema_version=True)),
    Hostile("newer form", lambda: whole(schema_version=4)),
    Hostile("older form", lambda: whole(schema_version=1)),
    Hostile("file without a digest", lambda: whole(files={})),
    Hostile("digest that is none", lambda: whole(files=dict.fromkeys(release_files(1), "../../etc"))),
)  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: case.id)
def test_hostile_bundles_are_refused(case: Hostile) -> None:
    read_all(whole())
    with pytest.raises(BadBundle):
        read_all(case.make())


def test_manifests_of_the_form_before_are_read() -> None:
    wanted = {"architecture": "x86_64", "runtime": "some[extra] >= 1 ; odd"}
    data = whole(schema_version=2, requires=wanted)
    read_all(data)
    bundle = read_bundle(io.BytesIO(data))
    assert (bundle.manifest["schema_version"], bundle.manifest["requires"]) == (2, wanted)


def test_what_a_release_keeps() -> None:
    parts = {"x.whl": b"x", "model.cache": b"x", "compiled.json": b"{}", "a.pyz": b"x"}
    compiled = {"form": "fake", "model": "model.cache", "record": "compiled.json"}
    manifest = manifest_of({**release_files(1), **parts}, wheels=["x.whl"], compiled=compiled, program="a.pyz")
    assert set(manifest["files"]) - set(kept_files(manifest)) == {"x.whl", "model.cache"}
    assert kept_files(manifest_of(release_files(1))) == manifest_of(release_files(1))["files"]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/b", ".board", "..", "-rf", "a\nb", "..\\evil"])
def test_names_are_refused_before_the_manifest_is_read(name: str) -> None:
    with pytest.raises(BadBundle, match="is called"):
        read_all(archive([("release.json", b"no manifest"), (name, b"x")]))


def test_no_bit_can_change_unnoticed(tmp_path: Path) -> None:
    data = bytearray(make_bundle(tmp_path / "one", files={"x.bin": b"12345"}).read_bytes())
    text = opened(tmp_path / "one").text
    begin = 512 + len(text)
    for position in (*range(512), *range(begin, len(data))):  # the manifest's own bits are the signature's matter
        bit = 1 << random.Random(position).randrange(8)
        data[position] ^= bit
        with pytest.raises(BadBundle):
            read_all(bytes(data))
        data[position] ^= bit
    read_all(bytes(data))


def test_a_file_whose_content_changed(tmp_path: Path) -> None:
    data = make_bundle(tmp_path / "one").read_bytes().replace(b"a\nb\nc\n", b"a\nb\nd\n")
    with pytest.raises(BadBundle, match=r"labels\.txt has SHA-256"):
        read_all(data)


def test_a_file_that_the_writer_was_not_told_of(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    stream = io.BytesIO()
    text = json.dumps(manifest_of(release_files(1))).encode()
    write_bundle(stream, text, None, {"x": str(tmp_path / "x")})
    with pytest.raises(BadBundle, match="different files"):
        read_all(stream.getvalue())
