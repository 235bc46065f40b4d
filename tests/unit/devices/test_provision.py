"""Which wheels a board takes, and what its packages depend on."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from devices.board.interpreter import describe_board
from devices.errors import DeviceError
from devices.provision import read_dependencies
from devices.provision_pip import available
from devices.provision_tags import BoardPython, platform_tags


def board(**changes: object) -> BoardPython:
    values = {
        "version": (3, 11, 2), "abi": "cp311", "machine": "aarch64", "bits": 64, "libc": "glibc",
        "libc_version": (2, 36), "markers": {},
    }  # fmt: skip
    return BoardPython(**{**values, **changes})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Wheel:
    id: str
    name: str
    board: BoardPython
    taken: bool


PI_32 = board(bits=32)
ALPINE = board(libc="musl", libc_version=(1, 2))
BULLSEYE = board(version=(3, 9, 2), abi="cp39", libc_version=(2, 31))
WHEELS = (
    Wheel("litert", "ai_edge_litert-2.3.0-cp311-cp311-manylinux_2_27_aarch64.whl", board(), True),
    Wheel("another_python", "ai_edge_litert-2.3.0-cp310-cp310-manylinux_2_27_aarch64.whl", board(), False),
    Wheel("another_architecture", "ai_edge_litert-2.3.0-cp311-cp311-manylinux_2_27_x86_64.whl", board(), False),
    Wheel("stable_abi_of_older_python", "protobuf-7.36.2-cp310-abi3-manylinux2014_aarch64.whl", board(), True),
    Wheel("pure", "flatbuffers-25.12.19-py2.py3-none-any.whl", board(), True),
    Wheel("several_platforms", "numpy-2.4.6-cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl",
          board(), True),
    Wheel("glibc_too_new", "tflite_runtime-2.14.0-cp39-cp39-manylinux_2_34_aarch64.whl", BULLSEYE, False),
    Wheel("32_bit_python", "tflite_runtime-2.14.0-cp311-cp311-manylinux_2_34_armv7l.whl", PI_32, True),
    Wheel("64_bit_wheel_32_bit_python", "tflite_runtime-2.14.0-cp311-cp311-manylinux_2_34_aarch64.whl", PI_32, False),
    Wheel("32_bit_kernel_name", "x-1-cp311-cp311-linux_armv7l.whl", board(machine="armv8l", bits=32), True),
    Wheel("musl", "numpy-2.4.6-cp311-cp311-musllinux_1_2_aarch64.whl", ALPINE, True),
    Wheel("glibc_wheel_on_musl", "numpy-2.4.6-cp311-cp311-manylinux_2_27_aarch64.whl", ALPINE, False),
    Wheel("free_threaded", "numpy-2.4.6-cp313-cp313-manylinux_2_27_aarch64.whl",
          board(version=(3, 13, 1), abi="cp313t"), False),
    Wheel("no_wheel", "numpy.zip", board(), False),
)  # fmt: skip


@pytest.mark.parametrize("case", WHEELS, ids=lambda case: case.id)
def test_a_board_takes_the_wheels_that_run_on_it(case: Wheel) -> None:
    assert case.board.takes(case.name) is case.taken


def test_platforms_go_from_the_best_to_the_plainest() -> None:
    tags = platform_tags("aarch64", "glibc", (2, 19))
    assert tags == (
        "manylinux_2_19_aarch64", "manylinux_2_18_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64",
        "linux_aarch64",
    )  # fmt: skip
    assert "manylinux1_x86_64" in platform_tags("x86_64", "glibc", (2, 19))
    assert platform_tags("riscv64", "unknown", ()) == ("linux_riscv64",)


def test_this_machine_agrees_with_packaging() -> None:
    from packaging.tags import sys_tags

    here = BoardPython.from_facts(describe_board())
    assert set(here.platforms) == {tag.platform for tag in sys_tags()} - {"any"}
    assert {str(tag) for tag in here.tags} == {str(tag) for tag in sys_tags()}


def test_a_board_is_described_in_words() -> None:
    assert PI_32.describe() == "armv7l with Python 3.11.2 (cp311) and glibc 2.36"
    unknown = board(libc="unknown", libc_version=())
    assert unknown.describe() == "aarch64 with Python 3.11.2 (cp311) and an unknown C library"


def test_what_there_is_names_the_newest_that_is_wanted() -> None:
    names = {
        "tiny_rt-1.0-cp311-cp311-manylinux_2_17_x86_64.whl",
        "tiny_rt-1.0-cp310-cp310-manylinux_2_17_x86_64.whl",
        "tiny_rt-1.0-cp311-cp311-win_amd64.whl",
        "tiny_rt-2.0-cp311-cp311-manylinux_2_17_x86_64.whl",
        "other-1.0-py3-none-any.whl",
        "broken.whl",
    }
    assert available(Requirement("tiny-rt<2"), names) == "1.0 for manylinux_2_17_x86_64 (cp310, cp311)"
    assert available(Requirement("tiny-rt>=3"), names) == "2.0 for manylinux_2_17_x86_64 (cp311)"
    assert available(Requirement("absent"), names) == "nothing for Linux"


def test_dependencies_are_read_from_the_metadata(tmp_path: Path) -> None:
    wheel = tmp_path / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "tiny-1.dist-info/METADATA", "Name: tiny\nRequires-Dist: numpy<2\nRequires-Dist: tqdm; extra == 'x'\n"
        )
    assert [str(each) for each in read_dependencies(wheel)] == ["numpy<2", 'tqdm; extra == "x"']
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.py", "")
    with pytest.raises(DeviceError, match="is no wheel"):
        read_dependencies(wheel)
