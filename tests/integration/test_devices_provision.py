"""Wheels for a board, chosen by pip from a local directory."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from devices.errors import DeviceError, ProfileError, WheelMissingError
from devices.provision import find_wheels
from devices.provision_tags import BoardPython
from tests.wheels import write_wheel

PI = BoardPython(
    version=(3, 9, 2),
    abi="cp39",
    machine="aarch64",
    bits=64,
    libc="glibc",
    libc_version=(2, 31),
    markers={"python_version": "3.9", "python_full_version": "3.9.2", "platform_machine": "aarch64"},
)


class Asked:
    """A board that says what is installed, and remembers what it was asked."""

    def __init__(self, **versions: str) -> None:
        self.versions, self.names = versions, list[str]()

    def __call__(self, names: Sequence[str]) -> Mapping[str, str | None]:
        self.names += names
        return {name: self.versions.get(name) for name in names}


def find(tmp_path: Path, *requirements: str, installed: Asked | None = None) -> list[str]:
    wheels = find_wheels(
        PI,
        requirements,
        installed=installed or Asked(),
        wheelhouse=tmp_path / "house",
        cache=tmp_path / "cache",
    )
    return [wheel.name.rpartition("-py3")[0] or wheel.name for wheel in wheels]


def test_dependencies_are_those_of_the_board(tmp_path: Path) -> None:
    house = tmp_path / "house"
    write_wheel(
        house, "tiny-rt", "1.0", tag="cp39-cp39-manylinux_2_28_aarch64",
        requires=["core<2", "backport; python_version < '3.10'", "modern; python_version >= '3.10'",
                  "x86only; platform_machine == 'x86_64'", "tool[fast]", "docs; extra == 'docs'"],
    )  # fmt: skip
    write_wheel(house, "tiny-rt", "1.0", tag=f"cp3{sys.version_info.minor}-cp3{sys.version_info.minor}-linux_x86_64")
    write_wheel(house, "tiny-rt", "2.0", tag="cp39-cp39-manylinux_2_34_aarch64")
    write_wheel(house, "core", "2.5")
    write_wheel(house, "core", "1.5")
    write_wheel(house, "backport", "1.0", requires=["core>=1.2"])
    write_wheel(house, "tool", "1.0", requires=["quick; extra == 'fast'", "slow; extra == 'other'"])
    write_wheel(house, "quick", "1.0")
    expected = ["backport-1.0", "core-1.5", "quick-1.0", "tiny_rt-1.0-cp39-cp39-manylinux_2_28_aarch64.whl", "tool-1.0"]
    assert sorted(find(tmp_path, "tiny-rt>=1", "core")) == expected


def test_what_the_board_has_is_not_sent(tmp_path: Path) -> None:
    write_wheel(tmp_path / "house", "tiny-rt", "1.0", requires=["numpy>=1.20"])
    write_wheel(tmp_path / "house", "numpy", "1.26")
    assert find(tmp_path, "tiny-rt", "numpy", installed=Asked(numpy="1.24.2")) == ["tiny_rt-1.0"]
    assert sorted(find(tmp_path, "tiny-rt", "numpy", installed=Asked(numpy="1.19"))) == ["numpy-1.26", "tiny_rt-1.0"]
    assert find(tmp_path, "numpy", installed=Asked(numpy="1.24.2")) == []


def test_an_answer_is_kept_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(tmp_path / "house", "tiny-rt", "1.0")
    first = find(tmp_path, "tiny-rt")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nonexistent/python")
        assert find(tmp_path, "tiny-rt") == first
    (kept,) = (tmp_path / "cache" / "files").rglob("*.whl")
    kept.write_bytes(b"damaged")
    assert find(tmp_path, "tiny-rt") == first
    assert kept.read_bytes() == (tmp_path / "house" / kept.name).read_bytes()
    write_wheel(tmp_path / "house", "tiny-rt", "1.1")
    assert find(tmp_path, "tiny-rt") == ["tiny_rt-1.1"]


def test_another_requirement_is_looked_for_anew_and_the_first_is_still_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("1.0", "1.1", "2.0"):
        write_wheel(tmp_path / "house", "tiny-rt", version)
    wanted = {"tiny-rt<1.1": "1.0", "tiny-rt<2": "1.1", "tiny-rt": "2.0", "tiny-rt==1.0": "1.0"}
    for requirement, version in wanted.items():
        assert find(tmp_path, requirement) == [f"tiny_rt-{version}"]
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    for requirement, version in wanted.items():
        assert find(tmp_path, requirement) == [f"tiny_rt-{version}"]
    with pytest.raises(FileNotFoundError):  # pip would have to run
        find(tmp_path, "tiny-rt>=1.1")


def test_all_packages_without_a_wheel_are_named(tmp_path: Path) -> None:
    write_wheel(tmp_path / "house", "tiny-rt", "1.0", tag="cp39-cp39-manylinux_2_28_x86_64")
    with pytest.raises(WheelMissingError) as caught:
        find(tmp_path, "tiny-rt>=1", "numpy")
    error = caught.value
    assert error.exit_code == 3
    rows = sorted(error.message.splitlines())
    assert rows[0].startswith("numpy has no wheel for aarch64 with Python 3.9.2 (cp39) and glibc 2.31 in ")
    assert rows[0].endswith("there is: nothing for Linux; on the board: sudo apt install python3-numpy")
    assert rows[1].endswith("there is: 1.0 for manylinux_2_28_x86_64 (cp39)")
    assert "standard error:" in error.details


def test_versions_that_exclude_each_other_are_an_error(tmp_path: Path) -> None:
    write_wheel(tmp_path / "house", "tiny-rt", "1.0", requires=["core<2"])
    for version in ("1.0", "2.0"):
        write_wheel(tmp_path / "house", "core", version)
    with pytest.raises(WheelMissingError, match=r"core<2,>=2 has no wheel|core>=2,<2 has no wheel"):
        find(tmp_path, "tiny-rt", "core>=2")


@pytest.mark.parametrize("requirement", ["not a requirement", "--index-url=x", "tiny @ file:///x.whl"])
def test_a_bad_requirement_is_named(requirement: str, tmp_path: Path) -> None:
    (tmp_path / "house").mkdir()
    with pytest.raises(ProfileError, match="is no requirement") as caught:
        find(tmp_path, requirement)
    assert requirement in caught.value.message


def test_a_wheelhouse_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="names as wheelhouse"):
        find(tmp_path, "tiny-rt")


def test_no_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "house").mkdir()
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(DeviceError, match="install pip there"):
        find(tmp_path, "tiny-rt")
