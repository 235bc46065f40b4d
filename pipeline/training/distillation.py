"""Distillation: a trained network as the teacher of a smaller one (Hinton, Vinyals and Dean 2015)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError, ModelFileError
from pipeline.imports.keras_file import load_keras
from pipeline.network import NETWORK_FILE, WEIGHTS_FILE, load_network, network_digest
from pipeline.training.config import TeacherConfig

if TYPE_CHECKING:
    import keras

_SMALLEST_PROBABILITY = 1e-7
_PASSES_ON = ("Activation", "ActivityRegularization", "Dropout", "Flatten", "Identity", "Reshape")
"""Layers that may follow a softmax and leave what it gives as it is; `Activation` where it is linear."""


def teacher_fingerprint(config: TeacherConfig) -> str:
    """Returns the digest of a teacher's files, which stands for it in the artifact's key; it loads nothing.

    Raises:
        InputError: There is no teacher at the path.
    """
    path = Path(config.path).expanduser()
    try:
        return network_digest(path)
    except OSError as error:
        raise _no_teacher(config, f"{error.filename or path} can't be read ({error.strerror or error})") from error


def load_teacher(config: TeacherConfig, *, classes: Sequence[str], input_shape: Sequence[int | None]) -> keras.Model:
    """Loads a teacher and puts what the student's images need in front of it.

    Images of another size are resized inside its graph, scaled by `config` where its input is a float, and it runs in
    inference mode: its batch norm uses stored statistics, and none of its weights are trained.

    Args:
        config: Where it is, and what it takes and gives.
        classes: Of the data, in the order of the student's logits.
        input_shape: Of the student's images, (height, width, 3); None for a size that changes.

    Returns:
        A model from uint8 (batch, height, width, 3) to float32 logits (batch, classes).

    Raises:
        InputError: There is no teacher, or it has other classes, or it does not take one image.
        ModelFileError: It holds custom code, or Keras can't load it.
        StageError: An artifact's weights don't fit its network.
    """
    import keras

    path = Path(config.path).expanduser()
    is_artifact = path.is_dir()
    network = _from_artifact(config, path, classes) if is_artifact else _from_file(config, path)
    size, is_float = _checked_input(config, network)
    _check_output(config, network, len(classes))
    gives_probabilities = not is_artifact and _gives_probabilities(config, network)
    network.trainable = False
    images = keras.Input(tuple(input_shape), dtype="uint8", name="teacher_image")
    values: Any = images
    wanted = tuple(theirs or ours for theirs, ours in zip(size, input_shape[:2], strict=True))
    if None not in wanted and wanted != tuple(input_shape[:2]):
        # Resized in float32 and rounded: an artifact takes whole pixels, as it was trained with.
        pixels = keras.ops.cast(values, "float32")
        values = keras.ops.image.resize(pixels, wanted, interpolation="bilinear", antialias=True)
        if not is_float:
            values = keras.ops.cast(keras.ops.clip(keras.ops.round(values), 0.0, 255.0), "uint8")
    if is_float:
        values = keras.ops.cast(values, "float32") * config.scale + config.offset
    given = keras.ops.cast(network(values, training=False), "float32")
    if gives_probabilities:
        given = keras.ops.log(keras.ops.maximum(given, _SMALLEST_PROBABILITY))
    return keras.Model(images, given, name="teacher", trainable=False)


def distillation_loss(student_logits: Any, teacher_logits: Any, temperature: float) -> Any:
    """Returns temperature^2 * KL(teacher || student) of the softened probabilities, for each image.

    The factor keeps the gradient as large as that of the labels at any temperature (Hinton et al. 2015, section 2).

    Args:
        student_logits: (batch, classes).
        teacher_logits: (batch, classes).
        temperature: Divides both.

    Returns:
        float32 (batch,), in nats.
    """
    from keras import ops

    student = ops.log_softmax(ops.cast(student_logits, "float32") / temperature, axis=-1)
    teacher = ops.log_softmax(ops.cast(teacher_logits, "float32") / temperature, axis=-1)
    return temperature**2 * ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)


def _from_artifact(config: TeacherConfig, path: Path, classes: Sequence[str]) -> keras.Model:
    try:
        description = json.loads((path / NETWORK_FILE).read_text(encoding="utf-8"))
        theirs = [str(name) for name in description["classes"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _no_teacher(config, f"the directory holds no readable {NETWORK_FILE}") from error
    if not (path / WEIGHTS_FILE).is_file():
        raise _no_teacher(config, f"the directory holds no {WEIGHTS_FILE}")
    if theirs != list(classes):
        raise InputError(
            f"train.teacher.path is {config.path}, whose classes are {_listed(theirs)}, but the data has "
            f"{_listed(classes)}. {_difference(theirs, classes)} A teacher needs the same classes in the same order: "
            f"train it on the same data."
        )
    return load_network(path)


def _from_file(config: TeacherConfig, path: Path) -> keras.Model:
    if path.suffix.lower() != ".keras" or not path.is_file():
        raise _no_teacher(config, "there is no such file")
    try:
        return load_keras(path)
    except ModelFileError as error:
        raise ModelFileError(f"train.teacher.path is {config.path}. {error.message}") from error
    except Exception as error:  # a damaged archive fails in many ways before Keras sees it
        raise ModelFileError(
            f"train.teacher.path is {config.path}, which can't be read: {' '.join(str(error).split())[:300]}. "
            f"Expected a whole .keras file; save the model again with model.save('model.keras')."
        ) from error


def _checked_input(config: TeacherConfig, network: keras.Model) -> tuple[tuple[int | None, int | None], bool]:
    """Returns (height, width) that a teacher takes, None where it takes any, and whether it takes floats."""
    inputs = getattr(network, "inputs", None)
    if not inputs:
        raise InputError(
            f"train.teacher.path is {config.path}, which does not say what it takes: it was saved before it was "
            f"built. Call it once on an image and save it again."
        )
    shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
    shape = tuple(inputs[0].shape)
    if len(inputs) != 1 or len(shape) != 4 or shape[0] is not None or shape[3] != 3:
        raise InputError(
            f"train.teacher.path is {config.path}, which takes {shapes}. Expected one input of RGB images, "
            f"(None, height, width, 3)."
        )
    dtype = str(inputs[0].dtype)
    if dtype != "uint8" and not dtype.startswith(("float", "bfloat")):
        raise InputError(
            f"train.teacher.path is {config.path}, which takes {dtype}. Expected uint8 pixels, or floats that are "
            f"pixel * scale + offset."
        )
    return (shape[1], shape[2]), dtype != "uint8"


def _check_output(config: TeacherConfig, network: keras.Model, num_classes: int) -> None:
    shapes = [tuple(tensor.shape) for tensor in network.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][1] != num_classes:
        raise InputError(
            f"train.teacher.path is {config.path}, which gives {', '.join(map(str, shapes))}, but the data has "
            f"{num_classes} classes: expected one output (None, {num_classes}), the classes in the same order."
        )


def _gives_probabilities(config: TeacherConfig, network: keras.Model) -> bool:
    """Whether a .keras teacher gives probabilities, by the config or by the activation of its last layer.

    Raises:
        InputError: `outputs` is auto and the last layer gives neither logits nor a softmax.
    """
    if config.outputs != "auto":
        return config.outputs == "probabilities"
    layer = network.outputs[0]._keras_history.operation  # Keras has no public way there
    while True:
        kind = type(layer).__name__
        activation = getattr(getattr(layer, "activation", None), "__name__", "linear")
        if kind == "Softmax" or activation == "softmax":
            return True
        if hasattr(layer, "outputs") and hasattr(layer, "layers"):
            layer = layer.outputs[0]._keras_history.operation
        elif activation != "linear":
            raise InputError(
                f"train.teacher.path is {config.path}, whose last layer {layer.name} has the activation {activation}. "
                f"Expected logits or a softmax; say what it gives with train.teacher.outputs."
            )
        elif kind in _PASSES_ON:
            layer = layer.input._keras_history.operation
        else:
            return False


def _no_teacher(config: TeacherConfig, what: str) -> InputError:
    return InputError(
        f"train.teacher.path is {config.path}, but {what}. Expected an artifact of train or calibrate, or a .keras "
        f"file."
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{len(names)} ({shown}{', …' if len(names) > 5 else ''})"


def _difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    if sorted(theirs) == sorted(ours):
        return "They are the same in another order."
    missing = [name for name in ours if name not in set(theirs)]
    return f"It does not know {_listed(missing)}." if missing else "It knows more."
