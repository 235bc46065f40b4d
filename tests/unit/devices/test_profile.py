from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from devices.errors import ProfileError
from devices.profile import list_profiles, load_profile
from devices.transport_config import FakeTransport

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


def test_shipped_profiles() -> None:
    assert {"fake", "local", "virtual-arm64", "virtual-armhf"} <= set(list_profiles())
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
    with pytest.raises(ProfileError, match=r"no device 'locl'; did you mean 'local'\? \(devices: fake, local"):
        load_profile("locl")
