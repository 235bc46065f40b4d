"""What `edgeship bench` and `edgeship results` do: model files to cases, cases to numbers, numbers to lines of text."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from devices.errors import DeviceError, ResultsError
from devices.measurement import (
    BenchmarkResult,
    BenchmarkSettings,
    Case,
    ImageInput,
    benchmark,
    benchmark_and_compare,
    profile_case,
)
from devices.profile import DeviceProfile
from devices.records import CaseResult
from devices.results import ResultRecord, append_results, compare_results, read_results, records_of, to_csv
from devices.sustained import SustainedResult, as_benchmark, sustain
from pipeline.errors import InputError
from pipeline.imports.description import InputDescription, ModelDescription
from pipeline.stages.base import Tell
from pipeline.targets import inspect_model

COMPARED_MIN_TIME_S = 15.0
"""Of each model over all sessions of a comparison: some thirty rounds in each of ten."""


class BenchOptions(BaseModel):
    """What the command line asks for.

    Attributes:
        threads: Of one inference, each a case of its own; none takes the profile's.
        cores: See `BenchmarkSettings`.
        governor: See `BenchmarkSettings`.
        min_count: Timed inferences.
        min_time_s: Seconds of them; None takes the default.
        max_time_s: None takes the default.
        precision: Half of p90's interval, or of the ratio's, to it; 0 does not ask for any.
        sessions: None takes the default.
        compare: Whether each model is compared with the first.
        sustained_s: Seconds of work without a pause; None measures in rounds.
        seed: Of the order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    threads: tuple[int, ...] = ()
    cores: str | None = None
    governor: str | None = None
    min_count: int = 400
    min_time_s: float | None = None
    max_time_s: float | None = None
    precision: float = 0.01
    sessions: int | None = None
    compare: bool = False
    sustained_s: float | None = None
    seed: int = 0

    def settings(self) -> BenchmarkSettings:
        """These as the measuring code takes them."""
        min_time_s = self.min_time_s
        if min_time_s is None:
            min_time_s = COMPARED_MIN_TIME_S if self.compare else 1.0
        sessions = self.sessions or (10 if self.compare else 1)
        return BenchmarkSettings(
            min_count=self.min_count,
            min_time_s=min_time_s,
            max_time_s=self.max_time_s or max(60.0, 2 * min_time_s),
            precision=self.precision or None,
            sessions=sessions,
            cores=self.cores,
            governor=self.governor,
            runtime_memory=True,
            seed=self.seed,
        )


def bench_options(**asked: Any) -> BenchOptions:
    """What the options of the command line ask for.

    Raises:
        InputError: One has another form, or two do not go together.
    """
    seconds = parse_seconds(asked["sustained"])
    if seconds is not None and asked["compare"]:
        raise InputError("--sustained runs one model after another, --compare side by side: give one of them.")
    min_time, max_time = asked["min_time"], asked["max_time"]
    if max_time is not None and max_time < (min_time or 0):
        raise InputError(f"--max-time ({max_time:g}) is shorter than --min-time ({min_time:g}).")
    same = ("cores", "governor", "min_count", "sessions", "compare", "seed")
    return BenchOptions(
        **{name: asked[name] for name in same},
        threads=parse_threads(asked["threads"]),
        min_time_s=min_time,
        max_time_s=max_time,
        precision=asked["precision"] / 100,
        sustained_s=seconds,
    )


def parse_threads(text: str | None) -> tuple[int, ...]:
    """The numbers of `1,2,4`; none where nothing is given.

    Raises:
        InputError: It is something else.
    """
    if text is None:
        return ()
    numbers = text.split(",")
    if not all(re.fullmatch(r"[0-9]{1,3}", number) and 1 <= int(number) <= 256 for number in numbers):
        raise InputError(f"--threads is {text}; expected a number from 1 to 256, or several between commas: 1,2,4.")
    if len({int(number) for number in numbers}) != len(numbers):
        raise InputError(f"--threads is {text}, which names a number twice. Name each once.")
    return tuple(int(number) for number in numbers)


def parse_seconds(text: str | None) -> float | None:
    """The seconds of `30m`, `90s`, `1.5h` or `90`.

    Raises:
        InputError: It is something else.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    seconds = float(match.group(1)) * {"": 1, "s": 1, "m": 60, "h": 3600}[match.group(2)] if match else 0.0
    if seconds <= 0:
        raise InputError(f"--sustained is {text}; expected a time such as 30m, 90s or 1h.")
    return seconds


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


def commit_here() -> tuple[str | None, bool | None]:
    """The commit of the repository that the working directory is in, and whether it has changes; None without one."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=20, check=True)
        state = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, timeout=60,
            check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None, None
    return head.stdout.strip(), bool(state.stdout.strip())


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
            tell(f"{len(numbers)} lines of {path} are {what} and left out: {', '.join(map(str, numbers[:5]))}")
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
    """
    return [
        {
            "case": newest.case.id,
            "device": newest.device,
            "time": newest.time,
            "base_time": base.time,
            "commit": newest.commit,
            "base_commit": base.commit,
            "same_file": newest.case.sha256 == base.case.sha256,
            **found.model_dump(mode="json", exclude={"case", "baseline", "session_ratios"}),
        }
        for newest, base, found in compare_results(records, base_commit=base_commit)
        if every or newest.run == records[-1].run
    ]
