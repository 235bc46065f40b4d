"""A model of one's own on its way into the pipeline: checked, and brought into the form that targets convert from.

Adding a format is one file here, one line in `IMPORTERS` and in `formats`, one test case. Reading a model loads its
native library, so it belongs into a stage's process (`pipeline.stages.import_model`); `format_of` loads none.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import EdgeshipError, ModelFileError
from pipeline.imports.base import Imported, Importer, one_line, printable
from pipeline.imports.checks import check_image_input
from pipeline.imports.description import InputDescription, ModelDescription, OutputDescription
from pipeline.imports.formats import TITLES, ModelFormat, format_of, model_files, model_fingerprint
from pipeline.imports.keras import import_keras
from pipeline.imports.onnx import import_onnx
from pipeline.imports.openvino import import_openvino
from pipeline.imports.saved_model import import_saved_model
from pipeline.imports.tflite import import_tflite
from pipeline.signature import Signature
from pipeline.store_errors import store_trouble

IMPORTERS: dict[ModelFormat, Importer] = {
    "keras": import_keras,
    "saved_model": import_saved_model,
    "onnx": import_onnx,
    "tflite": import_tflite,
    "openvino": import_openvino,
}


def import_model(path: Path, out_dir: Path, description: ModelDescription) -> Signature:
    """Checks a model and writes it in its normalized form, with its signature, into a directory.

    A `.keras` file and a SavedModel become `saved_model/` with the one signature `serve`, the others stay what they
    are: `model.onnx`, `model.tflite`, `model.xml` with `model.bin`.

    Args:
        path: A file, or the directory of a SavedModel.
        out_dir: An existing directory.
        description: What the recipe says about the model.

    Raises:
        InputError: The description does not fit the model, or leaves open what has to be said.
        ModelFileError: The model can't be read or used.
        StoreError: `out_dir` can't be written.
    """
    return import_with_parameters(path, out_dir, description).signature


def import_with_parameters(path: Path, out_dir: Path, description: ModelDescription) -> Imported:
    """Does what `import_model` does, and also returns the number of parameters.

    Raises:
        EdgeshipError: As of `import_model`.
    """
    kind = format_of(path)
    try:
        imported = IMPORTERS[kind](path, out_dir, description)
    except EdgeshipError as error:
        message = f"{path} can't be used: {printable(error.message)}"
        raise type(error)(message, details=error.details) from error
    except Exception as error:
        trouble = store_trouble(error, out_dir)
        if trouble is not None:
            raise trouble from error
        raise ModelFileError(
            f"{path} can't be read as {TITLES[kind]}: {type(error).__name__}: {one_line(error)}. Expected a whole "
            f"model as its exporter writes it; export it again."
        ) from error
    imported.signature.write(out_dir)
    return imported


__all__ = [
    "IMPORTERS",
    "TITLES",
    "Imported",
    "InputDescription",
    "ModelDescription",
    "ModelFormat",
    "OutputDescription",
    "check_image_input",
    "format_of",
    "import_model",
    "import_with_parameters",
    "model_files",
    "model_fingerprint",
]
