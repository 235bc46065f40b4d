from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from devices.board.facts import parse_cpu_features, parse_cpu_model
from devices.errors import VirtualBoardError
from devices.profile import load_profile
from devices.virtual import plan, requirements

ARM64, ARMHF = plan.BOARDS["arm64"], plan.BOARDS["armhf"]
PROGRAMS = frozenset({*requirements.BUILD_PROGRAMS, *requirements.RUN_PROGRAMS})
FIT = requirements.Host("Linux", True, PROGRAMS, frozenset({"aarch64", "arm"}), True, True)

# As kernel 6.18 shows qemu-user-static 7.2 of Debian 12.
REGISTRATION = """\
enabled
interpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P
flags: POF
offset 0
magic 7f454c460201010000000000000000000200b700
mask ffffffffffffff00fffffffffffffffffeffffff
"""


class Unfit(NamedTuple):
    id: str
    host: requirements.Host
    says: str


UNFIT = [
    Unfit("another-system", replace(FIT, system="Darwin"), "need Linux; this is Darwin"),
    Unfit("not-root", replace(FIT, is_root=False), "as root"),
    Unfit("no-mmdebstrap", replace(FIT, programs=FIT.programs - {"mmdebstrap"}), "apt-get install mmdebstrap$"),
    Unfit("no-emulator", replace(FIT, emulators=frozenset({"aarch64"})), "apt-get install qemu-user-static$"),
    Unfit("no-binfmt", replace(FIT, has_binfmt=False), "modprobe binfmt_misc"),
    Unfit(
        "several",
        replace(FIT, is_root=False, emulators=frozenset(), programs=FIT.programs - {"mmdebstrap", "setpriv"}),
        "apt-get install mmdebstrap qemu-user-static util-linux; .*as root",
    ),
]


@pytest.mark.parametrize("case", UNFIT, ids=lambda case: case.id)
def test_a_machine_that_lacks_something_is_told_all_of_it(case: Unfit) -> None:
    with pytest.raises(VirtualBoardError, match=case.says) as raised:
        requirements.check_host(case.host, requirements.BUILD_PROGRAMS, [ARM64, ARMHF])
    assert raised.value.exit_code == 2


def test_a_machine_that_has_all_is_taken() -> None:
    requirements.check_host(FIT, requirements.BUILD_PROGRAMS, [ARM64, ARMHF])
    requirements.check_host(replace(FIT, emulators=frozenset({"aarch64"})), requirements.RUN_PROGRAMS, [ARM64])


def test_what_shapes_a_root_names_it() -> None:
    assert plan.board_key(ARM64) == plan.board_key(replace(ARM64))
    others = (ARMHF, replace(ARM64, cpu="cortex-a72"), replace(ARM64, cpu_features="fp asimd"))
    assert len({plan.board_key(board) for board in (ARM64, *others)}) == 4
    assert plan.board_files(ARM64, Path("/c")).directory == Path(f"/c/boards/arm64-{plan.board_key(ARM64)}")


@pytest.mark.parametrize("board", plan.BOARDS.values(), ids=lambda board: board.architecture)
def test_facts_read_the_cpuinfo_as_the_profile_has_it(board: plan.VirtualBoard) -> None:
    profile = load_profile(board.host_name)
    text = plan.cpuinfo(board, 4)
    assert parse_cpu_model(text) == {"arm64": "4 x Cortex-A76", "armhf": "4 x Cortex-A7"}[board.architecture]
    assert parse_cpu_features(text) == list(profile.cpu_features or ())
    assert profile.architecture == board.machine
    assert profile.latency_label == "simulated"


def test_sysfs_shows_cores_and_the_register_of_64_bit_ones() -> None:
    files = plan.sysfs_files(ARM64, 2)
    assert files["devices/system/cpu/present"] == "0-1\n"
    assert files["devices/system/cpu/cpu1/topology/core_cpus"] == "00000002\n"
    assert files["devices/system/cpu/cpu0/topology/core_siblings"] == "00000003\n"
    # MIDR_EL1 (Arm Architecture Reference Manual): implementer, variant, architecture 0xf, part, revision.
    midr = int(files["devices/system/cpu/cpu1/regs/identification/midr_el1"], 16)
    assert (hex(midr >> 24), hex(midr >> 20 & 15), hex(midr >> 4 & 0xFFF), str(midr & 15)) == (
        ARM64.part[0], ARM64.part[2], ARM64.part[3], ARM64.part[4],
    )  # fmt: skip
    assert not [name for name in plan.sysfs_files(ARMHF, 2) if "midr" in name]
    assert plan.sysfs_files(ARMHF, 1)["devices/system/cpu/present"] == "0\n"


def test_many_cores_make_several_words_of_a_mask() -> None:
    files = plan.sysfs_files(ARM64, 40)
    assert files["devices/system/cpu/cpu0/topology/package_cpus"] == "000000ff,ffffffff\n"
    assert files["devices/system/cpu/cpu33/topology/thread_siblings"] == "00000002,00000000\n"


class Shown(NamedTuple):
    id: str
    text: str
    follows: bool


SHOWN = [
    Shown("debian", REGISTRATION, True),
    Shown("no-flag-F", REGISTRATION.replace("POF", "PO"), False),
    Shown("disabled", REGISTRATION.replace("enabled", "disabled"), False),
    Shown("nothing", "", False),
]


@pytest.mark.parametrize("case", SHOWN, ids=lambda case: case.id)
def test_a_registration_holds_in_a_chroot_where_the_emulator_is_open(case: Shown) -> None:
    assert requirements.follows_rule(case.text) == case.follows


def test_the_mirror_is_the_one_of_this_machine() -> None:
    listed = "http://s/security/ bookworm-security\nhttp://m/debian/ bookworm\nhttp://n/debian/ bookworm\n"
    assert plan.parse_mirror(listed) == "http://m/debian/"
    assert plan.parse_mirror("http://m/ubuntu/ noble\n") is None
    assert plan.parse_mirror("") is None


def test_command_lines_are_lists_that_keep_odd_paths_whole() -> None:
    odd = Path("/a b/'c'; d")
    assert plan.bootstrap_command(ARM64, odd)[-1] == str(odd)
    assert plan.bootstrap_command(ARM64, odd, mirror="http://m/debian")[-1] == "http://m/debian"
    assert plan.sshd_command(odd, 2200)[1] == str(odd)
    assert plan.sshd_command(odd, 2200)[-1] == "ListenAddress=127.0.0.1:2200"
    settings = '{"directory": "/a b"}'
    assert plan.start_command("/p y/python", settings)[-4:] == [
        "/p y/python",
        "-m",
        "devices.virtual.supervise",
        settings,
    ]


def test_the_known_host_is_the_one_on_that_port() -> None:
    assert plan.known_hosts_line("ssh-ed25519 AAAA root@host\n", 2200) == "[127.0.0.1]:2200 ssh-ed25519 AAAA\n"


def test_nobody_gets_in_without_the_key() -> None:
    lines = plan.sshd_config(ARMHF).splitlines()
    assert {"PasswordAuthentication no", "PermitRootLogin no", "SetEnv QEMU_CPU=cortex-a7"} <= set(lines)


def test_a_board_that_does_not_exist() -> None:
    with pytest.raises(VirtualBoardError, match="no virtual board 'riscv64'; there are: arm64, armhf"):
        plan.find_board("riscv64")


def test_mounts_that_a_killed_build_left_are_found() -> None:
    lines = ("proc /proc", r"proc /a\040b/root/proc", r"sys /a\040b/root/sys", "tmpfs /a")
    mounts = "".join(f"{line} any rw 0 0\n" for line in lines)
    assert plan.mounts_below(Path("/a b"), mounts) == ["/a b/root/sys", "/a b/root/proc"]
    assert plan.mounts_below(Path("/a b/ro"), mounts) == []
