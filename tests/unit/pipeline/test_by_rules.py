"""`edgeship bench --rules mlperf` and `edgeship eval` on the command line, and what they leave in the results."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from devices.results import read_results
from pipeline import by_rules
from pipeline.errors import InputError
from pipeline.measuring import bench_options
from pipeline.measuring_text import WIDTH

ASKED: dict[str, Any] = {
    "threads": None, "cores": None, "governor": None, "min_count": None, "min_time": None, "max_time": None,
    "precision": None, "sessions": None, "compare": False, "sustained": None, "seed": 0, "rules": "mlperf",
    "image": None, "profiled": False,
}  # fmt: skip
SHORT = ("--rules", "mlperf", "--min-time", "2", "--min-count", "100", "--device", "fake")


class Misuse(NamedTuple):
    values: dict[str, Any]
    words: str


MISUSES = [
    Misuse({"compare": True}, "without --compare"),
    Misuse({"sustained": "30m"}, "without --sustained"),
    Misuse({"precision": 0.0, "sessions": 3}, "without --precision, --sessions"),
    Misuse({"profiled": True, "image": "i.ppm", "max_time": 3.0}, "without --max-time, --image, --profile"),
]


@pytest.mark.parametrize("misuse", MISUSES, ids=lambda misuse: misuse.words)
def test_what_the_rules_do_not_have(misuse: Misuse) -> None:
    with pytest.raises(InputError, match=misuse.words):
        bench_options(**{**ASKED, **misuse.values})
    assert bench_options(**{**ASKED, **misuse.values, "rules": None, "sustained": None}).rules is None


def test_options_of_the_rules() -> None:
    plain = bench_options(**ASKED)
    assert (plain.asked_count, plain.min_time_s, plain.rules) == (None, None, "mlperf")
    short = bench_options(**{**ASKED, "min_count": 70, "min_time": 100.0})
    assert (short.asked_count, short.min_time_s) == (70, 100.0)
    assert short.settings().max_time_s == 60.0


@pytest.mark.slow
def test_the_rules_and_accuracies_on_the_command_line(finished: Any) -> None:
    models = {
        path.parent.name.split("-")[-1]: str(path) for path in (finished.runs / "tiny").glob("*/export-*/model.fake")
    }
    int8, reference = models["int8"], models["float32"]
    before = len(read_results(finished.runs / "results.jsonl").records)
    plain = finished.edgeship("bench", int8, *SHORT)
    assert plain.code == 0, plain.stderr
    assert "VALID, NOT CONFORMING: 2 s instead of 600 s" in plain.stdout
    assert "accuracy: not known" in plain.stdout
    assert "has no wheel for boards" in plain.stdout
    assert by_rules.NO_SUBMISSION in " ".join(plain.stdout.split())
    names = [line for line in plain.stdout.splitlines() if int8 not in line]
    assert max(map(len, names)) <= WIDTH

    evaluate = ("eval", int8, "--data", "tiny.npz", "--device", "fake", "--reference", reference)
    judged = finished.edgeship(*evaluate)
    assert judged.code == 0, judged.stderr
    assert "images correct" in judged.stdout
    assert "dB signal to noise" in judged.stdout
    few = finished.edgeship(*evaluate, "--samples", "10", "--json").json()
    assert (few["images"], few["reference"]["precision"]) == (10, "float32")

    ruled = finished.edgeship("bench", int8, *SHORT, "--json").json()
    rule = ruled["cases"][0]["accuracy_rule"]
    assert (rule["share"], rule["count"]) == (few["accuracy_share"], 10)
    assert rule["holds"] == (rule["share"] >= 0.99)
    records = read_results(finished.runs / "results.jsonl").records[before:]
    assert [each.kind for each in records] == ["mlperf", "quality", "quality", "mlperf"]
    assert records[0].accuracy_rule is None
    assert records[3].accuracy_rule is not None

    listed = finished.edgeship("results", "list", "--last", "4").stdout
    assert listed.count("mlperf, not conforming") == 2
    compared = finished.edgeship("results", "compare", "--all", "--json").json()
    assert compared["accuracies"] == [], "the two were of other samples"
    assert [row["reason"] for row in compared["comparisons"] if row["case"] == int8] == [
        "one run by MLPerf's rules gives no interval; edgeship bench --compare gives one"
    ]
    assert finished.edgeship(*evaluate).code == 0
    text = finished.edgeship("results", "compare").stdout
    assert text.startswith("the same    ")
    assert "a difference of +0.0000 (95 % interval" in " ".join(text.split())
    refused = finished.edgeship("eval", int8, "--data", "tiny.npz", "--device", "fake", "--reference", "tiny.yaml")
    assert (refused.code, "expected a file of a runtime" in refused.stderr) == (2, True)
    misuse = finished.edgeship("bench", int8, *SHORT, "--compare")
    assert (misuse.code, "without --compare" in misuse.stderr) == (2, True)
