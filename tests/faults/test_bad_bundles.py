"""Bundles that were tampered with, are for somebody else, or whose model is not what it should be."""

from __future__ import annotations

import random
import resource
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from devices.board.bundle import MANIFEST, SIGNATURE, blocks_of, header, read_bundle
from devices.board.release_errors import Refusal
from devices.board.release_home import read_state
from devices.board.release_test import run_self_test
from tests.bundles import (
    WHEEL,
    make_bundle,
    make_key,
    opened,
    release_files,
    signer_line,
    small_parts,
    trust,
    wheel_bytes,
)
from tests.faults.board import Board

Fault = Callable[[], AbstractContextManager[None]]

NUM_MUTATIONS = 10_000
FILES = (MANIFEST, SIGNATURE, *release_files(2), *small_parts(2))


def listing(directory: Path) -> dict[str, bytes]:
    """Every file below a directory but the state, whose history grows."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "state.json"
    }


@pytest.mark.parametrize("where", ["name", "size", "content", "last byte", "padding"])
@pytest.mark.parametrize("name", FILES)
def test_one_bit_of_a_file_is_flipped(name: str, where: str, signed_board: Board, tmp_path: Path, fault: Fault) -> None:
    data = bytearray(signed_board.new.read_bytes())
    begin = data.index(name.encode() + bytes(100 - len(name)))
    size = int(data[begin + 124 : begin + 135], 8)
    offset = {"name": 0, "size": 134, "content": 512 + size // 2, "last byte": 511 + size, "padding": 512 + size}[where]
    if where == "padding" and size % 512 == 0:
        pytest.skip("it has none")
    data[begin + offset] ^= 1
    (tmp_path / "tampered").write_bytes(data)
    before = listing(tmp_path)
    with fault():
        with pytest.raises(Refusal):
            signed_board.install(tmp_path / "tampered")
        assert signed_board.check() == "old"
        assert listing(tmp_path) == before
        signed_board.check_next()


@dataclass(frozen=True)
class Bad:
    """A release that a board must not take.

    Attributes:
        id: Of the case.
        step: At which it is refused.
        changes: To the manifest.
        files: Instead of the right ones.
        tested: Whether the real self-test runs.
    """

    id: str
    step: str
    changes: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    tested: bool = False


OTHER = release_files(3)
PICKLE = b"cos\nsystem\n(S'touch /evil'\ntR."

BAD = (
    Bad("wrong architecture", "fit", {"requires": {"architecture": "riscv64"}}),
    Bad("runtime not installed", "fit", {"requires": {"runtime": "nonesuch>=1"}}),
    Bad("runtime of another version", "fit", {"requires": {"runtime": "numpy<1"}}),
    Bad("newer Python", "fit", {"requires": {"python": ">=3.99"}}),
    Bad("another ABI", "fit", {"requires": {"abi": "cp21"}, "wheels": [WHEEL]}, {WHEEL: small_parts(2)[WHEEL]}),
    Bad("another C library", "fit", {"requires": {"libc": "dietlibc 0.34"}}),
    Bad("wheel that is none", "unpack", {"wheels": [WHEEL]}, {WHEEL: b"no wheel"}),
    Bad("wheel that breaks numpy", "self-test", {"wheels": [WHEEL]},
        {WHEEL: wheel_bytes({"numpy/__init__.py": "raise SystemExit(1)"})}, tested=True),
    Bad("runtime missing", "self-test", {"target": "nonesuch"}, tested=True),
    Bad("golden mismatch", "self-test", files={"golden_output_0.npy": OTHER["golden_output_0.npy"]}, tested=True),
    Bad("another model", "self-test", files={"model.fake": OTHER["model.fake"]}, tested=True),
    Bad("no model", "self-test", files={"model.fake": b"no model"}, tested=True),
    Bad("golden input that is none", "self-test", files={"golden_input_0.npy": b"\x93NUMPY"}, tested=True),
    Bad("pickle for an array", "self-test", files={"golden_output_0.npy": PICKLE}, tested=True),
    Bad("too slow at the median", "budget", {"budget": {"latency_p50_ms": 1e-9}}, tested=True),
    Bad("too slow at its worst", "budget", {"budget": {"latency_p99_ms": 1e-9}}, tested=True),
)  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.id)
def test_a_release_that_must_not_be_taken(case: Bad, board: Board, tmp_path: Path, fault: Fault) -> None:
    bundle = make_bundle(tmp_path / "bad", 2, files=case.files, **case.changes)
    with fault():
        with pytest.raises(Refusal) as refused:
            board.install(bundle, **({"self_test": run_self_test} if case.tested else {}))
        assert refused.value.step == case.step
        assert board.check() == "old"
        last = read_state(str(board.home))["history"][-1]
        assert (last["result"], last["step"]) == ("refused", case.step)
        assert last["reason"]
        board.check_next()


def expired(key: Path, _: Path) -> str:
    return signer_line(key, options='valid-before="20200101"')


def stranger(key: Path, other: Path) -> str:
    return signer_line(other)


@pytest.mark.parametrize("signers", [expired, stranger, lambda *_: ""], ids=["expired", "wrong key", "nobody"])
def test_a_key_that_counts_no_more(
    signers: Callable[[Path, Path], str], signed_board: Board, tmp_path: Path, fault: Fault
) -> None:
    key = tmp_path / "key"
    with fault():
        trust(signed_board.root, signers=signers(key, make_key(tmp_path / "other")))
        with pytest.raises(Refusal):
            signed_board.install(signed_board.new)
        assert signed_board.check() == "old"
        trust(signed_board.root, signers=signer_line(key))
        signed_board.check_next()


def test_a_revoked_key(signed_board: Board, tmp_path: Path, fault: Fault) -> None:
    with fault():
        trust(signed_board.root, revoked=tmp_path / "key.pub")
        with pytest.raises(Refusal):
            signed_board.install(signed_board.new)
        assert signed_board.check() == "old"
        (signed_board.root / ".board" / "revoked_keys").unlink()
        signed_board.check_next()


def mutated(data: bytes, random_: random.Random) -> bytes:
    """One to four changes: bits, bytes, blocks removed, doubled, swapped, headers of other names and sizes."""
    changed = bytearray(data)
    for _ in range(random_.randint(1, 4)):
        kind, place = random_.randrange(8), random_.randrange(max(1, len(changed)))
        block = place // 512 * 512
        if kind == 0:
            changed[place : place + 1] = bytes([changed[place] ^ 1 << random_.randrange(8)]) if changed else b"x"
        elif kind == 1:
            changed[place : place + random_.randrange(64)] = random_.randbytes(random_.randrange(64))
        elif kind == 2:
            del changed[block : block + 512 * random_.randint(1, 3)]
        elif kind == 3:
            changed[block:block] = changed[block : block + 512]
        elif kind == 4:
            other = random_.randrange(max(1, len(changed) // 512)) * 512
            changed[block : block + 512], changed[other : other + 512] = (
                changed[other : other + 512],
                changed[block : block + 512],
            )
        elif kind == 5:
            name = random_.choice(["../evil", "/evil", "release.json", "a", "release.json.sig", "current", "x" * 99])
            changed[block : block + 512] = header(name, random_.choice([0, 1, 512, 10**6, 8**11 - 1]))
        elif kind == 6:
            del changed[place:]
        else:
            words = random_.choice([b'"files"', b"{", b"}", b"[" * 900, b"null", b"1e999", b'"../../evil"', b"\xff"])
            changed[place : place + len(words)] = words
    return bytes(changed)


def test_ten_thousand_mutated_bundles(full_board: Board, tmp_path: Path, fault: Fault) -> None:
    """Refused, or just as good; nothing is written outside of the release, and nothing else is raised."""
    board = full_board
    data, right = board.new.read_bytes(), opened(board.new)
    random_, mutant = random.Random(7), tmp_path / "mutant"
    before, names = listing(tmp_path), set(tmp_path.parent.iterdir())
    accepted, grown_from = 0, 0
    for number in range(NUM_MUTATIONS):
        changed = mutated(data, random_)
        if changed == data:
            continue
        mutant.write_bytes(changed)
        with fault():
            try:
                with mutant.open("rb") as stream:
                    bundle = read_bundle(stream)
                    for member in bundle.members:
                        for _ in blocks_of(stream, member, bundle.manifest["files"][member.name]):
                            pass
            except Refusal:
                if number % 20 == 0:
                    with pytest.raises(Refusal):
                        board.install(mutant)
            else:  # only the manifest may change so, which a signature is there for
                assert bundle.text != right.text
                accepted += 1
        if number == NUM_MUTATIONS // 10:
            grown_from = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    mutant.unlink()
    assert accepted < NUM_MUTATIONS / 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - grown_from < 64 * 1024
    assert listing(tmp_path) == before
    assert set(tmp_path.parent.iterdir()) == names
    assert board.check() == "old"
    board.check_next()


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen on this machine")
def test_mutated_manifests_of_signed_bundles(signed_board: Board, tmp_path: Path, fault: Fault) -> None:
    data, random_ = signed_board.new.read_bytes(), random.Random(8)
    size = len(opened(signed_board.new).text)
    for _ in range(100):
        changed = bytearray(data)
        changed[512 + random_.randrange(size)] ^= 1 << random_.randrange(8)
        (tmp_path / "mutant").write_bytes(changed)
        with fault():
            with pytest.raises(Refusal):
                signed_board.install(tmp_path / "mutant")
            assert signed_board.check() == "old"
    signed_board.check_next()
