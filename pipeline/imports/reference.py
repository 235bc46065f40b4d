"""An imported model run by the framework it belongs to: what its exports are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from devices.board.errors import ModelRejected
from devices.board.quantization import dequantize
from devices.board.runners import RUNNERS
from devices.board.runners.contract import find_tensor
from pipeline.errors import ModelFileError, StageError
from pipeline.imports.base import one_line
from pipeline.imports.tensorflow_function import SIGNATURE
from pipeline.model_source import ModelSource, Sample
from pipeline.signature import SourceFormat
from pipeline.stages.base import Tell

Infer = Callable[[Sample], dict[str, npt.NDArray[np.float32]]]

_RUNTIMES: dict[SourceFormat, str] = {"onnx": "onnxruntime", "tflite": "litert", "openvino": "openvino"}
_TELL_EVERY = 64


def reference_outputs(source: ModelSource, samples: Iterable[Sample], tell: Tell) -> dict[str, npt.NDArray[np.float32]]:
    """Returns the outputs of an imported model for samples, one at a time.

    Args:
        source: The imported model.
        samples: What it is fed with.
        tell: Takes progress events.

    Returns:
        For each output of the signature, by name, float32 `(count, *shape without the batch)`. Integers that stand
        for real numbers are turned into those.

    Raises:
        ModelFileError: The model can't be loaded, fails on a sample, or gives outputs of changing shapes.
        StageError: There are no samples, or the source has no framework.
    """
    if source.signature.source == "saved_model":
        infer = _tensorflow(source)
    elif source.signature.source in _RUNTIMES:
        infer = _runner(source, _RUNTIMES[source.signature.source])
    else:
        raise StageError(f"A model of the format {source.signature.source} has no framework to run it.")
    rows: dict[str, list[npt.NDArray[np.float32]]] = {tensor.name: [] for tensor in source.signature.outputs}
    count = 0
    for sample in samples:
        try:
            outputs = infer(sample)
        except Exception as error:
            raise ModelFileError(
                f"{source.path} fails on sample {count}: {type(error).__name__}: {one_line(error)}. Expected a model "
                f"that takes what its signature says; try it in the framework it came from."
            ) from error
        for name, collected in rows.items():
            collected.append(outputs[name])
        count += 1
        if count % _TELL_EVERY == 0:
            tell({"message": f"reference outputs of {count} samples"})
    if not count:
        raise StageError("There are no samples to record reference outputs of.")
    return {name: _stacked(source, name, collected) for name, collected in rows.items()}


def _tensorflow(source: ModelSource) -> Infer:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(source.path))
    function = loaded.signatures[SIGNATURE]

    def infer(sample: Sample) -> dict[str, npt.NDArray[np.float32]]:
        _ = loaded  # the signature alone would not keep the variables alive
        outputs = function(**{name: tf.constant(value) for name, value in sample.items()})
        return {name: np.asarray(value.numpy(), np.float32) for name, value in outputs.items()}

    return infer


def _runner(source: ModelSource, runtime: str) -> Infer:
    runner = RUNNERS[runtime]()
    shapes = {tensor.name: tensor.shape for tensor in source.signature.inputs}
    try:
        runner.load(str(source.path), num_threads=1, input_shapes=shapes)
    except ModelRejected as error:
        raise ModelFileError(f"{source.path} can't be run: {one_line(error)}. Import the model again.") from error
    description = runner.describe()
    order = [_name_of(description["inputs"], index, list(shapes)) for index in range(len(description["inputs"]))]
    places = {tensor.name: find_tensor(description["outputs"], tensor.name) for tensor in source.signature.outputs}

    def infer(sample: Sample) -> dict[str, npt.NDArray[np.float32]]:
        results = runner.infer([np.ascontiguousarray(sample[name]) for name in order])
        return {
            name: _real(results[place], description["outputs"][place])
            for name, place in places.items()
            if place is not None
        }

    return infer


def _name_of(records: list[dict[str, Any]], index: int, names: list[str]) -> str:
    """Returns the signature's name of an input of the runner."""
    for name in names:
        if find_tensor(records, name) == index:
            return name
    raise StageError(f"The model has an input {records[index]['name']}, which its signature does not name.")


def _real(values: npt.NDArray[Any], record: dict[str, Any]) -> npt.NDArray[np.float32]:
    """Returns a copy, for a runner may write over what it gave."""
    quantization = record.get("quantization")
    if quantization is not None:
        real: npt.NDArray[np.float32] = dequantize(values, quantization)
        return real
    return np.array(values, np.float32)


def _stacked(source: ModelSource, name: str, rows: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    shapes = sorted({row.shape for row in rows})
    if len(shapes) > 1:
        raise ModelFileError(
            f"{source.path} gives output {name} in changing shapes, such as {shapes[0]} and {shapes[-1]}. Expected "
            f"one shape for all samples; export the model without the part that selects by value."
        )
    batched = bool(shapes[0]) and shapes[0][0] == 1
    return np.stack([row[0] if batched else row for row in rows])
