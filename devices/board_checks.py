"""The checks of `devices doctor`: each looks at one thing in a board's facts and its profile.

A check never fails for want of a fact: what the board does not tell is "unknown".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from devices.profile import DeviceProfile
from devices.wheels import parse_version, satisfies, why_no_wheel
from devices.wording import counted

State = Literal["ok", "warning", "problem", "unknown"]
Facts = Mapping[str, Any]

LEAST_PYTHON = (3, 9)

_LEAST_STORAGE_MB = 64
_RUNTIMES_STORAGE_MB = 600
"""What numpy and the three runtimes take once unpacked is 350 MiB (x86-64, versions of `devices.wheels`); while they
are unpacked the wheels lie beside them."""
_LEAST_MEMORY_MB = 128
_BUSY_SHARE = 0.25
_HOT_C = 80.0
"""Where a Raspberry Pi begins to slow down (its documentation, "Monitoring core temperature")."""


@dataclass(frozen=True)
class Verdict:
    """What a check says.

    Attributes:
        state: See `devices.doctor.Finding`.
        message: In words.
        mend: A shell command for the board; None where none mends it.
    """

    state: State
    message: str
    mend: str | None = None


def architecture(profile: DeviceProfile, facts: Facts) -> Verdict:
    """Whether the board is of the profile's architecture, and its Python too."""
    told = facts.get("architecture")
    if told is None:
        return Verdict("unknown", "the board does not tell its architecture")
    mine = userland(facts)
    if profile.architecture not in (None, told, mine):
        return Verdict(
            "problem",
            f"the board is {told}, the profile says {profile.architecture}: it is another board, or has another "
            "system; take the profile that fits it",
        )
    if mine not in (told, profile.architecture):
        return Verdict(
            "problem",
            f"a 32-bit Python runs on a 64-bit kernel ({told}), so it needs the packages of {mine}; take a 64-bit "
            f"system, or a profile with the architecture {mine}",
        )
    return Verdict("ok", str(mine))


def userland(facts: Facts) -> str | None:
    """The architecture whose packages the board's Python can load."""
    told = facts.get("architecture")
    if facts.get("python_bits") == 32:
        return {"aarch64": "armv7l", "x86_64": "i686"}.get(str(told), told)
    return told


def python(profile: DeviceProfile, facts: Facts) -> Verdict:
    """Whether the board's Python is new enough for the agent."""
    version = facts.get("python") or profile.python_version
    if version is None:
        return Verdict("unknown", "the board does not tell the version of its Python")
    if parse_version(version)[:2] < LEAST_PYTHON:
        return Verdict(
            "problem",
            f"Python {version} is too old, the agent needs {'.'.join(map(str, LEAST_PYTHON))} or later. Where the "
            "system has no newer one, install one in the home directory (no root needed) and name it in a profile of "
            "your own: `python: .local/bin/python3.11`",
            "uv python install 3.11",
        )
    return Verdict("ok", f"Python {version}")


def c_library(profile: DeviceProfile, facts: Facts) -> Verdict:
    """Whether the C library is new enough for the wheels that the profile asks for."""
    libc = facts.get("libc") or profile.libc
    if libc is None:
        return Verdict("unknown", "the board does not tell its C library")
    if libc == "bionic":
        return Verdict("ok", "bionic, Android's own")
    machine = userland(facts) or profile.architecture
    reasons = [
        reason
        for runtime in profile.preference
        if (reason := why_no_wheel(profile.runtimes[runtime], architecture=machine, python=None, libc=libc)) is not None
    ]
    if reasons:
        return Verdict("warning", f"{'; '.join(reasons)}; a newer system has a newer C library")
    return Verdict("ok", libc)


def runtimes(profile: DeviceProfile, facts: Facts) -> Verdict:
    """Whether a runtime of the profile is there, or can be brought."""
    if not facts and profile.libc == "bionic":
        return Verdict("unknown", "the phone does not tell its runtimes, which Termux brings")
    usable, missing, reasons = [], [], []
    for runtime in profile.preference:
        requirement = profile.runtimes[runtime]
        there = [
            f"{package} {found['version']}"
            for package, found in (facts.get("runtimes") or {}).items()
            if not requirement or satisfies(requirement, package, found["version"])
        ]
        reason = why_no_wheel(
            requirement,
            architecture=userland(facts) or profile.architecture,
            python=facts.get("python") or profile.python_version,
            libc=facts.get("libc") or profile.libc,
        )
        if not requirement:
            usable.append(f"{runtime} (with Edgeship)")
        elif there:
            usable.append(f"{runtime} ({', '.join(there)})")
        elif reason is not None:
            reasons.append(reason)
        elif _brings_packages(profile):
            usable.append(f"{runtime} (installed at its first use)")
        else:
            missing.append(requirement)
    return _runtimes_verdict(facts, usable, missing, reasons)


def _brings_packages(profile: DeviceProfile) -> bool:
    """Whether the transport installs what a runtime needs; on this machine the user does."""
    return profile.transport.kind not in ("local", "fake")


def _runtimes_verdict(facts: Facts, usable: list[str], missing: list[str], reasons: list[str]) -> Verdict:
    lacks = [*reasons, *(f"{requirement} is not installed" for requirement in missing)]
    program = facts.get("python_executable") or "python3"
    packages = " ".join(f"'{requirement}'" for requirement in missing)
    mend = f"{program} -m pip install {packages}" if missing else None
    if not usable:
        return Verdict("problem", f"no runtime can be used: {'; '.join(lacks)}", mend)
    if lacks:
        return Verdict("warning", f"{'; '.join(lacks)}. Usable: {', '.join(usable)}", mend)
    return Verdict("ok", ", ".join(usable))


def installer(profile: DeviceProfile, facts: Facts) -> Verdict:
    """Whether packages can be installed, where that is not brought by the transport."""
    modules = facts.get("python_modules")
    if _brings_packages(profile):
        return Verdict("ok", "packages are unpacked by Edgeship; the board needs no pip")
    if modules is None:
        return Verdict("unknown", "the board does not tell whether it has pip")
    missing = [name for name in ("venv", "ensurepip", "pip") if not modules.get(name)]
    if missing:
        return Verdict(
            "warning",
            f"Python has no {', '.join(missing)}, so nothing can be installed into an environment",
            "sudo apt-get install python3-venv python3-pip",
        )
    return Verdict("ok", "pip and venv are there")


def numpy(profile: DeviceProfile, facts: Facts) -> Verdict:
    """Whether numpy is one that tflite-runtime can load: it was built for numpy 1."""
    version = facts.get("numpy")
    # Termux builds later versions, for numpy 2.
    needs_old = any(satisfies(text, "tflite-runtime", "2.14.0") for text in profile.runtimes.values())
    if version is None:
        return Verdict("unknown", "the board does not tell its numpy")
    if needs_old and parse_version(version) >= (2,):
        return Verdict(
            "problem", f"numpy {version} is too new, tflite-runtime needs one before 2", "pip install 'numpy<2'"
        )
    return Verdict("ok", f"numpy {version}")


def images(profile: DeviceProfile, facts: Facts) -> Verdict:
    """Whether JPEG and PNG images can be decoded there."""
    if not _brings_packages(profile):
        return Verdict("ok", "Pillow comes with Edgeship")
    reason = why_no_wheel(
        "pillow",
        architecture=userland(facts) or profile.architecture,
        python=facts.get("python") or profile.python_version,
        libc=facts.get("libc") or profile.libc,
    )
    if reason is None:
        return Verdict("ok", "Pillow is sent with the first JPEG or PNG")
    phone = (facts.get("libc") or profile.libc) == "bionic"
    mend = "pkg install python-pillow" if phone else "sudo apt-get install python3-pil"
    told = f"{reason}: unless the board has Debian's, it decodes no JPEG or PNG, only a binary .ppm"
    return Verdict("warning", told.replace("Debian's", "Termux's") if phone else told, mend)


def openvino(profile: DeviceProfile, facts: Facts) -> Verdict:
    """Whether the kernel shows the registers that OpenVINO's ARM plugin reads."""
    if "openvino" not in profile.runtimes or not str(facts.get("architecture")).startswith(("aarch64", "arm")):
        return Verdict("ok", "nothing special is needed")
    if facts.get("cpu_ids"):
        return Verdict("ok", "the kernel shows the processor's ID registers")
    return Verdict(
        "warning",
        "the kernel does not show the processor's ID register (/sys/devices/system/cpu/cpu0/regs/identification/"
        "midr_el1), which OpenVINO's ARM plugin reads, as under user-mode emulation: it may run slower there, or not "
        "at all",
    )


def storage(profile: DeviceProfile, facts: Facts) -> Verdict:
    """Whether there is room for models, and for the runtimes that are still to come."""
    free_mb = facts.get("free_storage_mb")
    if free_mb is None:
        return Verdict("unknown", "the board does not tell its free storage")
    mend = "du -xhd1 ~ | sort -h | tail"
    if free_mb < _LEAST_STORAGE_MB:
        return Verdict("problem", f"{free_mb} MiB of storage are free, {_LEAST_STORAGE_MB} are needed at least", mend)
    if free_mb < _RUNTIMES_STORAGE_MB and not facts.get("runtimes"):
        return Verdict("warning", f"{free_mb} MiB of storage are free, all runtimes take {_RUNTIMES_STORAGE_MB}", mend)
    return Verdict("ok", f"{free_mb} MiB are free")


def memory(profile: DeviceProfile, facts: Facts) -> Verdict:
    """Whether there is memory for an agent."""
    free_mb = facts.get("available_memory_mb")
    if free_mb is None:
        return Verdict("unknown", "the board does not tell its free memory")
    if free_mb < _LEAST_MEMORY_MB:
        return Verdict(
            "warning",
            f"{free_mb} MiB of memory are free; a runtime with a model takes {_LEAST_MEMORY_MB} and more",
            "ps -eo rss,comm --sort=-rss | head",
        )
    return Verdict("ok", f"{free_mb} MiB are free")


def cores(profile: DeviceProfile, facts: Facts) -> Verdict:
    """Whether the agent may run on all cores."""
    usable, there = facts.get("usable_cores"), facts.get("cores")
    if usable is None or there is None:
        return Verdict("unknown", "the board does not tell its cores")
    expected = max(there, profile.cores or 0)
    if usable < expected:
        return Verdict("warning", f"{usable} of {expected} cores can be used: the others are off, or kept from us")
    return Verdict("ok", counted(usable, "core"))


def governor(profile: DeviceProfile, facts: Facts) -> Verdict:
    """Whether the cores run at their full frequency from the start."""
    name = facts.get("governor")
    if name is None:
        return Verdict("unknown", "the board does not tell its governor")
    if name != "performance":
        return Verdict(
            "warning",
            f"the governor is '{name}', under which the frequency follows the load; for latencies that repeat, set "
            "'performance' (until the next start)",
            "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        )
    return Verdict("ok", "performance")


def load(profile: DeviceProfile, facts: Facts) -> Verdict:
    """Whether other programs leave the cores alone."""
    share = facts.get("cpu_busy_share")
    if share is None:
        return Verdict("unknown", "the board does not tell its load")
    if share > _BUSY_SHARE:
        return Verdict("warning", f"other programs use {share:.0%} of the cores; latencies will be too long", "top")
    return Verdict("ok", f"{share:.0%} of the cores are busy")


def heat(profile: DeviceProfile, facts: Facts) -> Verdict:
    """Whether the board is hot, or slows itself down."""
    flags = facts.get("throttling")
    if flags and flags["now"]:
        return Verdict("warning", f"the board is slowed down now: {', '.join(flags['now'])}")
    if flags and "under-voltage" in flags["since_start"]:
        return Verdict(
            "warning",
            "the voltage was too low since the start: the power supply or its cable is too weak for this board",
        )
    temperatures = facts.get("temperatures_c") or {}
    if not temperatures:
        return Verdict("unknown", "the board does not tell its temperature")
    name, highest = max(temperatures.items(), key=lambda item: item[1])
    if highest >= _HOT_C:
        return Verdict("warning", f"{name} has {highest:.0f} °C; let it cool down, or cool it")
    return Verdict("ok", f"{highest:.0f} °C at most")


def sensors(profile: DeviceProfile, facts: Facts) -> Verdict:
    """Whether the sensors of the profile can be read."""
    if not facts:
        return Verdict("unknown", "the board does not tell its sensors")
    expected = profile.sensors
    wanted = expected.energy.kind if expected.energy is not None else "none"
    there = [sensor for sensor in facts.get("energy_sensors") or () if sensor["kind"] == wanted]
    locked = [path for sensor in there if not sensor["readable"] for path in sensor["paths"]]
    if locked:
        paths = " ".join(locked)
        return Verdict("warning", "energy can't be read without the right to", f"sudo chmod a+r {paths}")
    missing = [] if wanted == "none" or there else [f"energy ({wanted})"]
    if expected.temperature is not None and expected.temperature.kind != "none" and not facts.get("temperatures_c"):
        missing.append("temperature")
    if expected.frequency is not None and expected.frequency.kind != "none" and facts.get("frequency_mhz") is None:
        missing.append("frequency")
    flags = expected.throttling is not None and expected.throttling.kind == "raspberry_pi_firmware"
    if flags and facts.get("throttling") is None:
        return Verdict(
            "warning",
            "the firmware's flags for low voltage and heat can't be read: neither get_throttled in sysfs nor vcgencmd",
            "sudo usermod -aG video $USER",
        )
    if missing:
        return Verdict("warning", f"the profile's sensors are not there: {', '.join(missing)}")
    return Verdict("ok", "those of the profile can be read")


CHECKS: dict[str, Callable[[DeviceProfile, Facts], Verdict]] = {
    "architecture": architecture,
    "python": python,
    "C library": c_library,
    "runtimes": runtimes,
    "installer": installer,
    "numpy": numpy,
    "images": images,
    "openvino": openvino,
    "storage": storage,
    "memory": memory,
    "cores": cores,
    "governor": governor,
    "load": load,
    "heat": heat,
    "sensors": sensors,
}
"""By what is looked at."""
