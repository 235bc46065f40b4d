"""Parsers of facts, from recorded files of the kernel (shortened where lines repeat)."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from devices.board import facts, memory

X86_FLAGS = (
    "fpu vme sse sse2 ssse3 fma sse4_1 sse4_2 avx f16c avx2 avx512f avx512bw avx512vl avx512_bf16 avx_vnni avx512_vnni "
    "amx_bf16 avx512_fp16 amx_tile amx_int8"
)

X86_FEATURES = [
    *("sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni"),
    *("avx512_bf16", "avx512_fp16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"),
]

X86 = "\n\n".join(
    f"""processor\t: {core}
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
stepping\t: 8
cpu MHz\t\t: 2699.998
cache size\t: 107520 KB
flags\t\t: {X86_FLAGS}
bugs\t\t: spectre_v1 spectre_v2
bogomips\t: 5399.99"""
    for core in range(2)
)

RASPBERRY_PI_4 = (
    "\n\n".join(
        f"""processor\t: {core}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3"""
        for core in range(4)
    )
    + """

Hardware\t: BCM2835
Revision\t: c03111
Serial\t\t: 0000000000000000
Model\t\t: Raspberry Pi 4 Model B Rev 1.1
"""
)

RASPBERRY_PI_3_32_BIT = (
    "\n\n".join(
        f"""processor\t: {core}
model name\t: ARMv7 Processor rev 4 (v7l)
BogoMIPS\t: 38.40
Features\t: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm crc32
CPU implementer\t: 0x41
CPU architecture: 7
CPU variant\t: 0x0
CPU part\t: 0xd03
CPU revision\t: 4"""
        for core in range(4)
    )
    + "\n\nHardware\t: BCM2835\nRevision\t: a02082\n"
)

ROCK_5B = "\n\n".join(
    f"processor\t: {core}\nFeatures\t: fp asimd evtstrm fphp asimdhp asimddp{' i8mm' if core > 3 else ''}\n"
    f"CPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: {'0xd05' if core < 4 else '0xd0b'}\nCPU revision\t: 0"
    for core in range(8)
)


class Recording(NamedTuple):
    id: str
    cpuinfo: str
    model: str | None
    features: list[str]
    frequency_mhz: float | None


RECORDINGS = [
    Recording(
        "x86",
        X86,
        "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
        X86_FEATURES,
        2699.998,
    ),
    Recording("raspberry-pi-4", RASPBERRY_PI_4, "4 x Cortex-A72", ["asimd"], None),
    Recording("raspberry-pi-3-32-bit", RASPBERRY_PI_3_32_BIT, "4 x Cortex-A53", ["neon", "vfpv4"], None),
    # i8mm on half of the cores is not a feature a program can rely on.
    Recording("rock-5b", ROCK_5B, "4 x Cortex-A55 + 4 x Cortex-A76", ["asimd", "asimdhp", "asimddp"], None),
    Recording(
        "unknown part", "CPU implementer\t: 0x61\nCPU part\t: 0x022\n", "1 x implementer 0x61 part 0x022", [], None
    ),
    Recording("nothing", "", None, [], None),
]


@pytest.mark.parametrize("recording", RECORDINGS, ids=lambda recording: recording.id)
def test_cpuinfo(recording: Recording) -> None:
    assert facts.parse_cpu_model(recording.cpuinfo) == recording.model
    assert facts.parse_cpu_features(recording.cpuinfo) == recording.features
    assert facts.parse_frequency_mhz(recording.cpuinfo, "") == recording.frequency_mhz


def test_cpufreq_comes_before_cpuinfo() -> None:
    assert facts.parse_frequency_mhz(X86, "1500000\n") == 1500.0


def test_memory() -> None:
    meminfo = "MemTotal:        3884360 kB\nMemFree:         1000000 kB\nMemAvailable:    2097152 kB\n"
    assert facts.parse_memory_mb(meminfo, "MemTotal") == 3793
    assert facts.parse_memory_mb(meminfo, "MemAvailable") == 2048
    assert facts.parse_memory_mb("", "MemTotal") is None


def test_load_average() -> None:
    assert facts.parse_load_average("0.52 1.30 2.00 1/85 4205\n") == [0.52, 1.3, 2.0]
    assert facts.parse_load_average("") is None


def test_cpu_times() -> None:
    stat = "cpu  100 1 20 700 30 2 3 4 50 6\ncpu0 50 1 10 350 15 1 1 2 25 3\nintr 5\n"
    assert facts.parse_cpu_times(stat) == (130, 860)
    assert facts.parse_cpu_times("cpu  1 2\n") is None
    assert facts.parse_cpu_times("") is None


def test_os_name() -> None:
    text = 'NAME="Debian GNU/Linux"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n'
    assert facts.parse_os_name(text) == "Debian GNU/Linux 12 (bookworm)"
    assert facts.parse_os_name("PRETTY_NAME=Buildroot\n") == "Buildroot"
    assert facts.parse_os_name("") is None


def test_memory_of_a_process() -> None:
    status = "Name:\tpython\nVmPeak:\t  300000 kB\nVmHWM:\t   20480 kB\nVmRSS:\t   10240 kB\n"
    assert memory.parse_status_mb(status, "VmHWM") == 20.0
    assert memory.parse_status_mb(status, "VmRSS") == 10.0
    assert memory.parse_status_mb("Name:\tpython\n", "VmHWM") is None


def test_no_peak_memory_comes_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STATUS", "/no/such/file")
    assert memory.peak_memory() == {
        "peak_memory_mb": None,
        "peak_memory_reason": "/no/such/file has no VmHWM on this kernel",
    }


def test_collect_has_all_facts_of_this_machine() -> None:
    collected = facts.collect()
    assert collected["cores"] >= collected["usable_cores"] >= 1
    assert collected["memory_mb"] > 0
    assert collected["python"]
    assert collected["python_bits"] == 64
    assert collected["python_modules"]["venv"]
    assert collected["numpy"]
    assert [cpu for cluster in collected["clusters"] for cpu in cluster["cpus"]]
    assert collected["storage_mb"] > collected["free_storage_mb"] > 0
    assert collected["runtimes"]["onnxruntime"]["version"]
