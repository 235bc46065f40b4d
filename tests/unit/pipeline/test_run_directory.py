from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.artifacts import ArtifactStore
from pipeline.errors import InputError, StoreError
from pipeline.recipe import load_recipes
from pipeline.report import report_of
from pipeline.run_directory import read_report, write_run_directory
from pipeline.runner import RunResult, run_recipe
from pipeline.store_maintenance import used_keys


@pytest.fixture
def result(finished: Any, monkeypatch: pytest.MonkeyPatch) -> RunResult:
    monkeypatch.chdir(finished.directory)
    [recipe] = load_recipes(finished.recipe)
    return run_recipe(recipe, ArtifactStore(finished.store), tell=lambda _: None)


def write(result: RunResult, finished: Any, directory: Path) -> dict[str, Any]:
    report = report_of(result)
    write_run_directory(directory, result, report, ArtifactStore(finished.store))
    return report


def test_it_holds_a_link_to_each_artifact_and_the_report(result: RunResult, finished: Any, tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "tiny"
    report = write(result, finished, directory)

    assert sorted(path.name for path in directory.iterdir()) == ["artifacts", "report.json", "report.md"]
    links = {path.name: path.resolve() for path in (directory / "artifacts").iterdir()}
    assert links == {name.replace("/", "-"): artifact.directory for name, artifact in result.artifacts.items()}
    assert (directory / "artifacts/export-fake-int8/model.fake").is_file()
    assert read_report(directory) == json.loads(json.dumps(report))
    assert (directory / "report.md").read_text().startswith("# tiny\n")


def test_it_registers_what_it_uses(result: RunResult, finished: Any, tmp_path: Path) -> None:
    for path in (finished.store / "roots").iterdir():
        path.unlink()
    write(result, finished, tmp_path / "runs")
    keys = {artifact.manifest.key for artifact in result.artifacts.values()}
    result.artifacts.clear()

    assert used_keys(ArtifactStore(finished.store)) == keys


def test_links_of_earlier_runs_go_and_what_is_no_link_stays(result: RunResult, finished: Any, tmp_path: Path) -> None:
    links = tmp_path / "runs" / "artifacts"
    links.mkdir(parents=True)
    (links / "export-old-int8").symlink_to(tmp_path / "nowhere")
    (links / f".data.{os.getpid()}").symlink_to(tmp_path / "left-by-a-kill")
    (links / "data").symlink_to(tmp_path / "another")
    (links / "mine.txt").write_text("a note")
    write(result, finished, tmp_path / "runs")

    assert (links / "mine.txt").read_text() == "a note"
    assert (links / "data").resolve() == result.artifacts["data"].directory
    names = {path.name for path in links.iterdir()}
    assert names == {"mine.txt", *(name.replace("/", "-") for name in result.artifacts)}


def test_a_file_where_the_directory_belongs_is_named(result: RunResult, finished: Any, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")

    with pytest.raises(StoreError, match="is a file, but"):
        write(result, finished, tmp_path / "runs")
    with pytest.raises(StoreError, match="is a file, but"):
        write(result, finished, tmp_path / "runs" / "tiny")


def test_a_full_disk_keeps_the_old_report(
    result: RunResult, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "runs"
    write(result, finished, directory)
    before = (directory / "report.json").read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left on the device"):
            write(result, finished, directory)

    assert (directory / "report.json").read_text() == before
    assert sorted(path.name for path in directory.iterdir()) == ["artifacts", "report.json", "report.md"]


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "There is no report"), ("{", "can't be read"), ("[]", "holds no report"), ("\udcff", "can't be read")],
)
def test_a_report_that_cannot_be_read_is_named(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "report.json").write_bytes(content.encode(errors="surrogateescape"))

    with pytest.raises(InputError, match=says) as caught:
        read_report(tmp_path)

    assert str(tmp_path) in caught.value.message
    assert "un the recipe" in caught.value.message
