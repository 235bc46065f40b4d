"""Which wheels a bundle brings, and what they want of the board."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from devices import carried_wheels as module
from devices.carried_wheels import carried_wheels, least_libc, python_of_profile
from devices.errors import ConnectionFailedError, ProfileError, WheelMissingError
from devices.profile import DeviceProfile, load_profile
from devices.release import ask_board
from tests.wheels import write_wheel

PI = load_profile("raspberry-pi-4")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESHIP_CACHE", str(tmp_path / "cache"))


def profile(house: Path, base: DeviceProfile = PI, **changes: Any) -> DeviceProfile:
    transport = base.transport.model_copy(update={"wheelhouse": str(house)})
    return base.model_copy(update={"transport": transport, "runtimes": {"litert": "tiny-rt>=1,<2"}, **changes})


def away(_: DeviceProfile) -> dict[str, Any]:
    raise ConnectionFailedError("no route to it")


def names(paths: tuple[Path, ...]) -> list[str]:
    return [path.name.partition("-")[0] for path in paths]


@pytest.fixture
def house(tmp_path: Path) -> Path:
    place = tmp_path / "house"
    write_wheel(place, "tiny-rt", "1.5", tag="cp311-cp311-manylinux_2_27_aarch64", requires=["core", "numpy"])
    write_wheel(place, "tiny-rt", "1.9", tag="cp311-cp311-manylinux_2_39_aarch64")
    write_wheel(place, "tiny-rt", "1.5", tag="cp312-cp312-manylinux_2_27_aarch64")
    write_wheel(place, "core", "2.0")
    write_wheel(place, "numpy", "2.1", tag="cp311-cp311-manylinux_2_28_aarch64")
    return place


def test_a_board_that_is_away_is_known_by_its_profile(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ask_board", away)
    found = carried_wheels(profile(house), "litert", images=False)
    assert names(found.paths) == ["core", "numpy", "tiny_rt"]
    assert "1.5" in found.paths[-1].name, "a wheel for a newer C library is none for this board"
    assert found.requires == {"abi": "cp311", "libc": "glibc 2.28"}
    assert "as its profile says (raspberry-pi-4 can't be asked: no route to it)" in found.told


def test_a_board_that_is_there_is_asked(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = python_of_profile(PI.model_copy(update={"python_version": "3.12"}))
    facts = {**vars(board), "python": board.version}
    monkeypatch.setattr(module, "ask_board", lambda _: facts)
    write_wheel(house, "numpy", "2.1", tag="cp312-cp312-manylinux_2_28_aarch64")
    found = carried_wheels(profile(house), "litert", images=False)
    assert found.requires["abi"] == "cp312"
    assert found.told.endswith(", as raspberry-pi-4 says")


@pytest.mark.slow
def test_what_has_no_wheel_may_be_there_already(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (numpy,) = house.glob("numpy*")
    numpy.unlink()
    monkeypatch.setattr(module, "ask_board", away)
    with pytest.raises(WheelMissingError, match="numpy has no wheel"):
        carried_wheels(profile(house), "litert", images=False)
    board = python_of_profile(PI)
    monkeypatch.setattr(module, "ask_board", lambda _: {**vars(board), "python": board.version})
    asked: list[str] = []

    def installed(_: DeviceProfile, wanted: list[str]) -> dict[str, str | None]:
        asked.extend(wanted)
        return {name: "1.24.2" if name == "numpy" else None for name in wanted}

    monkeypatch.setattr(module, "ask_installed", installed)
    assert names(carried_wheels(profile(house), "litert", images=False).paths) == ["core", "tiny_rt"]
    assert "numpy" in asked


@pytest.mark.slow
def test_pillow_comes_along_for_images_where_it_has_a_wheel(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ask_board", away)
    without = carried_wheels(profile(house), "litert", images=True)
    assert names(without.paths) == ["core", "numpy", "tiny_rt"]
    assert "without Pillow" in without.told
    write_wheel(house, "pillow", "12.0")
    assert "pillow" in names(carried_wheels(profile(house), "litert", images=True).paths)


def test_a_profile_that_does_not_say_enough(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ask_board", away)
    yocto = load_profile("imx93")
    with pytest.raises(ProfileError, match=r"has no python_version, libc.*\(imx93 can't be asked: no route to it\)"):
        carried_wheels(profile(house, yocto), "litert", images=False)
    monkeypatch.setattr(module, "ask_board", ask_board)
    with pytest.raises(ProfileError, match="releases are kept on devices with transport"):
        carried_wheels(load_profile("fake"), "fake", images=False)


def test_python_of_profiles() -> None:
    board = python_of_profile(load_profile("raspberry-pi-3-32bit"))
    assert (board.abi, board.architecture, board.libc, board.libc_version) == ("cp311", "armv7l", "glibc", (2, 36))
    assert board.takes("x-1-cp311-cp311-manylinux_2_34_armv7l.whl")
    assert not board.takes("x-1-cp311-cp311-manylinux_2_34_aarch64.whl")
    phone = python_of_profile(load_profile("android-phone"))
    assert (phone.libc, phone.libc_version) == ("bionic", ())


def test_the_oldest_c_library_that_will_do() -> None:
    board = python_of_profile(PI)
    pure = "a-1-py3-none-any.whl"
    assert least_libc(board, [pure]) is None
    assert least_libc(board, []) is None
    both = "b-1-cp311-cp311-manylinux_2_17_aarch64.manylinux2014_aarch64.whl"
    assert least_libc(board, [pure, both]) == "glibc 2.17"
    either = "c-1-cp311-cp311-manylinux_2_31_aarch64.manylinux_2_28_aarch64.whl"
    assert least_libc(board, [pure, both, either]) == "glibc 2.28"
    assert least_libc(board, ["d-1-cp311-cp311-linux_aarch64.whl"]) == "glibc 2.36", "built on such a board"
