from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from pipeline.cli import STAGE_NAMES, main
from pipeline.runner import STAGES

HEAVY = ("tensorflow", "keras", "jax", "openvino", "nncf", "onnx", "onnxruntime", "ai_edge_litert", "sklearn", "scipy")
# Runs the command line and then says on standard error which modules got loaded.
LOADED = """
import sys
from pipeline.cli import main
try:
    main()
finally:
    print("LOADED", *sorted({name.split(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def paths_of(group: click.Group, *before: str) -> Iterator[tuple[str, ...]]:
    yield before
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from paths_of(command, *before, name)
        else:
            yield (*before, name)


COMMANDS = tuple(paths_of(main))


def loaded(outcome: Any) -> set[str]:
    line = next(line for line in outcome.stderr.splitlines() if line.startswith("LOADED"))
    return set(line.split()[1:])


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_has_help(path: tuple[str, ...], option: str) -> None:
    outcome = CliRunner().invoke(main, [*path, option])

    assert outcome.exit_code == 0
    assert outcome.stdout.startswith(f"Usage: main {' '.join(path)}".rstrip())
    assert len(outcome.stdout.splitlines()) > 4


def test_the_commands_are_those_of_the_design() -> None:
    assert {("run",), ("bench",), ("eval",), ("inspect",), ("report",), ("store", "ls"), ("store", "gc"),
            ("models", "list"), ("models", "show"), ("devices", "list"), ("devices", "show"), ("devices", "facts"),
            ("recipe", "schema")} <= set(COMMANDS)  # fmt: skip


def test_the_stage_names_of_the_command_line_are_the_runners() -> None:
    assert STAGE_NAMES == STAGES


def test_help_loads_nothing_but_click(workplace: Any) -> None:
    outcome = workplace.python(LOADED, "--help")

    assert outcome.code == 0
    assert "Exit codes: 0 done; 1 a gate failed" in outcome.stdout
    others = {name for name in loaded(outcome) if name in {"pydantic", "numpy", "rich", "ruamel", "fsspec", *HEAVY}}
    assert others == set()


def test_a_cached_run_loads_no_runtime_and_starts_no_process(finished: Any) -> None:
    code = "import subprocess\nsubprocess.Popen = None\n" + LOADED

    outcome = finished.python(code, "run", "tiny.yaml", "--json")

    assert outcome.code == 0, outcome.stderr
    assert all(stage["cached"] for stage in outcome.json()["stages"])
    assert loaded(outcome) & set(HEAVY) == set()


def test_a_cached_run_of_the_shipped_recipe_loads_no_runtime_either(finished: Any) -> None:
    """Its data are scikit-learn's, which only reading them in earnest needs."""
    recipe = Path(__file__).resolve().parents[3] / "models" / "recipes" / "fake.yaml"
    arguments = ("run", recipe, "--until", "data", "--json", "--set", "data.size=[8, 8]")
    first = finished.edgeship(*arguments)
    assert first.code == 0, first.stderr

    outcome = finished.python(LOADED, *arguments)

    assert [stage["cached"] for stage in outcome.json()["stages"]] == [True]
    assert loaded(outcome) & set(HEAVY) == set()


def test_run_json_is_one_object_with_the_fields_of_the_design(finished: Any) -> None:
    outcome = finished.edgeship("run", "tiny.yaml", "--json")
    report, end = json.JSONDecoder().raw_decode(outcome.stdout)

    assert outcome.code == 0
    assert outcome.stdout[end:] == "\n"
    assert "data: cached" in outcome.stderr
    assert report["recipe"] == "tiny"
    for row in report["artifacts"]:
        assert {"target", "precision", "path", "sha256", "size_bytes", "accuracy", "accuracy_interval",
                "accuracy_drop", "ece", "parity"} <= set(row)  # fmt: skip
        assert Path(row["path"]).stat().st_size == row["size_bytes"]
    for row in report["benchmarks"]:
        assert {"device", "target", "precision", "mode", "load_ms", "first_inference_ms", "peak_memory_mb"} <= set(row)
        assert {"p50", "p90", "p99"} <= set(row["latency_ms"])
        assert row["mode"] == "simulated"
    assert report["selected"]["fake"]["selected"] in {"fake/float32", "fake/float16", "fake/int8"}
    assert all({"name", "limit", "value", "passed"} <= set(row) for row in report["gates"])
    assert len(report["gates"]) > 3
    assert all(set(row) == {"name", "key", "cached", "seconds"} for row in report["stages"])
    assert json.loads((finished.runs / "tiny" / "report.json").read_text()) == report


def test_run_prints_a_table_and_the_choice(finished: Any) -> None:
    outcome = finished.edgeship("run", "tiny.yaml")

    assert outcome.code == 0
    assert "tiny on fake (simulated)" in outcome.stdout
    assert "Selected for fake: fake/" in outcome.stdout
    assert "11 stages, 11 of them cached" in outcome.stdout
    assert "tiny/report.md" in outcome.stdout


@pytest.mark.slow
def test_report_prints_the_last_run_again(finished: Any) -> None:
    ran = finished.edgeship("run", "tiny.yaml", "--json")

    assert finished.edgeship("report", "tiny.yaml", "--json").json() == ran.json()
    assert "tiny on fake (simulated)" in finished.edgeship("report", "tiny.yaml").stdout


@pytest.mark.slow
def test_a_matrix_runs_one_recipe_after_another(finished: Any) -> None:
    text = finished.recipe.read_text() + "matrix: {benchmark.min_count: [200, 20]}\n"
    (finished.directory / "matrix.yaml").write_text(text)

    outcome = finished.edgeship("run", "matrix.yaml", "--json")

    names = [report["recipe"] for report in outcome.json()["runs"]]
    assert len(set(names)) == 2
    assert all((finished.runs / name / "report.json").exists() for name in names)


def test_store_ls_and_gc(finished: Any) -> None:
    listed = finished.edgeship("store", "ls", "--json").json()["artifacts"]
    assert len(listed) == 11
    assert all(row["used"] and Path(row["path"]).is_dir() for row in listed)
    assert "benchmark" in finished.edgeship("store", "ls").stdout
    # The copied store still names the run directory it was copied from; its own is registered by a run.
    for path in (finished.store / "roots").iterdir():
        path.unlink()

    dry = finished.edgeship("store", "gc", "--older-than", "0", "--dry-run", "--json").json()
    assert (dry["dry_run"], len(dry["removed"])) == (True, 11)
    assert finished.edgeship("store", "gc").stdout.startswith("Removed 0 directories")
    assert len(finished.artifacts()) == 11
    gone = finished.edgeship("store", "gc", "--older-than", "0")
    assert "Removed 11 directories" in gone.stdout
    assert finished.artifacts() == []


@pytest.mark.parametrize("arguments", [("run", "tiny.yaml"), ("run", "tiny.yaml", "--json"), ("store", "ls")])
def test_a_reader_who_leaves_gets_no_traceback(finished: Any, arguments: tuple[str, ...]) -> None:
    """As in `edgeship run ... | head -1`, with the pipe closed before anything is printed."""
    process = finished.start(finished.command(*arguments))
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()

    assert process.wait(timeout=20) in {0, 1}
    assert "Traceback" not in stderr
    assert "BrokenPipe" not in stderr
    assert "Error" not in stderr


def test_both_streams_closed_end_the_run_quietly(finished: Any) -> None:
    command = " ".join(finished.command("run", "tiny.yaml", "--set", "benchmark.min_count=30"))
    outcome = finished.execute(["bash", "-c", f"{command} 2>&1 | head -1; exit 0"])

    assert outcome.stdout == "data: cached\n"
    assert "Traceback" not in outcome.stderr
    again = finished.edgeship("run", "tiny.yaml", "--set", "benchmark.min_count=30")
    assert again.code == 0


@pytest.mark.parametrize(
    "arguments",
    [("no-such-command",), ("run",), ("run", "tiny.yaml", "--until", "never"), ("bench",), ("run", "--no-such", "x")],
    ids=" ".join,
)
def test_bad_usage_is_2(arguments: tuple[str, ...]) -> None:
    outcome = CliRunner().invoke(main, list(arguments))

    assert outcome.exit_code == 2
    assert "Usage:" in outcome.stderr


def test_an_unexpected_error_is_one_message_and_a_traceback_only_on_request(
    finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise LookupError("odd")

    monkeypatch.chdir(finished.directory)
    monkeypatch.delenv("EDGESHIP_DEBUG", raising=False)
    monkeypatch.setattr("pipeline.recipe.load_recipes", fail)

    plain = CliRunner().invoke(main, ["run", "tiny.yaml"])
    asked = CliRunner().invoke(main, ["run", "tiny.yaml", "--debug"])

    assert plain.exit_code == asked.exit_code == 4
    assert plain.stderr == "Error: Unexpected LookupError: odd. --debug shows the traceback.\n"
    assert "Traceback" in asked.stderr
    assert plain.stdout == ""


def test_the_version_is_told() -> None:
    outcome = CliRunner().invoke(main, ["--version"])

    assert outcome.exit_code == 0
    assert outcome.stdout.startswith("edgeship, version ")


def test_the_console_script_is_installed() -> None:
    assert shutil.which("edgeship", path=str(Path(sys.executable).parent))
