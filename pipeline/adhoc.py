"""One model file at a time, without a recipe: measuring it, and its accuracy on a data set."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from devices.measurement import BenchmarkSettings, Case, SampleFile, benchmark, predict
from devices.profile import DeviceProfile
from pipeline.artifacts import ArtifactStore
from pipeline.errors import CorruptArtifactError, InputError
from pipeline.manifest import MANIFEST, Artifact, read_manifest
from pipeline.metrics import accuracy_interval, calibration_summary, count_correct
from pipeline.runner import make_artifact
from pipeline.sources import DataConfig
from pipeline.stages.base import Tell
from pipeline.stages.data import DataStage
from pipeline.targets import inspect_model, target_of


def benchmark_models(
    paths: Sequence[Path], profile: DeviceProfile, *, num_threads: int | None, settings: BenchmarkSettings, tell: Tell
) -> dict[str, Any]:
    """Measures model files side by side on a device.

    Raises:
        InputError: A file is missing or of no known format, or is named twice.
        DeviceError: The device can't be used.
    """
    if len({path.resolve() for path in paths}) != len(paths):
        raise InputError("A model file is named twice. Name each once.")
    cases = []
    for path in paths:
        summary = inspect_model(path)
        cases.append(
            Case(
                id=str(path),
                runtime=target_of(path),
                path=str(path.resolve()),
                sha256=summary.sha256,
                weights_sha256=summary.weights_sha256,
                num_threads=num_threads,
            )
        )
    return benchmark(profile, cases, settings, tell=tell).model_dump(mode="json")


def evaluate_model(
    path: Path, source: str, profile: DeviceProfile, *, split: str, store: ArtifactStore, tell: Tell
) -> dict[str, Any]:
    """Measures the accuracy of a model file on a split of a data set, on a device.

    A model that lies in an artifact is evaluated on the very split of the run that made it, where that run used
    the same data.

    Args:
        path: A model of the contract: uint8 (1, height, width, 3) in, float32 (1, classes) out.
        source: `digits`, a directory, a .tar, .tar.gz or .tar.xz archive, or an .npz file.
        profile: The device.
        split: train, validation or test.
        store: Where the prepared data set is kept.
        tell: Takes progress events.

    Raises:
        InputError: The model does not fit the data, or either can't be read.
        DeviceError: The device or the model can't be used.
    """
    summary = inspect_model(path)
    shape = summary.inputs[0].shape if len(summary.inputs) == 1 else ()
    if len(shape) != 4 or shape[3] != 3 or summary.inputs[0].dtype != "uint8":
        received = ", ".join(f"{tensor.dtype} {list(tensor.shape)}" for tensor in summary.inputs)
        raise InputError(f"{path} takes {received}; eval expects one input, uint8 [1, height, width, 3].")
    stage = DataStage(source=_source(source, (shape[1], shape[2]), path, store))
    data = make_artifact(stage, store, tell)
    classes = json.loads(data.file("dataset.json").read_text(encoding="utf-8"))["classes"]
    if summary.outputs[0].shape[-1] != len(classes):
        raise InputError(
            f"{path} gives {summary.outputs[0].shape[-1]} logits, but {source} has {len(classes)} classes. "
            f"Evaluate it on the data it was trained for."
        )
    case = Case(
        id=str(path),
        runtime=target_of(path),
        path=str(path.resolve()),
        sha256=summary.sha256,
        weights_sha256=summary.weights_sha256,
    )
    with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
        images, label_file = data.file(f"{split}_images.npy"), data.file(f"{split}_labels.npy")
        answer = predict(profile, case, [SampleFile(path=str(images))], str(label_file), scratch, tell=tell)
        logits, labels = np.load(answer.outputs[0].path), np.load(label_file)
    correct = count_correct(logits, labels)
    return {
        "model": str(path),
        "sha256": summary.sha256,
        "precision": summary.precision,
        "device": profile.name,
        "data": source,
        "split": split,
        "images": len(labels),
        "correct": correct,
        "accuracy_interval": list(accuracy_interval(correct, len(labels))),
        **calibration_summary(logits, labels),
    }


def _source(text: str, size: tuple[int, int], model: Path, store: ArtifactStore) -> Any:
    """Returns the data config for a source: that of the run that made the model, where it used the same data."""
    if text == "digits":
        values: dict[str, Any] = {"source": "digits"}
    elif text.endswith(".npz"):
        values = {"source": "npz", "path": text}
    else:
        values = {"source": "image_folder", "path": text}
    values["size"] = list(size)
    try:
        config: Any = TypeAdapter(DataConfig).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(f"--data {text} can't be used: {first['msg']}.") from error
    origin = _data_of(model, store)
    if origin is None or origin.manifest.fingerprint != DataStage(source=config).fingerprint():
        return config
    settings = {**origin.manifest.config["source"], **{name: values[name] for name in ("path",) if name in values}}
    return TypeAdapter(DataConfig).validate_json(json.dumps(settings), strict=True)


def _data_of(model: Path, store: ArtifactStore) -> Artifact | None:
    """Returns the data artifact that a model in the store was made from."""
    directory = model.resolve().parent
    try:
        if not (directory / MANIFEST).is_file():
            return None
        calibrate = store.get("calibrate", read_manifest(directory).inputs["calibrate"])
        return store.get("data", calibrate.manifest.inputs["data"]) if calibrate else None
    except (CorruptArtifactError, KeyError):
        return None
