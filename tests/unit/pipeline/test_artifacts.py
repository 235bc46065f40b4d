from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import pipeline.artifacts
from pipeline.artifacts import ArtifactStore, write_durably
from pipeline.errors import CorruptArtifactError, StoreError
from pipeline.manifest import MANIFEST, Artifact, Manifest, read_manifest, sha256_of
from pipeline.stages.base import RESUME
from pipeline.store_errors import store_errors, store_trouble

ROOT = Path(__file__).resolve().parents[3]
KEY = "0123456789abcdef0123456789abcdef"
PLAN = Manifest(
    stage="train",
    key=KEY,
    config={"seed": 0, "size": [8, 8]},
    inputs={"data": "f" * 32},
    code="c" * 64,
    tools={"numpy": "2"},
    fingerprint="",
    metrics={"accuracy": 0.1 + 0.2, "none": None, "text": "größe", "counts": {"10": 1, "9": 2}},
    wall_time_s=1.25,
)
FILES = {"weights.bin": b"\0" * 1000, "deep/er/notes.txt": b"some words", "empty": b""}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def fill(work: Path, files: dict[str, bytes] = FILES) -> Path:
    for name, content in files.items():
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return work


def publish(store: ArtifactStore, plan: Manifest = PLAN) -> Artifact:
    return store.publish(fill(store.workspace(plan.key, resumable=False)), plan)


def get(store: ArtifactStore) -> Artifact | None:
    return ArtifactStore(store.directory).get("train", KEY)


def overwrite(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def counting(function: Any) -> Callable[..., Any]:
    def counted(*args: Any) -> Any:
        counted.calls.append(args)  # type: ignore[attr-defined]
        return function(*args)

    counted.calls = []  # type: ignore[attr-defined]
    return counted


def test_what_is_published_is_read_back_the_same(store: ArtifactStore) -> None:
    assert store.get("train", KEY) is None

    published = publish(store)
    found = get(store)

    assert found == published
    assert found is not None
    assert dataclasses.replace(found.manifest, created="", files=[], digest="") == PLAN
    assert {name: found.file(name).read_bytes() for name in found.digests} == FILES
    assert [record.path for record in found.manifest.files] == sorted(FILES)
    assert all(record.sha256 == sha256_of(found.file(record.path)) for record in found.manifest.files)
    assert time.strptime(found.manifest.created, "%Y-%m-%dT%H:%M:%SZ")
    assert json.loads((found.directory / MANIFEST).read_text())["schema_version"] == 1


def test_metrics_with_whole_numbers_as_names_are_no_change(store: ArtifactStore) -> None:
    publish(store, dataclasses.replace(PLAN, metrics={"classes": {2: 1, 10: 2}, "pair": (1, 2)}))

    found = get(store)

    assert found is not None
    assert found.manifest.metrics == {"classes": {"2": 1, "10": 2}, "pair": [1, 2]}


def test_published_files_are_read_only(store: ArtifactStore) -> None:
    directory = publish(store).directory

    for name in (*FILES, MANIFEST):
        assert stat.S_IMODE((directory / name).stat().st_mode) == 0o444, name


def test_an_artifact_appears_by_one_rename_with_everything_durable(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = store.path_of("train", KEY)
    events: list[str] = []
    rename, fsync = Path.rename, os.fsync

    def seen_rename(self: Path, to: Path) -> Path:
        if Path(to) == target:
            assert not target.exists()
            assert sorted(path.name for path in self.iterdir()) == ["deep", "empty", MANIFEST, "weights.bin"]
            read_manifest(self)
            events.append("rename")
        return rename(self, to)

    def seen_fsync(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(Path, "rename", seen_rename)
    monkeypatch.setattr(os, "fsync", seen_fsync)

    publish(store)

    assert events.count("rename") == 1
    before = events[: events.index("rename")]
    assert {"weights.bin", "notes.txt", "empty", "deep", "er"} <= set(before)
    assert any(name.startswith(f".{MANIFEST}") for name in before)
    assert events[-1] == "train"


def test_readers_see_all_of_an_artifact_or_nothing(store: ArtifactStore) -> None:
    """Another process reads in a loop while this one publishes, removes and publishes again."""
    code = (
        "import sys, pathlib\n"
        "from pipeline.artifacts import ArtifactStore\n"
        "store = ArtifactStore(pathlib.Path(sys.argv[1]))\n"
        "print('ready', flush=True)\n"
        "seen = set()\n"
        "while not (store.directory / 'stop').exists():\n"
        "    found = store.get('train', sys.argv[2])\n"
        "    if found is not None: seen.add(len(found.manifest.files))\n"
        "print(seen)\n"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", code, str(store.directory), KEY], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout is not None
    reader.stdout.readline()
    for _ in range(30):
        directory = publish(store).directory
        time.sleep(0.01)
        directory.rename(store.directory / "gone")
        shutil.rmtree(store.directory / "gone")
    publish(store)
    time.sleep(0.2)
    (store.directory / "stop").touch()

    assert reader.communicate(timeout=20)[0] == f"{ {len(FILES)} }\n"
    assert reader.returncode == 0


@dataclass(frozen=True)
class Damage:
    id: str
    apply: Callable[[Path], Any]
    says: str


def edit_manifest(**fields: Any) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        manifest = json.loads((directory / MANIFEST).read_text())
        overwrite(directory / MANIFEST, json.dumps({**manifest, **fields}).encode())

    return apply


def flip_with_old_time(directory: Path) -> None:
    path = directory / "weights.bin"
    status = path.stat()
    overwrite(path, b"\0" * 999 + b"\1")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def replace_with_directory(directory: Path) -> None:
    (directory / "empty").unlink()
    (directory / "empty").mkdir()


DAMAGES = (
    Damage("same-size", flip_with_old_time, "weights.bin has SHA-256"),
    Damage("other-size", lambda d: overwrite(d / "weights.bin", b"\0" * 999), "weights.bin has 999 bytes, not 1000"),
    Damage("missing", lambda d: (d / "deep/er/notes.txt").unlink(), "deep/er/notes.txt is missing"),
    Damage("a-directory-instead", replace_with_directory, "empty"),
    Damage("no-manifest", lambda d: (d / MANIFEST).unlink(), "manifest.json"),
    Damage("half-a-manifest", lambda d: overwrite(d / MANIFEST, b'{"stage": '), "is no manifest"),
    Damage("another-json", lambda d: overwrite(d / MANIFEST, b"[]"), "is no manifest"),
    Damage("manifest-without-files", lambda d: overwrite(d / MANIFEST, b'{"schema_version": 1}'), "is no manifest"),
    Damage("schema-version", edit_manifest(schema_version=2), "has schema version 2; this Edgeship reads 1"),
    Damage("another-key", edit_manifest(key="f" * 32), "names train/ffff"),
    Damage("changed-metric", edit_manifest(metrics={"accuracy": 1.0}), "differs from its own digest"),
    Damage("forgotten-file", edit_manifest(files=[]), "differs from its own digest"),
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.id)
def test_a_changed_artifact_is_refused_moved_away_and_made_anew(store: ArtifactStore, damage: Damage) -> None:
    directory = publish(store).directory
    damage.apply(directory)
    os.utime(directory, (1, 1))

    with pytest.raises(CorruptArtifactError) as caught:
        get(store)

    assert caught.value.exit_code == 2
    assert damage.says in caught.value.message
    assert f"train/{KEY}" in caught.value.message
    assert "run the same command again" in caught.value.message
    assert not directory.exists()
    [shelter] = (store.directory / "quarantine").iterdir()
    assert str(shelter) in caught.value.message
    assert time.time() - shelter.stat().st_mtime < 60
    assert get(store) is None
    publish(store)
    assert get(store) is not None


def test_a_new_time_on_the_same_content_is_no_change(store: ArtifactStore) -> None:
    published = publish(store)
    os.utime(published.file("weights.bin"), (1, 1))

    assert get(store) == published


def test_digests_are_computed_again_only_where_size_time_or_inode_changed(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = publish(store)
    hashed = counting(sha256_of)
    monkeypatch.setattr(pipeline.artifacts, "sha256_of", hashed)

    get(store)
    assert hashed.calls == []  # type: ignore[attr-defined]

    os.utime(published.file("weights.bin"), (1, 1))
    get(store)
    get(store)
    assert hashed.calls == [(published.file("weights.bin"),)]  # type: ignore[attr-defined]

    store.verify(published)
    assert len(hashed.calls) == 1 + len(FILES)  # type: ignore[attr-defined]


def test_verify_finds_a_change_that_keeps_size_time_and_inode(store: ArtifactStore) -> None:
    published = publish(store)
    path = published.file("weights.bin")
    status = path.stat()
    overwrite(path, b"\1" * 1000)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    assert get(store) == published
    with pytest.raises(CorruptArtifactError, match="SHA-256"):
        store.verify(published)


@pytest.mark.parametrize("note", [b"", b"[]", b'{"weights.bin": 5}', b"\xff"])
def test_a_damaged_note_of_checked_files_only_costs_time(store: ArtifactStore, note: bytes) -> None:
    published = publish(store)
    (store.directory / "checked" / f"{KEY}.json").write_bytes(note)

    assert get(store) == published


def test_an_artifact_that_is_removed_while_in_use_is_named(store: ArtifactStore) -> None:
    published = publish(store)
    shutil.rmtree(published.directory)

    with pytest.raises(CorruptArtifactError, match="was removed while it was in use"):
        store.verify(published)


def test_an_artifact_published_by_another_process_meanwhile_is_taken(store: ArtifactStore) -> None:
    work = fill(store.workspace(KEY, resumable=False), {"mine": b"1"})
    other = ArtifactStore(store.directory)
    first = other.publish(fill(other.workspace("f" * 32, resumable=False)), PLAN)

    assert store.publish(work, PLAN) == first
    assert list((store.directory / "work").iterdir()) == []


def test_a_lock_held_elsewhere_is_waited_for_and_given_up(store: ArtifactStore) -> None:
    other = ArtifactStore(store.directory)

    with other.lock(KEY):
        with pytest.raises(TimeoutError, match=f"Another process holds {KEY}"), store.lock(KEY, timeout_s=0):
            pytest.fail("locked twice")
        with store.lock("f" * 32, timeout_s=0):
            pass
    with store.lock(KEY, timeout_s=0):
        pass


def test_a_lock_ends_with_its_process_however_it_ends(store: ArtifactStore) -> None:
    code = (
        "import sys, os, pathlib\n"
        "from pipeline.artifacts import ArtifactStore\n"
        "with ArtifactStore(pathlib.Path(sys.argv[1])).lock(sys.argv[2]):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(store.directory), KEY], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(TimeoutError), store.lock(KEY, timeout_s=0.1):
        pytest.fail("locked twice")
    holder.kill()
    holder.communicate()

    with store.lock(KEY, timeout_s=5):
        pass


def test_what_a_killed_run_left_is_removed(store: ArtifactStore) -> None:
    work = fill(store.workspace(KEY, resumable=False), {"half": b"1", f"{RESUME}/checkpoint": b"2", "d/e": b""})

    assert store.workspace(KEY, resumable=False) == work
    assert list(work.iterdir()) == []


def test_what_a_resumable_stage_needs_is_kept_and_the_rest_is_removed(store: ArtifactStore) -> None:
    """A kill while publishing leaves read-only files, a manifest and its temporary file."""
    work = fill(store.workspace(KEY, resumable=True), {f"{RESUME}/checkpoint": b"2", ".manifest.json.9.tmp": b"{"})
    fill(work, {"weights.bin": b"old", MANIFEST: b"{}"})
    (work / "weights.bin").chmod(0o444)

    again = store.workspace(KEY, resumable=True)

    assert [path.relative_to(again).as_posix() for path in again.rglob("*")] == [RESUME, f"{RESUME}/checkpoint"]
    artifact = store.publish(fill(again), PLAN)
    assert sorted(artifact.digests) == sorted(FILES)
    assert not (artifact.directory / RESUME).exists()
    assert list((store.directory / "work").iterdir()) == []


def test_a_kill_between_the_two_renames_of_publishing_loses_nothing_a_stage_needs_to_go_on(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = fill(store.workspace(KEY, resumable=True), {f"{RESUME}/checkpoint": b"2"})
    rename = Path.rename

    def killed(self: Path, to: Path) -> Path:
        if self == work:
            raise KeyboardInterrupt
        return rename(self, to)

    with monkeypatch.context() as context:
        context.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            store.publish(work, PLAN)

    again = store.workspace(KEY, resumable=True)

    assert (again / RESUME / "checkpoint").read_bytes() == b"2"


@pytest.mark.parametrize("call", range(7))
def test_a_full_disk_while_publishing_leaves_the_store_sound(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The disk is full at each of the moments at which data reaches it."""
    other = dataclasses.replace(PLAN, key="e" * 32)
    before = publish(store, other)
    count = 0
    fsync = os.fsync

    def full(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count > call:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", full)
        with pytest.raises(StoreError) as caught:
            publish(store)

    assert caught.value.exit_code == 2
    assert "No space left on the device" in caught.value.message
    assert get(store) is None
    assert store.get("train", "e" * 32) == before
    publish(store)
    assert get(store) is not None


def test_a_disk_that_is_full_after_the_rename_costs_nothing(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *args: Any, **kwargs: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    with monkeypatch.context() as context:
        context.setattr(Path, "write_text", full)
        published = publish(store)
        assert store.get("train", KEY) == published

    assert list((store.directory / "checked").iterdir()) == []
    assert get(store) == published


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """Root may write everywhere; for a while this process is nobody."""
    if os.getuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """One that another user can reach, unlike those below `tmp_path`."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o555)
        yield Path(name)
        for path in (Path(name), *Path(name).rglob("*")):
            path.chmod(0o755)


@pytest.mark.parametrize("made_before", [False, True], ids=["new-store", "existing-store"])
def test_a_store_without_write_permission_is_named(public_directory: Path, made_before: bool) -> None:
    place = public_directory / "store"
    if made_before:
        public_directory.chmod(0o755)
        publish(ArtifactStore(place))
        for path in (place, *place.rglob("*")):
            path.chmod(0o555)

    with pytest.raises(StoreError) as caught, without_rights():
        ArtifactStore(place)

    assert caught.value.exit_code == 2
    assert "No permission to write" in caught.value.message
    assert "--store" in caught.value.message


def test_permission_lost_while_at_work_is_named(public_directory: Path) -> None:
    public_directory.chmod(0o755)
    store = ArtifactStore(public_directory / "store")
    (store.directory / "work").chmod(0o555)
    (store.directory / "locks").chmod(0o555)

    with without_rights():
        with pytest.raises(StoreError, match="No permission to write"):
            store.workspace(KEY, resumable=False)
        with pytest.raises(StoreError, match="No permission to write"), store.lock(KEY):
            pass


@pytest.mark.parametrize("below", ["", "below"])
def test_a_store_path_that_is_a_file_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("no directory")

    with pytest.raises(StoreError, match="is a file, but the store at"):
        ArtifactStore(tmp_path / "file" / below)


def test_what_is_no_file_is_refused(store: ArtifactStore) -> None:
    work = fill(store.workspace(KEY, resumable=False))
    (work / "link").symlink_to("/etc/hostname")

    with pytest.raises(StoreError, match="neither a file nor a directory"):
        store.publish(work, PLAN)
    assert get(store) is None


def test_broken_artifacts_do_not_hide_the_others(store: ArtifactStore) -> None:
    publish(store)
    broken = publish(store, dataclasses.replace(PLAN, key="1" * 32))
    (broken.directory / MANIFEST).unlink()

    assert [artifact.manifest.key for artifact in store.artifacts()] == [KEY]


def test_errors_that_are_not_the_stores_pass() -> None:
    with pytest.raises(BrokenPipeError), store_errors("here"):
        raise BrokenPipeError
    with pytest.raises(StoreError, match="can't be used"), store_errors("here"):
        raise OSError(errno.EIO, "Input/output error")


@dataclass(frozen=True)
class Trouble:
    id: str
    error: Exception
    says: str | None


@pytest.mark.parametrize(
    "trouble",
    [
        Trouble("no-space", OSError(errno.ENOSPC, "No space left on device"), "No space left on the device"),
        Trouble("quota", OSError(errno.EDQUOT, "Disk quota exceeded"), "No space left on the device"),
        Trouble("native", RuntimeError("HDF5: [Errno 28] No space left on device"), "No space left on the device"),
        Trouble("forbidden-here", PermissionError(errno.EACCES, "no", "/store/work/x"), "No permission to write"),
        Trouble("forbidden-elsewhere", PermissionError(errno.EACCES, "no", "/data/x.png"), None),
        Trouble("missing", FileNotFoundError(errno.ENOENT, "no", "/store/work/x"), None),
        Trouble("another", ValueError("no"), None),
    ],
    ids=lambda trouble: trouble.id,
)
def test_what_a_stages_error_means_for_the_store(trouble: Trouble) -> None:
    found = store_trouble(trouble.error, Path("/store/work"))

    assert (found is None) == (trouble.says is None)
    if found is not None and trouble.says is not None:
        assert trouble.says in found.message


def test_a_durable_write_leaves_the_old_text_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_durably(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_durably(path, "new and longer")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
