"""What is another way on Android: the C library, wheels, the lock, what the board says of itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from devices.board import courier, facts, interpreter
from devices.board_checks import c_library, numpy, runtimes
from devices.profile import load_profile
from devices.provision_android import android_hint, termux_packages
from devices.provision_tags import BoardPython, platform_tags
from devices.wheels import why_no_wheel

PROFILE = load_profile("android-phone", environment={})
TOLD = {
    "architecture": "aarch64",
    "libc": "bionic",
    "python": "3.13.9",
    "numpy": "2.3.4",
    "runtimes": {
        "onnxruntime": {"runtime": "onnxruntime", "version": "1.23.2"},
        "tflite-runtime": {"runtime": "litert", "version": "2.20.0"},
    },
}


@pytest.fixture
def on_android(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Python and `getprop` as on a phone."""
    monkeypatch.setattr(sys, "getandroidapilevel", lambda: 24, raising=False)
    properties = 'case "$1" in *release) echo 15;; *manufacturer) echo Fairphone;; *model) echo FP5;; esac'
    (tmp_path / "getprop").write_text(f"#!/bin/sh\n{properties}\n")
    (tmp_path / "getprop").chmod(0o755)
    monkeypatch.setattr(interpreter, "_GETPROP", str(tmp_path / "getprop"))


@pytest.mark.parametrize(
    ("version", "expected"), [((3, 12, 8), ("bionic", [])), ((3, 13, 9), ("bionic", [24]))], ids=str
)
@pytest.mark.usefixtures("on_android")
def test_the_c_library_of_android(
    version: tuple[int, int, int], expected: tuple[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    assert interpreter.c_library() == expected


@pytest.mark.usefixtures("on_android")
def test_a_phone_says_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interpreter.android_properties() == {"os": "Android 15", "model": "Fairphone FP5"}
    monkeypatch.setattr(facts, "read_text", lambda _: "")
    told = facts.collect()
    assert (told["libc"], told["os"], told["board_model"]) == ("bionic", "Android 15", "Fairphone FP5")
    monkeypatch.setattr(interpreter, "_GETPROP", "/nonexistent")
    assert interpreter.android_properties() == {"os": "Android"}


def test_another_system_is_no_phone() -> None:
    assert interpreter.android_properties() == {}
    assert facts.collect()["libc"] != "bionic"


def test_tags_of_wheels_for_android() -> None:
    """PEP 738: a wheel runs where the system's level is at least its own; the lowest is 21."""
    tags = platform_tags("aarch64", "bionic", (24,))
    assert tags == tuple(f"android_{level}_arm64_v8a" for level in (24, 23, 22, 21))
    assert platform_tags("armv7l", "bionic", (21,)) == ("android_21_armeabi_v7a",)
    assert platform_tags("aarch64", "bionic", ()) == ("linux_aarch64",)
    board = BoardPython((3, 13, 9), "cp313", "aarch64", 64, "bionic", (24,), {})
    assert board.takes("numpy-9-cp313-cp313-android_21_arm64_v8a.whl")
    assert not board.takes("numpy-9-cp313-cp313-android_28_arm64_v8a.whl")
    assert not board.takes("numpy-9-cp313-cp313-manylinux_2_28_aarch64.whl")
    assert board.describe() == "aarch64 with Python 3.13.9 (cp313) and bionic 24"


def test_what_brings_a_runtime() -> None:
    assert android_hint("onnxruntime>=1.23,<2") == "in Termux on the phone: pkg install python-onnxruntime"
    assert "Termux has no package of it either; take another runtime (onnxruntime, " in android_hint("openvino>=2026")
    assert termux_packages(["onnxruntime>=1", "openvino", ""]) == ["python-onnxruntime"]
    reason = why_no_wheel("openvino>=2026.4", architecture="aarch64", python="3.13", libc="bionic")
    assert str(reason).startswith("openvino has no wheel for Android; Termux has no package")
    assert why_no_wheel("", architecture="aarch64", python="3.13", libc="bionic") is None


def test_a_phone_that_is_well_is_not_warned_about() -> None:
    for check in (c_library, numpy, runtimes):
        assert check(PROFILE, TOLD).state == "ok", check
    lacks = runtimes(PROFILE, {**TOLD, "runtimes": {"onnxruntime": TOLD["runtimes"]["onnxruntime"]}})  # type: ignore[index]
    assert lacks.state == "warning"
    assert "pkg install python-tflite-runtime. Usable: onnxruntime" in lacks.message
    assert runtimes(PROFILE, {}).state == "unknown"


def test_the_lock_where_there_is_no_directory_for_all(tmp_path: Path) -> None:
    """A process of its own, for a lock ends with its process."""
    code = f"""
from devices.board import courier
courier._LOCK_DIRECTORY = "/nonexistent"
one, two = courier.Courier({str(tmp_path / "r")!r}), courier.Courier({str(tmp_path / "r")!r})
assert one.handlers()["hold"]({{"who": "me"}}) == {{"held": True}}
assert "me" in two.handlers()["hold"]({{"who": "you"}})["holder"]
"""
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop(courier.LOCK_DIRECTORY_VARIABLE, None)
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert (tmp_path / "edgeship.lock").is_file()
