from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pipeline.store_maintenance
from pipeline.artifacts import ArtifactStore
from pipeline.manifest import Manifest
from pipeline.store_maintenance import Leftover, artifact_size, collect, register_root, used_keys
from pipeline.store_pins import pinned_keys

ROOT = Path(__file__).resolve().parents[3]
USED, UNUSED, OTHER = "a" * 32, "b" * 32, "c" * 32
PLAN = Manifest(
    stage="train", key="", config={}, inputs={}, code="", tools={}, fingerprint="", metrics={}, wall_time_s=1.0
)


def publish(directory: Path, key: str, size: int = 100) -> Path:
    store = ArtifactStore(directory)
    work = store.workspace(key, resumable=False)
    (work / "file").write_bytes(bytes(size))
    return store.publish(work, dataclasses.replace(PLAN, key=key)).directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A store with two artifacts, one of which `runs/here` uses."""
    place = tmp_path / "store"
    publish(place, USED)
    publish(place, UNUSED)
    runs = tmp_path / "runs" / "here"
    runs.mkdir(parents=True)
    register_root(ArtifactStore(place), runs, [USED])
    return place


def clean(directory: Path, *, older_than_s: float = 0.0, dry_run: bool = False) -> list[Leftover]:
    return collect(ArtifactStore(directory), older_than_s=older_than_s, dry_run=dry_run)


def names(leftovers: list[Leftover]) -> list[tuple[str, str]]:
    return [(each.kind, each.path.name) for each in leftovers]


def age(path: Path, days: float) -> None:
    then = time.time() - days * 86400
    os.utime(path, (then, then))


def test_what_a_run_uses_is_kept_and_the_rest_is_removed(directory: Path) -> None:
    [removed] = clean(directory)

    assert names([removed]) == [("unused train", UNUSED)]
    assert removed.size_bytes > 100
    assert [path.name for path in (directory / "artifacts/train").iterdir()] == [USED]
    assert [path.name for path in (directory / "checked").iterdir()] == [f"{USED}.json"]
    assert list((directory / "work").iterdir()) == []
    assert ArtifactStore(directory).get("train", USED) is not None
    assert clean(directory) == []


def test_a_dry_run_says_the_same_and_removes_nothing(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "runs/here").rename(tmp_path / "runs/away")

    assert names(clean(directory, dry_run=True)) == [("unused train", USED), ("unused train", UNUSED)]
    assert len(list((directory / "artifacts/train").iterdir())) == 2
    (tmp_path / "runs/away").rename(tmp_path / "runs/here")
    assert names(clean(directory, dry_run=True)) == [("unused train", UNUSED)]


def test_what_is_younger_than_the_age_is_kept(directory: Path) -> None:
    assert clean(directory, older_than_s=3600) == []
    age(directory / "artifacts/train" / UNUSED, 1)
    age(directory / "artifacts/train" / USED, 1)
    assert names(clean(directory, older_than_s=2 * 86400)) == []
    assert names(clean(directory, older_than_s=3600)) == [("unused train", UNUSED)]


def test_runs_whose_directory_is_gone_are_forgotten(directory: Path, tmp_path: Path) -> None:
    store = ArtifactStore(directory)
    (tmp_path / "runs/here").rmdir()

    assert used_keys(store) == set()
    assert len(list((directory / "roots").glob("*.json"))) == 1, "only cleaning forgets"
    assert names(clean(directory)) == [("unused train", USED), ("unused train", UNUSED)]
    assert list((directory / "roots").iterdir()) == []


def test_a_run_directory_uses_what_it_registered_last(directory: Path, tmp_path: Path) -> None:
    register_root(ArtifactStore(directory), tmp_path / "runs" / ".." / "runs" / "here", [UNUSED, UNUSED])

    assert used_keys(ArtifactStore(directory)) == {UNUSED}
    assert names(clean(directory)) == [("unused train", USED)]


def test_two_run_directories_add_up(directory: Path, tmp_path: Path) -> None:
    register_root(ArtifactStore(directory), tmp_path, [UNUSED])

    assert clean(directory) == []


def test_interrupted_work_and_quarantine_are_removed(directory: Path) -> None:
    store = ArtifactStore(directory)
    for name in (OTHER, f"{OTHER}.resume", f"{OTHER}.fetch", f"{OTHER}.removed-123"):
        (directory / "work" / name).mkdir()
        (directory / "work" / name / "file").write_bytes(bytes(10))
    shelter = directory / "quarantine" / f"{OTHER}-17"
    shelter.mkdir(parents=True)
    (directory / "checked" / "old.tmp").touch()
    age(directory / "checked" / "old.tmp", 2)

    removed = names(clean(directory))

    assert removed == [
        ("unused train", UNUSED),
        ("interrupted work", OTHER),
        ("interrupted work", f"{OTHER}.fetch"),
        ("interrupted work", f"{OTHER}.removed-123"),
        ("interrupted work", f"{OTHER}.resume"),
        ("quarantine", f"{OTHER}-17"),
    ]
    assert list((directory / "work").iterdir()) == []
    assert list((directory / "quarantine").iterdir()) == []
    assert not (directory / "checked" / "old.tmp").exists()
    assert store.get("train", USED) is not None


def test_scratch_directories_without_a_key_are_removed_after_a_day(directory: Path) -> None:
    scratch = directory / "work" / "scratch-abc"
    scratch.mkdir()

    assert ("interrupted work", "scratch-abc") not in names(clean(directory))
    age(scratch, 1.1)
    assert names(clean(directory)) == [("interrupted work", "scratch-abc")]
    assert not scratch.exists()


@pytest.mark.parametrize("name", [OTHER, f"{OTHER}.fetch"])
def test_work_of_another_process_is_left_alone(directory: Path, name: str) -> None:
    work = directory / "work" / name
    work.mkdir()

    with ArtifactStore(directory).lock(name, timeout_s=0):
        assert names(clean(directory)) == [("unused train", UNUSED)]
        assert work.exists()
    assert names(clean(directory)) == [("interrupted work", name)]


def test_an_artifact_that_is_being_made_is_left_alone(directory: Path) -> None:
    with ArtifactStore(directory).lock(UNUSED, timeout_s=0):
        assert clean(directory) == []
    assert names(clean(directory)) == [("unused train", UNUSED)]


def test_an_artifact_that_a_living_process_took_is_left_alone(directory: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from pipeline.artifacts import ArtifactStore\n"
        "store = ArtifactStore(pathlib.Path(sys.argv[1]))\n"
        "assert store.get('train', sys.argv[2])\n"
        "print('taken', flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(directory), UNUSED], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"taken\n"

    assert UNUSED in used_keys(ArtifactStore(directory))
    assert clean(directory, dry_run=True) == []
    assert clean(directory) == []
    holder.kill()
    holder.communicate()

    assert names(clean(directory)) == [("unused train", UNUSED)]
    assert [path.suffix for path in (directory / "roots").iterdir()] == [".json"]


def test_an_artifact_that_is_taken_after_the_first_look_is_left_alone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(directory)

    def taken_meanwhile(path: Path) -> int:
        store.get("train", path.name)
        return 1

    monkeypatch.setattr(pipeline.store_maintenance, "size_of", taken_meanwhile)

    assert clean(directory) == []
    assert store.get("train", UNUSED) is not None


def test_a_store_that_is_closed_lets_its_artifacts_go(directory: Path) -> None:
    store = ArtifactStore(directory)
    store.get("train", UNUSED)
    assert pinned_keys(directory / "roots") == {UNUSED}
    del store

    assert pinned_keys(directory / "roots") == set()
    assert [path.suffix for path in (directory / "roots").iterdir()] == [".json"]


@pytest.mark.parametrize("text", ["", "[]", '{"directory": 3, "keys": []}', '{"keys": []}'])
def test_damaged_registrations_are_dropped(directory: Path, text: str) -> None:
    (directory / "roots" / "damaged.json").write_text(text)

    assert names(clean(directory)) == [("unused train", UNUSED)]
    assert not (directory / "roots" / "damaged.json").exists()


def test_what_goes_away_while_cleaning_is_no_error(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.glob

    def with_a_ghost(self: Path, pattern: str) -> list[Path]:
        found = list(real(self, pattern))
        return [*found, self / "train" / OTHER] if self.name == "artifacts" else found

    monkeypatch.setattr(Path, "glob", with_a_ghost)

    assert names(clean(directory)) == [("unused train", UNUSED)]


def test_the_size_of_an_artifact_is_that_of_its_files(directory: Path) -> None:
    assert [artifact_size(artifact) for artifact in ArtifactStore(directory).artifacts()] == [100, 100]
    assert json.loads(next((directory / "roots").iterdir()).read_text())["keys"] == [USED]
