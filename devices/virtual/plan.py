"""What virtual boards are, and the command lines that make and run them. Nothing here touches the machine."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from devices.errors import VirtualBoardError

USER = "board"
SUITE = "bookworm"
LIST_MIRRORS = ("apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME)", "Created-By: Packages")
"""Prints the mirrors that this machine's own apt takes packages from."""

PACKAGES = ("libstdc++6", "openssh-server", "python3", "python3-numpy", "usr-is-merged")
"""The C++ library comes with apt on every Debian, and runtimes need it; the root has no apt, which would take a fifth
of the build. There is no wheel of numpy for armhf. usr-is-merged spares the root a Perl script that merges /usr."""

HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"
SSHD_CONFIG = "/etc/ssh/edgeship_sshd_config"

_LAYOUT = 1
"""Of what `build` writes; a change makes other roots."""

# Run by mmdebstrap's shell, with the root as $1. Keys that are there already are not made again: under emulation the
# package takes twenty seconds for its own.
_HOST_KEYS_HOOK = 'mkdir -p "$1/etc/ssh" && ssh-keygen -q -A -f "$1"'


@dataclass(frozen=True)
class VirtualBoard:
    """One kind of board.

    Attributes:
        architecture: As Debian names it.
        machine: As `uname -m` prints it there.
        emulator: qemu's name of the architecture.
        cpu: The core that qemu emulates, by its own name.
        cpu_features: What that core under that emulator says of itself in AT_HWCAP, by Linux's names.
        part: Implementer, architecture, variant, part and revision of the core, as in /proc/cpuinfo.
        midr: The same as the register MIDR_EL1 holds it; None where the architecture has no such file in sysfs.
    """

    architecture: str
    machine: str
    emulator: str
    cpu: str
    cpu_features: str
    part: tuple[str, str, str, str, str]
    midr: str | None

    @property
    def host_name(self) -> str:
        """What the board calls itself, and the name of its profile."""
        return f"virtual-{self.architecture}"


# The cores of the Raspberry Pi 5 and 2: cores that exist, and not qemu's `max` with every extension at once, for which
# a runtime would choose kernels that no board of today runs.
BOARDS = {
    "arm64": VirtualBoard(
        architecture="arm64",
        machine="aarch64",
        emulator="aarch64",
        cpu="cortex-a76",
        cpu_features="fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
        part=("0x41", "8", "0x4", "0xd0b", "1"),
        midr="0x00000000414fd0b1",
    ),
    "armhf": VirtualBoard(
        architecture="armhf",
        machine="armv7l",
        emulator="arm",
        cpu="cortex-a7",
        cpu_features="swp half thumb fastmult vfp edsp thumbee neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae",
        part=("0x41", "7", "0x0", "0xc07", "5"),
        midr=None,
    ),
}
"""By architecture."""


@dataclass(frozen=True)
class BoardFiles:
    """Where a board lies on this machine.

    Attributes:
        directory: `<cache>/boards/<architecture>-<key>`; it exists only once it is whole.
    """

    directory: Path

    @property
    def root(self) -> Path:
        """Its file system."""
        return self.directory / "root"

    @property
    def identity(self) -> Path:
        """The private key of its user."""
        return self.directory / "id_ed25519"

    @property
    def host_key(self) -> Path:
        """Its public host key."""
        return self.directory / "host_key.pub"

    @property
    def known_hosts(self) -> Path:
        """Written anew at each start, for the port changes."""
        return self.directory / "known_hosts"

    @property
    def state(self) -> Path:
        """What the running board is, see `control.RunningBoard`."""
        return self.directory / "running.json"

    @property
    def log(self) -> Path:
        """What its SSH server says."""
        return self.directory / "sshd.log"

    @property
    def lock(self) -> Path:
        """Held while the board is started or ended."""
        return self.directory.with_name(f"{self.directory.name}.lock")


def find_board(architecture: str) -> VirtualBoard:
    """The board of an architecture.

    Raises:
        VirtualBoardError: There is none.
    """
    if architecture not in BOARDS:
        raise VirtualBoardError(f"there is no virtual board '{architecture}'; there are: {', '.join(BOARDS)}")
    return BOARDS[architecture]


def board_files(board: VirtualBoard, cache: Path) -> BoardFiles:
    """Where a board lies in a cache, whether it has been built or not."""
    return BoardFiles(cache / "boards" / f"{board.architecture}-{board_key(board)}")


def board_key(board: VirtualBoard) -> str:
    """A digest of all that shapes the root of a board; Debian's updates within its release are not among it."""
    shape = [_LAYOUT, SUITE, PACKAGES, USER, _HOST_KEYS_HOOK, sshd_config(board), cpuinfo(board, 1), asdict(board)]
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]


def parse_mirror(listed: str) -> str | None:
    """The first mirror of the boards' release in what `LIST_MIRRORS` prints; None where there is none.

    Debian's updates between point releases are left out: nobody but this machine reaches a virtual board.
    """
    pairs = (line.split() for line in listed.splitlines())
    return next((pair[0] for pair in pairs if len(pair) == 2 and pair[1] == SUITE), None)


def bootstrap_command(board: VirtualBoard, target: Path, *, mirror: str | None = None) -> list[str]:
    """Builds the root in `target`, which must not exist; if we are killed it ends at once, with all its processes.

    Args:
        board: What to build.
        target: Where.
        mirror: The address of a Debian mirror; None takes mmdebstrap's own.
    """
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *("unshare", "--pid", "--mount-proc", "--fork", "--kill-child"),
        *("mmdebstrap", "--mode=root", "--format=directory", "--variant=essential"),
        f"--architectures={board.architecture}",
        f"--include={','.join(PACKAGES)}",
        "--skip=check/qemu",  # it wants one more package, arch-test, and `prepare_emulation` has looked already
        '--aptopt=APT::Install-Recommends "false"',
        "--dpkgopt=force-unsafe-io",
        *(f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "info", "locale", "man")),
        f"--essential-hook={_HOST_KEYS_HOOK}",
        SUITE,
        str(target),
        *([] if mirror is None else [mirror]),
    ]


def root_commands(root: Path) -> list[list[str]]:
    """What is run in a new root: the board's user, and a look at whether everything is there."""
    inside = ["chroot", str(root)]
    return [
        # A password of `*` is one that nobody has; without it the account would be locked for keys as well.
        [*inside, "/usr/sbin/useradd", "--create-home", "--shell", "/bin/bash", "--password", "*", USER],
        [*inside, "/usr/bin/python3", "-c", "import numpy"],
    ]


def sshd_config(board: VirtualBoard) -> str:
    """The SSH server's settings; the port comes at the start."""
    return f"""\
HostKey {HOST_KEY}
AuthorizedKeysFile /etc/ssh/edgeship_authorized_keys
AllowUsers {USER}
PermitRootLogin no
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
X11Forwarding no
PrintMotd no
PidFile none
MaxSessions 100
MaxStartups 100
SetEnv QEMU_CPU={board.cpu}
Subsystem sftp /usr/lib/openssh/sftp-server
"""


def cpuinfo(board: VirtualBoard, num_cpus: int) -> str:
    """/proc/cpuinfo as a kernel on the emulated core would write it.

    User-mode emulation passes through the host's. Runtimes that look there for ARM's fields crash (ONNX Runtime), and
    ours would tell of a processor that no program of the board sees.
    """
    implementer, architecture, variant, part, revision = board.part
    core = (
        "BogoMIPS\t: 100.00\n"
        f"Features\t: {board.cpu_features}\n"
        f"CPU implementer\t: {implementer}\n"
        f"CPU architecture: {architecture}\n"
        f"CPU variant\t: {variant}\n"
        f"CPU part\t: {part}\n"
        f"CPU revision\t: {revision}\n"
    )
    return "\n".join(f"processor\t: {index}\n{core}" for index in range(num_cpus))


def sysfs_files(board: VirtualBoard, num_cpus: int) -> dict[str, str]:
    """What /sys holds on a board, by path below it: its cores. The host's sensors and devices are not the board's."""
    every = "0" if num_cpus == 1 else f"0-{num_cpus - 1}"
    base = "devices/system/cpu"
    files = {f"{base}/{name}": every for name in ("possible", "present", "online")}
    for index in range(num_cpus):
        core = f"{base}/cpu{index}"
        files |= {
            f"{core}/topology/core_id": str(index),
            f"{core}/topology/physical_package_id": "0",
            f"{core}/topology/package_cpus_list": every,
        }
        # OpenVINO's thread pool finds no core where these are missing, and the process ends by SIGSEGV.
        files |= {f"{core}/topology/{name}": _cpu_mask(1 << index) for name in ("core_cpus", "thread_siblings")}
        files |= {
            f"{core}/topology/{name}": _cpu_mask((1 << num_cpus) - 1) for name in ("package_cpus", "core_siblings")
        }
        if board.midr is not None:
            files[f"{core}/regs/identification/midr_el1"] = board.midr
    return {path: f"{text}\n" for path, text in files.items()}


def _cpu_mask(bits: int) -> str:
    """A set of cores as Linux prints it: hexadecimal, a comma in front of each 32 bits."""
    words = [bits >> shift & 0xFFFFFFFF for shift in range(0, max(bits.bit_length(), 1), 32)]
    return ",".join(f"{word:08x}" for word in reversed(words))


def start_command(python: str, settings: str) -> list[str]:
    """Starts the board's first process in namespaces of its own, and leaves it behind.

    Its mounts are seen by nobody else and end with it, and so do all its processes, whatever happens to them.

    Args:
        python: The interpreter of `devices.virtual.supervise`.
        settings: What it takes, see there.
    """
    return [
        *("setsid", "--fork"),
        *("unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"),
        *(python, "-m", "devices.virtual.supervise", settings),
    ]


def sshd_command(root: Path, port: int) -> list[str]:
    """The SSH server of a root, in the foreground, on a loopback port."""
    server = ["/usr/sbin/sshd", "-D", "-e", "-f", SSHD_CONFIG, "-o", f"ListenAddress=127.0.0.1:{port}"]
    return ["chroot", str(root), *server]


def login_command(files: BoardFiles, port: int) -> list[str]:
    """What a person types to get a shell on a board."""
    options = [f"UserKnownHostsFile={files.known_hosts}", "IdentitiesOnly=yes"]
    return [
        *("ssh", "-p", str(port), "-i", str(files.identity)),
        *(part for option in options for part in ("-o", option)),
        f"{USER}@127.0.0.1",
    ]


def known_hosts_line(host_key: str, port: int) -> str:
    """The line of a known_hosts file for a board."""
    kind, key = host_key.split()[:2]
    return f"[127.0.0.1]:{port} {kind} {key}\n"


def mounts_below(directory: Path, mounts: str) -> list[str]:
    """The mounts below a directory, the inner ones first.

    Args:
        directory: An absolute path.
        mounts: What /proc/self/mounts says; it writes a space as a backslash and 040.
    """
    places = [Path(line.split()[1].replace("\\040", " ")) for line in mounts.splitlines()]
    return sorted((str(place) for place in places if place.is_relative_to(directory)), reverse=True)
