"""What a board is made of and what it can tell of itself: clusters of cores, temperatures, throttling, energy.

Each is a pure parser of the kernel's texts and a small collector. Collectors take the root of the file system, so that
tests read recorded trees.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from .kernel import read_text, sorted_paths, whole_number

# ARM's implementer and part numbers (Arm Ltd., "Main ID Register"; the kernel prints them instead of a name).
ARM_PARTS = {
    ("0x41", "0xb76"): "ARM1176",
    ("0x41", "0xc07"): "Cortex-A7",
    ("0x41", "0xc08"): "Cortex-A8",
    ("0x41", "0xc09"): "Cortex-A9",
    ("0x41", "0xc0f"): "Cortex-A15",
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd04"): "Cortex-A35",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0a"): "Cortex-A75",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
}

# Raspberry Pi documentation, "vcgencmd", get_throttled: the low bits are now, those 16 above since the start.
THROTTLED_BITS = {
    0: "under-voltage",
    1: "frequency capped",
    2: "throttled",
    3: "soft temperature limit",
}

CPUS = "/sys/devices/system/cpu"
_FIRMWARE = "/sys/devices/platform/soc*/soc*:firmware/get_throttled"
_VCGENCMD_TIMEOUT_S = 5
_PROCESSOR_CHIPS = ("coretemp", "k10temp", "cpu_thermal", "zenpower")
"""Chips of hwmon that are in the processor."""
_LIKE_CORES = 0.9
"""Cores of one name are of one cluster where none is slower than this share of the fastest: chips of one kind are
sorted by what they reach."""


def core_names(cpuinfo: str) -> Dict[int, str]:
    """By logical core, the name of its kind; on x86 that of the whole processor."""
    names = {}
    for block in re.split(r"\n\s*\n", cpuinfo):
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        if not fields.get("processor", "").isdigit():
            continue
        pair = (fields.get("CPU implementer", ""), fields.get("CPU part", ""))
        if all(pair):
            name = ARM_PARTS.get(pair, f"implementer {pair[0]} part {pair[1]}")
        else:
            name = fields.get("model name", "unknown")
        names[int(fields["processor"])] = name
    return names


def group_cores(names: Mapping[int, str], speeds: Mapping[int, Tuple[Optional[int], Optional[int]]]) -> List[Any]:
    """Cores of one kind together.

    Args:
        names: By logical core, see `core_names`.
        speeds: By logical core, its highest frequency in kHz and its capacity (0..1024, from the device tree).

    Returns:
        `core`, `cpus`, `max_mhz` of each cluster (None where the kernel does not tell), by their lowest core.
    """
    clusters: List[Dict[str, Any]] = []
    for cpu in sorted(names):
        max_khz, capacity = speeds.get(cpu, (None, None))
        rank = max_khz or capacity or 0
        for cluster in clusters:
            low, high = sorted((rank, cluster["rank"]))
            if cluster["core"] == names[cpu] and low >= _LIKE_CORES * high:
                break
        else:
            cluster = {"core": names[cpu], "cpus": [], "max_khz": 0, "rank": rank}
            clusters.append(cluster)
        cluster["cpus"].append(cpu)
        cluster["max_khz"] = max(cluster["max_khz"], max_khz or 0)
    return [
        {"core": each["core"], "cpus": each["cpus"], "max_mhz": each["max_khz"] / 1000 if each["max_khz"] else None}
        for each in clusters
    ]


def parse_throttled(text: str) -> Optional[Dict[str, List[str]]]:
    """The flags of `vcgencmd get_throttled` ("throttled=0x50005") or of its file in sysfs ("50005").

    Returns:
        `now` and `since_start`: the names of what limits the board; None where the text has no flags.
    """
    match = re.fullmatch(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]{1,8})", text.strip())
    if match is None:
        return None
    flags = int(match.group(1), 16)
    return {
        "now": [name for bit, name in THROTTLED_BITS.items() if flags >> bit & 1],
        "since_start": [name for bit, name in THROTTLED_BITS.items() if flags >> (bit + 16) & 1],
    }


def parse_temperature_c(text: str) -> Optional[float]:
    """Degrees Celsius of a file in thousandths; None where it holds no likely temperature.

    Zones of what is switched off hold things like -256000 and 0.
    """
    if re.fullmatch(r"-?\d+", text.strip()) is None:
        return None
    value = int(text) / 1000
    return value if -40 < value < 150 and value != 0 else None


def parse_cpu_ids(midr: str) -> bool:
    """Whether the text is the Main ID Register that Linux shows of an ARM core (`0x00000000410fd083`)."""
    return re.fullmatch(r"0x[0-9a-fA-F]{8,16}", midr.strip()) is not None


def clusters(cpuinfo: str, root: str = "") -> List[Any]:
    """The clusters of the board, see `group_cores`; where nothing names the cores they are `unknown`."""
    names = core_names(cpuinfo)
    if not names:
        for path in sorted_paths(f"{root}{CPUS}/cpu[0-9]*"):
            match = re.search(r"/cpu(\d+)$", path)
            if match is not None:
                names[int(match.group(1))] = "unknown"
    return group_cores(names, core_speeds(names, root))


def core_speeds(cpus: Iterable[int], root: str = "") -> Dict[int, Tuple[Optional[int], Optional[int]]]:
    """By logical core, its highest frequency in kHz and its capacity (0..1024, from the device tree)."""
    return {
        cpu: (
            whole_number(f"{root}{CPUS}/cpu{cpu}/cpufreq/cpuinfo_max_freq"),
            whole_number(f"{root}{CPUS}/cpu{cpu}/cpu_capacity"),
        )
        for cpu in cpus
    }


def temperatures_c(root: str = "") -> Dict[str, float]:
    """By the name of its zone or sensor, each temperature that the board tells; the highest of those of one name."""
    zones = _zones_c(root)
    return {**zones, **_chips_c(root), **zones}  # the zones in front, and they count where names meet


def processor_temperatures_c(root: str = "") -> Dict[str, float]:
    """Those of the processor: of the thermal zones, and where there are none of its sensors in hwmon."""
    zones = _zones_c(root)
    return zones or _chips_c(root, _PROCESSOR_CHIPS)


def _zones_c(root: str) -> Dict[str, float]:
    """By the type of the thermal zone; several zones of one type are told by the hottest."""
    found: Dict[str, float] = {}
    for path in sorted_paths(f"{root}/sys/class/thermal/thermal_zone*/temp"):
        value = parse_temperature_c(read_text(path))
        if value is not None:
            folder = os.path.dirname(path)
            name = read_text(folder + "/type").strip() or os.path.basename(folder)
            found[name] = max(value, found.get(name, value))
    return found


def _chips_c(root: str, chips: Optional[Sequence[str]] = None) -> Dict[str, float]:
    """By chip and label, the temperatures in hwmon; None takes all chips."""
    found: Dict[str, float] = {}
    for path in sorted_paths(f"{root}/sys/class/hwmon/hwmon*/temp*_input"):
        value = parse_temperature_c(read_text(path))
        chip = read_text(os.path.join(os.path.dirname(path), "name")).strip()
        if value is not None and (chips is None or chip in chips):
            label = read_text(path[: -len("input")] + "label").strip() or os.path.basename(path)[: -len("_input")]
            name = f"{chip} {label}".strip()
            found[name] = max(value, found.get(name, value))
    return found


def frequencies_mhz(root: str = "") -> List[float]:
    """Of each core that tells, in their order."""
    paths = sorted_paths(f"{root}{CPUS}/cpu[0-9]*/cpufreq/scaling_cur_freq")
    if not paths:
        texts = re.findall(r"^cpu MHz\s*:\s*([0-9.]+)$", read_text(root + "/proc/cpuinfo"), re.MULTILINE)
        return [float(text) for text in texts]
    values = [whole_number(path) for path in paths]
    return [value / 1000 for value in values if value is not None]


def governor(root: str = "") -> Optional[str]:
    """Of the first core."""
    return read_text(f"{root}{CPUS}/cpu0/cpufreq/scaling_governor").strip() or None


def throttle_count(root: str = "") -> Optional[int]:
    """How often the first core was slowed down for heat since the start (Intel tells)."""
    return whole_number(f"{root}{CPUS}/cpu0/thermal_throttle/core_throttle_count")


def throttling(root: str = "") -> Optional[Dict[str, List[str]]]:
    """What slows a Raspberry Pi down, see `parse_throttled`; None on other boards."""
    for path in sorted_paths(root + _FIRMWARE):
        flags = parse_throttled(read_text(path))
        if flags is not None:
            return flags
    program = None if root else shutil.which("vcgencmd")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "get_throttled"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_VCGENCMD_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_throttled(done.stdout)


def cooling_states(root: str = "") -> Dict[str, int]:
    """By its type, how far each cooling device that slows a processor down is on now; 0 is off."""
    found: Dict[str, int] = {}
    for path in sorted_paths(f"{root}/sys/class/thermal/cooling_device*/cur_state"):
        kind = read_text(os.path.join(os.path.dirname(path), "type")).strip()
        value = whole_number(path)
        if kind.startswith(("cpufreq", "thermal-cpufreq", "cpu", "Processor")) and value is not None:
            found[kind] = max(value, found.get(kind, 0))
    return found


def energy_sensors(root: str = "") -> List[Dict[str, Any]]:
    """What tells energy or power: RAPL of x86 processors, and power monitors in hwmon (INA2xx, INA3221 and alike).

    Returns:
        Of each: `kind` ("rapl" counts microjoules in `path`; "hwmon" has microwatts in `path`, or millivolts times
        milliamperes in `paths`), `name`, and `readable`, for the kernel keeps RAPL to root.
    """
    found: List[Dict[str, Any]] = []
    for path in sorted_paths(f"{root}/sys/class/powercap/intel-rapl:*/energy_uj"):
        name = read_text(os.path.join(os.path.dirname(path), "name")).strip()
        found.append({"kind": "rapl", "name": name, "paths": [path], "readable": os.access(path, os.R_OK)})
    for folder in sorted_paths(f"{root}/sys/class/hwmon/hwmon*"):
        found += [{"kind": "hwmon", **sensor} for sensor in _power_sensors(folder)]
    for sensor in found:
        sensor["paths"] = [path[len(root) :] for path in sensor["paths"]]
    return found


def _power_sensors(folder: str) -> List[Dict[str, Any]]:
    """The powers of one chip of hwmon: measured, or as voltage and current of a channel, as with the INA3221."""
    chip = read_text(folder + "/name").strip()
    powers = sorted_paths(folder + "/power*_input")
    if powers:
        return [_power_sensor(chip, path[: -len("input")], [path]) for path in powers]
    found = []
    for current in sorted_paths(folder + "/curr*_input"):
        number = re.search(r"curr(\d+)_input$", current)
        voltage = f"{folder}/in{number.group(1) if number else ''}_input"
        # The fourth current of an INA3221 is the sum of the three, and has no voltage.
        if chip.startswith("ina") and os.path.exists(voltage):
            found.append(_power_sensor(chip, voltage[: -len("input")], [voltage, current]))
    return found


def _power_sensor(chip: str, prefix: str, paths: Sequence[str]) -> Dict[str, Any]:
    label = read_text(prefix + "label").strip()
    readable = all(os.access(path, os.R_OK) for path in paths)
    return {"name": f"{chip} {label}".strip(), "paths": list(paths), "readable": readable}
