"""One connection to a board: the process whose connection the others share, and the courier at its other end.

The courier (`devices.board.courier`) is the first command on the connection. It ends with its standard input, so
however this process ends, the courier does, then its agents, then the connection.
"""

from __future__ import annotations

import atexit
import contextlib
import getpass
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devices.board import bootstrap
from devices.board.bootstrap import MODULES
from devices.errors import (
    ConnectionFailedError,
    DeviceBusyError,
    DeviceError,
    StorageFullError,
    TransferFailedError,
)
from devices.peer import JsonLinesProcess, PeerDiedError, PeerError, PeerReplyError, PeerTimeoutError
from devices.transports.client import Client, Remote, connect_seconds, describe, explain_end, lost_status, make_client
from devices.transports.ssh_client import LOADER

_log = logging.getLogger(__name__)

_START_TIMEOUT_S = 60.0
_REQUEST_TIMEOUT_S = 120.0
_LOCK_PAUSE_S = 0.5
_PREFIX = "edgeship-ssh-"


class BoardBusy(DeviceError):
    """Another courier is at work on the same file or folder; the same request will do later."""


_REPLY_ERRORS: dict[str, type[DeviceError]] = {
    "Busy": BoardBusy,
    "NoSpace": StorageFullError,
    "WrongDigest": TransferFailedError,
}


@dataclass
class _Session:
    """What lasts as long as one connection."""

    client: Client
    process: JsonLinesProcess
    board: dict[str, Any]
    stop: threading.Event = field(default_factory=threading.Event)
    memory: dict[Any, Any] = field(default_factory=dict)


class SshLink:
    """The way to one board, connected when it is first needed and again after the connection broke.

    Args:
        transport: How the board is reached.
        python: The interpreter there.

    Attributes:
        reached: Whether there has been a connection.
    """

    def __init__(self, transport: Remote, python: str) -> None:
        self.transport, self.python, self.place = transport, python, describe(transport)
        self.lost_status = lost_status(transport)
        self.reached = False
        self._session: _Session | None = None
        self._mutex = threading.RLock()
        self._hold_mutex = threading.RLock()
        self._holds = 0

    @property
    def board(self) -> dict[str, Any]:
        """What `interpreter.describe_board` told, `root` and `lifeline`."""
        with self._mutex:
            return self._connected().board

    @property
    def memory(self) -> dict[Any, Any]:
        """Whatever a caller wants to remember for as long as this connection lasts."""
        with self._mutex:
            return self._connected().memory

    def command(self, remote: Sequence[str]) -> list[str]:
        """The command line that runs `remote` on the board over the shared connection."""
        with self._mutex:
            return self._connected().client.command(remote, master=False)

    def request(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout_s: float = _REQUEST_TIMEOUT_S,
        repeat: bool = True,
    ) -> Any:
        """Asks the courier.

        Args:
            method: See `devices.board.courier`.
            params: JSON values.
            timeout_s: For the answer.
            repeat: Whether to connect anew and ask again, once, where the connection turns out to be broken.

        Raises:
            ConnectionFailedError: The board can't be reached.
            DeviceError: The courier refuses.
        """
        with self._mutex:
            fresh = self._session is None
            session = self._connected()
            try:
                return session.process.request(method, params, timeout_s=timeout_s)
            except PeerReplyError as error:
                raise self._reply_error(error) from error
            except PeerError as error:
                self._drop()
                if fresh or not repeat or isinstance(error, PeerTimeoutError):
                    raise self._broken(error, method) from error
            return self.request(method, params, timeout_s=timeout_s, repeat=False)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Holds the board against other users, who wait meanwhile; this process may hold it many times over.

        Raises:
            DeviceBusyError: Somebody else has held it for longer than the transport's `lock_timeout_s`.
        """
        with self._hold_mutex:
            if self._holds == 0:
                self._wait_for_board()
            self._holds += 1
        try:
            yield
        finally:
            with self._hold_mutex:
                self._holds -= 1
                if self._holds == 0 and self._session is not None:
                    with contextlib.suppress(DeviceError):  # a connection that is gone holds nothing
                        self.request("release", repeat=False)

    def close(self) -> None:
        """Ends the connection, and with it whatever still runs over it. May be called twice."""
        session = self._session
        if session is not None and not self._mutex.acquire(timeout=2.0):
            with contextlib.suppress(ProcessLookupError):
                os.kill(session.process.pid, signal.SIGKILL)  # a request over a dead connection waits no longer
            self._mutex.acquire()
        elif session is None:
            return
        try:
            self._drop()
        finally:
            self._mutex.release()

    def _wait_for_board(self) -> None:
        deadline = time.monotonic() + self.transport.lock_timeout_s
        who = f"{_user()}@{socket.gethostname()} (process {os.getpid()})"
        told = ""
        while True:
            answer = self.request("hold", {"who": who})
            if answer["held"]:
                return
            holder = _describe_holder(answer)
            if time.monotonic() >= deadline:
                raise DeviceBusyError(
                    f"{self.place} is in use by {holder}; waited {self.transport.lock_timeout_s:g} s "
                    "(`lock_timeout_s` of the transport)"
                )
            if answer["holder"] != told:
                _log.warning("waiting for %s, which is in use by %s", self.place, holder)
                told = answer["holder"]
            time.sleep(_LOCK_PAUSE_S)

    def _connected(self) -> _Session:
        if self._session is None:
            self._session = self._connect()
            self.reached = True
            thread = threading.Thread(
                target=self._keep_alive, args=(self._session,), name=f"keep alive {self.place}", daemon=True
            )
            thread.start()
            if self._holds:
                self._wait_for_board()
        return self._session

    def _connect(self) -> _Session:
        _remove_stale_directories()
        directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_short_directory()))
        process = None
        try:
            client = make_client(self.transport, directory)
            client.prepare()
            arguments = client.command([self.python, "-I", "-c", LOADER], master=True)
            process = JsonLinesProcess(arguments, env=ssh_environment(), name=f"ssh to {self.place}")
            params = {
                **courier_sources(),
                "directory": self.transport.directory,
                "silence_s": 4 * self.transport.keep_alive_s + 30,
            }
            board = process.request("start", params, timeout_s=_START_TIMEOUT_S + connect_seconds(self.transport))
        except BaseException as error:
            if process is not None:
                process.close()
            shutil.rmtree(directory, ignore_errors=True)
            if isinstance(error, PeerDiedError):
                raise explain_end(self.transport, self.python, error.returncode, error.stderr_tail) from error
            if isinstance(error, PeerReplyError):
                raise self._reply_error(error) from error
            if isinstance(error, PeerError):
                raise self._broken(error, "start") from error
            raise
        return _Session(client, process, board)

    def _keep_alive(self, session: _Session) -> None:
        """Gives signs of life: the courier ends without them, so that a pulled cable leaves nothing running there."""
        while not session.stop.wait(self.transport.keep_alive_s):
            with self._mutex:
                if session.stop.is_set():
                    return
                with contextlib.suppress(PeerError):  # whoever asks next is told
                    session.process.request("ping", timeout_s=3.0 * self.transport.keep_alive_s)

    def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.stop.set()
            session.process.close()
            shutil.rmtree(session.client.directory, ignore_errors=True)

    def _broken(self, error: PeerError, method: str) -> DeviceError:
        if isinstance(error, PeerDiedError):
            reason = explain_end(self.transport, self.python, error.returncode, error.stderr_tail)
            return ConnectionFailedError(
                f"the connection to {self.place} broke during '{method}': {reason.message}", details=reason.details
            )
        return ConnectionFailedError(
            f"{self.place} did not answer '{method}' in time: {error.message}",
            details=f"the end of both streams:\n{error.stderr_tail.strip()}",
        )

    def _reply_error(self, error: PeerReplyError) -> DeviceError:
        kind = _REPLY_ERRORS.get(error.kind, DeviceError)
        own = error.kind in {*_REPLY_ERRORS, "Refused"}
        message = error.message if own else f"{error.kind}: {error.message}"
        details = f"{error.details}\nthe end of both streams:\n{error.stderr_tail}".strip()
        return kind(f"{self.place} refuses '{error.method}': {message}", details=details)


_links: dict[tuple[int, Remote, str], SshLink] = {}
_links_mutex = threading.Lock()


def shared_link(transport: Remote, python: str) -> SshLink:
    """The one link of this process to a board; it lasts until `close_links`, at the latest to the program's end."""
    with _links_mutex:
        if not _links:
            atexit.register(close_links)
        return _links.setdefault((os.getpid(), transport, python), SshLink(transport, python))


def close_link(transport: Remote, python: str) -> None:
    """Ends the connection to one board; who has many boards keeps few connections so."""
    with _links_mutex:
        link = _links.pop((os.getpid(), transport, python), None)
    if link is not None:
        link.close()


def close_links() -> None:
    """Ends all connections of this process."""
    with _links_mutex:
        links = [link for key, link in _links.items() if key[0] == os.getpid()]
        _links.clear()
    atexit.unregister(close_links)
    for link in links:
        link.close()


def courier_sources() -> dict[str, Any]:
    """The sources that are sent with the first request."""
    directory = Path(bootstrap.__file__).parent
    source, *modules = ((directory / f"{name}.py").read_text(encoding="utf-8") for name in ("bootstrap", *MODULES))
    return {"source": source, "modules": dict(zip(MODULES, modules, strict=True))}


def ssh_environment() -> dict[str, str]:
    """The environment of the client: ours, but no window may pop up and ask."""
    return {**os.environ, "SSH_ASKPASS_REQUIRE": "never"}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return f"user {os.getuid()}"


def _describe_holder(answer: Mapping[str, Any]) -> str:
    try:
        record = json.loads(answer["holder"])
        seconds = max(0, round(answer["now"] - record["since"]))
        return f"{record['who']} for {seconds // 60} min {seconds % 60} s"
    except (ValueError, LookupError, TypeError):
        return "somebody"


def _short_directory() -> str:
    """Where private directories are made: the path of a socket must stay below 108 bytes."""
    directory = tempfile.gettempdir()
    return directory if len(os.fsencode(directory)) < 50 else "/tmp"  # noqa: S108 (mkdtemp makes it private)


def _remove_stale_directories() -> None:
    """Removes what processes left that were killed."""
    for path in Path(_short_directory()).glob(f"{_PREFIX}*-*"):
        number = path.name.removeprefix(_PREFIX).partition("-")[0]
        with contextlib.suppress(OSError):
            if number.isdigit() and path.stat().st_uid == os.getuid() and not _lives(int(number)):
                shutil.rmtree(path)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
