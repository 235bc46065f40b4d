"""Keras models: `.keras` archives, and `.h5` files of older versions; Keras must run on TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, ModelFileError
from pipeline.imports.base import Imported
from pipeline.imports.checks import FoundTensor, distinct_names, make_signature, resolve_inputs
from pipeline.imports.description import ModelDescription
from pipeline.imports.keras_file import load_keras
from pipeline.imports.tensorflow_function import argument_names, write_static
from pipeline.saved_model import DIRECTORY

_COUNTED = re.compile(r"keras_tensor(_\d+)?")
"""A name that Keras made up while it loaded the model; the next time it is another."""


def import_keras(path: Path, out_dir: Path, description: ModelDescription) -> Imported:
    """Loads the model without its training configuration and writes it as `saved_model/`, batch 1.

    Raises:
        ModelFileError: It holds custom code, or Keras can't load it.
        InputError: It does not fit the description.
    """
    model = _built(load_keras(path), description)
    functional = getattr(model, "_functional", None) or model
    tensors = list(functional.inputs)
    original = _input_names(functional, tensors)
    names = argument_names(distinct_names(["" if _COUNTED.fullmatch(name) else name for name in original], "input"))
    found = [
        FoundTensor(name, _dtype(tensor), tuple(tensor.shape), known_as=(known, tensor.name))
        for name, known, tensor in zip(names, original, tensors, strict=True)
    ]
    inputs = resolve_inputs(found, description)
    outputs = argument_names(_output_names(functional, model))
    structure = getattr(functional, "_inputs_struct", tensors)

    def call(values: Mapping[str, Any]) -> dict[str, Any]:
        import keras

        packed = keras.tree.pack_sequence_as(structure, [values[name] for name in names])
        return dict(zip(outputs, keras.tree.flatten(model(packed, training=False)), strict=True))

    written = write_static(call, inputs, model, out_dir)
    signature = make_signature("saved_model", DIRECTORY, inputs, written, description)
    return Imported(signature, int(model.count_params()))


def _built(model: Any, description: ModelDescription) -> Any:
    """Returns the model with its inputs known; one that was never called is built for the described shape."""
    if getattr(model, "inputs", None):
        return model
    shapes = [entry.shape for entry in description.inputs]
    if len(shapes) != 1 or shapes[0] is None:
        raise InputError(
            f"The model {model.name} does not say what it takes: it was saved before it was built. State the shape of "
            f"its input with the batch of 1 in front: model.inputs: [{{shape: [1, 224, 224, 3]}}]."
        )
    model.build(shapes[0])
    if not getattr(model, "inputs", None):
        raise ModelFileError(
            f"The model {model.name} does not say what it takes. Save it as a SavedModel with model.export(...)."
        )
    return model


def _input_names(functional: Any, tensors: list[Any]) -> list[str]:
    structure = getattr(functional, "_inputs_struct", None)
    if isinstance(structure, dict) and len(structure) == len(tensors):
        return sorted(structure)
    return [str(tensor.name) for tensor in tensors]


def _output_names(functional: Any, model: Any) -> list[str]:
    import keras

    structure = getattr(functional, "_outputs_struct", None)
    count = len(keras.tree.flatten(functional.outputs))
    if isinstance(structure, dict) and len(structure) == count:
        return sorted(structure)
    names = getattr(functional, "output_names", None)
    if names is None or len(names) != count or functional is not model:
        names = [model.layers[-1].name] if count == 1 else [f"output_{index}" for index in range(count)]
    return [str(name) for name in names]


def _dtype(tensor: Any) -> str:
    return "sparse" if getattr(tensor, "sparse", False) else str(tensor.dtype)
