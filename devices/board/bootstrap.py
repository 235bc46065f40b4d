"""The courier: one process on the board that takes and gives files, makes environments and holds the board.

Nothing of Edgeship is on the board yet when it starts: the host sends this file's source with the first request
(see `devices.transports.ssh_client.LOADER`), so it is one file and imports the standard library alone. Requests
and answers are those of `jsonlines`, one at a time; the courier ends with its standard input, or after `silence_s`
without a request.

start {source, directory, silence_s}          -> what the board is, see `describe_board`
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
import platform
import re
import secrets
import select
import shutil
import subprocess
import sys
import sysconfig
import time
import traceback
import zipfile
from importlib import metadata
from typing import Any, Callable, Dict, List, Optional, Tuple

LOCK_DIRECTORY_VARIABLE = "EDGESHIP_LOCK_DIRECTORY"
_LOCK_DIRECTORY = "/tmp"  # noqa: S108 (the one place that every user of the board can write to)
_KEPT_DAYS = {"incoming": 7, "files": 30, "agents": 90, "envs": 90}
_READ_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Params = Dict[str, Any]


class Refused(Exception):
    """A request that can't be carried out."""


class Busy(Exception):
    """Another courier is at work on the same thing."""


class NoSpace(Exception):
    """The storage is full, or would be."""


class WrongDigest(Exception):
    """What arrived is not what was sent; it has been removed."""


class Incoming:
    """A file on its way, held by a lock so that no other courier writes to it.

    Args:
        path: Of what has arrived so far.
        size: Bytes of the whole file.

    Raises:
        Busy: Another courier receives it.
    """

    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self.target = ""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(path).st_ino != os.fstat(self._fd).st_ino:
                raise Busy(path)  # it was finished between the two lines above
        except OSError as error:
            os.close(self._fd)
            raise Busy(path) from error
        except Busy:
            os.close(self._fd)
            raise
        if os.fstat(self._fd).st_size > size:
            os.ftruncate(self._fd, 0)
        self._digest = hashlib.sha256()
        self.offset = 0
        while block := os.read(self._fd, _READ_BYTES):
            self._digest.update(block)
            self.offset += len(block)

    def write(self, data: bytes) -> None:
        """Appends."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self._digest.update(data)
        self.offset += len(data)

    def publish(self, sha256: str) -> None:
        """Compares the digest and moves the file to its place.

        Raises:
            WrongDigest: It differs.
        """
        if self._digest.hexdigest() != sha256:
            self.discard()
            raise WrongDigest(f"{os.path.basename(self.target)} arrived with SHA-256 {self._digest.hexdigest()}")
        os.fsync(self._fd)
        os.makedirs(os.path.dirname(self.target), exist_ok=True)
        os.replace(self.path, self.target)
        sync_directory(os.path.dirname(self.target))
        os.close(self._fd)

    def discard(self) -> None:
        """Removes what has arrived."""
        os.unlink(self.path)
        os.close(self._fd)


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
        self.lifeline = self._make_lifeline()
        self._remove_old()

    def handlers(self) -> Dict[str, Callable[[Params], Any]]:
        """By method name."""
        return {
            "ping": lambda params: None,  # noqa: ARG005
            "hold": self._hold,
            "release": self._release,
            "installed": lambda params: {name: _installed_version(name) for name in params["names"]},
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
        """Removes what nobody has used for long; the storage of a board is small."""
        for name, days in _KEPT_DAYS.items():
            for path in glob.glob(os.path.join(glob.escape(self._root), name, "*")):
                with contextlib.suppress(OSError):
                    if os.stat(path).st_mtime < time.time() - days * 86400:
                        (shutil.rmtree if os.path.isdir(path) else os.unlink)(path)

    def _hold(self, params: Params) -> Dict[str, Any]:
        if self._lock_fd is not None:
            return {"held": True}
        directory = os.environ.get(LOCK_DIRECTORY_VARIABLE, _LOCK_DIRECTORY)
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
            if error.errno not in _FULL:
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
                    self._need_space(sum(map(_unpacked_size, params["archives"])), params["reserve"])
                    for archive in params["archives"]:
                        (unpack_wheel if params["wheels"] else unpack_plain)(archive, making)
                    os.sync()
                    os.rename(making, target)
                    sync_directory(parent)
                except BaseException as error:
                    shutil.rmtree(making, ignore_errors=True)
                    if isinstance(error, OSError) and error.errno in _FULL:
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
                while block := stream.read(_READ_BYTES):
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


def unpack_plain(archive: str, target: str) -> None:
    """Unpacks a zip file as it is."""
    with zipfile.ZipFile(archive) as source:
        for member in source.infolist():
            _extract(source, member, os.path.join(target, _checked_name(member.filename, archive)))


def unpack_wheel(archive: str, target: str) -> None:
    """Unpacks a wheel: modules into `site-packages`, programs into `bin`, other data where they would be installed.

    The binary distribution format is that of PEP 427.
    """
    site_packages = os.path.join(target, "site-packages")
    with zipfile.ZipFile(archive) as source:
        for member in source.infolist():
            name = _checked_name(member.filename, archive)
            head, _, rest = name.partition("/")
            scheme, _, inner = rest.partition("/")
            place, executable = os.path.join(site_packages, name), False
            if head.endswith(".data") and inner:
                places = {"purelib": site_packages, "platlib": site_packages, "data": target}
                places.update(scripts=os.path.join(target, "bin"), headers=os.path.join(target, "include"))
                if scheme not in places:
                    raise Refused(f"{os.path.basename(archive)} is no wheel: it has data for {scheme!r}")
                place, executable = os.path.join(places[scheme], inner), scheme == "scripts"
            _extract(source, member, place, executable=executable)


def _checked_name(name: str, archive: str) -> str:
    if name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
        raise Refused(f"{os.path.basename(archive)} holds {name!r}, which leads out of its folder")
    return name


def _extract(source: zipfile.ZipFile, member: zipfile.ZipInfo, place: str, *, executable: bool = False) -> None:
    if member.is_dir():
        os.makedirs(place, exist_ok=True)
        return
    os.makedirs(os.path.dirname(place), exist_ok=True)
    with source.open(member) as reading, open(place, "wb") as writing:
        shutil.copyfileobj(reading, writing, _READ_BYTES)
    if executable or member.external_attr >> 16 & 0o111:
        os.chmod(place, 0o700)


def _unpacked_size(archive: str) -> int:
    with zipfile.ZipFile(archive) as source:
        return sum(member.file_size for member in source.infolist())


def describe_board() -> Dict[str, Any]:
    """What decides which packages run here."""
    version = sys.version_info
    threads = "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    libc, libc_version = _libc()
    return {
        "python": list(version[:3]),
        "executable": sys.executable,
        "abi": f"cp{version[0]}{version[1]}{threads}",
        "machine": platform.machine(),
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "libc": libc,
        "libc_version": libc_version,
        "markers": {
            "implementation_name": sys.implementation.name,
            "implementation_version": platform.python_version(),
            "os_name": os.name,
            "platform_machine": platform.machine(),
            "platform_python_implementation": platform.python_implementation(),
            "platform_release": platform.release(),
            "platform_system": platform.system(),
            "platform_version": platform.version(),
            "python_full_version": platform.python_version(),
            "python_version": f"{version[0]}.{version[1]}",
            "sys_platform": sys.platform,
        },
    }


def _libc() -> Tuple[str, List[int]]:
    """Name and version of the C library; `("unknown", [])` where it does not tell."""
    with contextlib.suppress(ValueError, OSError):
        match = re.match(r"glibc (\d+)\.(\d+)", os.confstr("CS_GNU_LIBC_VERSION") or "")
        if match:
            return "glibc", [int(match[1]), int(match[2])]
    for loader in glob.glob("/lib/ld-musl-*.so.1"):
        told = subprocess.run([loader], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False).stderr
        told_version = re.search(rb"Version (\d+)\.(\d+)", told)
        if told_version:
            return "musl", [int(told_version[1]), int(told_version[2])]
    return "unknown", []


def _installed_version(name: str) -> Optional[str]:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def free_bytes(path: str) -> int:
    """Bytes that this user may still write."""
    state = os.statvfs(path)
    return state.f_bavail * state.f_frsize


def sync_directory(path: str) -> None:
    """Makes a rename inside it last."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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
            block = os.read(0, _READ_BYTES)
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
        kind = "NoSpace" if error.errno in _FULL else "Refused"
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
