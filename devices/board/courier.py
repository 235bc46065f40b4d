"""The courier: one process on the board that takes and gives files, makes environments and holds the board.

Nothing of Edgeship is on the board yet when it starts, see `bootstrap`. Requests and answers are those of
`jsonlines`, one at a time; the courier ends with its standard input, or after `silence_s` without a request.

start {modules, directory, silence_s}         -> what the board is, see `interpreter.describe_board`
ping
hold {who} / release                          -> `held`, and who holds the board where it is held
installed {names}                             -> versions by name, null where a package is missing
room {size, reserve}                          -> nothing, or the error NoSpace
offer {folder, name, sha256, size, reserve}   -> `path`, `whole`, and the `offset` to go on from
write {sha256, offset, data}                  -> `offset`; `data` is Base64
finish {sha256}                               -> nothing; the file is visible from here on
stat {path} / read {path, offset, count}      -> `size`, `sha256` / `data`
find {folder} / unpack {folder, archives, wheels, reserve} -> `path`

    <directory>/files/<digest>/<name>   whole files; the digest is the file's, or that of files that belong together
    <directory>/incoming/<sha256>       what has arrived of a file; a cut transfer goes on from its end
    <directory>/agents/<digest>         the agent's source
    <directory>/envs/<digest>           packages, unpacked
    <directory>/scratch/<name>          what an agent made for the host to fetch
    <directory>/edgeship-board          runs the program with the agent and the packages that came last, see `launch`
    <directory>/run/<name>              a pipe that the courier keeps open as long as it lives, see `launch`
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import select
import shutil
import time
import traceback
from typing import Any, Callable, Dict, Optional, Tuple

from .interpreter import describe_board, installed_version
from .storage import FULL, PROGRAM, READ_BYTES, Busy, Incoming, NoSpace, Refused, free_bytes, sync_directory
from .wheels import unpack_plain, unpack_wheel, unpacked_size

LOCK_DIRECTORY_VARIABLE = "EDGESHIP_LOCK_DIRECTORY"
_LOCK_DIRECTORY = "/tmp"  # noqa: S108 (the one place that every user of the board can write to)
_KEPT_DAYS = {"incoming": 7, "files": 30, "agents": 90, "envs": 90, "scratch": 1}

Params = Dict[str, Any]


class Courier:
    """The handlers of one courier and what they share.

    Args:
        root: Absolute path of the directory of Edgeship on this board.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._incoming: Dict[str, Incoming] = {}
        self._checked: Dict[Tuple[str, int, int], str] = {}
        self._lock_fd: Optional[int] = None
        for name in ("files", "incoming", "agents", "envs", "run"):
            os.makedirs(os.path.join(root, name), mode=0o700, exist_ok=True)
        for name in ("agents", "envs"):  # nobody's secrets; a service with a user of its own runs from there
            os.chmod(os.path.join(root, name), 0o755)  # noqa: S103 (see above)
        self.lifeline = self._make_lifeline()
        self._remove_old()

    def handlers(self) -> Dict[str, Callable[[Params], Any]]:
        """By method name."""
        return {
            "ping": lambda params: None,  # noqa: ARG005
            "hold": self._hold,
            "release": self._release,
            "installed": lambda params: {name: installed_version(name) for name in params["names"]},
            "room": lambda params: self._need_space(params["size"], params["reserve"]),
            "offer": self._offer,
            "write": self._write,
            "finish": self._finish,
            "stat": lambda params: dict(zip(("size", "sha256"), self._digest_of(params["path"]))),
            "read": self._read,
            "find": lambda params: {"path": self._find(params["folder"])},
            "unpack": self._unpack,
        }

    def close(self) -> None:
        """Removes the lifeline's name; agents end as this process ends."""
        with contextlib.suppress(OSError):
            os.unlink(self.lifeline)

    def _make_lifeline(self) -> str:
        """A named pipe with this process as its only writer; names whose writer is gone are removed."""
        for old in glob.glob(os.path.join(glob.escape(self._root), "run", "*")):
            with contextlib.suppress(OSError):
                try:
                    os.close(os.open(old, os.O_WRONLY | os.O_NONBLOCK))
                except OSError as error:
                    if error.errno == errno.ENXIO:  # nobody holds it
                        os.unlink(old)
        path = os.path.join(self._root, "run", secrets.token_hex(8))
        hidden = os.path.join(self._root, "run", "." + os.path.basename(path))
        os.mkfifo(hidden, 0o600)
        os.open(hidden, os.O_RDWR)  # kept open on purpose, to the end of the process
        os.rename(hidden, path)
        return path

    def _remove_old(self) -> None:
        """Removes what nobody has used for long; the storage of a board is small. What `edgeship-board` runs stays."""
        program = ""
        with contextlib.suppress(OSError), open(os.path.join(self._root, PROGRAM), encoding="utf-8") as stream:
            program = stream.read()
        for name, days in _KEPT_DAYS.items():
            for path in glob.glob(os.path.join(glob.escape(self._root), name, "*")):
                with contextlib.suppress(OSError):
                    if path not in program and os.stat(path).st_mtime < time.time() - days * 86400:
                        (shutil.rmtree if os.path.isdir(path) else os.unlink)(path)

    def _hold(self, params: Params) -> Dict[str, Any]:
        if self._lock_fd is not None:
            return {"held": True}
        directory = os.environ.get(LOCK_DIRECTORY_VARIABLE) or _LOCK_DIRECTORY
        if not os.path.isdir(directory):  # Android has none, and one user
            directory = os.path.expanduser("~")
        fd = _open_shared(os.path.join(directory, "edgeship.lock"))
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(fd, 4096, 0)
            os.close(fd)
            return {"held": False, "holder": holder.decode(errors="replace"), "now": time.time()}
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps({"who": params["who"], "since": time.time()}).encode(), 0)
        self._lock_fd = fd
        return {"held": True}

    def _release(self, params: Params) -> None:  # noqa: ARG002
        if self._lock_fd is not None:
            os.ftruncate(self._lock_fd, 0)
            os.close(self._lock_fd)
            self._lock_fd = None

    def _offer(self, params: Params) -> Dict[str, Any]:
        sha256, size, name = params["sha256"], params["size"], params["name"]
        if not re.fullmatch("[0-9a-f]{64}", sha256) or os.path.basename(name) != name or name in {"", ".", ".."}:
            raise Refused(f"a file can't be called {name!r} with SHA-256 {sha256!r}")
        target = os.path.join(self._inside(params["folder"]), name)
        with contextlib.suppress(FileNotFoundError):
            if os.path.getsize(target) == size and self._digest_of(target) == (size, sha256):
                os.utime(os.path.dirname(target))
                return {"path": target, "whole": True, "offset": size}
        if sha256 not in self._incoming:
            self._incoming[sha256] = Incoming(os.path.join(self._root, "incoming", sha256), size)
        incoming = self._incoming[sha256]
        incoming.target = target
        try:
            self._need_space(size - incoming.offset, params["reserve"])
        except NoSpace:
            self._incoming.pop(sha256).discard()
            raise
        return {"path": target, "whole": False, "offset": incoming.offset}

    def _write(self, params: Params) -> Dict[str, Any]:
        incoming = self._incoming.get(params["sha256"])
        if incoming is None or incoming.offset != params["offset"]:
            raise Refused("the transfer lost its place; offer the file again")
        try:
            incoming.write(base64.b64decode(params["data"]))
        except OSError as error:
            if error.errno not in FULL:
                raise
            self._incoming.pop(params["sha256"]).discard()
            raise NoSpace(f"{error.strerror} after {incoming.offset} bytes; they have been removed") from error
        return {"offset": incoming.offset}

    def _finish(self, params: Params) -> None:
        self._incoming.pop(params["sha256"]).publish(params["sha256"])

    def _read(self, params: Params) -> Dict[str, Any]:
        with open(params["path"], "rb") as stream:
            stream.seek(params["offset"])
            return {"data": base64.b64encode(stream.read(params["count"])).decode()}

    def _find(self, folder: str) -> Optional[str]:
        path = self._inside(folder)
        if not os.path.isdir(path):
            return None
        os.utime(path)
        return path

    def _unpack(self, params: Params) -> Dict[str, Any]:
        """Unpacks archives into a new folder, which appears by one rename; then removes the archives."""
        target = self._inside(params["folder"])
        parent = os.path.dirname(target)
        with open(os.path.join(parent, ".lock"), "w", encoding="ascii") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise Busy(parent) from error
            for half_made in glob.glob(os.path.join(glob.escape(parent), ".making-*")):
                shutil.rmtree(half_made)
            if not os.path.isdir(target):
                making = os.path.join(parent, f".making-{os.getpid()}")
                try:
                    self._need_space(sum(map(unpacked_size, params["archives"])), params["reserve"])
                    for archive in params["archives"]:
                        (unpack_wheel if params["wheels"] else unpack_plain)(archive, making)
                    os.sync()
                    os.rename(making, target)
                    sync_directory(parent)
                except BaseException as error:
                    shutil.rmtree(making, ignore_errors=True)
                    if isinstance(error, OSError) and error.errno in FULL:
                        raise NoSpace(
                            f"{error.strerror} while unpacking; what was unpacked has been removed"
                        ) from error
                    raise
        for archive in params["archives"]:
            with contextlib.suppress(OSError):
                os.unlink(archive)
                os.rmdir(os.path.dirname(archive))
        return {"path": target}

    def _digest_of(self, path: str) -> Tuple[int, str]:
        """Size and SHA-256; read once a session unless the file changes."""
        state = os.stat(path)
        key = (path, state.st_size, state.st_mtime_ns)
        if key not in self._checked:
            digest = hashlib.sha256()
            with open(path, "rb") as stream:
                while block := stream.read(READ_BYTES):
                    digest.update(block)
            self._checked[key] = digest.hexdigest()
        return state.st_size, self._checked[key]

    def _need_space(self, size: int, reserve: int) -> None:
        free = free_bytes(self._root)
        if size + reserve > free:
            raise NoSpace(
                f"{size / 2**20:.1f} MiB are needed and {reserve / 2**20:.0f} MiB must stay free, "
                f"but only {free / 2**20:.1f} MiB are"
            )

    def _inside(self, folder: str) -> str:
        if not re.fullmatch("(files|agents|envs)/[0-9a-f]{16,64}", folder):
            raise Refused(f"there is no folder {folder!r}")
        return os.path.join(self._root, *folder.split("/"))


def _open_shared(path: str) -> int:
    """Opens a file that every user of the board may lock and write to, and makes it where it is missing.

    It is opened without O_CREAT first: in a directory for all, Linux refuses O_CREAT on another user's file.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW
    while True:
        try:
            return os.open(path, flags)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
                os.fchmod(fd, 0o666)
                return fd


def _read_line(rest: bytes, silence_s: float) -> Tuple[bytes, bytes]:
    """One line of standard input and what came after it; the process ends where the host is gone or silent."""
    blocks = [rest]
    while b"\n" not in blocks[-1]:
        if not select.select([0], [], [], silence_s)[0]:
            raise SystemExit(0)
        with contextlib.suppress(BlockingIOError):  # sshd may give one socket for both directions
            block = os.read(0, READ_BYTES)
            if not block:
                raise SystemExit(0)
            blocks.append(block)
    line, _, rest = b"".join(blocks).partition(b"\n")
    return line, rest


def _write_line(answer: Params, silence_s: float) -> None:
    view = memoryview(json.dumps(answer, separators=(",", ":")).encode() + b"\n")
    while view:
        if not select.select([], [1], [], silence_s)[1]:
            raise SystemExit(0)
        try:
            view = view[os.write(1, view) :]
        except BlockingIOError:
            continue
        except BrokenPipeError:
            raise SystemExit(0) from None


def main(start: Params, rest: bytes) -> None:
    """Answers requests until the host is gone.

    Args:
        start: The first request.
        rest: What was read of standard input after it.
    """
    silence_s = float(start["params"]["silence_s"])
    os.set_blocking(0, True)
    os.set_blocking(1, False)
    root = os.path.join(os.path.expanduser("~"), start["params"]["directory"])
    try:
        courier = Courier(root)
    except OSError as error:
        kind = "NoSpace" if error.errno in FULL else "Refused"
        message = f"the directory {root} can't be used: {error.strerror}"
        _write_line({"id": start["id"], "error": {"type": kind, "message": message, "details": ""}}, silence_s)
        return
    try:
        board = {"root": root, "lifeline": courier.lifeline, **describe_board()}
        _write_line({"id": start["id"], "result": board}, silence_s)
        handlers = courier.handlers()
        while True:
            line, rest = _read_line(rest, silence_s)
            request = json.loads(line)
            answer: Params = {"id": request["id"]}
            try:
                answer["result"] = handlers[request["method"]](request.get("params") or {})
            except Exception as error:  # noqa: BLE001 (whatever goes wrong is reported to the host)
                answer["error"] = {
                    "type": type(error).__name__,
                    "message": str(error) or type(error).__name__,
                    "details": traceback.format_exc(),
                }
            _write_line(answer, silence_s)
    finally:
        courier.close()
