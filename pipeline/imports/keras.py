"""Keras models: `.keras` archives, and `.h5` files of older versions; Keras must run on TensorFlow."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, ModelFileError
from pipeline.imports.base import Imported, one_line
from pipeline.imports.checks import FoundTensor, distinct_names, make_signature, resolve_inputs
from pipeline.imports.description import ModelDescription
from pipeline.imports.tensorflow_function import argument_names, write_static
from pipeline.saved_model import DIRECTORY

_UNKNOWN = re.compile(
    r"Unknown (?:layer|activation function|object|class)[^'\"]*['\"]([\w>.]+)['\"]|"
    r"[Cc]ould not locate (?:class|function) '([\w>.]+)'"
)
_COUNTED = re.compile(r"keras_tensor(_\d+)?")
"""A name that Keras made up while it loaded the model; the next time it is another."""

_AS_SAVED_MODEL = (
    "Edgeship can't load code: in the program that defines it, write the model as a SavedModel with "
    "model.export('my_model') and give that directory"
)


def import_keras(path: Path, out_dir: Path, description: ModelDescription) -> Imported:
    """Loads the model without its training configuration and writes it as `saved_model/`, batch 1.

    Raises:
        ModelFileError: It holds custom code, or Keras can't load it.
        InputError: It does not fit the description.
    """
    _refuse_code(path)
    model = _built(_load(path), description)
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


def _load(path: Path) -> Any:
    import keras

    try:
        model = keras.saving.load_model(str(path), compile=False, safe_mode=True)
    except Exception as error:
        unknown = _UNKNOWN.search(str(error))
        if unknown is not None:
            raise _custom([unknown.group(1) or unknown.group(2)]) from error
        raise ModelFileError(
            f"Keras {keras.__version__} can't load it: {one_line(error)}. Expected a whole file of Keras 3; save the "
            f"model again with model.save('model.keras')."
        ) from error
    if not isinstance(model, keras.Model):
        raise ModelFileError(f"It holds a {type(model).__name__}, not a model. Save the model as a whole.")
    return model


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


def _refuse_code(path: Path) -> None:
    """Refuses a model with classes or functions that Keras does not have, before any of it is loaded.

    Raises:
        ModelFileError: It names them.
    """
    config = _config(path)
    found = sorted(set(_foreign(config)))
    lambdas = [name for name in found if name.startswith("Lambda ")]
    if lambdas:
        raise ModelFileError(
            f"The model holds Python code in its layer {', '.join(lambdas)}, which is never run from a file. "
            f"Replace it by layers of Keras. {_AS_SAVED_MODEL}."
        )
    if found:
        raise _custom(found)


def _custom(names: list[str]) -> ModelFileError:
    kind = "class or function" if len(names) == 1 else "classes or functions"
    return ModelFileError(
        f"The model uses the custom {kind} {', '.join(names)}, which Keras does not have. Expected layers of Keras "
        f"alone. {_AS_SAVED_MODEL}."
    )


def _config(path: Path) -> Any:
    if path.suffix.lower() == ".keras":
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read("config.json"))
    import h5py

    with h5py.File(path, "r") as file:
        text = file.attrs.get("model_config")
    if text is None:
        raise ModelFileError(
            "It holds weights without an architecture: use model.weights with model.name, or save the whole model "
            "with model.save('model.keras')."
        )
    return json.loads(text)


def _foreign(value: Any) -> Iterator[str]:
    """Yields the names of all that a configuration holds and Keras does not have."""
    if isinstance(value, list):
        for entry in value:
            yield from _foreign(entry)
    if not isinstance(value, dict):
        return
    name = value.get("class_name")
    if isinstance(name, str) and "config" in value:
        config = value["config"]
        if name == "Lambda" and isinstance(config, dict) and _is_code(config.get("function")):
            yield f"Lambda {config.get('name', '')}".strip()
            return
        if name == "function" and isinstance(config, str):
            yield config
        elif not _is_of_keras(value):
            registered = value.get("registered_name")
            yield registered if isinstance(registered, str) else name
            return  # what is inside goes by the rules of that class
    for entry in value.values():
        yield from _foreign(entry)


def _is_code(function: Any) -> bool:
    return isinstance(function, list) or (
        isinstance(function, dict) and function.get("class_name") in {"__lambda__", "function"}
    )


def _is_of_keras(value: Mapping[str, Any]) -> bool:
    """Whether a serialized object is one of Keras; old files don't say the module, and Keras decides itself."""
    registered = value.get("registered_name")
    if isinstance(registered, str) and ">" in registered and not registered.startswith("keras"):
        return False
    module = value.get("module")
    if module is None and "module" in value and isinstance(registered, str):
        return False  # a class of the program that saved the model
    return not isinstance(module, str) or module.split(".")[0] in {"keras", "builtins", "tf_keras"}
