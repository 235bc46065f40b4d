"""`runs/<recipe>/`: links to a run's artifacts and its report, for people."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts import ArtifactStore, write_durably
from pipeline.errors import InputError
from pipeline.report import markdown
from pipeline.runner import RunResult
from pipeline.store_errors import store_errors
from pipeline.store_maintenance import register_root

REPORT_FILE = "report.json"
PAGE_FILE = "report.md"
BENCHMARK_FILE = "benchmark.json"
"""Of a benchmark stage."""


def write_run_directory(directory: Path, result: RunResult, report: Mapping[str, Any], store: ArtifactStore) -> None:
    """Writes links and report; each file and link appears whole or not at all.

    Raises:
        StoreError: No space, no permission, or a file where a directory is needed.
    """
    with store_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
    register_root(store, directory, [artifact.manifest.key for artifact in result.artifacts.values()])
    with store_errors(directory), store.lock(f"run-{result.recipe.name}"):
        wanted = {name.replace("/", "-"): artifact.directory for name, artifact in result.artifacts.items()}
        links = directory / "artifacts"
        links.mkdir(exist_ok=True)
        for name, target in wanted.items():
            _link(links / name, target)
        for path in links.iterdir():
            if path.name not in wanted and path.is_symlink():
                path.unlink()
        write_durably(directory / REPORT_FILE, json.dumps(report, indent=2) + "\n")
        write_durably(directory / PAGE_FILE, markdown(report))


def measured_anew(result: RunResult) -> list[Path]:
    """Returns the files of what the run has measured, without what it took from the store."""
    fresh = {record.name for record in result.stages if not record.cached}
    return [
        artifact.directory / BENCHMARK_FILE
        for name, artifact in result.artifacts.items()
        if name.startswith("benchmark/") and name in fresh
    ]


def read_report(directory: Path) -> dict[str, Any]:
    """Returns the report of a run directory.

    Raises:
        InputError: There is none, or it is damaged.
    """
    path = directory / REPORT_FILE
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"There is no report {path}. Run the recipe first: `edgeship run RECIPE`.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"The report {path} can't be read: {error}. Run the recipe again to write it anew.") from error
    if not isinstance(report, dict):
        raise InputError(f"{path} holds no report. Run the recipe again to write it anew.")
    return report


def _link(path: Path, target: Path) -> None:
    if path.is_symlink() and path.readlink() == target:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(path)
