"""Packages that come in a bundle: unpacked once, used by what runs its model, gone with the last release."""

from __future__ import annotations

import io
import os
import shutil
import sys
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from devices.board import environment
from devices.board.bundle import kept_files
from devices.board.release_errors import BadBundle, FailedTest, NoRoom, Refusal
from devices.board.release_home import is_whole, linked
from devices.board.release_install import Installer
from tests.bundles import PARTS, WHEEL, make_bundle, opened, part_files, trust, wheel_bytes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trust(tmp_path / "root", allow_unsigned=True, keep=2)


def with_wheel(path: Path, seed: int, content: bytes | None = None, name: str = WHEEL, **changes: Any) -> Path:
    wheel = part_files(1)[WHEEL] if content is None else content
    return make_bundle(path, seed, files={name: wheel}, **{"wheels": [name], **changes})


def passes(directory: str, manifest: Mapping[str, Any], packages: str = "") -> dict[str, Any]:
    if packages:
        assert (Path(packages) / "tiny_packages.py").read_text().startswith("SEED")
    return {"packages": packages}


def install(root: Path, bundle: Path, *, self_test: Any = passes, **options: Any) -> dict[str, Any]:
    return Installer(str(root), who="tester", self_test=self_test).install(str(bundle), **options)


def environments(root: Path) -> list[str]:
    place = root / environment.DIRECTORY
    return sorted(path.name for path in place.iterdir() if path.name != ".lock") if place.exists() else []


def test_a_release_gets_the_packages_of_its_bundle(root: Path, tmp_path: Path) -> None:
    bundle = with_wheel(tmp_path / "one", 1)
    packages = install(root, bundle)["measured"]["packages"]
    assert Path(packages).parent.parent == root / environment.DIRECTORY
    release = root / "net" / "releases" / opened(bundle).digest
    assert not (release / WHEEL).exists(), "a wheel is there unpacked, not as it came as well"
    assert is_whole(str(release))
    assert set(kept_files(opened(bundle).manifest)) == {path.name for path in release.iterdir()} - {"release.json"}


def test_releases_share_them_and_the_last_one_takes_them_along(root: Path, tmp_path: Path) -> None:
    for seed in (1, 2):
        install(root, with_wheel(tmp_path / str(seed), seed))
    assert len(environments(root)) == 1
    install(root, make_bundle(tmp_path / "3", 3))
    install(root, with_wheel(tmp_path / "4", 4, wheel_bytes({"tiny_packages.py": "SEED = 4"})))
    assert len(environments(root)) == 1, "of the release in use; the older two are gone"
    for seed in (5, 6):
        install(root, make_bundle(tmp_path / str(seed), seed))
    assert not (root / environment.DIRECTORY).exists()


def test_going_back_uses_the_packages_of_then(root: Path, tmp_path: Path) -> None:
    first = install(root, with_wheel(tmp_path / "1", 1))["measured"]["packages"]
    install(root, make_bundle(tmp_path / "2", 2))
    told = Installer(str(root), who="tester", self_test=passes).rollback("net")
    assert told["measured"]["packages"] == first
    install(root, make_bundle(tmp_path / "2", 2))
    os.rename(first, first + ".away")  # noqa: PTH104
    with pytest.raises(Refusal, match=r"are not in .* any more; install its bundle again"):
        Installer(str(root), who="tester", self_test=passes).rollback("net")
    assert linked(str(root / "net" / "current")) == opened(tmp_path / "2").digest


def test_installing_again_brings_back_what_is_gone(root: Path, tmp_path: Path) -> None:
    bundle = with_wheel(tmp_path / "1", 1)
    packages = Path(install(root, bundle)["measured"]["packages"])
    assert not install(root, bundle)["changed"]
    shutil.rmtree(packages)
    packages.parent.rmdir()
    assert install(root, bundle)["measured"]["packages"] == str(packages)
    assert (packages / "tiny_packages.py").is_file()


def test_what_is_refused_or_only_tried_leaves_none(root: Path, tmp_path: Path) -> None:
    def fails(*_: Any, **__: Any) -> dict[str, Any]:
        raise FailedTest("no")

    bundle = with_wheel(tmp_path / "1", 1)
    assert install(root, bundle, dry_run=True)["measured"]["packages"]
    assert not (root / environment.DIRECTORY).exists()
    with pytest.raises(FailedTest):
        install(root, bundle, self_test=fails)
    assert not (root / environment.DIRECTORY).exists()


def test_what_an_interruption_left_is_removed(root: Path, tmp_path: Path) -> None:
    (root / environment.DIRECTORY / ".making-1" / "half").mkdir(parents=True)
    install(root, with_wheel(tmp_path / "1", 1))
    (name,) = environments(root)
    assert len(name) == 32


def test_no_room_for_them(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "free_bytes", lambda _: 1000)
    with pytest.raises(NoRoom, match="the packages in the bundle take"):
        install(root, with_wheel(tmp_path / "1", 1))
    assert not (root / environment.DIRECTORY).exists()


def hostile_zip(name: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, "evil")
    return stream.getvalue()


def torn() -> bytes:
    whole = wheel_bytes({"tiny_packages.py": "SEED = 1"})
    return whole[: len(whole) // 2]


@pytest.mark.parametrize(
    "content",
    [b"", b"no wheel", torn(), hostile_zip("../evil"), hostile_zip("/evil"), hostile_zip("a/../../evil"),
     hostile_zip("x.data/strange/evil")],
    ids=["empty", "no zip", "torn", "upwards", "absolute", "upwards within", "unknown place"],
)  # fmt: skip
def test_what_is_no_wheel_is_refused(content: bytes, root: Path, tmp_path: Path) -> None:
    with pytest.raises(BadBundle, match="can't be unpacked"):
        install(root, with_wheel(tmp_path / "1", 1, content))
    assert not (root / environment.DIRECTORY).exists()
    assert not list(tmp_path.rglob("evil"))


def test_wheels_that_would_swell_are_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_MOST_UNPACKED", 10)
    with pytest.raises(BadBundle, match="would unpack to"):
        install(root, with_wheel(tmp_path / "1", 1))


def test_the_real_self_test_imports_them_first(root: Path, tmp_path: Path) -> None:
    broken = wheel_bytes({"numpy/__init__.py": "raise SystemExit('the numpy of the bundle')"})
    with pytest.raises(FailedTest, match="the numpy of the bundle"):
        Installer(str(root), who="tester").install(str(with_wheel(tmp_path / "1", 1, broken)))
    good = Installer(str(root), who="tester").install(str(with_wheel(tmp_path / "2", 2)))
    assert good["measured"]["num_latencies"] > 10


def test_a_program_in_a_release_finds_them(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    bundle = make_bundle(tmp_path / "1", files=part_files(1), **PARTS)
    packages = install(root, bundle)["measured"]["packages"]
    environment.activate_beside(str((root / "net" / "current" / "edgeship-board.pyz").resolve()))
    assert packages in sys.path
    assert sys.path.index(packages) == 1
    environment.activate_beside(str(tmp_path / "elsewhere.pyz"))


def test_a_lock_that_was_removed_meanwhile_holds_nobody(root: Path, tmp_path: Path) -> None:
    place = root / environment.DIRECTORY
    entered = threading.Event()

    def wait_for_it() -> None:
        with environment._held(str(root)):
            entered.set()

    with environment._held(str(root)):
        waiting = threading.Thread(target=wait_for_it)
        waiting.start()
        assert not entered.wait(0.2)
        (place / ".lock").unlink()
    waiting.join(30)
    assert entered.is_set()
    assert (place / ".lock").exists(), "it holds the lock that others will find"


def test_two_programs_at_once_make_one(root: Path, tmp_path: Path) -> None:
    one, two = with_wheel(tmp_path / "1", 1), with_wheel(tmp_path / "2", 2, name="zz-" + WHEEL)
    with one.open("rb") as stream:
        environment.make(str(root), stream, opened(one))
        environment.make(str(root), stream, opened(one))
    with two.open("rb") as stream:
        environment.make(str(root), stream, opened(two))
    assert len(environments(root)) == 2
    environment.prune(str(root))
    assert environments(root) == []
