from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from devices.board.facts import CPU_FEATURES
from devices.errors import ProfileError
from devices.profile import FACTS, PROFILES_DIR, list_profiles, load_profile
from devices.transport_config import FakeTransport, SshTransport
from devices.wheels import parse_requirement, why_no_wheel

FULL = """
name: board
description: A board.
runtimes: {litert: ai-edge-litert}
preference: [litert]
transport: {kind: local}
latency_label: measured
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", list_profiles())
def test_shipped_profiles_load_under_their_own_name(name: str) -> None:
    assert load_profile(name).name == name


BOARDS = (
    *("beagleplay", "coral-dev-board", "imx8m-plus", "imx93", "intel-n100", "jetson-nano", "jetson-orin-nano"),
    *("raspberry-pi-3", "raspberry-pi-3-32bit", "raspberry-pi-4", "raspberry-pi-5", "raspberry-pi-zero-2-w", "rock-5b"),
)


def test_shipped_profiles() -> None:
    assert {"fake", "local", *BOARDS, "virtual-arm64", "virtual-armhf"} <= set(list_profiles())
    assert load_profile("local").latency_label == "measured"
    assert load_profile("fake").latency_label == "simulated"


def test_a_path_loads_and_defaults_hold(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path / "board.yaml", FULL))
    assert profile.threads == 1
    assert profile.architecture is None
    assert profile.budgets.latency_p50_ms is None
    assert load_profile(str(tmp_path / "board.yaml")) == profile


def test_extends_merges_mappings_and_replaces_the_rest(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", FULL + "budgets: {latency_p50_ms: 5, size_bytes: 100}\nnotes: [one]\n")
    write(tmp_path / "middle.yaml", "extends: base.yaml\nname: middle\nbudgets: {latency_p50_ms: 7}\nnotes: [two]\n")
    top = write(tmp_path / "top.yaml", "extends: middle.yaml\nname: top\nthreads: 4\n")
    profile = load_profile(top)
    assert (profile.name, profile.threads, profile.notes) == ("top", 4, ("two",))
    assert (profile.budgets.latency_p50_ms, profile.budgets.size_bytes) == (7, 100)


def test_extends_of_a_shipped_name_and_another_transport(tmp_path: Path) -> None:
    text = "extends: fake\nname: mine\ntransport: {die_on: load}\n"
    assert load_profile(write(tmp_path / "a.yaml", text)).transport == FakeTransport(die_on="load")
    text = "extends: fake\nname: mine\nlatency_label: measured\ntransport: {kind: local}\n"
    assert load_profile(write(tmp_path / "b.yaml", text)).transport.kind == "local"


class Bad(NamedTuple):
    id: str
    text: str
    message: str


BAD = [
    Bad("unknown key", FULL + "arhitecture: x86_64\n", "arhitecture: unknown key; did you mean 'architecture'"),
    Bad("unknown budget", FULL + "budgets: {latency_p50: 1}\n", "did you mean 'latency_p50_ms'"),
    Bad("unknown transport key", FULL.replace("local}", "local, host: a}"), "transport.local.host: unknown key"),
    Bad("unknown transport", FULL.replace("kind: local", "kind: shh"), "'fake'"),
    Bad("unknown runtime", FULL.replace("litert: ai", "liter: ai"), "no runtime 'liter'; did you mean 'litert'"),
    Bad("preference", FULL.replace("[litert]", "[openvino]"), "preference must name each of the runtimes once"),
    Bad("missing", FULL.replace("description: A board.", ""), "description: Field required"),
    Bad("threads", FULL + "threads: 0\n", "threads: "),
    Bad("infinite", FULL + "budgets: {latency_p50_ms: .inf}\n", "latency_p50_ms"),
    Bad("fake measures", FULL.replace("kind: local", "kind: fake"), "measures nothing"),
    Bad("unknown budget key", FULL + "budgets: {energy: 1}\n", "budgets.energy: unknown key; did you mean 'energy_mj'"),
    Bad(
        "accuracy", FULL + "budgets: {accuracy: 90}\n", "budgets.accuracy: Input should be less than or equal to 1 (90)"
    ),
    Bad("cluster key", FULL + "clusters: [{core: A, cpu: 0-3}]\n", "clusters.0.cpu: unknown key; did you mean 'cpus'"),
    Bad(
        "cluster cpus",
        FULL + "clusters: [{core: A, cpus: 3-0}]\n",
        "expected logical cores such as 0-3 or 0,2-4 ('3-0')",
    ),
    Bad("cpu twice", FULL + "clusters: [{core: A, cpus: 0-3}, {core: B, cpus: 3-4}]\n", "the logical cores 3 twice"),
    Bad("cores", FULL + "cores: 8\nclusters: [{core: A, cpus: 0-3}]\n", "cores is 8, but the clusters have 4"),
    Bad("no clusters", FULL + "clusters: []\n", "clusters: "),
    Bad("storage key", FULL + "storage: {type: eMMC}\n", "storage.type: unknown key"),
    Bad("sensor", FULL + "sensors: {temprature: {kind: hwmon}}\n", "unknown key; did you mean 'temperature'"),
    Bad(
        "sensor key",
        FULL + "sensors: {energy: {kind: rapl, pth: /sys/a}}\n",
        "sensors.energy.pth: unknown key; did you",
    ),
    Bad(
        "sensor kind",
        FULL + "sensors: {energy: {kind: cpufreq}}\n",
        "energy has the kind 'cpufreq'; expected one of: rapl",
    ),
    Bad("no reason", FULL + "sensors: {energy: {kind: none}}\n", "a sensor of kind 'none' needs a reason"),
    Bad("reason", FULL + "sensors: {energy: {kind: rapl, reason: a}}\n", "only such a one has a reason"),
    Bad("sensor path", FULL + "sensors: {energy: {kind: rapl, path: /etc/passwd}}\n", "sensors.energy.path: "),
    Bad(
        "source", FULL + "sources: {memory: a}\n", "sources names 'memory', which is no fact; did you mean 'memory_mb'"
    ),
    Bad("python version", FULL + "python_version: 3.11.x\n", "python_version: "),
    Bad("python as a number", FULL + "python_version: 3.10\n", "python_version: Input should be a valid string (3.1)"),
    Bad("libc", FULL + 'libc: "2.36"\n', "libc: "),
    Bad("not yaml", "name: [", "is not YAML"),
    Bad("double key", FULL + "name: other\n", "is not YAML"),
    Bad("not a mapping", "- name", "expected a mapping"),
    Bad("empty", "", "expected a mapping"),
    Bad("extends nothing", FULL + "extends: lokal\n", "did you mean 'local'"),
    Bad("extends itself", FULL + "extends: bad.yaml\n", "in a circle: bad.yaml -> bad.yaml"),
    Bad("extends a list", FULL + "extends: [local]\n", "expected the name or the path of one profile"),
    Bad("name", FULL.replace("name: board", "name: ../board"), "name: "),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.id)
def test_bad_profiles_are_named_clearly(bad: Bad, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.yaml", bad.text)
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    assert bad.message in caught.value.message
    assert caught.value.exit_code == 2


def test_binary_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProfileError, match="is not YAML"):
        load_profile(tmp_path / "bad.yaml")
    with pytest.raises(ProfileError, match="no such file"):
        load_profile(tmp_path / "none.yaml")


def test_unknown_device_lists_the_known() -> None:
    with pytest.raises(ProfileError, match=r"no device 'locl'; did you mean 'local'\? \(devices: .*, fake, .*local,"):
        load_profile("locl")


def test_parents_are_no_devices_but_can_be_extended(tmp_path: Path) -> None:
    parents = [path.stem for path in PROFILES_DIR.glob("_*.yaml")]
    assert parents
    assert not set(parents) & set(list_profiles())
    with pytest.raises(ProfileError, match="no device '_raspberry-pi'"):
        load_profile("_raspberry-pi")
    text = "extends: _raspberry-pi\nname: mine\ndescription: Mine.\n"
    assert load_profile(write(tmp_path / "mine.yaml", text)).architecture == "aarch64"


@pytest.mark.parametrize("name", BOARDS)
def test_each_fact_of_a_shipped_board_has_a_source(name: str) -> None:
    profile = load_profile(name)
    stated = profile.model_dump(exclude_defaults=True)
    assert {"cpu_features", "cores", "clusters", "runtimes", "soc"} <= set(stated)
    assert [fact for fact in FACTS if fact in stated and fact not in profile.sources] == []
    assert [fact for fact in profile.sources if fact not in stated] == []
    assert set(profile.cpu_features or ()) <= set(CPU_FEATURES)


@pytest.mark.parametrize("name", BOARDS)
def test_a_shipped_board_promises_no_runtime_without_a_wheel(name: str) -> None:
    profile = load_profile(name)
    too_old = profile.python_version in {"3.6", "3.7"}
    for requirement in profile.runtimes.values():
        assert parse_requirement(requirement) is not None
        # With a Python of one's own, where the system's is too old for the agent; the notes say how.
        python = "3.11" if too_old else profile.python_version
        assert why_no_wheel(requirement, architecture=profile.architecture, python=python, libc=profile.libc) is None
    assert not too_old or "uv python install" in " ".join(profile.notes)


_ARMV8_2 = ("asimd", "asimdhp", "asimddp")
CORE_FEATURES = {
    **dict.fromkeys(("Cortex-A53", "Cortex-A57", "Cortex-A72"), ("asimd",)),
    **dict.fromkeys(("Cortex-A55", "Cortex-A76", "Cortex-A78AE"), _ARMV8_2),
    "Intel(R) N100": ("sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni"),
}
"""By core, what a 64-bit system shows of it."""
SYSTEMS = {
    "Debian GNU/Linux 12 (bookworm)": ("3.11", "glibc 2.36"),
    "Raspbian GNU/Linux 12 (bookworm)": ("3.11", "glibc 2.36"),
    "Mendel GNU/Linux 5 (Eagle)": ("3.7", "glibc 2.28"),
    "Ubuntu 18.04": ("3.6", "glibc 2.27"),
    "Ubuntu 22.04": ("3.10", "glibc 2.35"),
    None: (None, None),
}
"""By system, its Python and its C library."""


@pytest.mark.parametrize("name", BOARDS)
def test_the_facts_of_a_shipped_board_agree_with_each_other(name: str) -> None:
    profile = load_profile(name)
    kinds = [CORE_FEATURES[cluster.core] for cluster in profile.clusters or ()]
    expected = {"neon", "vfpv4"} if profile.architecture == "armv7l" else set.intersection(*map(set, kinds))
    assert set(profile.cpu_features or ()) == expected
    cpus = [cpu for cluster in profile.clusters or () for cpu in cluster.cpus]
    assert sorted(cpus) == list(range(profile.cores or 0))
    assert all(800 <= (cluster.max_mhz or 1000) <= 4000 for cluster in profile.clusters or ())
    assert profile.memory_mb is None or profile.memory_mb % 512 == 0
    assert (profile.python_version, profile.libc) == SYSTEMS[profile.os]
    arm = any(cluster.core.startswith("Cortex") for cluster in profile.clusters or ())
    assert (profile.architecture in {"aarch64", "armv7l"}) == arm


def test_sources_of_replaced_facts_are_gone(tmp_path: Path) -> None:
    base = FULL + "memory_mb: 512\ncores: 4\nsources: {memory_mb: a data sheet, cores: [one, two]}\n"
    write(tmp_path / "base.yaml", base)
    mine = load_profile(write(tmp_path / "mine.yaml", "extends: base.yaml\nmemory_mb: 1024\n"))
    assert mine.sources == {"cores": ("one", "two")}
    text = "extends: base.yaml\nmemory_mb: 1024\nsources: {memory_mb: free -m}\n"
    mine = load_profile(write(tmp_path / "mine.yaml", text))
    assert mine.sources == {"cores": ("one", "two"), "memory_mb": ("free -m",)}


def test_a_null_takes_an_inherited_runtime_away(tmp_path: Path) -> None:
    write(
        tmp_path / "base.yaml", FULL.replace("{litert:", "{openvino: openvino, litert:").replace("[l", "[openvino, l")
    )
    text = "extends: base.yaml\nruntimes: {openvino: null}\npreference: [litert]\n"
    assert load_profile(write(tmp_path / "mine.yaml", text)).runtimes == {"litert": "ai-edge-litert"}


def test_clusters_are_lists_or_ranges(tmp_path: Path) -> None:
    text = FULL + 'clusters: [{core: A, cpus: "0,2-3"}, {core: B, cpus: [1, 4], max_mhz: 2400}]\ncores: 5\n'
    clusters = load_profile(write(tmp_path / "board.yaml", text)).clusters
    assert clusters is not None
    assert [(cluster.core, cluster.cpus, cluster.max_mhz) for cluster in clusters] == [
        ("A", (0, 2, 3), None),
        ("B", (1, 4), 2400),
    ]


SSH = FULL.replace("kind: local", "kind: ssh")


class Told(NamedTuple):
    id: str
    text: str
    host: str | None
    environment: dict[str, str]
    expected: tuple[str, str | None, int | None]


TOLD = [
    Told("by its name", SSH, None, {}, ("board", None, None)),
    Told("as written", SSH.replace("ssh", "ssh, host: a, user: me"), None, {}, ("a", "me", None)),
    Told("by a variable", SSH, None, {"EDGESHIP_HOST_BOARD": "pi@10.0.0.7:2222"}, ("10.0.0.7", "pi", 2222)),
    Told("by an option", SSH, "pi@b", {"EDGESHIP_HOST_BOARD": "a"}, ("b", "pi", None)),
    Told("keeps the rest", SSH.replace("ssh", "ssh, host: a, user: me, port: 22"), "b", {}, ("b", "me", 22)),
]


@pytest.mark.parametrize("told", TOLD, ids=lambda told: told.id)
def test_where_a_board_is(told: Told, tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path / "a.yaml", told.text), host=told.host, environment=told.environment)
    assert isinstance(profile.transport, SshTransport)
    assert (profile.transport.host, profile.transport.user, profile.transport.port) == told.expected


def test_a_host_for_what_is_not_reached_over_ssh() -> None:
    with pytest.raises(ProfileError, match="'local' is, but it is reached by local, not by SSH"):
        load_profile("local", host="pi@10.0.0.7")


def test_the_environment_of_this_process_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESHIP_HOST_RASPBERRY_PI_4", "pi@10.0.0.7")
    assert load_profile("raspberry-pi-4").transport == SshTransport(host="10.0.0.7", user="pi")
