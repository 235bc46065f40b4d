"""A model file on a device: how well it does its task, and how far its answers are from a reference's."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from devices.board.confidence import ConfidenceMap, read_confidence_map
from devices.errors import DeviceError
from devices.measurement import Case, know_device
from devices.profile import DeviceProfile, load_profile
from devices.quality import Parity, Quality, Reference, subset_digest
from devices.records import CaseResult, Prediction
from devices.results import ResultRecord, record_of_quality
from pipeline.answers import predicted_on
from pipeline.commit import commit_here
from pipeline.errors import InputError
from pipeline.judgement import completed, judge
from pipeline.metrics import parity
from pipeline.samples import SampleSet, subset_of
from pipeline.signature import Signature
from pipeline.stages.base import Tell
from pipeline.targets import inspect_model, target_of
from pipeline.targets.base import model_files

Values = npt.NDArray[np.float32]


class ModelFile(NamedTuple):
    """A file that a runtime takes.

    Attributes:
        case: How it is run.
        signature: Its inputs and outputs.
    """

    case: Case
    signature: Signature


class Asked(NamedTuple):
    """What is evaluated on.

    Attributes:
        data: The source, as it was asked for.
        split: Of it.
        num_samples: So many, spread evenly over the split; None takes all.
    """

    data: str
    split: str
    num_samples: int | None = None


class Evaluation(NamedTuple):
    """What was found.

    Attributes:
        values: For people and programs.
        record: For the file of results; None where nothing was measured on a device.
    """

    values: dict[str, Any]
    record: ResultRecord | None


class _Judged(NamedTuple):
    """Answers of one model, and what they are worth."""

    output: Values
    signature: Signature
    values: dict[str, Any]
    prediction: Prediction


def evaluate_file(
    profile: DeviceProfile,
    model: ModelFile,
    samples: SampleSet,
    asked: Asked,
    reference: ModelFile | None,
    *,
    tell: Tell,
) -> Evaluation:
    """Runs a model over samples on a device, judges it, and compares its answers with a reference's on this machine.

    Args:
        profile: The device.
        model: The file.
        samples: Of the split.
        asked: Which of them.
        reference: None takes the same file, where the device is not this machine.
        tell: Takes progress events.

    Raises:
        InputError: There are fewer samples than asked for, or the reference has other outputs.
        DeviceError: The device or a model can't be used.
    """
    path = Path(model.case.path)
    with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
        if asked.num_samples is not None:
            samples = subset_of(samples, asked.num_samples, Path(scratch))
        subset = subset_digest(samples.all_files())
        own = _judged(profile, model, samples, Path(scratch), tell)
        found, reason = None, "the reference would be the same file on the same machine; name one with --reference"
        if reference is not None:
            found, reason = _judged(load_profile("local"), reference, samples, Path(scratch), tell), ""
        elif profile.transport.kind != "local":
            try:
                found, reason = _judged(load_profile("local"), model, samples, Path(scratch), tell), ""
            except DeviceError as error:
                reason = f"the file can't be run on this machine: {error.message}"
    beside = None if found is None else _parity(own, found, model, reference or model)
    summary, values = inspect_model(path), own.values
    known = {
        "sha256": summary.sha256,
        "precision": summary.precision,
        "device": profile.name,
        "images": len(own.output),
        "subset": subset,
        "seconds": own.prediction.seconds,
        "parity": beside and beside.model_dump(mode="json"),
        "parity_reason": reason or None,
        "reference": None,
        "accuracy_share": None,
        **values,
    }
    if values["metric"] is None:
        return Evaluation(known, None)
    other = None if found is None else _reference(reference or model, found)
    quality = Quality(
        data=asked.data,
        split=asked.split,
        subset=subset,
        count=len(own.output),
        precision=summary.precision,
        metric=values["metric"],
        accuracy=values["accuracy"],
        accuracy_interval=tuple(values["accuracy_interval"]),
        correct=values.get("correct"),
        ece=values["ece"],
        ece_interval=values["ece_interval"] and tuple(values["ece_interval"]),
        seconds=own.prediction.seconds,
        reference=other,
        parity=beside,
        parity_reason=reason or None,
    )
    known |= {"reference": other and other.model_dump(mode="json"), "accuracy_share": quality.accuracy_share}
    return Evaluation(known, _record(profile, model.case, own.prediction, quality))


def case_of(path: Path) -> Case:
    """How a model file is run."""
    summary = inspect_model(path)
    return Case(
        id=str(path),
        runtime=target_of(path),
        path=str(path.resolve()),
        sha256=summary.sha256,
        weights_sha256=summary.weights_sha256,
    )


def _judged(profile: DeviceProfile, model: ModelFile, samples: SampleSet, scratch: Path, tell: Tell) -> _Judged:
    own = SampleSet(model.signature, samples.files, samples.labels, samples.targets)
    answers, prediction = predicted_on(
        profile, model.case, own.for_device(), model.signature, scratch=scratch, tell=tell
    )
    output = answers[model.signature.outputs[0].name]
    signature = completed(model.signature, output, own)
    return _Judged(output, signature, judge(signature, output, own, _confidence_map_of(model.case)), prediction)


def _parity(own: _Judged, other: _Judged, model: ModelFile, reference: ModelFile) -> Parity:
    try:
        return Parity.model_validate(parity(other.output, own.output, classes=own.signature.is_classifier))
    except ValueError as error:
        raise InputError(
            f"{model.case.id} can't be compared with {reference.case.id}: {error} Name another --reference."
        ) from error


def _reference(model: ModelFile, found: _Judged) -> Reference:
    summary = inspect_model(Path(model.case.path))
    return Reference(
        path=model.case.id,
        sha256=summary.sha256,
        precision=summary.precision,
        cpu_model=know_device(load_profile("local")).facts["cpu_model"],
        accuracy=found.values["accuracy"],
    )


def _record(profile: DeviceProfile, case: Case, prediction: Prediction, quality: Quality) -> ResultRecord:
    commit, dirty = commit_here()
    files = model_files(Path(case.path))
    digests = {Path(case.path).name: case.sha256, **{file.name: case.weights_sha256 for file in files[1:]}}
    measured = CaseResult(
        id=case.id,
        runtime=case.runtime,
        path=case.path,
        num_threads=case.num_threads or profile.threads,
        sha256=prediction.sha256,
        size_bytes=sum(file.stat().st_size for file in files),
        files=tuple(
            {"name": file.name, "sha256": digests[file.name], "size_bytes": file.stat().st_size} for file in files
        ),
        model=prediction.model,
    )
    return record_of_quality(know_device(profile), measured, quality, commit=commit, dirty=dirty)


def _confidence_map_of(case: Case) -> ConfidenceMap | None:
    """Returns the map of the confidence that was exported, or released, with a model."""
    try:
        return read_confidence_map(str(Path(case.path).resolve().parent))
    except ValueError as error:
        raise InputError(
            f"{error}. Export the model again, or remove the file to take its confidence as it is."
        ) from error
