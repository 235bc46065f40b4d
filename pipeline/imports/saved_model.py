"""TensorFlow SavedModels: re-exported with one static signature."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ModelFileError
from pipeline.imports.base import Imported, one_line
from pipeline.imports.checks import FoundTensor, make_signature, resolve_inputs, shape_text
from pipeline.imports.description import ModelDescription
from pipeline.imports.tensorflow_function import argument_names, write_static
from pipeline.saved_model import DIRECTORY

_INTERNAL = ("__saved_model_init_op", "__saved_model_train_op")
_PYTHON = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
_UNKNOWN = re.compile(r"Op type not registered '(\w+)'")


def import_saved_model(path: Path, out_dir: Path, description: ModelDescription) -> Imported:
    """Loads the model, and writes its one signature as `saved_model/`, batch 1.

    Raises:
        ModelFileError: TensorFlow can't load it, or it has no signature or several.
        InputError: It does not fit the description.
    """
    loaded = _load(path)
    signature = _only_signature(loaded)
    _refuse_python(signature)
    _, specs = signature.structured_input_signature
    original = sorted(specs)  # the file keeps no order
    names = argument_names(original)
    found = [
        FoundTensor(name, specs[known].dtype.name, _shape(specs[known]), known_as=(known,))
        for name, known in zip(names, original, strict=True)
    ]
    inputs = resolve_inputs(found, description)
    given = sorted(signature.structured_outputs)
    outputs = argument_names(given)

    def call(values: Mapping[str, Any]) -> dict[str, Any]:
        results = signature(**{known: values[name] for name, known in zip(names, original, strict=True)})
        return {name: results[known] for name, known in zip(outputs, given, strict=True)}

    written = write_static(call, inputs, loaded, out_dir)
    variables = {variable.ref(): variable for variable in getattr(signature, "variables", ())}
    parameters = sum(int(variable.shape.num_elements()) for variable in variables.values())
    return Imported(make_signature("saved_model", DIRECTORY, inputs, written, description), parameters or None)


def _load(path: Path) -> Any:
    import tensorflow as tf

    try:
        return tf.saved_model.load(str(path))
    except Exception as error:
        unknown = _UNKNOWN.search(str(error))
        if unknown is not None:
            raise ModelFileError(
                f"The model uses the operation {unknown.group(1)}, which TensorFlow {tf.__version__} does not have. "
                f"Export the model without operations of extra libraries."
            ) from error
        raise ModelFileError(
            f"TensorFlow {tf.__version__} can't load it: {one_line(error)}. Expected a whole SavedModel: "
            f"saved_model.pb with its variables directory; copy or export it again."
        ) from error


def _only_signature(loaded: Any) -> Any:
    """Returns the one signature; two of Keras's `export`, `serve` and `serving_default`, are one."""
    signatures = {name: each for name, each in loaded.signatures.items() if name not in _INTERNAL}
    if not signatures:
        raise ModelFileError(
            "The SavedModel has no serving signature. Expected exactly one; export the model with "
            "model.export(...) in Keras or tf.saved_model.save(model, directory, signatures=function)."
        )
    if len({_interface(each) for each in signatures.values()}) == 1 and set(signatures) <= {"serve", "serving_default"}:
        return next(iter(signatures.values()))
    if len(signatures) > 1:
        names = "; ".join(
            f"{name}({', '.join(each.structured_input_signature[1])})" for name, each in signatures.items()
        )
        raise ModelFileError(
            f"The SavedModel has {len(signatures)} signatures: {names}. Expected exactly one; export the one that is "
            f"to run: tf.saved_model.save(model, directory, signatures=model.signatures['NAME'])."
        )
    return next(iter(signatures.values()))


def _interface(signature: Any) -> str:
    _, inputs = signature.structured_input_signature
    outputs = signature.structured_outputs
    return repr(
        [
            sorted((name, spec.dtype.name, shape_text(_shape(spec))) for name, spec in specs.items())
            for specs in (inputs, outputs)
        ]
    )


def _refuse_python(signature: Any) -> None:
    definition = signature.graph.as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    if any(node.op in _PYTHON for node in nodes):
        raise ModelFileError(
            "The SavedModel calls Python code (tf.py_function or tf.numpy_function), which is not in it. Export the "
            "model with TensorFlow's operations alone."
        )


def _shape(spec: Any) -> tuple[int | None, ...] | None:
    return None if spec.shape.rank is None else tuple(spec.shape.as_list())
