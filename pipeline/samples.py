"""The samples of a data artifact, whatever kind of data it is, by the inputs of a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from devices.records import SampleFile
from pipeline.errors import InputError
from pipeline.model_source import Sample, prepared
from pipeline.signature import InputTensor, Signature


def array_file(split: str, index: int) -> str:
    """Returns the name of the file that holds one array of a split."""
    return f"{split}_inputs_{index}.npy"


def reference_input_file(index: int) -> str:
    """Returns the name of the file with the samples for one input that models are compared on."""
    return f"reference_input_{index}.npy"


def reference_output_file(index: int) -> str:
    """Returns the name of the file with what the network, or the imported model, answers to them."""
    return f"reference_output_{index}.npy"


def calibration_input_file(index: int) -> str:
    """Returns the name of the file with the samples for one input that integer ranges come from."""
    return f"calibration_input_{index}.npy"


def output_file(index: int) -> str:
    """Returns the name of the file with what an exported model answers to the reference samples."""
    return f"output_{index}.npy"


@dataclass(frozen=True)
class SampleSet:
    """Samples of one split as they are stored, not yet transformed.

    Attributes:
        signature: Of the model that takes them.
        files: One for each input, in the order of the signature, rows `(count, ...)`.
        labels: Whole numbers `(count,)`; None where there are none.
        targets: Values `(count, ...)`; None where there are none.
    """

    signature: Signature
    files: tuple[Path, ...]
    labels: Path | None = None
    targets: Path | None = None

    def for_device(self) -> list[SampleFile]:
        """Returns the files as a device is fed with them."""
        return sample_files(self.signature, self.files)

    def all_files(self) -> list[Path]:
        """Returns the files of the samples, and of what they are judged by."""
        return [*self.files, *(file for file in (self.labels, self.targets) if file is not None)]

    def __len__(self) -> int:
        return len(np.load(self.files[0], mmap_mode="r"))

    def __iter__(self) -> Iterator[Sample]:
        """Yields what the model is fed with, sample by sample."""
        arrays = [np.load(path, mmap_mode="r") for path in self.files]
        for index in range(len(arrays[0])):
            yield {
                tensor.name: prepared(np.asarray(array[index]), tensor)
                for tensor, array in zip(self.signature.inputs, arrays, strict=True)
            }


def reference_samples(directory: Path, signature: Signature) -> SampleSet:
    """Returns the samples of a calibrate artifact; labels may cover the first ones alone."""
    files = tuple(directory / reference_input_file(index) for index in range(len(signature.inputs)))
    labels, targets = directory / "reference_labels.npy", directory / "reference_targets.npy"
    return SampleSet(signature, files, labels if labels.is_file() else None, targets if targets.is_file() else None)


def subset_of(samples: SampleSet, count: int, directory: Path) -> SampleSet:
    """Writes some of the samples, spread evenly over all of them, and always the same ones.

    Args:
        samples: As many labels and targets as samples, where there are any.
        count: How many to take.
        directory: Gets the files, which keep their names.

    Raises:
        InputError: There are not so many.
    """
    if count > len(samples):
        raise InputError(f"{count} samples are asked for, but there are {len(samples)}. Ask for fewer, or for all.")
    chosen = np.arange(count) * len(samples) // count
    made = {path: directory / path.name for path in samples.all_files()}
    for path, target in made.items():
        np.save(target, np.load(path, mmap_mode="r")[chosen])
    return SampleSet(
        samples.signature,
        tuple(made[path] for path in samples.files),
        made[samples.labels] if samples.labels is not None else None,
        made[samples.targets] if samples.targets is not None else None,
    )


def sample_files(signature: Signature, files: tuple[Path, ...]) -> list[SampleFile]:
    """Returns stored samples as a device takes them: by input, with the transform."""
    described = []
    for tensor, path in zip(signature.inputs, files, strict=True):
        transform = tensor.board_transform()
        described.append(
            SampleFile(name=tensor.name, path=str(path), transform=None if transform is None else transform.to_json())
        )
    return described


def split_samples(data: Path, split: str, signature: Signature) -> SampleSet:
    """Returns one split of a data artifact as samples for a model.

    Args:
        data: The artifact, of images or of arrays.
        split: train or test.
        signature: Of the model.

    Raises:
        InputError: The data has not what an input takes.
    """
    description: dict[str, Any] = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    labels, targets = data / f"{split}_labels.npy", data / f"{split}_targets.npy"
    if "inputs" in description:
        names = [str(each["name"]) for each in description["inputs"]]
        files = tuple(data / array_file(split, _index_of(tensor, names, signature)) for tensor in signature.inputs)
    else:
        files = (data / f"{split}_images.npy",)
        if len(signature.inputs) != 1:
            raise InputError(
                f"The data are images, but the model takes {len(signature.inputs)} inputs "
                f"({', '.join(tensor.name for tensor in signature.inputs)}); give an array for each with "
                f"data: {{source: arrays}}."
            )
    samples = SampleSet(signature, files, labels if labels.is_file() else None, targets if targets.is_file() else None)
    _check(samples, split)
    return samples


def _index_of(tensor: InputTensor, names: list[str], signature: Signature) -> int:
    if tensor.name in names:
        return names.index(tensor.name)
    if len(signature.inputs) == 1 and len(names) == 1:
        return 0
    raise InputError(
        f"The data has the arrays {', '.join(names)}, but the model takes {tensor.name}; name an array after each "
        f"input: {', '.join(each.name for each in signature.inputs)}."
    )


def _check(samples: SampleSet, split: str) -> None:
    """Refuses samples that do not become exactly what the inputs take, judged by the first one."""
    for tensor, path in zip(samples.signature.inputs, samples.files, strict=True):
        rows = np.load(path, mmap_mode="r")
        if not len(rows):
            raise InputError(f"The {split} split has no samples.")
        row = np.asarray(rows[0])
        try:
            value = prepared(row, tensor)
        except ValueError as error:
            raise InputError(f"The samples can't become the input {tensor.name}: {error}") from error
        if value.shape != tensor.shape or value.dtype.name != tensor.dtype:
            hint = (
                f"say how they become it with model.inputs: [{{name: {tensor.name}, scale: 1.0, offset: 0.0}}]"
                if value.shape == tensor.shape
                else "give samples of its shape, a row each without the batch, or say its layout in model.inputs"
            )
            raise InputError(
                f"The samples are {row.dtype.name} {list(row.shape)}, which gives {value.dtype.name} "
                f"{list(value.shape)}, but the input {tensor.name} takes {tensor.dtype} {list(tensor.shape)}; {hint}."
            )
