"""A phone for the real adb client: the device's side of adb over TCP, whose commands are local child processes.

It knows what Edgeship uses: connections with and without authorization, `shell` by the shell protocol, and `tcp`, which
leads to a port of this machine. The wire format is that of protocol.txt in Android's source, the shell protocol that of
shell_protocol.h.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import struct
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CNXN, AUTH, OPEN, OKAY, CLSE, WRTE = (
    int.from_bytes(name, "little") for name in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"CLSE", b"WRTE")
)
VERSION, MOST_BYTES = 0x01000001, 1 << 20
TOKEN = 1
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)
FEATURES = "shell_v2,cmd"


@dataclass
class Phone:
    """The device's side.

    Attributes:
        port: Of the adb daemon, on the loopback interface.
        home: Working directory and HOME of commands.
        features: What the device tells of itself.
        authorized: Whether somebody has accepted the key on the phone.
        silent: Whether it takes connections and says nothing, as a phone that hangs.
        environment: Of the commands.
        ports: By the port that a client asks for, the port of this machine that it gets.
        services: All that was asked for.
        pids: Of the commands.
    """

    home: Path
    loop: asyncio.AbstractEventLoop
    port: int = 0
    features: str = FEATURES
    authorized: bool = True
    silent: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    ports: dict[int, int] = field(default_factory=dict)
    services: list[str] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    connections: list[_Connection] = field(default_factory=list)

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cut(self) -> None:
        """Breaks all connections, as a pulled cable does."""

        def abort() -> None:
            for connection in self.connections:
                connection.writer.transport.abort()

        self.loop.call_soon_threadsafe(abort)

    def living(self) -> list[int]:
        """The commands that have not ended."""
        return [pid for pid in self.pids if Path(f"/proc/{pid}").exists()]


class _Stream:
    """One service on a connection: what arrives, and what may be sent."""

    def __init__(self, connection: _Connection, number: int, peer: int) -> None:
        self.connection, self.number, self.peer = connection, number, peer
        self.arrived: asyncio.Queue[bytes] = asyncio.Queue()
        self.may_send = asyncio.Event()

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), 1 << 16):
            await self.may_send.wait()
            self.may_send.clear()
            self.connection.message(WRTE, self.number, self.peer, data[start : start + (1 << 16)])

    async def receive(self) -> bytes:
        """The next block; empty where the other side has closed."""
        data = await self.arrived.get()
        if data:
            self.connection.message(OKAY, self.number, self.peer)
        return data


class _Connection:
    """One adb server that is connected."""

    def __init__(self, phone: Phone, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.phone, self.reader, self.writer = phone, reader, writer
        self.streams: dict[int, _Stream] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.next_number = 1

    def message(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        head = struct.pack("<6I", command, first, second, len(data), sum(data) & 0xFFFFFFFF, command ^ 0xFFFFFFFF)
        with contextlib.suppress(OSError):
            self.writer.write(head + data)

    async def run(self) -> None:
        try:
            while True:
                command, first, second, size, _, _ = struct.unpack("<6I", await self.reader.readexactly(24))
                self.take(command, first, second, await self.reader.readexactly(size))
        except (OSError, EOFError):
            pass
        finally:
            for stream in self.streams.values():
                stream.arrived.put_nowait(b"")
                stream.may_send.set()
            self.writer.transport.abort()
            await asyncio.gather(*self.tasks, return_exceptions=True)

    def take(self, command: int, first: int, second: int, data: bytes) -> None:
        if command in (CNXN, AUTH):
            if self.phone.silent:
                return
            if self.phone.authorized:
                banner = f"device::ro.product.model=Test Phone;features={self.phone.features}"
                self.message(CNXN, VERSION, MOST_BYTES, banner.encode())
            else:
                self.message(AUTH, TOKEN, 0, os.urandom(20))
        elif command == OPEN:
            stream = _Stream(self, self.next_number, first)
            self.next_number += 1
            task = asyncio.get_running_loop().create_task(self.serve(stream, data.rstrip(b"\0").decode()))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        elif second in self.streams:
            stream = self.streams[second]
            if command == OKAY:
                stream.may_send.set()
            elif command == WRTE:
                stream.arrived.put_nowait(data)
            elif command == CLSE:
                stream.arrived.put_nowait(b"")

    async def serve(self, stream: _Stream, service: str) -> None:
        self.phone.services.append(service)
        name, _, rest = service.partition(":")
        work: Callable[[_Stream, str], Coroutine[Any, Any, None]] | None = None
        if name == "tcp":
            work = self.connect
        elif name.startswith("shell,v2") and name.endswith("raw"):
            work = self.shell
        if work is None:
            self.message(CLSE, 0, stream.peer)
            return
        self.streams[stream.number] = stream
        try:
            await work(stream, rest)
        except OSError:
            pass
        finally:
            del self.streams[stream.number]
            self.message(CLSE, stream.number, stream.peer)

    async def connect(self, stream: _Stream, port: str) -> None:
        target = self.phone.ports.get(int(port))
        if target is None:
            self.message(CLSE, 0, stream.peer)
            return
        reader, writer = await asyncio.open_connection("127.0.0.1", target)
        stream.may_send.set()
        self.message(OKAY, stream.number, stream.peer)

        async def up() -> None:
            while data := await stream.receive():
                writer.write(data)
                await writer.drain()
            writer.close()

        feeding = asyncio.ensure_future(up())
        try:
            while data := await reader.read(1 << 16):
                await stream.send(data)
        finally:
            feeding.cancel()
            writer.close()

    async def shell(self, stream: _Stream, command: str) -> None:
        child = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=self.phone.environment, cwd=self.phone.home, start_new_session=True,
        )  # fmt: skip
        self.phone.pids.append(child.pid)
        stream.may_send.set()
        self.message(OKAY, stream.number, stream.peer)
        feeding = asyncio.ensure_future(_feed(stream, child))

        async def down(kind: int, source: asyncio.StreamReader) -> None:
            while data := await source.read(1 << 15):
                await stream.send(struct.pack("<BI", kind, len(data)) + data)

        assert child.stdout is not None
        assert child.stderr is not None
        await asyncio.gather(down(STDOUT, child.stdout), down(STDERR, child.stderr))
        status = await child.wait()
        await stream.send(struct.pack("<BIB", EXIT, 1, status if status >= 0 else 128 - status))
        feeding.cancel()


async def _feed(stream: _Stream, child: asyncio.subprocess.Process) -> None:
    """Gives a command its standard input, to the end of that or of the connection."""
    assert child.stdin is not None
    buffer = b""
    try:
        while data := await stream.receive():
            buffer += data
            while len(buffer) >= 5:
                kind, size = struct.unpack_from("<BI", buffer)
                if len(buffer) < 5 + size:
                    break
                block, buffer = buffer[5 : 5 + size], buffer[5 + size :]
                if kind == STDIN:
                    child.stdin.write(block)
                    await child.stdin.drain()
                elif kind == CLOSE_STDIN:
                    child.stdin.close()
    except OSError:
        pass
    finally:
        child.stdin.close()


@contextlib.contextmanager
def run_phone(home: Path) -> Iterator[Phone]:
    """Runs a phone; ends it and what it started."""
    home.mkdir(parents=True)
    phone = Phone(home, asyncio.new_event_loop())
    phone.environment = {"PATH": os.environ["PATH"], "HOME": "/", "LANG": "C.UTF-8"}
    thread = threading.Thread(target=phone.loop.run_forever, name="phone", daemon=True)
    thread.start()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(phone, reader, writer)
        phone.connections.append(connection)
        await connection.run()

    server = asyncio.run_coroutine_threadsafe(asyncio.start_server(accept, "127.0.0.1", 0), phone.loop).result(30)
    phone.port = server.sockets[0].getsockname()[1]

    async def end() -> None:
        server.close()
        for connection in phone.connections:
            connection.writer.transport.abort()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        if rest:
            await asyncio.wait(rest, timeout=10)

    try:
        yield phone
    finally:
        asyncio.run_coroutine_threadsafe(end(), phone.loop).result(30)
        phone.loop.call_soon_threadsafe(phone.loop.stop)
        thread.join(30)
        phone.loop.close()


@contextlib.contextmanager
def own_adb_server(directory: Path, port: int) -> Iterator[dict[str, str]]:
    """Lets adb's server run with keys and a port of its own, and ends it; gives the environment that leads to it."""
    directory.mkdir(parents=True, exist_ok=True)
    environment = {"HOME": str(directory), "ANDROID_ADB_SERVER_PORT": str(port), "ADB_MDNS": "0"}
    try:
        yield environment
    finally:
        kill_adb_server(environment)


def kill_adb_server(environment: dict[str, str]) -> None:
    adb = shutil.which("adb")
    assert adb is not None
    subprocess.run(
        [adb, "kill-server"], env={**os.environ, **environment}, check=False, timeout=30,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
