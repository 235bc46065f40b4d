"""What `edgeship bench --rules mlperf` does: cases to scenarios, scenarios to the file of results and to lines."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from devices.errors import ResultsError
from devices.measurement import Case
from devices.mlperf import (
    ACCURACY_SHARE,
    AccuracyRule,
    MlperfCase,
    MlperfResult,
    MlperfRun,
    MlperfSettings,
    measure_by_rules,
)
from devices.profile import DeviceProfile
from devices.records import CaseError
from devices.results import ResultRecord, append_results, read_results, records_by_rules
from pipeline.commit import commit_here
from pipeline.errors import InputError
from pipeline.measuring_options import BenchOptions
from pipeline.measuring_text import wrapped
from pipeline.stages.base import Tell

NO_SUBMISSION = "No submission to MLPerf: the inputs are random, and nobody has reviewed the run."


class ByRules(NamedTuple):
    """A measurement by the rules, and what became of it.

    Attributes:
        result: The measurement.
        rules: What is known of accuracy, by the ids of the cases.
        unwritten: Why the file of results could not be written.
    """

    result: MlperfResult
    rules: dict[str, AccuracyRule]
    unwritten: ResultsError | None

    @property
    def failed(self) -> list[CaseError]:
        """The errors of cases that could not be measured."""
        return [each.case.error for each in self.result.cases if each.case.error]


def measure(
    profile: DeviceProfile, cases: Sequence[Case], options: BenchOptions, results: Path, *, tell: Tell
) -> ByRules:
    """Measures the cases and adds them to the file of results; LoadGen's logs lie beside it, in `mlperf`.

    Args:
        profile: The device.
        cases: With distinct ids.
        options: Of the command line.
        results: The file.
        tell: Takes progress events.

    Raises:
        DeviceError: The device can't be used.
    """
    settings = MlperfSettings(min_duration_s=options.min_time_s, min_count=options.asked_count)
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S%f")[:-3]
    log_dir = results.parent / "mlperf" / stamp
    try:
        log_dir.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"LoadGen's logs can't be written to {log_dir}: {error.strerror or error}.") from error
    found = measure_by_rules(profile, cases, settings, options.settings(), log_dir=log_dir, tell=tell)
    rules: dict[str, AccuracyRule] = {}
    try:
        rules = known_accuracies(read_results(results).records, found.cases)
        commit, dirty = commit_here()
        append_results(results, records_by_rules(found, rules, commit=commit, dirty=dirty))
    except ResultsError as error:
        return ByRules(found, rules, error)
    return ByRules(found, rules, None)


def known_accuracies(records: Sequence[ResultRecord], cases: Sequence[MlperfCase]) -> dict[str, AccuracyRule]:
    """What was found of the cases' files beside a float reference, by the ids of the cases; the newest counts."""
    newest: dict[Any, AccuracyRule] = {}
    for record in records:
        quality = record.quality
        if quality is None or quality.accuracy_share is None or quality.reference is None:
            continue
        if quality.reference.precision != "float32" or quality.reference.accuracy is None:
            continue
        newest[_digests(record.case.files)] = AccuracyRule(
            accuracy=quality.accuracy,
            reference_accuracy=quality.reference.accuracy,
            share=quality.accuracy_share,
            holds=quality.accuracy_share >= ACCURACY_SHARE,
            subset=quality.subset,
            count=quality.count,
        )
    found = {each.case.id: newest.get(_digests(each.case.files)) for each in cases if each.runs}
    return {name: rule for name, rule in found.items() if rule is not None}


def _digests(files: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(sorted(file["sha256"] for file in files))


def lines(found: ByRules) -> list[str]:
    """A section for each model."""
    result = found.result
    text = [f"{result.device} ({result.latency_label}), by MLPerf's rules"]
    for each in result.cases:
        threads = "1 thread" if each.case.num_threads == 1 else f"{each.case.num_threads} threads"
        text.append(f"{each.case.id}, {threads}{'' if each.runs else ': failed'}")
        for run in each.runs:
            text += _run_lines(run)
        if each.runs:
            text += wrapped(_accuracy_sentence(found.rules.get(each.case.id)), "    ", first="  ")
    reasons = {run.generator_reason for each in result.cases for run in each.runs if run.generator_reason}
    for sentence in (*sorted(reasons), NO_SUBMISSION):
        text += wrapped(sentence, "  ", first="")
    return text


def _run_lines(run: MlperfRun) -> list[str]:
    if run.scenario == "single_stream":
        first, tail = run.early_stopping
        head = f"  single stream  p90 {_ms(first.estimate_ns)}, p99 {_ms(tail.estimate_ns)}"
        discarded = "" if first.discarded is None else f", {first.discarded:,} of them discarded"
        notes = f"{run.query_count:,} queries in {run.duration_s:.1f} s{discarded}"
    else:
        head = f"  offline        {run.samples_per_s:,.2f} samples per second"
        notes = f"{run.sample_count:,} samples in {run.duration_s:.1f} s"
    judged = "VALID" if run.valid else f"INVALID ({'; '.join(run.reasons)})"
    judged += "" if run.conforms else f", NOT CONFORMING: {', '.join(run.deviations)}"
    text = wrapped(f"{head.strip()}  {judged}", "    ", first="  ")
    text += wrapped(f"{notes}; {run.generator}", "    ")
    return text + ([] if run.logs is None else [f"    logs: {run.logs}"])


def _accuracy_sentence(rule: AccuracyRule | None) -> str:
    if rule is None:
        return (
            f"accuracy: not known; the rules ask for {ACCURACY_SHARE:.0%} of the float model's: edgeship eval MODEL "
            "--data SOURCE --reference FLOAT_MODEL"
        )
    verdict = "as the rules ask for" if rule.holds else f"less than the {ACCURACY_SHARE:.0%} that the rules ask for"
    return (
        f"accuracy: {100 * rule.accuracy:.2f} %, {100 * rule.share:.2f} % of the float model's "
        f"{100 * rule.reference_accuracy:.2f} % on {rule.count:,} samples, {verdict}"
    )


def printed(found: ByRules) -> dict[str, Any]:
    """The measurement as JSON values, without the traces of errors."""
    values = found.result.model_dump(mode="json")
    for each in values["cases"]:
        each["accuracy_rule"] = None
        if each["case"]["id"] in found.rules:
            each["accuracy_rule"] = found.rules[each["case"]["id"]].model_dump(mode="json")
        if each["case"]["error"]:
            del each["case"]["error"]["details"]
    return {"rules": "mlperf", **values}


def _ms(nanoseconds: int | None) -> str:
    return "not known" if nanoseconds is None else f"{nanoseconds / 1e6:.3f} ms"
