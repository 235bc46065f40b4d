"""Two runs at once in one store, and two machines at one shared address."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest


def ended(process: Any) -> dict[str, Any]:
    stdout, stderr = process.communicate(timeout=110)
    assert process.returncode == 0, stderr
    found: dict[str, Any] = json.loads(stdout)
    return found


def test_two_runs_of_one_recipe_share_the_work(workplace: Any) -> None:
    command = workplace.command("run", "tiny.yaml", "--json")
    both = [workplace.start(command), workplace.start(command)]

    reports = [ended(process) for process in both]

    made = Counter(stage["name"] for report in reports for stage in report["stages"] if not stage["cached"])
    names = [stage["name"] for stage in reports[0]["stages"]]
    assert made == Counter(dict.fromkeys(names, 1)), "each artifact is made once"
    first, second = ([(stage["name"], stage["key"]) for stage in report["stages"]] for report in reports)
    assert first == second
    assert len(workplace.artifacts()) == len(names)
    assert list((workplace.store / "work").iterdir()) == []
    links = list((workplace.runs / "tiny" / "artifacts").iterdir())
    assert len(links) == len(names)
    assert all(link.is_symlink() and link.exists() for link in links)


@pytest.mark.slow
def test_a_run_and_a_cleaning_at_once_do_not_harm_each_other(workplace: Any) -> None:
    run = workplace.start(workplace.command("run", "tiny.yaml", "--json"))
    cleanings = 0
    while run.poll() is None:
        cleaned = workplace.edgeship("store", "gc", "--older-than", "0", "--json")
        assert cleaned.code == 0, cleaned.stderr
        assert cleaned.json()["removed"] == []
        cleanings += 1

    report = ended(run)

    assert cleanings >= 1
    assert len(workplace.artifacts()) == len(report["stages"])


def test_a_second_machine_gets_everything_from_the_shared_store_without_work(finished: Any, tmp_path: Path) -> None:
    shared = ["--shared-store", (tmp_path / "shared").as_uri()]
    first = finished.edgeship("run", "tiny.yaml", "--json", *shared)
    assert first.code == 0, first.stderr

    second = finished.edgeship("run", "tiny.yaml", "--json", *shared, "--store", "other", "--runs", "other-runs")

    assert second.code == 0, second.stderr
    assert all(stage["cached"] for stage in second.json()["stages"])
    assert [stage["key"] for stage in second.json()["stages"]] == [stage["key"] for stage in first.json()["stages"]]
    assert len(list((finished.directory / "other" / "artifacts").glob("*/*"))) == len(finished.artifacts())
    assert list((finished.directory / "other" / "work").iterdir()) == []
