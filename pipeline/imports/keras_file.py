"""Reads a Keras model from a file, on whichever backend Keras runs; code in a file is never run."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ModelFileError
from pipeline.imports.base import one_line

_UNKNOWN = re.compile(
    r"Unknown (?:layer|activation function|object|class)[^'\"]*['\"]([\w>.]+)['\"]|"
    r"[Cc]ould not locate (?:class|function) '([\w>.]+)'"
)

_AS_SAVED_MODEL = (
    "Edgeship can't load code: in the program that defines it, write the model as a SavedModel with "
    "model.export('my_model') and give that directory"
)


def load_keras(path: Path) -> Any:
    """Loads a model without its training configuration.

    Raises:
        ModelFileError: Keras can't load it, or it holds custom code.
    """
    import keras

    refuse_code(path)
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


def refuse_code(path: Path) -> None:
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
