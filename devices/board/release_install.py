"""Installs a bundle on the board it runs on, step by step, and goes back to the release before.

Whatever ends an installation, before or after any of its steps, `current` names a whole release that passed its
self-test: the old one or the new one. See `release_home` for the layout. Where a service uses the release
(`release_service`), a watcher restarts and watches it after the switch (`release_watcher`), and goes back by itself.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import shutil
from typing import Any, BinaryIO, Callable, Dict, Iterator, Mapping, Optional

from . import environment
from .bundle import MANIFEST, SIGNATURE, Bundle, blocks_of, read_bundle
from .bundle_signature import check_signature, read_settings
from .release_disk import Disk
from .release_errors import FailedTest, FailedWatch, NoRoom, Refusal
from .release_form import note_failure
from .release_home import Home, Restart, hold_home, is_whole, list_releases, now_text, read_release, read_state, status
from .release_service import service_of
from .release_test import run_self_test
from .release_watcher import StartWatcher, Watcher
from .requirement import check_fit
from .storage import FULL, free_bytes

STEPS = (
    "read",
    "signature",
    "fit",
    "lock",
    "recover",
    "space",
    "begin",
    "unpack",
    "sync",
    "self-test",
    "budget",
    "publish",
    "announce",
    "switch",
    "restart",
    "watch",
    "previous",
    "record",
    "prune",
    "done",
)
"""What an installation goes through, in this order; `on_step` is called before each."""

WATCH_STEPS = ("restart", "watch")
"""Those of a model that a service uses. Where one of them fails, `back` follows, and then `prune`."""

RESERVE_BYTES = 4 * 2**20
"""So much of the storage stays free."""

SelfTest = Callable[..., Dict[str, Any]]
"""Takes a release's directory, its manifest and, where its bundle brought packages, their directory as `packages`;
returns what was measured, or raises `Refusal`."""


class Installer:
    """Installs, and goes back.

    Args:
        root: Directory of all releases of this board.
        who: Asked for it, for the history.
        on_step: Called before each of `STEPS`.
        self_test: Stands in for the runtime.
        disk: Does what is to be done to files.
        start_watcher: Stands in for the process that watches a service.
    """

    def __init__(
        self,
        root: str,
        *,
        who: str,
        on_step: Optional[Callable[[str], None]] = None,
        self_test: SelfTest = run_self_test,
        disk: Optional[Disk] = None,
        start_watcher: StartWatcher = Watcher,
    ) -> None:
        self._root = os.path.abspath(os.path.expanduser(root))
        self._start_watcher = start_watcher
        self._who, self._self_test, self._disk = who, self_test, disk or Disk()
        self._on_step = on_step
        self._step = ""

    def install(self, path: str, *, dry_run: bool = False) -> Dict[str, Any]:
        """Installs a bundle and makes it the release in use.

        Args:
            path: Of the bundle.
            dry_run: Do everything but the switch, and leave nothing behind.

        Returns:
            `changed` (False where it was in use already), `name`, `digest`, `signed_by`, `measured`, and of a watched
            service `watched_s` and `up_after_s`, else None.

        Raises:
            FailedWatch: The service was not well with the release; the message says what is in use now.
            Refusal: The release in use is what it was before.
        """
        with self._explained(), self._tidied(), open(path, "rb") as stream:
            self._at("read")
            bundle = read_bundle(stream)
            with self._noted_where_known(bundle):
                self._at("signature")
                signer = check_signature(self._root, bundle.text, bundle.signature)
                self._at("fit")
                check_fit(bundle.manifest)
            answer = {"name": bundle.manifest["name"], "digest": bundle.digest, "signed_by": signer}
            answer |= {"watched_s": None, "up_after_s": None}
            self._at("lock")
            if dry_run:
                return {**answer, "changed": False, "measured": self._try(stream, bundle)}
            with hold_home(self._root, bundle.manifest["name"], self._disk) as home:
                self._at("recover")
                home.recover(_restart(home))
                whole = is_whole(home.release(bundle.digest))
                if whole and home.current == bundle.digest and not self._lacks_packages(bundle.manifest):
                    return {**answer, "changed": False, "measured": None}
                told = self._install(home, stream, bundle, signer, whole)
        return {**answer, "changed": True, **told}

    def rollback(self, name: str) -> Dict[str, Any]:
        """Makes the release before the one in use again, and the one in use the one before.

        Returns:
            `name` and `digest` of the release now in use.

        Raises:
            FailedWatch: The service is not up with it; it stays in use.
            Refusal: There is none, it is damaged, it is not trusted any more, or it fails its self-test.
        """
        with self._explained():
            if os.path.basename(name) != name or not list_releases(os.path.join(self._root, name)):
                known = ", ".join(row["name"] for row in status(self._root)) or "nothing"
                raise Refusal(f"{name} was never deployed to {self._root}; there is: {known}")
            self._at("lock")
            with hold_home(self._root, name, self._disk) as home:
                self._at("recover")
                home.recover(_restart(home))
                digest = home.previous
                if digest is None or not is_whole(home.release(digest)):
                    raise Refusal(f"{name} has no previous release in {home.path} to go back to; deploy one instead")
                directory = home.release(digest)
                manifest, text = read_release(directory)
                self._at("signature")
                signer = check_signature(self._root, text, _stored_signature(directory))
                task = self._task("rollback", digest, home.current, signer)
                with self._noted(home, task):
                    self._at("begin")
                    home.begin(task)
                    self._at("self-test")
                    measured = self._tested(directory, manifest)
                    watcher = self._switch(home, task, measured)
                self._settle(home, task, watcher)
        return {"name": name, "digest": digest, "measured": measured}

    def _install(
        self, home: Home, stream: BinaryIO, bundle: Bundle, signer: Optional[str], whole: bool
    ) -> Dict[str, Any]:
        """Returns `measured`, and what the watch told."""
        incoming = home.release(bundle.digest) if whole else home.inside("incoming")
        task = self._task("install", bundle.digest, home.current, signer)
        with self._noted(home, task):
            keep = read_settings(self._root)["keep"]
            self._at("space")
            _check_room(self._root, 0 if whole else bundle.num_kept_bytes)
            self._at("begin")
            home.begin(task)
            if not whole:
                self._at("unpack")
                _unpack(self._disk, stream, bundle, incoming)
            environment.make(self._root, stream, bundle)
            if not whole:
                self._at("sync")
                self._disk.sync_directory(incoming)
            self._at("self-test")
            measured = self._tested(incoming, bundle.manifest)
            note_failure(self._disk, incoming, measured)
            self._at("budget")
            _check_budget(bundle.manifest, measured)
            if not whole:
                self._at("publish")
                home.publish(incoming, bundle.digest)
            watcher = self._switch(home, task, measured)
        try:
            told = self._settle(home, task, watcher)
        finally:
            self._at("prune")
            with contextlib.suppress(OSError):  # what is old is removed the next time
                home.prune(keep)
        self._at("done")
        return {"measured": measured, **told}

    def _switch(self, home: Home, task: Dict[str, Any], measured: Dict[str, Any]) -> Optional[Watcher]:
        """One rename, after a note that lets an interrupted one be finished; returns who watches what comes of it."""
        service = service_of(self._root, home.name)
        self._at("announce")
        announced = {**task, "switching": True, "measured": measured}
        home.begin(announced if service is None else {**announced, "watched": True})
        watcher = None if service is None else self._start_watcher(home, service)
        self._at("switch")
        try:
            home.switch("current", task["digest"])
        except OSError:
            if home.current != task["digest"]:
                if watcher is not None:
                    watcher.abandon()
                raise
            # The rename was done and could not be made to last: whichever comes back is whole.
        if watcher is not None:
            watcher.go()
        return watcher

    def _settle(self, home: Home, task: Dict[str, Any], watcher: Optional[Watcher]) -> Dict[str, Any]:
        """The notes after a switch; where a service is watched, once that is over, and by who watches it."""
        if watcher is None:
            with contextlib.suppress(OSError):  # it is in use; the state file lets the next one finish the rest
                self._at("previous")
                home.point_previous_at(task["from"])
                self._at("record")
                home.end(result="done")
            return {}
        entry = watcher.outcome(self._at) or self._finished(home)
        if entry["result"] != "done":
            stays = (
                f"{home.name} went back to the release {home.current}, which stays in use, but its service is not up: "
            )
            refusal = FailedWatch((stays if task["action"] == "rollback" else "") + entry["reason"])
            refusal.step = entry.get("step", "")
            raise refusal
        return {key: entry.get(key) for key in ("watched_s", "up_after_s")}

    def _finished(self, home: Home) -> Dict[str, Any]:
        """Finishes what a watcher left that was killed, or whose storage failed; returns the entry of the history."""
        self._at("back")
        try:
            return home.recover(_restart(home)) or dict(read_state(home.path)["history"][-1])
        except OSError as error:
            refusal = FailedWatch(
                f"the watch of the service did not come to its end, and the storage fails: {error}; the release "
                f"{home.current} is in use. Mend the storage and run `edgeship-board recover` there, or deploy again"
            )
            refusal.step = "back"
            raise refusal from error

    def _try(self, stream: BinaryIO, bundle: Bundle) -> Dict[str, Any]:
        """All but the switch, in a directory that is removed; nothing of the board's state is written."""
        self._at("space")
        os.makedirs(self._root, exist_ok=True)
        for old in glob.glob(os.path.join(glob.escape(self._root), ".dry-run-*")):
            if not os.path.exists(f"/proc/{old.rpartition('-')[2]}"):  # it was killed
                shutil.rmtree(old, ignore_errors=True)
        _check_room(self._root, bundle.num_kept_bytes)
        directory = os.path.join(self._root, f".dry-run-{os.getpid()}")
        try:
            self._at("unpack")
            _unpack(self._disk, stream, bundle, directory)
            environment.make(self._root, stream, bundle)
            self._at("self-test")
            measured = self._tested(directory, bundle.manifest)
            self._at("budget")
            _check_budget(bundle.manifest, measured)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        return measured

    def _lacks_packages(self, manifest: Mapping[str, Any]) -> bool:
        packages = environment.packages_of(self._root, manifest)
        return bool(packages) and not os.path.isdir(packages)

    def _tested(self, directory: str, manifest: Mapping[str, Any]) -> Dict[str, Any]:
        packages = environment.packages_of(self._root, manifest)
        if not packages:
            return self._self_test(directory, manifest)
        if self._lacks_packages(manifest):
            raise Refusal(
                f"the packages of {manifest['name']} are not in {packages} any more; install its bundle again"
            )
        return self._self_test(directory, manifest, packages=packages)

    def _task(self, action: str, digest: str, before: Optional[str], signer: Optional[str]) -> Dict[str, Any]:
        return {
            "action": action,
            "digest": digest,
            "from": before,
            "who": self._who,
            "signed_by": signer,
            "when": now_text(),
        }

    def _at(self, step: str) -> None:
        self._step = step
        if self._on_step is not None:
            self._on_step(step)

    @contextlib.contextmanager
    def _noted(self, home: Home, task: Dict[str, Any]) -> Iterator[None]:
        """Notes a failure in the history, and removes what was unpacked."""
        try:
            yield
        except (Refusal, OSError) as error:
            with contextlib.suppress(OSError):
                self._disk.remove(home.inside("incoming"))
                home.end(**task, result="refused", step=self._step, reason=str(error)[:1000])
            raise

    @contextlib.contextmanager
    def _noted_where_known(self, bundle: Bundle) -> Iterator[None]:
        """Notes a refusal where releases of that name are installed; a bundle nobody trusts makes no directory."""
        try:
            yield
        except Refusal as error:
            name = bundle.manifest["name"]
            if list_releases(os.path.join(self._root, name)):
                with contextlib.suppress(OSError), hold_home(self._root, name, self._disk) as home:
                    home.recover(_restart(home))
                    task = self._task("install", bundle.digest, home.current, None)
                    home.end(**task, result="refused", step=self._step, reason=str(error)[:1000])
            raise

    @contextlib.contextmanager
    def _tidied(self) -> Iterator[None]:
        """Removes packages that no release wants any more, whatever became of the installation."""
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                environment.prune(self._root)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Says of an error of the system what it means for the release."""
        try:
            yield
        except Refusal as error:
            error.step = error.step or self._step
            raise
        except OSError as error:
            reason = NoRoom if error.errno in FULL else Refusal
            hint = "its storage is read-only" if error.errno == errno.EROFS else "free some space or mend permissions"
            refusal = reason(
                f"the releases in {self._root} can't be written: {error}; {hint}. The release that was in use is in "
                "use still"
            )
            refusal.step = self._step
            raise refusal from error


def _restart(home: Home) -> Restart:
    """What restarts the service for the release in use; made of modules that most installations don't need."""

    def restart(digest: Optional[str]) -> str:
        from .release_watch import restarter

        return restarter(home)(digest)

    return restart


def _check_room(root: str, size: int) -> None:
    free = free_bytes(root)
    if size + RESERVE_BYTES > free:
        raise NoRoom(
            f"the release takes {size / 2**20:.1f} MiB and {RESERVE_BYTES / 2**20:.0f} MiB must stay free, but only "
            f"{free / 2**20:.1f} MiB are"
        )


def _unpack(disk: Disk, stream: BinaryIO, bundle: Bundle, directory: str) -> None:
    """Writes all files, whose names `read_bundle` has checked; each digest is compared on the way."""
    disk.mkdir(directory)
    for member in bundle.members:
        if member.name not in bundle.manifest.get("wheels", ()):
            blocks = blocks_of(stream, member, bundle.manifest["files"][member.name])
            disk.write(os.path.join(directory, member.name), blocks)
    if bundle.signature is not None:
        disk.write(os.path.join(directory, SIGNATURE), [bundle.signature])
    disk.write(os.path.join(directory, MANIFEST), [bundle.text])


def _stored_signature(directory: str) -> Optional[bytes]:
    try:
        with open(os.path.join(directory, SIGNATURE), "rb") as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def _check_budget(manifest: Mapping[str, Any], measured: Mapping[str, Any]) -> None:
    for key, limit in (manifest.get("budget") or {}).items():
        if limit is not None and not measured[key] <= limit:
            raise FailedTest(
                f"{key} is {measured[key]:.3f} on this board, and the budget allows {limit:g}; the release in use was "
                "not changed"
            )
