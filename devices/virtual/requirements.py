"""What a machine needs to have virtual boards, and what it lacks. Nothing here touches the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devices.errors import VirtualBoardError
from devices.virtual.plan import VirtualBoard

BINFMT = Path("/proc/sys/fs/binfmt_misc")
BINFMT_REGISTER = BINFMT / "register"
BINFMT_MOUNT_COMMAND = ["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)]
_BINFMT_RULES = Path("/usr/lib/binfmt.d")

BUILD_PROGRAMS = {
    "chroot": "coreutils",
    "mmdebstrap": "mmdebstrap",
    "setpriv": "util-linux",
    "ssh-keygen": "openssh-client",
    "unshare": "util-linux",
}
RUN_PROGRAMS = {
    "chroot": "coreutils",
    "mount": "mount",
    "setsid": "util-linux",
    "ssh": "openssh-client",
    "unshare": "util-linux",
}
"""Programs that are needed, and the Debian packages that bring them."""


@dataclass(frozen=True)
class Host:
    """What of this machine decides whether it can have virtual boards.

    Attributes:
        system: Such as "Linux".
        is_root: Whether we are the superuser.
        programs: Programs that are there, of those in `BUILD_PROGRAMS` and `RUN_PROGRAMS`.
        emulators: qemu's names of the architectures whose emulator is registered, or could be (`rule_file`).
        has_binfmt: Whether the kernel can hand programs over to an emulator.
        has_apt: Whether Debian packages can be installed.
    """

    system: str
    is_root: bool
    programs: frozenset[str]
    emulators: frozenset[str]
    has_binfmt: bool
    has_apt: bool


def missing_packages(host: Host, programs: Mapping[str, str], boards: Sequence[VirtualBoard]) -> list[str]:
    """Debian packages that this machine lacks, sorted; for the arguments see `check_host`."""
    missing = {package for program, package in programs.items() if program not in host.programs}
    if any(board.emulator not in host.emulators for board in boards):
        missing.add("qemu-user-static")
    return sorted(missing)


def install_commands(packages: Sequence[str]) -> list[list[str]]:
    """Installs Debian packages on this machine."""
    return [["apt-get", "update"], ["apt-get", "install", "--yes", "--no-install-recommends", *packages]]


def check_host(host: Host, programs: Mapping[str, str], boards: Sequence[VirtualBoard]) -> None:
    """Refuses a machine that can't have virtual boards, with all that is missing.

    Args:
        host: The machine.
        programs: What is needed, see `BUILD_PROGRAMS`.
        boards: What is to run there.

    Raises:
        VirtualBoardError: Something is missing.
    """
    if host.system != "Linux":
        raise VirtualBoardError(f"virtual boards need Linux; this is {host.system}. Use a Linux machine or container")
    missing = missing_packages(host, programs, boards)
    problems = []
    if missing:
        problems.append(f"missing packages; on Debian or Ubuntu: sudo apt-get install {' '.join(missing)}")
    if not host.has_binfmt:
        problems.append("the kernel lacks binfmt_misc; try: sudo modprobe binfmt_misc")
    if not host.is_root:
        problems.append("only root can mount and chroot; run the command as root (sudo --preserve-env=EDGESHIP_CACHE)")
    if problems:
        raise VirtualBoardError("this machine can't have virtual boards yet: " + "; ".join(problems))


def rule_file(board: VirtualBoard) -> Path:
    """The rule by which the kernel hands the board's programs to the emulator, as qemu-user-static installs it."""
    return _BINFMT_RULES / f"qemu-{board.emulator}.conf"


def registration(board: VirtualBoard) -> Path:
    """The file by which the kernel shows that it follows that rule."""
    return BINFMT / f"qemu-{board.emulator}"


def follows_rule(shown: str) -> bool:
    """Whether a registration is in force, and with the emulator opened beforehand: a chroot has none.

    Args:
        shown: What the kernel shows in the file `registration`.
    """
    lines = shown.splitlines()
    return "enabled" in lines and any(line.startswith("flags:") and "F" in line[6:] for line in lines)
