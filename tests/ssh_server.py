"""A real SSH server in this process: a thread with an event loop, whose commands are local child processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

from devices.board.courier import LOCK_DIRECTORY_VARIABLE


@dataclass
class SshServer:
    """A server and the files that a client needs for it.

    Attributes:
        directory: Holds the keys, `known_hosts` and the board's `home`.
        port: On the loopback interface.
        environment: Of the commands; may be changed at any time.
        commands: What was run.
        pids: Of the commands' processes.
        connections: That were made.
        keys: The host's and the client's.
        acceptor: Of connections.
    """

    directory: Path
    loop: asyncio.AbstractEventLoop
    port: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    connections: list[Any] = field(default_factory=list)
    keys: tuple[Any, ...] = ()
    acceptor: Any = None

    @property
    def home(self) -> Path:
        return self.directory / "home"

    @property
    def root(self) -> Path:
        return self.home / ".edgeship"

    def transport(self, **changes: Any) -> dict[str, Any]:
        """The `transport` section of a profile."""
        return {
            "kind": "ssh",
            "host": "127.0.0.1",
            "port": self.port,
            "user": "tester",
            "identity_file": str(self.directory / "client_key"),
            "known_hosts": str(self.directory / "known_hosts"),
            "connect_timeout_s": 30,
            **changes,
        }

    def cut(self) -> None:
        """Breaks all connections, as a pulled cable or a reboot does."""

        def abort() -> None:
            for connection in self.connections:
                connection.abort()

        self.loop.call_soon_threadsafe(abort)

    def switch_off(self) -> None:
        """Breaks all connections and takes no new ones."""
        self.cut()
        self.loop.call_soon_threadsafe(self.acceptor.close)
        asyncio.run_coroutine_threadsafe(self.acceptor.wait_closed(), self.loop).result(30)

    def switch_on(self) -> None:
        """Listens, on the same port as before."""
        self.acceptor = asyncio.run_coroutine_threadsafe(_listen(self), self.loop).result(30)

    def go_down(self) -> None:
        """The board restarts: all its processes end at once, and nobody answers."""
        self.acceptor.close()
        for pid in self.living():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        self.cut()

    def come_back(self) -> None:
        """The board answers again, with what lay in its memory gone, and so the lock."""
        (self.directory / "edgeship.lock").unlink(missing_ok=True)
        self.switch_on()

    def living(self) -> list[int]:
        """The commands' processes that have not ended."""
        return [pid for pid in self.pids if _lives(pid)]


def _lives(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@contextlib.contextmanager
def serve(directory: Path) -> Iterator[SshServer]:
    """Runs a server with keys of its own; ends it and what it started."""
    (directory / "home").mkdir(parents=True)
    client_key, host_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    client_key.write_private_key(directory / "client_key")
    (directory / "client_key").chmod(0o600)
    server = SshServer(directory, asyncio.new_event_loop(), keys=(host_key, client_key))
    server.environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(server.home),
        "LANG": "C.UTF-8",
        LOCK_DIRECTORY_VARIABLE: str(directory),
    }
    thread = threading.Thread(target=server.loop.run_forever, name="ssh server", daemon=True)
    thread.start()
    server.switch_on()
    server.port = server.acceptor.get_port()
    public = host_key.export_public_key().decode().strip()
    (directory / "known_hosts").write_text(f"[127.0.0.1]:{server.port},[localhost]:{server.port} {public}\n")
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(_end(server), server.loop).result(30)
        server.loop.call_soon_threadsafe(server.loop.stop)
        thread.join(30)
        server.loop.close()


async def _listen(server: SshServer) -> Any:
    host_key, client_key = server.keys

    class Handler(asyncssh.SSHServer):
        def connection_made(self, conn: Any) -> None:
            server.connections.append(conn)

        def begin_auth(self, _: str) -> bool:
            return True

        def connection_requested(self, *_: Any) -> bool:
            return True  # as a host in between

    keys = asyncssh.import_authorized_keys(client_key.export_public_key().decode())
    return await asyncssh.listen(
        "127.0.0.1",
        server.port,
        server_factory=Handler,
        server_host_keys=[host_key],
        authorized_client_keys=keys,
        process_factory=_runs_commands(server),
        encoding=None,
    )


def _runs_commands(server: SshServer) -> Callable[[Any], Any]:
    async def run(process: Any) -> None:
        server.commands.append(process.command)
        child = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", process.command, stdin=-1, stdout=-1, stderr=-1,
            env=server.environment, cwd=server.home, start_new_session=True,
        )  # fmt: skip
        server.pids.append(child.pid)
        feeding = asyncio.create_task(_copy(process.stdin, child.stdin))
        await asyncio.gather(_copy(child.stdout, process.stdout), _copy(child.stderr, process.stderr))
        status = await child.wait()
        feeding.cancel()
        with contextlib.suppress(OSError, asyncssh.Error):
            if status < 0:
                process.exit_with_signal("KILL")
            else:
                process.exit(status)

    return run


async def _copy(source: Any, target: Any) -> None:
    """Copies to the end of the source or of the connection; closes a child's standard input then."""
    try:
        with contextlib.suppress(OSError, asyncssh.Error):
            while data := await source.read(1 << 16):
                target.write(data)
                await target.drain()
    finally:
        if isinstance(target, asyncio.StreamWriter):
            target.close()


async def _end(server: SshServer) -> None:
    server.acceptor.close()
    for connection in server.connections:
        connection.abort()
    await server.acceptor.wait_closed()
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.wait(rest, timeout=10) if rest else None
