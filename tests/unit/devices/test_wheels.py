from __future__ import annotations

from typing import NamedTuple

import pytest

from devices.wheels import WHEELS, parse_version, satisfies, why_no_wheel


class Board(NamedTuple):
    id: str
    requirement: str
    architecture: str | None
    python: str | None
    libc: str | None
    reason: str | None


BOARDS = [
    Board("all known", "onnxruntime>=1.31,<2", "aarch64", "3.11.2", "glibc 2.36", None),
    Board("nothing known", "onnxruntime>=1.31,<2", None, None, None, None),
    Board("edge of glibc", "openvino>=2026.4", "aarch64", "3.10.12", "glibc 2.35", None),
    Board("old glibc", "openvino>=2026.4", "aarch64", "3.11", "glibc 2.31", "openvino needs glibc 2.35, the board has"),
    Board("x86 needs less", "openvino>=2026.4", "x86_64", "3.11", "glibc 2.31", None),
    Board(
        "python 3.10", "onnxruntime>=1.31,<2", "aarch64", "3.10.12", None, "for Python 3.11 to 3.14, the board has 3.10"
    ),
    Board("an older release", "onnxruntime>=1.23,<2", "aarch64", "3.10.12", "glibc 2.35", None),
    Board(
        "python 3.9", "ai-edge-litert>=2.3", "aarch64", "3.9.2", None, "for Python 3.10 to 3.14, the board has 3.9.2"
    ),
    Board("new python", "tflite-runtime==2.14", "armv7l", "3.13", None, "for Python 3.9 to 3.11, the board has 3.13"),
    Board(
        "32 bit", "ai-edge-litert>=2.3", "armv7l", "3.11", None, "has no wheel for armv7l (only for aarch64, x86_64)"
    ),
    Board("jetson-nano", "ai-edge-litert>=2.3", "aarch64", "3.11", "glibc 2.27", None),
    Board("musl", "ai-edge-litert>=2.3", "aarch64", "3.11", "musl 1.2", "needs glibc 2.27, the board has musl 1.2"),
    Board("a version nobody looked at", "openvino>=2099", "aarch64", "3.6", "glibc 2.1", None),
    Board("another package", "numpy", "aarch64", "3.6", "glibc 2.1", None),
    Board("with Edgeship", "", "armv6l", "3.6", None, None),
]


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.id)
def test_why_no_wheel(board: Board) -> None:
    reason = why_no_wheel(board.requirement, architecture=board.architecture, python=board.python, libc=board.libc)
    assert (reason is None) if board.reason is None else board.reason in str(reason)


def test_requirements() -> None:
    assert satisfies("ai-edge-litert>=2.3,<3", "ai_edge_litert", "2.3.0")
    assert not satisfies("ai-edge-litert>=2.3,<3", "ai-edge-litert", "3.0")
    assert not satisfies("ai-edge-litert>=2.3,<3", "tflite-runtime", "2.14.0")
    assert satisfies("openvino>=2026.4", "openvino", "2026.5.0.dev1")
    assert not satisfies("", "openvino", "2026.4")
    assert not satisfies("not a requirement!", "not", "1")


def test_versions() -> None:
    assert parse_version("3.11.2+") == (3, 11, 2)
    assert parse_version("unknown") == ()


def test_the_table_names_each_release_once() -> None:
    assert len({(each.package, each.version, each.architecture) for each in WHEELS}) == len(WHEELS)
