"""The file of all results: one JSON object a line, only ever added to.

A line is added under a lock, in one piece, and is on the disk before the writer goes on. A writer that is killed in
between leaves a torn last line at most: readers pass over it, and the next writer removes it.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
import platform
import uuid
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from devices.comparison import Comparison, compare_recorded
from devices.errors import ResultsError
from devices.mlperf import AccuracyRule, MlperfResult, MlperfRun
from devices.monitor import BUSY_SHARE
from devices.profile import LatencyLabel
from devices.quality import AccuracyChange, Quality, accuracy_change
from devices.records import BenchmarkResult, BenchmarkSettings, CaseResult

SCHEMA_VERSION = 2
"""2 added `mlperf`, `accuracy_rule` and `quality`; lines of 1 are read as before."""

_MACHINE_FACTS = ("board_model", "cpu_model", "architecture", "cpu_features", "cores", "memory_mb")
"""What stays as it is while a machine stays the same."""
_RUN_TO_RUN = 0.03
"""Two runs of one file on a quiet machine are within this (the issue's own limit; MLPerf Mobile allows 5 %)."""
_BUSY_RUN_TO_RUN = 0.10
"""A judgement: the shortest inference of one file moved by 6 % within minutes beside other programs."""
_NO_INTERVAL = "one run by MLPerf's rules gives no interval; edgeship bench --compare gives one"
_TAIL_BYTES = 1 << 16


class ResultRecord(BaseModel):
    """One line: what was measured of one case in one run.

    Attributes:
        schema_version: Of this record.
        key: The digest of the artifact's digest, the machine, the tools and the time.
        run: The same for all cases that were measured side by side.
        time: When, UTC in ISO 8601.
        commit: Of the repository that the command ran in; None outside of one.
        dirty: Whether that had changes that were not committed.
        device: The profile's name.
        latency_label: measured, simulated or predicted.
        machine: The digest of the facts that stay as they are while a machine stays the same.
        facts: Of the device, before it was measured.
        tools: Versions by name: Edgeship, Python, the runtime.
        settings: How long it was measured.
        warnings: Of the run.
        case: The result.
        comparison: With the run's first case, where that was asked.
        mlperf: Of a measurement by MLPerf's rules, its scenarios; the case then has no latencies of its own.
        accuracy_rule: Whether the file is as accurate as these rules ask for, where that is known.
        quality: Of a set of samples on the device; the case then has no latencies either.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    key: str
    run: str
    time: str
    commit: str | None = None
    dirty: bool | None = None
    device: str
    latency_label: LatencyLabel
    machine: str
    facts: dict[str, Any]
    tools: dict[str, str]
    settings: BenchmarkSettings
    warnings: tuple[str, ...] = ()
    case: CaseResult
    comparison: Comparison | None = None
    mlperf: tuple[MlperfRun, ...] = ()
    accuracy_rule: AccuracyRule | None = None
    quality: Quality | None = None

    @field_validator("settings", mode="before")
    @classmethod
    def _of_before(cls, settings: object) -> object:
        """Rows of before `settle_time_s` settled by the count alone."""
        if isinstance(settings, dict) and "settle_count" in settings:
            return {"settle_time_s": 0.0, **settings}
        return settings

    @property
    def kind(self) -> str:
        """What was measured: latency, mlperf or quality."""
        return "quality" if self.quality is not None else "mlperf" if self.mlperf else "latency"

    def group(self) -> tuple[Any, ...]:
        """What two results must have in common to be compared."""
        case, samples = self.case, None if self.quality is None else (self.quality.subset, self.quality.metric)
        shared = self.machine, self.device, case.id, case.runtime, case.num_threads, case.cores, bool(case.minutes)
        return *shared, self.kind, samples, tuple(run.deviations for run in self.mlperf)


class Results(NamedTuple):
    """The content of a results file.

    Attributes:
        records: In the order of the file.
        damaged: Numbers of lines that are no records, without a torn last one.
        newer: Numbers of lines that a newer version has written.
    """

    records: tuple[ResultRecord, ...]
    damaged: tuple[int, ...]
    newer: tuple[int, ...]


def machine_of(facts: Mapping[str, Any]) -> str:
    """A short digest that tells one machine from another."""
    known = {name: facts.get(name) for name in _MACHINE_FACTS}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:12]


def records_of(
    result: BenchmarkResult, *, commit: str | None = None, dirty: bool | None = None, now: str | None = None
) -> list[ResultRecord]:
    """The lines of a measurement: one for each case that has numbers.

    Args:
        result: The measurement.
        commit: See `ResultRecord`.
        dirty: See `ResultRecord`.
        now: When; None is the time now.
    """
    run = _Run(result, commit, dirty, now)
    comparisons = {each.case: each for each in result.comparisons}
    return [
        run.record(case, settings=result.settings, warnings=result.warnings, comparison=comparisons.get(case.id))
        for case in result.cases
        if case.error is None and case.model is not None
    ]


def records_by_rules(
    result: MlperfResult,
    rules: Mapping[str, AccuracyRule],
    *,
    commit: str | None = None,
    dirty: bool | None = None,
    now: str | None = None,
) -> list[ResultRecord]:
    """The lines of a measurement by MLPerf's rules; `rules` are known by the ids of their cases."""
    run = _Run(result, commit, dirty, now)
    return [
        run.record(
            each.case, settings=result.measured_with, warnings=result.warnings, mlperf=each.runs,
            accuracy_rule=rules.get(each.case.id),
        )
        for each in result.cases
        if each.runs
    ]  # fmt: skip


def record_of_quality(
    where: Device, case: CaseResult, quality: Quality, *, commit: str | None = None, dirty: bool | None = None,
    now: str | None = None,
) -> ResultRecord:  # fmt: skip
    """The line of a set of samples on a device."""
    return _Run(where, commit, dirty, now).record(case, settings=BenchmarkSettings(), quality=quality)


class Device(Protocol):
    """Where something was measured: results, and `devices.measurement.KnownDevice`."""

    @property
    def device(self) -> str:
        """The profile's name."""

    @property
    def latency_label(self) -> LatencyLabel:
        """See `ResultRecord`."""

    @property
    def facts(self) -> dict[str, Any]:
        """See `ResultRecord`."""


class _Run:
    """What all lines of one run have in common."""

    def __init__(self, where: Device, commit: str | None, dirty: bool | None, now: str | None) -> None:
        self._where, self._commit, self._dirty, self._run = where, commit, dirty, uuid.uuid4().hex
        self._time = now or datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")

    def record(self, case: CaseResult, *, settings: BenchmarkSettings, **more: Any) -> ResultRecord:
        """One line; `more` are further fields of it."""
        where, model = self._where, case.model or {}
        machine = machine_of(where.facts)
        tools = {
            "edgeship": _own_version(),
            "python": str(where.facts.get("python") or platform.python_version()),
            str(model.get("package") or case.runtime): str(model["version"]),
        }
        keyed = [[file["sha256"] for file in case.files] or case.sha256, machine, tools, self._time, case.num_threads]
        return ResultRecord(
            key=hashlib.sha256(json.dumps(keyed, sort_keys=True).encode()).hexdigest(),
            run=self._run,
            time=self._time,
            commit=self._commit,
            dirty=self._dirty,
            device=where.device,
            latency_label=where.latency_label,
            machine=machine,
            facts=where.facts,
            tools=tools,
            settings=settings,
            case=case,
            **more,
        )


def append_results(path: Path, records: Sequence[ResultRecord]) -> None:
    """Adds lines to a results file, all or none; makes it and its directory where they are missing.

    Raises:
        ResultsError: The file can't be written.
    """
    data = b"".join(record.model_dump_json().encode() + b"\n" for record in records)
    if not data:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = _mend(file)
            try:
                _write_all(file, data)
                os.fsync(file)
            except OSError:
                os.ftruncate(file, size)  # no space: what was there before stays, without half a line
                raise
        finally:
            os.close(file)
        _sync_directory(path.parent)
    except OSError as error:
        raise ResultsError(
            f"the results file {path} can't be written: {error.strerror or error}; name another with --results"
        ) from error


def read_results(path: Path) -> Results:
    """The content of a results file; empty where there is none.

    Raises:
        ResultsError: The file can't be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Results((), (), ())
    except OSError as error:
        raise ResultsError(f"the results file {path} can't be read: {error.strerror or error}") from error
    records: list[ResultRecord] = []
    damaged: list[int] = []
    newer: list[int] = []
    *lines, torn = data.split(b"\n")
    for number, line in enumerate([*lines, torn] if _is_object(torn) else lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            if isinstance(values, dict) and int(values.get("schema_version", 0)) > SCHEMA_VERSION:
                newer.append(number)
                continue
            records.append(ResultRecord.model_validate_json(line))
        except (ValueError, TypeError, ValidationError):
            damaged.append(number)
    return Results(tuple(records), tuple(damaged), tuple(newer))


def compare_results(
    records: Sequence[ResultRecord], *, base_commit: str | None = None
) -> list[tuple[ResultRecord, ResultRecord, Comparison]]:
    """The newest result of each case beside an older one of the same machine.

    Args:
        records: In the order of time.
        base_commit: The beginning of a commit that the older one must be of; None takes the newest of another commit
            than the newest result's, without changes of its own, or where there are no commits, the one before.

    Returns:
        The newest, the older one, and the verdict on the newest, for each case that has both. Where the device was
        busy at one of the two times, their 5th percentiles are compared instead of their medians, and 10 % are allowed
        for the difference of two runs instead of 3 %. Lines of `quality` are left out, see `compare_quality`.
    """
    pairs = _pairs([record for record in records if record.kind != "quality"], base_commit)
    return [(newest, base, _verdict(newest, base)) for newest, base in pairs]


def compare_quality(
    records: Sequence[ResultRecord], *, base_commit: str | None = None
) -> list[tuple[ResultRecord, ResultRecord, AccuracyChange]]:
    """The same of accuracies on the same samples."""
    pairs = _pairs([record for record in records if record.kind == "quality"], base_commit)
    return [
        (newest, base, accuracy_change(newest.quality, base.quality))
        for newest, base in pairs
        if newest.quality is not None and base.quality is not None
    ]


def _pairs(records: Sequence[ResultRecord], base_commit: str | None) -> list[tuple[ResultRecord, ResultRecord]]:
    groups: dict[tuple[Any, ...], list[ResultRecord]] = {}
    for record in records:
        groups.setdefault(record.group(), []).append(record)
    found = []
    for group in groups.values():
        newest = group[-1]
        base = next((record for record in reversed(group[:-1]) if _is_base(record, newest, base_commit)), None)
        if base is not None:
            found.append((newest, base))
    return found


def _is_base(record: ResultRecord, newest: ResultRecord, base_commit: str | None) -> bool:
    if record.run == newest.run:
        return False
    if base_commit is not None:
        return (record.commit or "").startswith(base_commit)
    if newest.commit is None or record.commit is None:
        return newest.commit == record.commit
    return not record.dirty and (record.commit != newest.commit or bool(newest.dirty))


def _verdict(newest: ResultRecord, base: ResultRecord) -> Comparison:
    busy = any((record.facts.get("cpu_busy_share") or 0.0) > BUSY_SHARE for record in (newest, base))
    name = "session_p5_ms" if busy else "session_p50_ms"
    new, old = (getattr(record.case, name) or _median_of(record.case) for record in (newest, base))
    label = (base.commit or base.time)[:12]
    if newest.kind == "mlperf":
        found = compare_recorded(newest.case.id, f"{base.case.id} at {label}", _estimate(newest), _estimate(base),
                                 allowance=_RUN_TO_RUN)  # fmt: skip
        return found.model_copy(update={"reason": _NO_INTERVAL})
    allowance = _BUSY_RUN_TO_RUN if busy else _RUN_TO_RUN
    return compare_recorded(newest.case.id, f"{base.case.id} at {label}", new, old, allowance=allowance)


def _estimate(record: ResultRecord) -> tuple[float, ...]:
    """The single stream's 90th percentile, or where there is none, the time of a sample, in milliseconds."""
    run = record.mlperf[0]
    return (run.p90_ms or 1000 / run.samples_per_s,)


def _median_of(case: CaseResult) -> tuple[float, ...]:
    return () if case.latency_ms is None else (case.latency_ms.p50,)


def _mend(file: int) -> int:
    """Ends a torn last line, or removes it where it is no whole object; the size of the file then."""
    size = os.fstat(file).st_size
    if size == 0 or os.pread(file, 1, size - 1) == b"\n":
        return size
    begin, tail = size, b""
    while begin > 0 and b"\n" not in tail:
        step = min(_TAIL_BYTES, begin)
        begin -= step
        tail = os.pread(file, step, begin) + tail
    _, newline, torn = tail.rpartition(b"\n")
    if not newline:
        torn = tail
    if _is_object(torn):
        _write_all(file, b"\n")
        return size + 1
    os.ftruncate(file, size - len(torn))
    return size - len(torn)


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _sync_directory(directory: Path) -> None:
    file = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _own_version() -> str:
    try:
        return metadata.version("edgeship")
    except metadata.PackageNotFoundError:
        return "unknown"
