"""What `edgeship bench` and `edgeship results` do: model files to cases, cases to numbers, numbers to lines of text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from devices.errors import DeviceError, ResultsError
from devices.measurement import (
    BenchmarkResult,
    Case,
    ImageInput,
    benchmark,
    benchmark_and_compare,
    profile_case,
)
from devices.profile import DeviceProfile
from devices.records import CaseResult
from devices.results import ResultRecord, append_results, compare_quality, compare_results, read_results, records_of
from devices.results_csv import to_csv
from devices.sustained import SustainedResult, as_benchmark, sustain
from devices.wording import counted
from pipeline.commit import commit_here
from pipeline.errors import InputError
from pipeline.imports.description import InputDescription, ModelDescription
from pipeline.measuring_options import BenchOptions, bench_options
from pipeline.stages.base import Tell
from pipeline.targets import inspect_model


def with_threads(cases: Sequence[Case], threads: Sequence[int]) -> list[Case]:
    """The cases once for each number of threads; the ids say which, where there are several."""
    if len(threads) <= 1:
        return [case.model_copy(update={"num_threads": threads[0] if threads else None}) for case in cases]
    return [
        case.model_copy(update={"id": f"{case.id} x{number}", "num_threads": number})
        for case in cases
        for number in threads
    ]


def with_image(case: Case, image: Path, description: ModelDescription) -> Case:
    """The case with the way of an image into its input, stretched to the input's size.

    Args:
        case: A model with one input of images.
        image: The file.
        description: What the command line says about the input: layout, scale, offset.

    Raises:
        InputError: There is no such file, or the model does not take images.
    """
    if not image.is_file():
        raise InputError(f"There is no image {image}.")
    tensors = inspect_model(Path(case.path)).inputs
    shape = tuple(case.input_shapes.get(tensors[0].name) or tensors[0].shape)
    said = description.inputs[0] if description.inputs else InputDescription()
    layout = said.layout or ("NCHW" if len(shape) == 4 and shape[1] == 3 != shape[3] else "NHWC")
    size = shape[1:3] if layout == "NHWC" else shape[2:4]
    if len(tensors) != 1 or len(shape) != 4 or min(size) < 1 or shape[3 if layout == "NHWC" else 1] != 3:
        taken = ", ".join(f"{tensor.name} {list(tensor.shape)}" for tensor in tensors)
        raise InputError(f"--image needs a model with one input of RGB images, but {case.path} takes {taken}.")
    transform: dict[str, Any] = {"layout": layout, "dtype": tensors[0].dtype}
    transform |= {name: value for name, value in (("scale", said.scale), ("offset", said.offset)) if value is not None}
    record = {"size": list(size), "resize": "stretch", "crop": "none", "interpolation": "bilinear"}
    return case.model_copy(update={"image": ImageInput(path=str(image), preprocess=record, transform=transform)})


def measure(profile: DeviceProfile, cases: Sequence[Case], options: BenchOptions, *, tell: Tell) -> BenchmarkResult:
    """Measures all cases side by side, and compares them where that is asked.

    Raises:
        InputError: There are too few to compare, or too many.
        DeviceError: The device can't be used.
    """
    settings = options.settings()
    if not options.compare:
        return benchmark(profile, cases, settings, tell=tell)
    if not 2 <= len(cases) <= settings.max_agents:
        raise InputError(f"--compare needs 2 to {settings.max_agents} models, not {len(cases)}.")
    return benchmark_and_compare(profile, cases, settings, tell=tell)


def try_record_work(path: Path, result: SustainedResult, options: BenchOptions) -> ResultsError | None:
    """Adds minutes of work to the file of results, as `try_record` does."""
    return try_record(path, as_benchmark(result, options.settings()))


def work(profile: DeviceProfile, cases: Sequence[Case], options: BenchOptions, *, tell: Tell) -> SustainedResult:
    """Runs each case without a pause for `sustained_s`."""
    return sustain(profile, cases, options.sustained_s or 0.0, options.settings(), tell=tell)


def profiles(profile: DeviceProfile, cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
    """Where the operations of each case run, by its id; `reason` alone where that can't be had."""
    found: dict[str, dict[str, Any]] = {}
    for case in cases:
        try:
            found[case.id] = profile_case(profile, case)
        except DeviceError as error:
            found[case.id] = {"layers": [], "partitions": None, "operations": None, "delegated_share": None,
                              "reason": error.message}  # fmt: skip
    return found


def record(path: Path, result: BenchmarkResult) -> None:
    """Adds a measurement to the file of results.

    Raises:
        ResultsError: It can't be written.
    """
    commit, dirty = commit_here()
    append_results(path, records_of(result, commit=commit, dirty=dirty))


def try_record(path: Path, result: BenchmarkResult) -> ResultsError | None:
    """Adds a measurement to the file of results; returns what went wrong, so that the numbers are shown first."""
    try:
        record(path, result)
    except ResultsError as error:
        return error
    return None


def try_append(path: Path, line: ResultRecord | None) -> ResultsError | None:
    """Adds one line, where there is one, as `try_record` does."""
    try:
        append_results(path, [] if line is None else [line])
    except ResultsError as error:
        return error
    return None


def record_stages(path: Path, recipe: str, files: Sequence[Path]) -> None:
    """Adds what benchmark stages of a recipe have measured; the cases are called `<recipe>/<target>/<precision>`.

    Raises:
        ResultsError: It can't be written.
    """
    for file in files:
        values = json.loads(file.read_text(encoding="utf-8"))
        values["cases"] = [
            {
                **{name: value for name, value in case.items() if name in CaseResult.model_fields},
                "id": f"{recipe}/{case['id']}",
            }
            for case in values["cases"]
        ]
        record(path, BenchmarkResult.model_validate(values))


def printed(result: BenchmarkResult, places: Mapping[str, Any]) -> dict[str, Any]:
    """A measurement as JSON values, without the traces of errors, with the profiles where there are any."""
    values = result.model_dump(mode="json")
    for case in values["cases"]:
        if case["error"]:
            del case["error"]["details"]
    return {**values, "profiles": dict(places)} if places else values


def read(path: Path, text: str | None, *, tell: Callable[[str], None]) -> list[ResultRecord]:
    """The results of a file, those whose case holds a text, in the order of the file.

    Args:
        path: The file.
        text: None takes all.
        tell: Takes a sentence about lines that can't be read.

    Raises:
        InputError: There is no such file.
    """
    if not path.is_file():
        raise InputError(f"There are no results {path}. `edgeship bench` and `edgeship run` write them.")
    found = read_results(path)
    for numbers, what in ((found.damaged, "damaged"), (found.newer, "of a newer version of Edgeship")):
        if numbers:
            lines = counted(len(numbers), f"line of {path} is", f"lines of {path} are")
            tell(f"{lines} {what} and left out: {', '.join(map(str, numbers[:5]))}")
    return [record for record in found.records if text is None or text in record.case.id]


def csv_of(records: Sequence[ResultRecord]) -> str:
    """The results as a table."""
    return to_csv(records)


def comparison_rows(
    records: Sequence[ResultRecord], base_commit: str | None, *, every: bool = False
) -> list[dict[str, Any]]:
    """The newest result of each case beside an older one of the same machine, see `compare_results`.

    Args:
        records: In the order of time.
        base_commit: See `compare_results`.
        every: All cases, not only those of the newest run.

    Raises:
        InputError: There are no results of that commit.
    """
    commits = list(dict.fromkeys(record.commit[:10] for record in reversed(records) if record.commit))
    if base_commit is not None and not any((record.commit or "").startswith(base_commit) for record in records):
        there = f"there are those of {', '.join(commits[:5])}" if commits else "none was measured in a repository"
        raise InputError(f"There are no results of a commit {base_commit}; {there}. Give one of these as --base.")
    return [
        {
            **_beside(newest, base),
            **found.model_dump(mode="json", exclude={"case", "baseline", "session_ratios"}),
        }
        for newest, base, found in compare_results(records, base_commit=base_commit)
        if every or newest.run == records[-1].run
    ]


def _beside(newest: ResultRecord, base: ResultRecord) -> dict[str, Any]:
    return {
        "case": newest.case.id,
        "device": newest.device,
        "time": newest.time,
        "base_time": base.time,
        "commit": newest.commit,
        "base_commit": base.commit,
        "same_file": newest.case.sha256 == base.case.sha256,
    }


def accuracy_rows(
    records: Sequence[ResultRecord], base_commit: str | None, *, every: bool = False
) -> list[dict[str, Any]]:
    """The newest accuracy of each case beside an older one of the same machine and samples, see `compare_quality`."""
    return [
        {
            **_beside(newest, base),
            "accuracy": newest.quality and newest.quality.accuracy,
            "base_accuracy": base.quality and base.quality.accuracy,
            **found.model_dump(mode="json"),
        }
        for newest, base, found in compare_quality(records, base_commit=base_commit)
        if every or newest.run == records[-1].run
    ]


__all__ = [
    "BenchOptions",
    "accuracy_rows",
    "bench_options",
    "commit_here",
    "comparison_rows",
    "csv_of",
    "measure",
    "printed",
    "profiles",
    "read",
    "record",
    "record_stages",
    "try_append",
    "try_record",
    "try_record_work",
    "with_image",
    "with_threads",
    "work",
]
