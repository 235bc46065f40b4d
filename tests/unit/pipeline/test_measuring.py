"""`edgeship bench` and `edgeship results`: options, lines that fit, the file of results."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from devices.errors import ResultsError
from devices.measurement import BenchmarkResult, BenchmarkSettings, Case
from devices.profile import load_profile
from devices.results import read_results
from pipeline.errors import InputError
from pipeline.imports.description import ModelDescription
from pipeline.measuring import (
    BenchOptions,
    bench_options,
    measure,
    try_record,
    with_image,
    with_threads,
    work,
)
from pipeline.measuring_options import parse_seconds, parse_threads
from pipeline.measuring_text import WIDTH, bench_lines, profile_lines, regression_lines, sustained_lines

ASKED: dict[str, Any] = {
    "threads": None, "cores": None, "governor": None, "min_count": 40, "min_time": 0.0, "max_time": None,
    "precision": 0.0, "sessions": None, "compare": False, "sustained": None, "seed": 0, "rules": None,
}  # fmt: skip
QUICK = ("--min-count", "40", "--min-time", "0", "--precision", "0", "--device", "fake")


def write_model(path: Path, seed: int = 0, side: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    with path.open("wb") as stream:
        np.savez(
            stream,
            weights=generator.normal(size=(side * side * 3, 3)).astype(np.float32),
            bias=np.zeros(3, np.float32),
            shape=np.array([side, side, 3]),
            kind=np.array("float32"),
            behaviour=np.array("ok"),
        )
    return path


class BadOption(NamedTuple):
    values: dict[str, Any]
    words: str


BAD_OPTIONS = [
    BadOption({"threads": "1,two"}, "--threads is 1,two; expected a number from 1 to 256, or several"),
    BadOption({"threads": "0"}, "--threads is 0"),
    BadOption({"threads": "2,02"}, "names a number twice"),
    BadOption({"sustained": "half an hour"}, "expected a time such as 30m"),
    BadOption({"sustained": "0m"}, "expected a time such as 30m"),
    BadOption({"sustained": "30m", "compare": True}, "give one of them"),
    BadOption({"min_time": 5.0, "max_time": 1.0}, r"--max-time \(1\) is shorter than --min-time \(5\)"),
]


@pytest.mark.parametrize("bad", BAD_OPTIONS, ids=lambda bad: str(bad.values))
def test_options_of_another_form(bad: BadOption) -> None:
    with pytest.raises(InputError, match=bad.words):
        bench_options(**{**ASKED, **bad.values})


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1.5h", 5400), (None, None)])
def test_times(text: str | None, seconds: float | None) -> None:
    assert parse_seconds(text) == seconds


def test_options_become_settings() -> None:
    compared = BenchOptions(compare=True).settings()
    assert (compared.sessions, compared.min_time_s, compared.precision) == (10, 15.0, 0.01)
    plain = bench_options(**{**ASKED, "min_time": 100.0}).settings()
    assert (plain.sessions, plain.max_time_s, plain.precision) == (1, 200.0, None)
    assert parse_threads("4,1") == (4, 1)


def test_a_sweep_of_threads_makes_a_case_of_each() -> None:
    case = Case(id="m", runtime="fake", path="m")
    assert [(each.id, each.num_threads) for each in with_threads([case], (1, 4))] == [("m x1", 1), ("m x4", 4)]
    assert [(each.id, each.num_threads) for each in with_threads([case], (2,))] == [("m", 2)]
    assert [(each.id, each.num_threads) for each in with_threads([case], ())] == [("m", None)]


def test_an_image_for_a_model(tmp_path: Path) -> None:
    case = Case(id="m", runtime="fake", path=str(write_model(tmp_path / "m.fake")))
    (tmp_path / "i.ppm").write_bytes(b"P6 1 1 255\n123")
    given = with_image(case, tmp_path / "i.ppm", ModelDescription()).image
    assert given is not None
    assert (given.preprocess["size"], given.transform) == ([4, 4], {"layout": "NHWC", "dtype": "uint8"})
    with pytest.raises(InputError, match=r"There is no image .*gone\.ppm"):
        with_image(case, tmp_path / "gone.ppm", ModelDescription())
    described = ModelDescription.model_validate({"inputs": [{"layout": "NCHW"}]})
    with pytest.raises(InputError, match=r"one input of RGB images, but .*m\.fake takes image \[1, 4, 4, 3\]"):
        with_image(case, tmp_path / "i.ppm", described)


@pytest.fixture
def long_names(tmp_path: Path) -> list[Case]:
    directory = tmp_path / "runs" / "a_recipe_with_a_rather_long_name" / "artifacts" / "export-onnxruntime-float32"
    paths = [write_model(directory / f"model{index}.fake", index) for index in range(2)]
    return [Case(id=str(path)[-90:], runtime="fake", path=str(path)) for path in paths]


@pytest.mark.parametrize("latency_ms", [0.01, 2.0, 1234.5])
def test_the_table_fits_100_columns(latency_ms: float, long_names: list[Case], tmp_path: Path) -> None:
    np.save(tmp_path / "i.npy", np.zeros((2, 2, 3), np.uint8))
    cases = [with_image(case, tmp_path / "i.npy", ModelDescription()) for case in long_names]
    profile = load_profile("fake")
    profile = profile.model_copy(update={"transport": profile.transport.model_copy(update={"latency_ms": latency_ms})})
    options = BenchOptions(min_count=10, min_time_s=0, precision=0, sessions=2, cores="0-3", max_time_s=1e6)
    result = measure(profile, with_threads(cases, (1, 16)), options, tell=lambda _: None)
    lines = bench_lines(result)
    assert max(map(len, lines)) <= WIDTH == 100
    assert lines[1].split() == ["p50", "ms", "+-", "p90", "ms", "p95", "ms", "p99", "ms", "p99.9", "ms", "per", "s",
                                "load", "ms", "first", "ms", "peak", "MiB"]  # fmt: skip
    heading_end, row_end = (
        len(line.rstrip()) for line in (lines[1], next(line for line in lines if "1 thread" in line))
    )
    assert heading_end == row_end
    for case in cases:
        assert sum(line == case.id for line in lines) == 1  # the name once, a row for each number of threads
    assert sum("threads " in line for line in lines) == 2
    text = " ".join(" ".join(lines).split())
    for words in ("count and time reached", "medians of 2 sessions", "cores 0 1 2 3", "end to end",
                  "numpy (no decoding)", "governor not told", "Energy: no energy sensor"):  # fmt: skip
        assert words in text, words


def test_minutes_and_profiles_fit_100_columns(long_names: list[Case]) -> None:
    options = BenchOptions(sustained_s=61)
    lines = sustained_lines(work(load_profile("fake"), long_names[:1], options, tell=lambda _: None))
    assert max(map(len, lines)) <= WIDTH
    assert "the last minute takes 1.0" in lines[-1]
    assert lines[2].split() == ["minute", "p50", "ms", "p90", "ms", "p99", "ms", "count", "deg", "C", "MHz", "limited"]
    layers = [{"name": "n" * 200, "operation": "Conv", "where": "CPU", "ms": 1.0 + index} for index in range(14)]
    found = {"layers": layers, "partitions": None, "operations": 14, "delegated_share": None, "reason": None}
    nothing = {"layers": [], "partitions": None, "operations": None, "delegated_share": None, "reason": "why " * 40}
    lines = profile_lines({"m" * 90: found, "other": nothing})
    assert max(map(len, lines)) <= WIDTH
    assert "14 operations: 14 in CPU" in " ".join(lines)
    assert "and 2 more" in " ".join(lines)


def test_the_kernels_that_ran_are_shown_with_their_times() -> None:
    layers = [{"name": "CONV_2D 0", "operation": "CONV_2D", "where": "XNNPACK", "ms": None},
              {"name": "CUMSUM 1", "operation": "CUMSUM", "where": "built-in kernel", "ms": None}]  # fmt: skip
    kernels = [{"name": "Convolution, number 0", "operation": "Convolution", "where": "XNNPACK", "ms": 0.75},
               {"name": "CUMSUM 1", "operation": "CUMSUM", "where": "built-in kernel", "ms": 0.25}]  # fmt: skip
    found = {"layers": layers, "partitions": 1, "operations": 2, "delegated_share": 0.5, "kernels": kernels,
             "inference_ms": 1.25, "reason": None}  # fmt: skip
    told = " ".join(" ".join(profile_lines({"m": found})).split())
    assert "2 operations: 1 in XNNPACK, 1 in built-in kernel (1 piece for the delegate)" in told
    assert "outside of XNNPACK: CUMSUM 1.0000 ms in 2 kernels, of 1.2500 ms an inference (medians" in told
    assert "0.7500 ms 75.0% Convolution Convolution, number 0" in told
    untold = " ".join(" ".join(profile_lines({"m": {**found, "kernels": None, "reason": "it is mute"}})).split())
    assert untold.endswith("outside of XNNPACK: CUMSUM time per layer: it is mute")


def test_old_recorded_results_are_shown(long_names: list[Case]) -> None:
    """A result as the first version wrote it into `benchmark.json`."""
    case = {
        "id": "litert/int8", "runtime": "litert", "path": "m.tflite", "num_threads": 1, "sha256": "a", "size_bytes": 1,
        "files": [], "model": {}, "input_shapes": {}, "load_ms": 1.0, "first_inference_ms": 1.0, "warm_up_count": 3,
        "latency_ms": {"p50": 1.0, "p90": 1.1, "p99": 1.2, "min": 0.9, "max": 2.0, "mean": 1.0, "std": 0.1,
                       "count": 50, "p50_interval": [0.9, 1.1]},
        "stopped_by": "target", "baseline_memory_mb": 1.0, "peak_memory_mb": 2.0, "peak_memory_reason": None,
        "error": None,
    }  # fmt: skip
    settings = BenchmarkSettings().model_dump()
    for name in ("precision", "sessions", "together", "cores", "governor", "sample_every_s", "runtime_memory"):
        del settings[name]
    old = {
        "device": "local", "latency_label": "measured", "facts": {}, "load_average_before": None,
        "load_average_after": None, "frequency_mhz_before": None, "frequency_mhz_after": None, "warnings": [],
        "settings": settings, "cases": [case],
    }  # fmt: skip
    lines = bench_lines(BenchmarkResult.model_validate(old))
    assert any("1.000" in line and "1.200" in line for line in lines)


def test_a_sentence_for_each_verdict() -> None:
    row: dict[str, Any] = {"case": "m", "base_commit": "a" * 40, "base_time": "2026", "same_file": True,
                           "verdict": "slower", "ratio": 1.1, "interval": [1.05, 1.2], "confidence": 0.95,
                           "reason": None}  # fmt: skip
    assert regression_lines([row]) == [
        "slower      m beside aaaaaaaaaa (the same file): 1.100 times as long (95% interval 1.050 to 1.200)"
    ]
    less = {**row, "verdict": "can't tell", "interval": None, "reason": "too few", "same_file": False}
    assert regression_lines([less]) == ["can't tell  m beside aaaaaaaaaa (another file): too few"]


def test_numbers_are_shown_even_where_the_file_can_not_be_written(tmp_path: Path, long_names: list[Case]) -> None:
    result = measure(load_profile("fake"), long_names[:1], BenchOptions(min_count=10, precision=0), tell=lambda _: None)
    (tmp_path / "file").write_text("")
    assert isinstance(try_record(tmp_path / "file" / "r.jsonl", result), ResultsError)
    assert try_record(tmp_path / "r.jsonl", result) is None
    assert len(read_results(tmp_path / "r.jsonl").records) == 1


def test_bench_and_results_on_the_command_line(workplace: Any) -> None:
    for index in range(2):
        write_model(workplace.directory / f"m{index}.fake", index)
    shutil.copyfile(workplace.directory / "m0.fake", workplace.directory / "copy.fake")
    plain = workplace.edgeship("bench", "m0.fake", "m1.fake", *QUICK)
    assert plain.code == 0, plain.stderr
    assert "m1.fake" in plain.stdout
    assert "count and time reached" in plain.stdout
    compared = workplace.edgeship("bench", "m0.fake", "copy.fake", "--compare", *QUICK, "--json").json()
    (found,) = compared["comparisons"]
    assert (found["case"], found["baseline"], found["verdict"]) == ("copy.fake", "m0.fake", "can't tell")

    listed = workplace.edgeship("results", "list", "--json").json()["results"]
    assert [each["case"]["id"] for each in listed] == ["m0.fake", "m1.fake", "m0.fake", "copy.fake"]
    assert listed[3]["comparison"]["verdict"] == "can't tell"
    assert "copy.fake" in workplace.edgeship("results", "list", "--model", "copy").stdout
    table = workplace.edgeship("results", "export", "--csv", "-").stdout
    assert len(table.splitlines()) == 5
    assert workplace.edgeship("results", "export", "--csv", "out.csv", "--model", "m1").code == 0
    assert len((workplace.directory / "out.csv").read_text().splitlines()) == 2


@pytest.mark.slow
def test_a_slowdown_is_found_and_fails(workplace: Any) -> None:
    write_model(workplace.directory / "m.fake")
    profile = Path(workplace.directory / "slow.yaml")
    profile.write_text("extends: fake\nname: fake\ntransport: {latency_ms: 4}\n")
    bench = ("bench", "m.fake", "--sessions", "8", *QUICK[:-1])
    for device in ("fake", "fake"):
        assert workplace.edgeship(*bench, device).code == 0
    same = workplace.edgeship("results", "compare", "--fail-on-slowdown")
    assert (same.code, same.stdout[:10]) == (0, "can't tell")
    assert workplace.edgeship(*bench, "slow.yaml").code == 0
    slower = workplace.edgeship("results", "compare", "--fail-on-slowdown")
    assert slower.code == 1
    assert slower.stdout.startswith("slower      m.fake beside ")
    assert "1 of 1 case is slower: m.fake" in slower.stderr
    assert workplace.edgeship("results", "compare", "--json").json()["comparisons"][0]["ratio"] == pytest.approx(2, 0.1)


@pytest.mark.slow
def test_a_first_measurement_has_nothing_to_be_compared_with(workplace: Any) -> None:
    write_model(workplace.directory / "m.fake")
    for command in (("init", "-q"), ("-c", "user.name=a", "-c", "user.email=a", "commit", "-qm", "a", "--allow-empty")):
        subprocess.run(["git", *command], cwd=workplace.directory, check=True)
    assert workplace.edgeship("bench", "m.fake", *QUICK).code == 0
    first = workplace.edgeship("results", "compare", "--fail-on-slowdown")
    assert (first.code, first.stdout[:27]) == (0, "Nothing to compare with yet")
    assert workplace.edgeship("results", "compare", "--json").json()["comparisons"] == []
    typo = workplace.edgeship("results", "compare", "--base", "0123xyz")
    assert typo.code == 2
    assert "There are no results of a commit 0123xyz; there are those of " in typo.stderr


def test_results_that_are_not_there_or_damaged(workplace: Any) -> None:
    gone = workplace.edgeship("results", "list")
    assert gone.code == 2
    assert "There are no results runs/results.jsonl" in gone.stderr
    write_model(workplace.directory / "m.fake")
    assert workplace.edgeship("bench", "m.fake", *QUICK).code == 0
    with (workplace.runs / "results.jsonl").open("ab") as stream:
        stream.write(b"damaged\n")
    listed = workplace.edgeship("results", "list", "--json")
    assert len(listed.json()["results"]) == 1
    assert "1 line of runs/results.jsonl is damaged and left out: 2" in listed.stderr


@pytest.mark.slow
def test_a_run_adds_what_it_measured_and_a_cached_one_nothing(finished: Any) -> None:
    before = read_results(finished.runs / "results.jsonl").records
    assert [each.case.id for each in before] == ["tiny/fake/float32", "tiny/fake/float16", "tiny/fake/int8"]
    assert finished.edgeship("run", "tiny.yaml").code == 0
    assert len(read_results(finished.runs / "results.jsonl").records) == 3
    assert finished.edgeship("run", "tiny.yaml", "--set", "benchmark.min_count=30").code == 0
    assert len(read_results(finished.runs / "results.jsonl").records) == 6


def test_a_share_that_can_not_be_told_breaks_its_gate(finished: Any) -> None:
    outcome = finished.edgeship("run", "tiny.yaml", "--set", "gates.min_delegated_share=0.5", "--json")
    assert outcome.code == 1
    assert "min_delegated_share was not measured and breaks the limit 0.5" in outcome.stderr
    assert {row["delegated_share"] for row in outcome.json()["benchmarks"]} == {None}


@pytest.mark.slow
def test_minutes_and_sweeps_on_the_command_line(workplace: Any) -> None:
    write_model(workplace.directory / "m.fake")
    worked = workplace.edgeship("bench", "m.fake", "--sustained", "65s", "--device", "fake", "--json").json()
    assert [round(minute["seconds"]) for minute in worked["cases"][0]["minutes"]] == [60, 5]
    (kept,) = read_results(workplace.runs / "results.jsonl").records
    assert len(kept.case.minutes) == 2
    swept = workplace.edgeship("bench", "m.fake", "--threads", "1,2", *QUICK, "--json").json()
    assert [(case["id"], case["num_threads"]) for case in swept["cases"]] == [("m.fake x1", 1), ("m.fake x2", 2)]
    alone = workplace.edgeship("bench", "m.fake", "--compare", *QUICK)
    assert (alone.code, "--compare needs 2 to 16 models, not 1" in alone.stderr) == (2, True)
    profiled = workplace.edgeship("bench", "m.fake", "--profile", *QUICK, "--json").json()
    assert "has no profiler" in profiled["profiles"]["m.fake"]["reason"]
    assert json.loads(json.dumps(profiled)) == profiled
