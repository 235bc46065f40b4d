"""Builds the root file systems of virtual boards."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock

from devices.errors import VirtualBoardError
from devices.virtual import plan, requirements

Tell = Callable[[str], None]
"""Takes one line for people."""


def build_board(board: plan.VirtualBoard, cache: Path, *, mirror: str | None = None, tell: Tell) -> plan.BoardFiles:
    """Builds a board where the cache has none.

    It is made beside its place and put there by one rename: what is there is whole. Another build of the same board
    waits for this one.

    Args:
        board: What to build.
        cache: See `devices.cache.cache_directory`.
        mirror: The address of a Debian mirror; None takes the one that this machine's apt uses for the release.
        tell: Takes progress.

    Raises:
        VirtualBoardError: This machine can't build it, or the build failed.
    """
    files = plan.board_files(board, cache)
    if files.directory.is_dir():
        return files
    install_missing(board, tell=tell)
    requirements.check_host(look_at_host(), requirements.BUILD_PROGRAMS, [board])
    files.directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(files.lock):
        if files.directory.is_dir():
            return files
        prepare_emulation(board, tell=tell)
        partial = files.directory.with_name(f"{files.directory.name}.partial")
        _remove_partial(partial)  # of a build that was killed: the lock is ours
        try:
            _build(board, plan.BoardFiles(partial), mirror, tell)
            partial.rename(files.directory)
        except BaseException:
            _remove_partial(partial)
            raise
    return files


def look_at_host() -> requirements.Host:
    """This machine."""
    programs = {*requirements.BUILD_PROGRAMS, *requirements.RUN_PROGRAMS}
    boards = plan.BOARDS.values()
    return requirements.Host(
        system=platform.system(),
        is_root=os.geteuid() == 0,
        programs=frozenset(program for program in programs if _find_program(program)),
        emulators=frozenset(
            board.emulator for board in boards if requirements.rule_file(board).is_file() or _emulates(board)
        ),
        has_binfmt=requirements.BINFMT.is_dir(),
        has_apt=_find_program("apt-get") is not None,
    )


def install_missing(board: plan.VirtualBoard, *, tell: Tell) -> None:
    """Installs the packages that a build needs, where root can and they aren't there; says which.

    Raises:
        VirtualBoardError: apt failed.
    """
    host = look_at_host()
    missing = requirements.missing_packages(host, {**requirements.BUILD_PROGRAMS, **requirements.RUN_PROGRAMS}, [board])
    if missing and host.is_root and host.has_apt:
        tell(f"installing on this machine what virtual boards need: {', '.join(missing)}")
        for command in requirements.install_commands(missing):
            _run(command, None)


def prepare_emulation(board: plan.VirtualBoard, *, tell: Tell) -> None:
    """Makes the kernel hand the board's programs to the emulator, where it doesn't yet; this needs root.

    It changes the machine until its next start, in the same way as its own start-up scripts do.

    Raises:
        VirtualBoardError: It could not be done.
    """
    if _emulates(board):
        return
    if not requirements.BINFMT_REGISTER.exists():
        tell(f"mounting binfmt_misc: {' '.join(requirements.BINFMT_MOUNT_COMMAND)}")
        _run(requirements.BINFMT_MOUNT_COMMAND, None)
    if _emulates(board):
        return
    rule = requirements.rule_file(board)
    if requirements.registration(board).exists() or not rule.is_file():
        raise VirtualBoardError(
            f"programs for {board.machine} are handed to an emulator that a chroot does not have (its registration "
            f"{requirements.registration(board)} lacks the flag F); install qemu-user-static and register it anew"
        )
    tell(f"registering qemu for programs of {board.machine}: {rule} goes into {requirements.BINFMT_REGISTER}")
    try:
        requirements.BINFMT_REGISTER.write_bytes(rule.read_bytes())
    except OSError as error:
        raise VirtualBoardError(f"the kernel refuses the rule {rule}: {error}") from error


def _emulates(board: plan.VirtualBoard) -> bool:
    try:
        return requirements.follows_rule(requirements.registration(board).read_text(encoding="ascii"))
    except OSError:
        return False


def _own_mirror() -> str | None:
    try:
        listed = subprocess.run(plan.LIST_MIRRORS, capture_output=True, text=True, check=False).stdout
    except OSError:
        return None
    return plan.parse_mirror(listed)


def _build(board: plan.VirtualBoard, files: plan.BoardFiles, mirror: str | None, tell: Tell) -> None:
    files.directory.mkdir()
    log = files.directory / "build.log"
    tell(f"building Debian {plan.SUITE} for {board.architecture} (minutes)")
    _run(plan.bootstrap_command(board, files.root, mirror=mirror or _own_mirror()), log)
    root = files.root
    make_key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", board.host_name, "-f", str(files.identity)]
    _run(make_key, log)
    _inside(root, plan.SSHD_CONFIG).write_text(plan.sshd_config(board), encoding="ascii")
    keys = _inside(root, "/etc/ssh/edgeship_authorized_keys")
    keys.write_bytes(files.identity.with_suffix(".pub").read_bytes())
    shutil.copyfile(_inside(root, f"{plan.HOST_KEY}.pub"), files.host_key)
    for path, text in {
        "/etc/hostname": board.host_name,
        "/etc/hosts": f"127.0.0.1 localhost {board.host_name}",
    }.items():
        _inside(root, path).write_text(f"{text}\n", encoding="ascii")
    for command in plan.root_commands(root):
        _run(command, log)


def _remove_partial(partial: Path) -> None:
    """Removes what a killed build left.

    Raises:
        VirtualBoardError: Something is mounted there, which would be emptied instead.
    """
    mounts = plan.mounts_below(partial, Path("/proc/self/mounts").read_text(encoding="utf-8"))
    if mounts:
        raise VirtualBoardError(
            f"a killed build left mounts, which only root should remove by hand: umount {' '.join(mounts)}"
        )
    if partial.exists():
        shutil.rmtree(partial)


def _inside(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _run(command: Sequence[str], log: Path | None) -> None:
    """Runs a command with what it says in a log.

    Raises:
        VirtualBoardError: It failed; the message holds the end of what it said.
    """
    environment = {**os.environ, "PATH": _search_path(), "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=environment,
    )  # fmt: skip
    output = done.stdout.decode(errors="replace")
    if log is not None:
        with log.open("a", encoding="utf-8") as stream:
            stream.write(output)
    if done.returncode != 0:
        end = "\n".join(output.strip().splitlines()[-15:])
        raise VirtualBoardError(
            f"{' '.join(command[:3])} ... ended with status {done.returncode}:\n{end}", details=output
        )


def _find_program(name: str) -> str | None:
    return shutil.which(name, path=_search_path())


def _search_path() -> str:
    """The user's, and where programs for root lie."""
    return os.pathsep.join(filter(None, (os.environ.get("PATH"), "/usr/sbin:/sbin:/usr/bin:/bin")))
