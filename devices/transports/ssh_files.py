"""Files to a board and back: named by their digest, resumed where a transfer was cut, visible only when whole."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from devices.errors import (
    ConnectionFailedError,
    DeviceError,
    HostKeyError,
    LoginRefusedError,
    StorageFullError,
    TransferFailedError,
)
from devices.transports.ssh_link import BoardBusy, SshLink

_log = logging.getLogger(__name__)

RESERVE_BYTES = 16 * 2**20
"""So much of the board's storage stays free."""

_BLOCK_BYTES = 768 * 1024
_HASH_TIMEOUT_S = 600.0
_BUSY_TIMEOUT_S = 600.0
_ATTEMPTS = 3

_Answer = TypeVar("_Answer")


def companions(path: Path) -> tuple[Path, ...]:
    """The files that must lie beside each other on the board, sorted by name: `path` and what belongs to it.

    An OpenVINO model is `.xml` and `.bin`; an ONNX model may keep its weights in a file named after it; a cache of
    weights belongs to the `.tflite` file of its name.
    """
    names = {path.name}
    if path.suffix in {".xml", ".bin"} and path.with_suffix(".xml").is_file():
        names |= {path.with_suffix(suffix).name for suffix in (".xml", ".bin")}
    if path.suffix == ".xnnpack":
        names.add(path.with_suffix(".tflite").name)
    if path.suffix == ".onnx":
        names |= {f"{path.name}.data", f"{path.name}_data"}
    return tuple(found for name in sorted(names) if (found := path.with_name(name)).is_file())


def send_together(link: SshLink, paths: Sequence[Path]) -> dict[str, str]:
    """Sends files into one folder, which their digests name.

    Args:
        link: To the board.
        paths: With distinct names.

    Returns:
        Their paths on the board, by name.

    Raises:
        DeviceError: A file can't be read here, or did not arrive.
    """
    states = {path: file_digest(path) for path in paths}
    if len(paths) == 1:
        folder = states[paths[0]][1]
    else:
        lines = sorted(f"{sha256}  {path.name}\n" for path, (_, sha256) in states.items())
        folder = hashlib.sha256("".join(lines).encode()).hexdigest()
    return {
        path.name: _send(link, path, f"files/{folder}", size=size, sha256=sha256)
        for path, (size, sha256) in states.items()
    }


def fetch(link: SshLink, device_path: str, local_path: Path) -> None:
    """Copies a file of the board; what arrived of it before the connection broke is kept for the next time.

    Raises:
        DeviceError: It can't be read there or written here, or did not arrive whole.
    """
    state = link.request("stat", {"path": device_path}, timeout_s=_HASH_TIMEOUT_S)
    size, sha256 = state["size"], state["sha256"]
    part = local_path.with_name(f".{local_path.name}.{sha256[:16]}.part")
    try:
        resumed = part.is_file() and part.stat().st_size > 0
        _with_attempts(lambda: _fetch_rest(link, device_path, part, size), lambda: _size(part))
        actual = file_digest(part)[1]
        if actual != sha256 and resumed:  # what lay there was damaged
            part.unlink()
            _with_attempts(lambda: _fetch_rest(link, device_path, part, size), lambda: _size(part))
            actual = file_digest(part)[1]
        if actual != sha256:
            part.unlink()
            raise TransferFailedError(
                f"{device_path} of {link.place} arrived with SHA-256 {actual}, expected {sha256}; did it change "
                "meanwhile?"
            )
        part.replace(local_path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            with contextlib.suppress(OSError):
                part.unlink()
        raise DeviceError(f"{local_path} can't be written: {error.strerror or error}") from error


def file_digest(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256.

    Raises:
        DeviceError: The file can't be read.
    """
    try:
        with path.open("rb") as stream:
            return os.fstat(stream.fileno()).st_size, hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DeviceError(f"{path} can't be read: {error.strerror or error}") from error


def wait_while_busy(work: Callable[[], _Answer], what: str) -> _Answer:
    """Repeats `work` as long as another courier is at the same thing.

    Raises:
        DeviceError: It still was after ten minutes, or anything else that `work` raises.
    """
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    told = False
    while True:
        try:
            return work()
        except BoardBusy:
            if time.monotonic() >= deadline:
                raise
        if not told:
            _log.warning("%s: waiting for another session that sends the same", what)
            told = True
        time.sleep(0.5)


def _send(link: SshLink, path: Path, folder: str, *, size: int, sha256: str) -> str:
    offer = {"folder": folder, "name": path.name, "sha256": sha256, "size": size, "reserve": RESERVE_BYTES}
    progress = [0]

    def attempt() -> str:
        answer = wait_while_busy(lambda: link.request("offer", offer, timeout_s=_HASH_TIMEOUT_S), str(path))
        if not answer["whole"]:
            progress[0] = answer["offset"]
            _write_rest(link, path, sha256, progress)
        return str(answer["path"])

    try:
        return _with_attempts(attempt, lambda: progress[0])
    except TransferFailedError:
        pass  # what lay there was damaged, by a power cut for example; it is removed, so all is sent this time
    try:
        return _with_attempts(attempt, lambda: progress[0])
    except TransferFailedError as error:
        raise TransferFailedError(f"{path} did not arrive whole: {error.message}", details=error.details) from error


def _write_rest(link: SshLink, path: Path, sha256: str, progress: list[int]) -> None:
    with path.open("rb") as stream:
        stream.seek(progress[0])
        while block := stream.read(_BLOCK_BYTES):
            params = {"sha256": sha256, "offset": progress[0], "data": base64.b64encode(block).decode()}
            progress[0] = link.request("write", params, repeat=False)["offset"]
    link.request("finish", {"sha256": sha256}, timeout_s=_HASH_TIMEOUT_S, repeat=False)


def _fetch_rest(link: SshLink, device_path: str, part: Path, size: int) -> None:
    if shutil.disk_usage(part.parent).free < size - _size(part):
        raise StorageFullError(f"there is no room for the {size} bytes of {device_path} in {part.parent}")
    with part.open("ab") as stream:
        while (offset := stream.tell()) < size:
            params = {"path": device_path, "offset": offset, "count": min(_BLOCK_BYTES, size - offset)}
            data = base64.b64decode(link.request("read", params, repeat=False)["data"])
            if not data:
                raise TransferFailedError(f"{device_path} of {link.place} became shorter while it was fetched")
            stream.write(data)
            stream.flush()
        os.fsync(stream.fileno())


def _with_attempts(work: Callable[[], _Answer], progress: Callable[[], int]) -> _Answer:
    """Goes on after the connection broke, as long as it breaks at another byte each time."""
    failures, reached = 0, -1
    while True:
        try:
            return work()
        except (HostKeyError, LoginRefusedError):
            raise
        except ConnectionFailedError as error:
            failures = failures + 1 if progress() <= reached else 1
            reached = progress()
            if failures >= _ATTEMPTS:
                raise
            _log.warning("%s; going on at byte %d", error.message, reached)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


__all__: Sequence[Any] = [
    "RESERVE_BYTES",
    "companions",
    "fetch",
    "file_digest",
    "send_together",
    "wait_while_busy",
]
