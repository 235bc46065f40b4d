"""A machine with a live systemd: namespaces of this one, with a root, processes, network and control groups of its own.

systemd is process 1 there, as on a board; /usr is this machine's, all else is made anew in memory. Nothing that it
mounts or starts is seen by anybody else or outlives it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.ssh_board import wait_for

SYSTEMD = Path("/lib/systemd/systemd")
OTHER_ADDRESS = "10.99.0.1"
"""An address of the machine beyond loopback's own."""

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_PROGRAMS = ("ip", "mount", "nsenter", "pivot_root", "setpriv", "systemctl", "unshare")
_NAMESPACES = ("--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup")
_TARGETS = ("sysinit", "basic", "sockets", "local-fs", "timers")
_KEPT = ("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket")

_BOOT = """\
set -e
root=$1 console=$2; shift 2
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs "$root"
cd "$root"
mkdir usr proc sys dev run tmp var home root srv etc old
chmod 0700 root
ln -s usr/bin bin; ln -s usr/sbin sbin; ln -s usr/lib lib; ln -s usr/lib64 lib64
mount --bind /usr usr
mount -o remount,ro,bind usr
mount -t tmpfs -o mode=1777 tmpfs tmp
for path; do mkdir -p "$root$path"; mount --bind "$path" "$root$path"; done
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,ro,bind proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=0755 tmpfs dev
for name in full null random tty urandom zero; do touch dev/$name; mount --bind /dev/$name dev/$name; done
touch dev/console
mount --bind "$console" dev/console
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,gid=5,mode=0620,ptmxmode=0666 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx; ln -s /proc/self/fd dev/fd; ln -s fd/0 dev/stdin; ln -s fd/1 dev/stdout; ln -s fd/2 dev/stderr
mount -t tmpfs -o mode=0755 tmpfs run
cp -r /etc/ld.so.cache /etc/ld.so.conf /etc/ld.so.conf.d /etc/nsswitch.conf etc/
printf 'root:x:0:0::/root:/bin/sh\\npi:x:1000:1000::/home/pi:/bin/sh\\nnobody:x:65534:65534::/:\\n' >etc/passwd
printf 'root:x:0:\\ntty:x:5:\\npi:x:1000:\\nsystemd-journal:x:101:\\nnogroup:x:65534:\\n' >etc/group
printf '127.0.0.1 localhost\\n' >etc/hosts
printf 'board\\n' >etc/hostname
printf '0123456789abcdef0123456789abcdef\\n' >etc/machine-id
mkdir -p etc/systemd/system
printf '[Unit]\\nRequires=basic.target\\nAfter=basic.target\\n' >etc/systemd/system/board.target
for unit in $MASKED; do ln -s /dev/null etc/systemd/system/$unit; done
ip link set lo up
ip address add $OTHER/32 dev lo
pivot_root . old
umount -l old
rmdir old
mount --make-rshared /
exec env -i container=edgeship PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --unit=board.target \\
    --log-target=journal-or-kmsg --show-status=no
"""


@dataclass(frozen=True)
class Machine:
    """A running one.

    Attributes:
        directory: Shared with this machine at the same path, read and written on both sides.
        pid: Of its process 1, as this machine counts.
    """

    directory: Path
    pid: int

    def run(self, *command: str, check: bool = True, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """Runs a command there as root."""
        done = subprocess.run(
            self.command(*command),
            check=False,
            env={"PATH": _PATH, "LC_ALL": "C.UTF-8", "SYSTEMD_PAGER": "cat"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def command(self, *command: str) -> list[str]:
        """What runs a command there, for those who start it otherwise."""
        return ["nsenter", f"--target={self.pid}", "--all", *command]

    def install(self, name: str, text: str) -> None:
        """Puts a unit, or what is added to one, where root puts it."""
        path = f"/etc/systemd/system/{name}"
        script = 'mkdir -p "$(dirname "$1")" && printf %s "$2" >"$1" && systemctl daemon-reload'
        self.run("sh", "-c", script, "sh", path, text)

    def properties(self, unit: str, *names: str) -> dict[str, str]:
        """What systemd knows of a unit."""
        shown = self.run("systemctl", "show", unit, f"--property={','.join(names)}").stdout
        return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)

    def journal(self, unit: str) -> str:
        """What a unit has logged."""
        return self.run("journalctl", "--unit", unit, "--output=cat", "--no-pager", check=False).stdout


def missing() -> str:
    """Why this machine can't have one; nothing where it can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "only root can make the namespaces of a machine with systemd"
    if not SYSTEMD.exists():
        return "systemd is not installed"
    absent = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"not installed: {', '.join(absent)}"
    if _cgroup2() is None:
        return "no cgroup2 file system is mounted"
    tried = subprocess.run(["unshare", *_NAMESPACES, "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip()


@contextlib.contextmanager
def machine(directory: Path, shared: Sequence[Path] = ()) -> Iterator[Machine]:
    """Starts one, waits until it has started, and ends it.

    Args:
        directory: Of this test.
        shared: Further directories that it sees at the same path.
    """
    inside, root, console = directory / "shared", directory / "machine", directory / "console"
    inside.mkdir()
    root.mkdir()
    console.touch()
    group = Path(str(_cgroup2())) / f"edgeship-{os.getpid()}-{directory.name}"
    group.mkdir()
    seen = [str(path) for path in (*shared, inside)]
    script = 'echo 0 >"$1/cgroup.procs"; shift; exec "$@"'
    enter = ["sh", "-c", script, "sh", str(group), "setpriv", "--pdeathsig=KILL", "unshare", *_NAMESPACES]
    with console.open("ab") as written:
        process = subprocess.Popen(
            [*enter, "sh", "-c", _BOOT, "sh", str(root), str(console), *seen],
            env={"PATH": _PATH, "MASKED": " ".join(_masked()), "OTHER": OTHER_ADDRESS},
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Machine(inside, _started(process, console))
    finally:
        process.kill()
        process.wait(30)
        _remove_groups(group)


def _started(process: subprocess.Popen[bytes], console: Path) -> int:
    """The number of process 1, once systemd says that all has been started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found = [0]

    def is_up() -> bool:
        assert process.poll() is None, console.read_text()
        numbers = children.read_text().split()
        if not numbers:
            return False
        found[0] = int(numbers[0])
        command = ["nsenter", f"--target={found[0]}", "--all", "systemctl", "is-system-running"]
        state = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
        return state in {"running", "degraded"}

    assert not wait_for(is_up, 120), console.read_text()
    return found[0]


def _masked() -> list[str]:
    """Units that a machine of its own would start and this one must not, because they set up the kernel."""
    places = [Path(f"/usr/lib/systemd/system/{target}.target.wants") for target in _TARGETS]
    units = {path.name for place in places if place.is_dir() for path in place.iterdir()}
    return sorted(units - {*_KEPT})


def _cgroup2() -> str | None:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind = line.split()[:3]
        if kind == "cgroup2":
            return place
    return None


def _remove_groups(group: Path) -> None:
    """The kernel takes its time to bury the last process of a group."""

    def is_gone() -> bool:
        for path, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                Path(path).rmdir()
        return not group.exists()

    assert not wait_for(is_gone, 30), f"processes are left in {group}"
