"""What every runner is, and the checks that they share."""

from __future__ import annotations

from typing import Any, Dict, Protocol, Sequence, Tuple

import numpy as np

from ..errors import ModelRejected


class Runner(Protocol):
    """One model in one runtime."""

    def load(self, path: str, *, num_threads: int) -> None:
        """Reads and prepares the model.

        Raises:
            RuntimeMissing: The runtime is not installed.
            ModelRejected: The runtime raised while it loaded the file.
        """

    def infer(self, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Runs the model once.

        Args:
            image: Of exactly the shape and dtype of the model's input, C-contiguous; nothing is cast. By the
                model contract uint8 `(1, height, width, 3)`.

        Returns:
            The first output; by the model contract float32 logits `(1, classes)`. The array may be
            overwritten by the next call.
        """

    def describe(self) -> Dict[str, Any]:
        """The runtime and the model's tensors.

        Returns:
            `runtime`, `version`, `package`, `input` (`name`, `shape`, `dtype`) and `outputs` (a list of the
            same).
        """


def tensor_record(name: str, shape: Sequence[Any], dtype: str) -> Dict[str, Any]:
    """One tensor for `describe`; a dimension without a fixed size is None."""
    sizes = [int(size) if isinstance(size, (int, np.integer)) and size >= 0 else None for size in shape]
    return {"name": name, "shape": sizes, "dtype": dtype}


def only_input(inputs: Sequence[Dict[str, Any]]) -> Dict[str, Any]:
    """The single input of a model.

    Raises:
        ModelRejected: It has none or several.
    """
    if len(inputs) != 1:
        names = ", ".join(str(record["name"]) for record in inputs) or "none"
        raise ModelRejected(f"the model has {len(inputs)} inputs ({names}); expected exactly one")
    return inputs[0]


def fixed_shape(record: Dict[str, Any]) -> Tuple[int, ...]:
    """The shape to feed: a free first dimension (the batch) becomes 1.

    Raises:
        ModelRejected: Another dimension has no fixed size.
    """
    shape = list(record["shape"])
    if shape and shape[0] is None:
        shape[0] = 1
    if any(size is None for size in shape):
        raise ModelRejected(
            f"input '{record['name']}' has the shape {record['shape']}, where only the first may be free; "
            "export the model with a fixed image size"
        )
    return tuple(shape)


def check_image(image: np.ndarray[Any, Any], shape: Tuple[int, ...], dtype: str) -> None:
    """Refuses an image that is not exactly what the model takes.

    Raises:
        ValueError: Another shape or dtype, or not C-contiguous.
    """
    if image.shape != shape or image.dtype.name != dtype:
        raise ValueError(
            f"the model takes {dtype} {shape}, but the image is {image.dtype.name} {image.shape}; nothing is cast"
        )
    if not image.flags.c_contiguous:
        raise ValueError("the image is not C-contiguous; pass np.ascontiguousarray(image)")
