"""A model over sets of samples: files in, one file for each output."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from .errors import AgentError
from .preprocess import InputTransform
from .quantization import Quantization, dequantize
from .runners import Runner
from .runners.contract import Feed, find_tensor, names_of

Array = np.ndarray

_PROGRESS_EVERY_S = 0.5


class _Samples(NamedTuple):
    """The samples of one input.

    Attributes:
        feed: What the input takes.
        path: Of the file, for messages.
        stored: `(count, ...)`, mapped into memory.
        transform: None where the stored bits are the input's.
        quantization: Of the input; its axis counts from the batch that `InputTransform.apply` puts in front.
    """

    feed: Feed
    path: str
    stored: Array[Any, Any]
    transform: Optional[InputTransform]
    quantization: Optional[Quantization]

    def fill(self, index: int, buffer: Array[Any, Any]) -> None:
        """Puts one sample into a buffer of the input's shape, which runtimes may want to be writeable."""
        row = self.stored[index] if self.transform is None else self.prepared_row(index)
        buffer[...] = row.reshape(buffer.shape)

    def prepared_row(self, index: int) -> Array[Any, Any]:
        """What the transform makes of one sample, `(1, ...)`, of whatever shape that is."""
        transform = self.transform or InputTransform()
        try:
            return transform.apply(
                np.asarray(self.stored[index]), self.quantization, quantized_dtype=self.feed.dtype.name
            )
        except ValueError as error:
            raise AgentError(f"sample {index} of {self.path} for the input '{self.feed.name}': {error}") from error


class _OutputFile:
    """The answers of one output, written sample by sample as float32.

    Args:
        record: Of the output.
        path: Where `finish` leaves the file.
        count: Of samples.
    """

    def __init__(self, record: Dict[str, Any], path: str, count: int) -> None:
        self._record, self._count = record, count
        self._path, self._partial = path, path + ".partial"
        self._values: Optional[Array[Any, Any]] = None
        self._shape: Tuple[int, ...] = ()
        self._dtype = ""
        self._non_finite = 0

    def add(self, index: int, answer: Any) -> Array[Any, Any]:
        """Writes what the model answers to one sample, and returns its real values as float32."""
        values = self._real(answer)
        if self._values is None:
            self._shape, self._dtype = values.shape, answer.dtype.name
            # By convention the first dimension is the batch of one; where it is not one it is something else.
            sample_shape = self._shape[1:] if self._shape[:1] == (1,) else self._shape
            self._values = np.lib.format.open_memmap(
                self._partial, mode="w+", dtype=np.float32, shape=(self._count, *sample_shape)
            )
        elif values.shape != self._shape:
            raise AgentError(
                f"the model's output '{self._record['name']}' has the shape {values.shape} for sample {index} and "
                f"{self._shape} for those before; expected one shape for all, for they make one array: "
                "predict with samples of one kind, or export the model with outputs of a fixed size"
            )
        self._values[index] = values.reshape(self._values.shape[1:])
        self._non_finite += not np.isfinite(values).all()
        return values

    def _real(self, answer: Any) -> Array[Any, Any]:
        if not isinstance(answer, np.ndarray) or answer.dtype.kind not in "fiub":
            received = answer.dtype.name if isinstance(answer, np.ndarray) else type(answer).__name__
            raise AgentError(
                f"the model's output '{self._record['name']}' is {received} ({self._record['dtype']}); expected an "
                "array of numbers: export the model without that output"
            )
        if self._record["quantization"] is not None and answer.dtype.kind in "iu":
            return dequantize(answer, self._record["quantization"])
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is counted as such
            return answer.astype(np.float32)

    def finish(self) -> Dict[str, Any]:
        """Puts the whole file in its place."""
        values: Any = self._values
        values.flush()
        os.replace(self._partial, self._path)
        return {
            "name": self._record["name"],
            "path": self._path,
            "shape": list(values.shape),
            "dtype": self._dtype,
            "non_finite": self._non_finite,
        }

    def discard(self) -> None:
        """Removes what `finish` has not put in its place."""
        self._values = None
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._partial)


def predict(
    runner: Runner,
    feeds: Sequence[Feed],
    inputs: Sequence[Mapping[str, Any]],
    *,
    labels: Optional[str],
    out_dir: str,
    emit_event: Callable[[Dict[str, Any]], None],
) -> Dict[str, Any]:
    """Runs a model over all samples, one by one.

    Args:
        runner: With the model loaded.
        feeds: Its inputs.
        inputs: For each of them `name` (None for the only one), `path` (a `.npy` file, `(count, ...)`, one row
            a sample; a row has the input's shape without a first dimension of 1, and its whole shape where the
            first dimension is another) and `transform` (None, or of `InputTransform.to_json`).
        labels: A `.npy` file of whole numbers `(count,)`, or None.
        out_dir: Gets `output_<index>.npy` for each output, float32 `(count, *shape)`, where the shape loses a
            first dimension of 1. Quantized integers become their real values; everything else is cast, so
            that whole numbers beyond 2^24 lose exactness.
        emit_event: Takes `{"done": 100, "total": 1797}`.

    Returns:
        `count`; `seconds` for all samples; `correct`: to how many the label is the highest value of the first
        output, None without labels; and `outputs`: for each its `name`, `path`, `shape` (of the file), `dtype`
        (of the model's answer) and `non_finite` (samples with a value that is not a finite number).

    Raises:
        AgentError: The samples or labels do not fit the model, or its answers can't be written.
    """
    description = runner.describe()
    samples = _open_all(description["inputs"], feeds, inputs)
    count = len(samples[0].stored)
    wanted = _load_labels(labels, count)
    os.makedirs(out_dir, exist_ok=True)
    files = [
        _OutputFile(record, os.path.join(out_dir, f"output_{index}.npy"), count)
        for index, record in enumerate(description["outputs"])
    ]
    buffers = [np.empty(feed.shape, feed.dtype) for feed in feeds]
    correct = 0
    started = said = time.monotonic()
    try:
        for index in range(count):
            for each, buffer in zip(samples, buffers):
                each.fill(index, buffer)
            answers = runner.infer(buffers)
            values = [file.add(index, answer) for file, answer in zip(files, answers)]
            if wanted is not None:
                correct += _is_correct(values[0], wanted, index)
            if time.monotonic() - said >= _PROGRESS_EVERY_S:
                said = time.monotonic()
                emit_event({"done": index + 1, "total": count})
        seconds = time.monotonic() - started
        outputs = [file.finish() for file in files]
    finally:
        for file in files:
            file.discard()
    emit_event({"done": count, "total": count})
    return {
        "count": count,
        "seconds": seconds,
        "outputs": outputs,
        "correct": None if wanted is None else correct,
    }


def _open_all(
    records: Sequence[Dict[str, Any]], feeds: Sequence[Feed], inputs: Sequence[Mapping[str, Any]]
) -> List[_Samples]:
    """The samples of every input, in the order of the records."""
    by_index: Dict[int, _Samples] = {}
    for given in inputs:
        index = _index_of(records, given["name"])
        if index in by_index:
            raise AgentError(f"the input '{records[index]['name']}' is given twice; give each once")
        by_index[index] = _open(records[index], feeds[index], given["path"], given["transform"])
    missing = [record for index, record in enumerate(records) if index not in by_index]
    if missing:
        raise AgentError(f"nothing is given for {names_of(missing)}; the model takes {names_of(records)}: give all")
    samples = [by_index[index] for index in range(len(records))]
    counts = {len(each.stored) for each in samples}
    if len(counts) > 1:
        listed = ", ".join(f"{len(each.stored)} for '{each.feed.name}' ({each.path})" for each in samples)
        raise AgentError(f"the inputs have different numbers of samples: {listed}; expected as many for each")
    for each in samples:
        _check(each)
    return samples


def _index_of(records: Sequence[Dict[str, Any]], name: Optional[str]) -> int:
    """Which input is meant."""
    if name is None and len(records) == 1:
        return 0
    index = None if name is None else find_tensor(records, name)
    if index is None:
        received = "samples are given without the name of an input" if name is None else f"there is no input '{name}'"
        raise AgentError(f"{received}; the model takes {names_of(records)}: name one of them")
    return index


def _open(record: Dict[str, Any], feed: Feed, path: str, transform: Optional[Mapping[str, Any]]) -> _Samples:
    """The samples of one input, not yet looked at."""
    stored = _read(path, "samples")
    if stored.ndim == 0:
        raise AgentError(f"the samples {path} are one number; expected an array (count, ...), one row a sample")
    if not len(stored):
        raise AgentError(f"{path} holds no samples; expected at least one")
    try:
        made = None if transform is None else InputTransform.from_json(transform)
    except ValueError as error:
        raise AgentError(f"the transform for the input '{feed.name}' can't be used: {error}") from error
    quantization = record["quantization"]
    if quantization is not None and quantization["axis"] is not None and not _has_batch(feed):
        quantization = {**quantization, "axis": quantization["axis"] + 1}
    return _Samples(feed, path, stored, made, quantization)


def _read(path: str, kind: str) -> Array[Any, Any]:
    """The file mapped into memory."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise AgentError(f"the {kind} {path} can't be read: {error}; expected a .npy file of numbers") from error
    if not isinstance(array, np.ndarray):
        raise AgentError(f"the {kind} {path} are an archive of arrays; expected one array, written with numpy.save")
    return array


def _has_batch(feed: Feed) -> bool:
    return feed.shape[:1] == (1,)


def _check(samples: _Samples) -> None:
    """Refuses samples that are not what the input takes; all rows of a file are alike, so one tells."""
    feed, row = samples.feed, samples.stored[0]
    expected = feed.shape[1:] if _has_batch(feed) else feed.shape
    received = f"{row.dtype.name} {samples.stored.shape}"
    if samples.transform is None:
        shape, dtype = row.shape, row.dtype
    else:
        value = samples.prepared_row(0)
        shape, dtype = value.shape[1:], value.dtype
        received += f", each row {dtype.name} {shape} after the transform"
    if shape != expected or dtype != feed.dtype:
        raise AgentError(
            f"the samples {samples.path} are {received}, but the model's input '{feed.name}' takes rows "
            f"{feed.dtype.name} {expected}; preprocess them with the model's record, or give another transform "
            "(layout, dtype, scale, offset)"
        )


def _load_labels(path: Optional[str], count: int) -> Optional[Array[Any, Any]]:
    if path is None:
        return None
    labels = _read(path, "labels")
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise AgentError(f"the labels are {labels.dtype.name} {labels.shape}; expected whole numbers ({count},)")
    return labels


def _is_correct(logits: Array[Any, Any], labels: Array[Any, Any], index: int) -> bool:
    """Whether the label of a sample is where the logits are highest."""
    if index == 0:
        if logits.ndim != 2 or logits.shape[0] != 1 or logits.shape[1] == 0:
            raise AgentError(
                f"the model's first output has the shape {logits.shape}; expected logits (1, classes) to compare with "
                "labels: predict without labels"
            )
        if labels.min() < 0 or labels.max() >= logits.shape[1]:
            raise AgentError(
                f"the labels reach from {labels.min()} to {labels.max()}, but the model has {logits.shape[1]} classes"
            )
    return bool(logits[0].argmax() == labels[index])
