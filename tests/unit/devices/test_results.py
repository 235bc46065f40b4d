"""The file of results: whole lines only, whoever writes and whoever is killed."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from devices.errors import ResultsError
from devices.latency import summarize
from devices.measurement import BenchmarkResult, BenchmarkSettings
from devices.records import CaseError, CaseResult
from devices.results import (
    ResultRecord,
    append_results,
    compare_results,
    machine_of,
    read_results,
    records_of,
)
from devices.results_csv import to_csv

ROOT = Path(__file__).parents[3]
FACTS: dict[str, Any] = {"cpu_model": "Cortex-A72", "architecture": "aarch64", "cores": 4, "memory_mb": 3791}


def result(
    p50_ms: float = 2.0,
    *,
    case: str = "m",
    sessions: int = 8,
    sha256: str = "a" * 64,
    p5_ms: float | None = None,
    **facts: Any,
) -> BenchmarkResult:
    latencies = [[int(p50_ms * 1e6 * (1 + 0.002 * index)) for index in range(40)] for _ in range(sessions)]
    measured = CaseResult(
        id=case,
        runtime="litert",
        path=f"{case}.tflite",
        num_threads=1,
        sha256=sha256,
        size_bytes=7,
        files=({"name": "m", "sha256": sha256, "size_bytes": 7},),
        model={"runtime": "litert", "package": "ai-edge-litert", "version": "2.3.0", "inputs": [], "outputs": []},
        latency_ms=summarize(latencies, seed=0),
        session_p5_ms=tuple((p5_ms or p50_ms) * (1 + 0.001 * index) for index in range(sessions)),
        session_p50_ms=tuple(p50_ms * (1 + 0.001 * index) for index in range(sessions)),
    )
    error = CaseError(kind="DeviceError", message="no", exit_code=3)
    return BenchmarkResult(
        device="board",
        latency_label="measured",
        facts={**FACTS, **facts},
        load_average_before=None,
        load_average_after=None,
        frequency_mhz_before=None,
        frequency_mhz_after=None,
        warnings=("busy",),
        settings=BenchmarkSettings(),
        cases=(measured, CaseResult(id="bad", runtime="litert", path="bad", num_threads=1, error=error)),
    )


def record(p50_ms: float = 2.0, *, commit: str | None = "c" * 40, dirty: bool | None = False, **more: Any) -> Any:
    (made,) = records_of(result(p50_ms, **more), commit=commit, dirty=dirty)
    return made


def test_what_is_written_is_read_and_failed_cases_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "made" / "results.jsonl"
    assert read_results(path).records == ()
    append_results(path, [record()])
    append_results(path, [record(3.0), record(4.0)])
    append_results(path, [])
    found = read_results(path)
    assert [each.case.latency_ms and round(each.case.latency_ms.min) for each in found.records] == [2, 3, 4]
    assert (found.damaged, found.newer) == ((), ())
    assert found.records[0].tools["ai-edge-litert"] == "2.3.0"
    assert path.read_bytes().count(b"\n") == 3


def test_the_key_is_of_artifact_machine_tools_and_time() -> None:
    one = records_of(result(), now="2026-01-01T00:00:00+00:00")[0]
    same = records_of(result(5.0), now="2026-01-01T00:00:00+00:00")[0]
    assert one.key == same.key
    others = [
        records_of(result(), now="2026-01-01T00:00:01+00:00")[0],
        records_of(result(sha256="b" * 64), now=one.time)[0],
        records_of(result(cores=8), now=one.time)[0],
        records_of(result(python="3.12.1"), now=one.time)[0],
    ]
    assert len({one.key, *(each.key for each in others)}) == 5
    assert machine_of({**FACTS, "load_average": [9.0], "kernel": "6.9"}) == machine_of(FACTS)


class Torn(NamedTuple):
    """How a file ends after a writer was killed, and how many records the next writer finds in front of its own."""

    id: str
    keep: int
    left: int


@pytest.mark.parametrize("torn", [Torn("half", -40, 1), Torn("one byte", 1, 1), Torn("no end of line", -1, 2)],
                         ids=lambda torn: torn.id)  # fmt: skip
def test_a_torn_last_line_is_passed_over_and_mended(torn: Torn, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    first, second = (each.model_dump_json().encode() + b"\n" for each in (record(), record(3.0)))
    path.write_bytes(first + second[: torn.keep])
    found = read_results(path)
    assert (len(found.records), found.damaged) == (torn.left, ())
    append_results(path, [record(5.0)])
    found = read_results(path)
    assert (len(found.records), found.damaged) == (torn.left + 1, ())
    assert path.read_bytes().startswith(first)


def test_a_torn_only_line_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"schema_version": 1, "key')
    append_results(path, [record()])
    assert len(read_results(path).records) == 1
    assert path.read_bytes().count(b"\n") == 1


def test_damaged_and_newer_lines_are_told_by_number(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append_results(path, [record()])
    with path.open("ab") as stream:
        stream.write(b'not json\n{"schema_version": 1}\n{"schema_version": 3, "all": "new"}\n\n[]\n')
    append_results(path, [record()])
    found = read_results(path)
    assert (len(found.records), found.damaged, found.newer) == (2, (2, 3, 6), (4,))


def test_results_of_the_first_schema_stay_readable() -> None:
    """A line as it was first written: later fields have defaults."""
    old = {
        "schema_version": 1, "key": "k", "run": "r", "time": "2026-01-01T00:00:00.000+00:00", "device": "board",
        "latency_label": "measured", "machine": "m", "facts": {}, "tools": {}, "settings": {"min_count": 200},
        "case": {
            "id": "m", "runtime": "litert", "path": "m", "num_threads": 1, "stopped_by": "target",
            "latency_ms": {"p50": 1.0, "p90": 1.1, "p99": 1.2, "min": 0.9, "max": 2.0, "mean": 1.0, "std": 0.1,
                           "count": 200, "p50_interval": [0.9, 1.1]},
        },
    }  # fmt: skip
    found = ResultRecord.model_validate_json(json.dumps(old))
    assert found.case.latency_ms is not None
    assert (found.case.latency_ms.p99, found.case.latency_ms.p95) == (1.2, None)


def test_rows_of_before_settled_by_the_count_alone() -> None:
    old = record().model_dump(mode="json")
    del old["settings"]["settle_time_s"]
    assert ResultRecord.model_validate_json(json.dumps(old)).settings.settle_time_s == 0
    new = ResultRecord.model_validate_json(record().model_dump_json())
    assert new.settings.settle_time_s == BenchmarkSettings().settle_time_s > 0


WRITER = """
import sys
from pathlib import Path
from devices.results import ResultRecord, append_results
record = ResultRecord.model_validate_json(Path(sys.argv[2]).read_bytes())
print("ready", flush=True)
for number in range(int(sys.argv[4])):
    append_results(Path(sys.argv[1]), [record.model_copy(update={"key": f"{sys.argv[3]}-{number}"})])
"""


def start_writer(tmp_path: Path, name: str, count: int) -> subprocess.Popen[str]:
    given = tmp_path / "record.json"
    if not given.exists():
        given.write_text(record().model_dump_json(), encoding="utf-8")
    arguments = [str(tmp_path / "results.jsonl"), str(given), name, str(count)]
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    return writer


def test_writers_side_by_side_lose_nothing(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path, name, 15) for name in "abc"]
    for writer in writers:
        assert writer.wait(60) == 0
        writer.stdout.close()  # type: ignore[union-attr]
    found = read_results(tmp_path / "results.jsonl")
    assert found.damaged == ()
    for name in "abc":
        keys = [each.key for each in found.records if each.key.startswith(name)]
        assert keys == [f"{name}-{number}" for number in range(15)]


def written(path: Path, start: str) -> list[str]:
    return [each.key for each in read_results(path).records if each.key.startswith(start)]


def test_writers_that_are_killed_leave_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for number in range(4):
        writer = start_writer(tmp_path, f"w{number}", 100_000)
        begin = time.monotonic()
        while time.monotonic() - begin < 60 and not written(path, f"w{number}-"):
            time.sleep(0.01)
        writer.send_signal(signal.SIGKILL)
        writer.wait(10)
        writer.stdout.close()  # type: ignore[union-attr]
        before = read_results(path)
        append_results(path, [record()])
        after = read_results(path)
        assert after.damaged == ()
        assert len(after.records) == len(before.records) + 1
        kept = written(path, f"w{number}-")
        assert kept == [f"w{number}-{index}" for index in range(len(kept))]
        assert kept


def test_no_space_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.jsonl"
    append_results(path, [record()])
    before, real = path.read_bytes(), os.write

    def full(file: int, data: bytes) -> int:
        if bytes(data[:5]) == before[:5]:
            return real(file, data[:30])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(ResultsError, match="No space left on device; name another with --results"):
        append_results(path, [record(3.0)])
    assert path.read_bytes() == before


def test_a_file_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match=r"file/results.jsonl can't be written"):
        append_results(tmp_path / "file" / "results.jsonl", [record()])


def test_the_newest_is_compared_with_the_last_commit_on_the_same_machine() -> None:
    old, older = record(2.0, commit="a" * 40), record(9.0, commit="b" * 40)
    others = [record(7.0, cores=8), record(7.0, case="other"), record(7.0, commit="a" * 40, dirty=True)]
    newest = record(2.2, commit="c" * 40)
    ((new, base, found),) = [
        each for each in compare_results([older, old, *others, record(7.0), newest]) if each[0].key == newest.key
    ]
    assert (new, base) == (newest, old)
    assert found.verdict == "slower"
    assert found.ratio == pytest.approx(1.1, rel=0.01)
    ((_, base, found),) = compare_results([older, old, newest], base_commit="bb")
    assert (base, found.verdict) == (older, "faster")


def test_changes_that_are_not_committed_are_compared_with_their_own_commit() -> None:
    clean, dirty = record(2.0), record(2.0, dirty=True)
    ((_, base, found),) = compare_results([record(9.0, commit="a" * 40), clean, record(8.0, dirty=True), dirty])
    assert (base, found.verdict) == (clean, "can't tell")
    assert compare_results([record(2.0), record(2.0)]) == []
    alone = record(2.0, commit=None, dirty=None)
    assert compare_results([alone, record(2.0, commit=None, dirty=None)])[0][1] == alone


def test_a_busy_device_is_compared_by_what_load_hardly_moves() -> None:
    old = record(2.0, commit="a" * 40)
    busy = record(4.0, p5_ms=2.1, cpu_busy_share=0.9)
    assert compare_results([old, busy])[0][2].verdict == "can't tell"
    slow = record(4.0, p5_ms=2.4, cpu_busy_share=0.9)
    assert compare_results([old, slow])[0][2].verdict == "slower"
    assert compare_results([old, record(2.05)])[0][2].verdict == "can't tell"  # within what two runs may differ


def test_csv_has_a_line_for_each_result() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv([record(), record(3.0)]))))
    assert len(rows) == 2
    assert rows[0]["case"] == "m"
    assert float(rows[1]["p50_ms"]) == pytest.approx(3.117)
    assert rows[0]["p99_9_ms"] == ""
    assert rows[0]["runtime_version"] == "2.3.0"
