"""A directory that is a board, and what must hold of it whatever happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices.board.release_disk import Disk
from devices.board.release_home import hold_home, is_whole, linked, read_state, status
from devices.board.release_install import Installer
from devices.board.release_watcher import Watcher
from tests.bundles import opened

MEASURED = {"worst": 0.0, "latency_p50_ms": 2.0, "latency_p99_ms": 3.0, "num_latencies": 400}


def passes(directory: str, manifest: Mapping[str, Any], packages: str = "") -> dict[str, Any]:
    """A self-test without a runtime."""
    assert (Path(directory) / manifest["model"]).read_bytes()
    assert bool(packages) == ("wheels" in manifest)
    if packages:
        assert (Path(packages) / "tiny_packages.py").read_bytes(), "the packages of the bundle are not whole"
    return MEASURED


@dataclass
class Board:
    root: Path
    old: Path
    new: Path

    @property
    def home(self) -> Path:
        return self.root / "net"

    def install(
        self,
        bundle: Path,
        *,
        disk: Disk | None = None,
        self_test: Any = passes,
        on_step: Callable[[str], None] | None = None,
        root: Path | None = None,
        start_watcher: Any = Watcher,
    ) -> dict[str, Any]:
        installer = Installer(
            str(root or self.root),
            who="tester",
            self_test=self_test,
            disk=disk,
            on_step=on_step,
            start_watcher=start_watcher,
        )
        return installer.install(str(bundle))

    def settle(self) -> None:
        """Waits until nobody holds the releases any more."""
        with hold_home(str(self.root), "net", Disk()):
            pass

    def in_use(self, root: Path | None = None) -> str:
        """The release in use, after all its digests were compared."""
        home = (root or self.root) / "net"
        digest = linked(str(home / "current"))
        assert digest is not None
        assert is_whole(str(home / "releases" / digest)), "the release in use is not whole"
        return digest

    def check(self, *, may_be_new: bool = True, root: Path | None = None) -> str:
        """The old release is in use, or the new one, whole; returns which."""
        known = {opened(self.old).digest: "old", opened(self.new).digest: "new"}
        found = known[self.in_use(root)]
        assert may_be_new or found == "old"
        return found

    def check_next(self, root: Path | None = None, *, start_watcher: Any = Watcher) -> None:
        """The next deployment succeeds, leaves nothing lying about, and the way back is whole."""
        self.install(self.new, root=root, start_watcher=start_watcher)
        assert self.check(root=root) == "new"
        home = (root or self.root) / "net"
        assert linked(str(home / "previous")) == opened(self.old).digest
        assert {path.name for path in home.iterdir()} == {".lock", "current", "previous", "releases", "state.json"}
        (row,) = status(str(root or self.root))
        assert set(row["releases"]) == {opened(self.old).digest, opened(self.new).digest}
        assert read_state(str(home))["running"] is None
        back = Installer(str(root or self.root), who="tester", self_test=passes, start_watcher=start_watcher)
        back.rollback("net")
        assert self.check(root=root) == "old"
