"""Runs the accelerator's augmentation on one backend, compiled; what it gets and gives are .npz files.

Each input array is named case/key; each result is named after its case.
"""

from __future__ import annotations

import sys
from typing import Any

import keras
import numpy as np

from pipeline.training.augmentation.accelerator import transform


def compiled(inputs: dict[str, np.ndarray]) -> Any:
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(transform)
    import tensorflow as tf

    # As Keras traces a step: the batch's length is open.
    signature = {key: tf.TensorSpec((None, *value.shape[1:]), value.dtype) for key, value in inputs.items()}
    return tf.function(transform, input_signature=[signature])


def main(given: str, taken: str) -> None:
    cases: dict[str, dict[str, np.ndarray]] = {}
    with np.load(given) as arrays:
        for name in arrays.files:
            case, key = name.split("/")
            cases.setdefault(case, {})[key] = arrays[name]
    functions: dict[tuple[str, ...], Any] = {}
    results = {}
    for case, inputs in cases.items():
        kind = tuple(sorted(inputs))
        if kind not in functions:
            functions[kind] = compiled(inputs)
        tensors = {key: keras.ops.convert_to_tensor(value) for key, value in inputs.items()}
        results[case] = keras.ops.convert_to_numpy(functions[kind](tensors))
    np.savez(taken, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
