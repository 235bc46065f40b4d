"""Starts an agent over SSH and sees to it that it ends: `python3 <directory with this package> LIFELINE PACKAGES`.

With `--program PACKAGES ARGUMENTS...` it is `edgeship-board` instead; the file of that name beside the agents, which an
agent's start writes, says so with the right paths.

The process forks: the child becomes the agent, the parent waits. Where the host is gone, or the network between,
a native call may keep the agent from noticing; the parent, which only waits, then ends it. An agent that a signal
ended is reported as a shell does, by the exit status 128 + the signal's number, for SSH loses signals.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import select
import shlex
import signal
import site
import sys
import traceback
from typing import List, NoReturn, Optional, Sequence

from .storage import PROGRAM

# Runtimes get their number of threads through their own options; these keep numpy and OpenMP from adding more.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
DIRECTORY_VARIABLE = "EDGESHIP_AGENT_DIRECTORY"
"""Names the directory on the board in which an agent leaves notes for later ones."""

PROGRAM_VARIABLE = "EDGESHIP_PROGRAM"
"""Names that file to the program that it runs."""

PROTOCOL_VERSION = 3
"""Of what agents are asked and answer."""

_GRACE_MS = 5000
_LAST_WORDS_MS = 1000
_POLLRDHUP = 0x2000  # Linux; Python's select has no name for it on every architecture


def main(arguments: Sequence[str]) -> NoReturn:
    """Runs the agent to its end.

    Args:
        arguments: The path of the courier's lifeline (see `courier`), directories of packages as in PATH, or "", and
            the module that the agent is where it is another one than `__main__`.
    """
    if arguments[0] == "--program":
        _become_program(arguments[1], arguments[2:])
    root = os.path.dirname(os.path.dirname(os.path.abspath(arguments[0])))
    lifeline = os.open(arguments[0], os.O_RDONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):  # it blocks as long as the courier lives
        os.read(lifeline, 1)
        sys.exit("the session that this agent belongs to has ended")
    ended, alive = os.pipe()
    module = arguments[2] if len(arguments) > 2 else ""
    if not module:  # others have no packages
        with contextlib.suppress(OSError):  # an agent does without
            write_program(root, arguments[1])
    child = os.fork()
    if child == 0:
        os.close(lifeline)
        os.close(ended)
        os.environ.setdefault(DIRECTORY_VARIABLE, root)
        _use_scratch(os.path.join(os.environ[DIRECTORY_VARIABLE], "scratch"))
        _become_agent(arguments[1], module)
    os.close(alive)
    _guard(child, ended, lifeline)
    status = os.waitpid(child, 0)[1]
    sys.exit(128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))


def _use_scratch(directory: str) -> None:
    """Keeps temporary files where the courier removes what an agent that was ended left: /tmp may be memory, too."""
    with contextlib.suppress(OSError):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        os.environ["TMPDIR"] = directory


def write_program(root: str, packages: str) -> None:
    """Puts `edgeship-board` into a directory, or replaces it where it would run something else.

    Args:
        root: The directory; the courier spares what the file in it names.
        packages: As `main` takes them.
    """
    path, agent = os.path.join(root, PROGRAM), os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    command = shlex.join([sys.executable, "-I", agent, "--program", packages])
    text = f'#!/bin/sh\n{PROGRAM_VARIABLE}={shlex.quote(path)} exec {command} "$@"\n'
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as stream:
        if stream.read() == text:
            return
    beside = f"{path}.{os.getpid()}"
    with open(beside, "w", encoding="utf-8") as stream:
        stream.write(text)
    os.chmod(beside, 0o755)  # noqa: S103 (a service with a user of its own runs it)
    os.rename(beside, path)


def _become_program(packages: str, arguments: Sequence[str]) -> NoReturn:
    _use_packages(packages)
    from .program import main as run_program  # not for agents, whose memory is measured

    sys.exit(run_program(arguments))


def _use_packages(packages: str) -> None:
    folders = [folder for folder in packages.split(os.pathsep) if folder]
    sys.path[1:1] = folders  # before what the system has
    for folder in folders:
        site.addsitedir(folder)  # reads the .pth files


def _become_agent(packages: str, module: str) -> NoReturn:
    try:
        for name in _THREAD_VARIABLES:
            os.environ.setdefault(name, "1")
        _use_packages(packages)
        runpy.run_module(f"{__package__}.{module}" if module else str(__package__), run_name="__main__")
    except BaseException:  # noqa: BLE001 (the child must not return into the parent's code)
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(1)


def _guard(child: int, ended: int, lifeline: int) -> None:
    """Returns once the child has ended; ends it after a while where the host is gone."""
    poller = select.poll()
    for fd in (ended, lifeline):
        poller.register(fd, 0)  # the end of a pipe is reported without being asked for
    poller.register(0, _POLLRDHUP)
    patience_ms: Optional[int] = None
    asked = False
    while True:
        ready: List[int] = [fd for fd, _ in poller.poll(patience_ms)]
        if ended in ready:
            return
        if not ready and asked:
            os.kill(child, signal.SIGKILL)
            return
        if not ready:
            os.kill(child, signal.SIGTERM)  # an agent that has set the governor puts it back
            asked, patience_ms = True, _LAST_WORDS_MS
            continue
        for fd in ready:
            poller.unregister(fd)
        patience_ms = _GRACE_MS
