"""What a target is, and what is read back from the files it writes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pipeline.errors import UnsupportedModelError
from pipeline.model_source import Calibration, ModelSource
from pipeline.signature import Signature, SourceFormat

TargetName = Literal["litert", "onnxruntime", "openvino", "fake"]
"""The keys of `pipeline.targets.TARGETS`."""

Precision = Literal["float32", "float16", "int8", "int8_dynamic", "int8_weights", "int16x8"]
"""The precisions that can be exported, by some target each."""

RANGED: tuple[Precision, ...] = ("int8", "int16x8")
"""Those whose activations are integers and take ranges from samples."""

_LABELS = {
    ("float32", "float"): "float32",
    ("float16", "float"): "float16",
    ("bfloat16", "float"): "bfloat16",
    ("int8", "int8"): "int8",
    ("int8", "dynamic"): "int8_dynamic",
    ("int8", "float"): "int8_weights",
    ("int8", "int16"): "int16x8",
}


@dataclass(frozen=True)
class TensorDescription:
    """An input or output: name, element type, shape (-1 for a dimension that is not fixed)."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class LinearOperation:
    """A convolution or matrix product: what its weights are stored as and what it is computed on.

    Attributes:
        name: Of the operation in the file.
        weights: Element type of the stored weights: float32, float16, int8, ...
        activations: `float`, `int8`, `int16`, or `dynamic` (quantized while running).
    """

    name: str
    weights: str
    activations: str


@dataclass(frozen=True)
class GraphSummary:
    """What a model file holds, read from the file itself.

    Attributes:
        format: tflite, onnx, openvino or fake.
        precision: The label that the linear operations' tensors add up to (`precision_label`).
        inputs: Of the graph.
        outputs: Of the graph.
        operations: How many of each kind.
        tensor_types: How many tensors of each element type.
        weight_bytes: Bytes of constants of each element type.
        float_operations: Linear operations that stayed in float in a file that is otherwise integer.
        size_bytes: Of all files of the model, also the external data of an ONNX model.
        sha256: Of the model file.
        weights_sha256: Of the .bin beside an OpenVINO .xml; None for the other formats.
    """

    format: str
    precision: str
    inputs: tuple[TensorDescription, ...]
    outputs: tuple[TensorDescription, ...]
    operations: dict[str, int]
    tensor_types: dict[str, int]
    weight_bytes: dict[str, int]
    float_operations: tuple[str, ...]
    size_bytes: int
    sha256: str
    weights_sha256: str | None

    def to_dict(self) -> dict[str, Any]:
        """Returns the summary as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Reach:
    """What a target makes of a source format.

    Attributes:
        precisions: Those it can be asked for; a source file that is quantized already has fewer.
        reason: Why there are none, as a sentence; empty where there are.
    """

    precisions: tuple[str, ...] = ()
    reason: str = ""


class Target(Protocol):
    """The compile half of a runtime.

    Attributes:
        sources: What it makes of each source format; none of a format that is missing.
        suffix: Of its model files.
        format_name: For messages.
        precisions: Those it can export.
        tools: Distributions whose versions shape its files.
        runtime: The distribution that runs its files.
        notes: What a user should know about a precision in this runtime.
    """

    sources: Mapping[SourceFormat, Reach]
    suffix: str
    format_name: str
    precisions: tuple[str, ...]
    tools: tuple[str, ...]
    runtime: str
    notes: Mapping[str, str]

    def export(self, source: ModelSource, precision: str, calibration: Calibration, out_dir: Path) -> Path:
        """Writes the model file into `out_dir` and returns its path.

        Its inputs and outputs have the names, types and shapes of the source's signature.

        Raises:
            UnsupportedModelError: The model can't be converted, and why.
        """

    def inspect(self, path: Path) -> GraphSummary:
        """Reads a model file."""


def precision_label(operations: Sequence[LinearOperation]) -> str:
    """Returns the name of the precision that a file's linear operations add up to.

    All alike give that precision's name; int8 beside float gives `mixed`; no linear operation gives `none`. Whether
    integers have a sign is the runtime's business and not part of the name.
    """
    pairs = {(operation.weights.lstrip("u"), operation.activations.lstrip("u")) for operation in operations}
    labels = {_LABELS.get(pair, "_".join(pair)) for pair in pairs}
    if not labels:
        return "none"
    return labels.pop() if len(labels) == 1 else "mixed"


def float_operations(operations: Iterable[LinearOperation]) -> tuple[str, ...]:
    """Returns the names of float operations in a file that also has integer ones; nothing in a float file."""
    known = list(operations)
    if all(operation.activations == "float" and "float" in operation.weights for operation in known):
        return ()
    return tuple(operation.name for operation in known if operation.activations == "float")


def model_files(path: Path) -> tuple[Path, ...]:
    """Returns all files of a model: for an OpenVINO .xml also its .bin."""
    weights = path.with_suffix(".bin")
    return (path, weights) if path.suffix == ".xml" and weights.exists() else (path,)


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of one file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def summarize(
    path: Path,
    *,
    format_name: str,
    inputs: Sequence[TensorDescription],
    outputs: Sequence[TensorDescription],
    operations: Iterable[str],
    tensor_types: Iterable[str],
    weight_bytes: Mapping[str, int],
    linear: Sequence[LinearOperation],
    external_files: Iterable[Path] = (),
) -> GraphSummary:
    """Returns the summary of what a target read from a file.

    Without any linear operation, the label is that of the tensors: `int8` where any is, else the wider float type.
    """
    files = model_files(path)
    types = count(tensor_types)
    of_tensors = next((name for name in ("int8", "float32", "float16") if name in types), "none")
    return GraphSummary(
        format=format_name,
        precision=precision_label(linear) if linear else of_tensors,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        operations=count(operations),
        tensor_types=types,
        weight_bytes=dict(sorted(weight_bytes.items(), key=lambda item: -item[1])),
        float_operations=float_operations(linear),
        size_bytes=sum(file.stat().st_size for file in (*files, *external_files)),
        sha256=file_digest(path),
        weights_sha256=file_digest(files[1]) if len(files) > 1 else None,
    )


def count(names: Iterable[str]) -> dict[str, int]:
    """Returns how often each name occurs, most often first, then by name."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def check_interface(summary: GraphSummary, signature: Signature, *, runtime: str) -> None:
    """Holds an exported file to the signature of its source.

    Raises:
        UnsupportedModelError: A name, a type or a shape is another.
    """
    for kind, found, expected in (
        ("inputs", summary.inputs, signature.inputs),
        ("outputs", summary.outputs, signature.outputs),
    ):
        missing = [_wanted(tensor) for tensor in expected if not any(_is(tensor, other) for other in found)]
        if missing or len(found) != len(expected):
            has = ", ".join(f"{tensor.name} {tensor.dtype} {tensor.shape}" for tensor in found)
            raise UnsupportedModelError(
                f"The {kind} of the {runtime} file are {has}; the model has {', '.join(map(_wanted, expected))}. "
                f"Give the model's {kind} fixed shapes, and each a tensor of its own."
            )


def signature_names(signature: Signature) -> tuple[str, ...]:
    """Returns the names of the inputs, then of the outputs."""
    return (*(tensor.name for tensor in signature.inputs), *(tensor.name for tensor in signature.outputs))


def _wanted(tensor: Any) -> str:
    return f"{tensor.name} {tensor.dtype} {tensor.shape}"


def _is(expected: Any, found: TensorDescription) -> bool:
    """Whether a tensor of a file is the one of the signature; -1 in the signature stands for any size."""
    return (
        found.name == expected.name
        and found.dtype == expected.dtype
        and len(found.shape) == len(expected.shape)
        and all(want in (-1, has) for want, has in zip(expected.shape, found.shape, strict=True))
    )


def check_source_precision(held: GraphSummary, precision: str, *, allowed: Sequence[str] = ("float32",)) -> None:
    """Refuses to make a precision from a file that does not hold the floats it would be made of.

    Args:
        held: What the source file holds.
        precision: Asked for.
        allowed: What the file may hold.

    Raises:
        UnsupportedModelError: It holds something else.
    """
    if held.precision not in allowed:
        raise UnsupportedModelError(
            f"The model file holds {held.precision}, so {precision} can't be made of it: that takes a file in "
            f"{' or '.join(allowed)}. Ask for what it holds, or give the model as it was before it was converted."
        )
