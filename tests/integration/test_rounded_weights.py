"""Weights that a remedy put on the integers' grid are those that the targets' files hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.board.runners import RUNNERS
from pipeline.samples import calibration_input_file
from pipeline.saved_model import write_saved_model
from pipeline.stages.export import ExportStage

# TensorFlow's converter warns of an interpreter that it uses itself.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:[\\s\\S]*tf.lite.Interpreter is deprecated:UserWarning"),
]


def small_network() -> Any:
    """An inverted residual with normalizations."""
    import keras

    layers = keras.layers
    image = keras.Input((16, 16, 3), dtype="uint8", name="image")
    x = layers.Rescaling(1 / 127.5, -1.0, name="rescaling")(image)
    for name, layer in (
        ("stem", layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem")),
        ("depthwise", layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")),
        ("pointwise", layers.Conv2D(12, 1, use_bias=False, name="pointwise")),
    ):
        x = layers.BatchNormalization(name=f"{name}_bn")(layer(x))
        x = layers.ReLU(6.0, name=f"{name}_relu6")(x)
    x = layers.GlobalAveragePooling2D(name="head_pool")(x)
    return keras.Model(image, layers.Dense(5, name="logits")(x), name="small")


def integers_of_litert(path: Path) -> list[Any]:
    """The 8-bit weights in a file, flat."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    interpreter.allocate_tensors()
    found = []
    for detail in interpreter.get_tensor_details():
        if detail["dtype"] == np.int8 and len(detail["shape"]) in {2, 4}:
            try:
                found.append(np.array(interpreter.get_tensor(detail["index"])))
            except ValueError:  # an activation
                continue
    return found


def integers_of_onnxruntime(path: Path) -> list[Any]:
    """The 8-bit weights in a file."""
    import onnx
    from onnx import numpy_helper

    arrays = [numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer]
    return [each for each in arrays if each.dtype == np.int8 and each.ndim in {2, 4}]


def layouts(kernel: Any, *, depthwise: bool) -> list[Any]:
    """A kernel as LiteRT and as ONNX have it."""
    if kernel.ndim == 2:
        return [kernel.T, kernel]
    if depthwise:
        return [kernel.transpose(3, 0, 1, 2), kernel.transpose(2, 3, 0, 1)]
    return [kernel.transpose(3, 0, 1, 2), kernel.transpose(3, 2, 0, 1)]


def is_in_blocks(kernel: Any, held: Any) -> bool:
    """Whether the held kernel is this one, once for each of two results of a block of pixels, and zeros elsewhere."""
    if held.ndim != kernel.ndim or len(held) != 2 * kernel.shape[-1]:
        return False
    rows = sorted(tuple(np.sort(row[row != 0])) for row in held)
    wanted = sorted(tuple(np.sort(row[row != 0])) for row in np.moveaxis(kernel, -1, 0))
    return rows == [row for row in wanted for _ in range(2)]


def randomized_network(inputs: Any) -> Any:
    """With the statistics of the inputs, and most values above zero."""
    import keras

    keras.utils.set_random_seed(0)
    network, rng = small_network(), np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(rng.uniform(0.0, 1.0, layer.beta.shape))
    network(inputs, training=True)
    return network


def images() -> Any:
    """With large and small structures."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (64, 4, 4, 3)).repeat(4, 1).repeat(4, 2)
    return np.clip(coarse + rng.normal(0, 30, coarse.shape), 0, 255).astype(np.uint8)


def export_int8(network: Any, inputs: Any, target: Any, directory: Path) -> Path:
    """The file of a target, calibrated on the inputs."""
    calibrate, out = directory / "calibrate", directory / "out"
    calibrate.mkdir()
    out.mkdir()
    write_saved_model(network, calibrate)
    np.save(calibrate / calibration_input_file(0), inputs)
    metrics = ExportStage(target=target, precision="int8").run({"calibrate": calibrate}, out, lambda _: None)
    return out / str(metrics["model"])


@pytest.mark.parametrize(
    ("target", "integers"), [("litert", integers_of_litert), ("onnxruntime", integers_of_onnxruntime)]
)
def test_targets_round_to_the_learned_weights(target: Any, integers: Any, tmp_path: Path) -> None:
    from pipeline.quantization.arithmetic import channel_axes, whole_weights
    from pipeline.quantization.fake_quantization import observed_ranges
    from pipeline.quantization.folded import fold, unfold
    from pipeline.quantization.graph import linear_layers
    from pipeline.quantization.rounding import learn_rounding

    inputs = images()
    network = randomized_network(inputs)
    folded = fold(network)
    rounded = learn_rounding(folded, inputs, observed_ranges(folded, inputs))
    held = integers(export_int8(unfold(rounded, network), inputs, target, tmp_path))
    moved = 0
    for name in linear_layers(folded):
        wanted, nearest = (
            whole_weights(kernel, channel_axes(kernel, depthwise=name == "depthwise"))
            for kernel in (each.get_layer(name).get_weights()[0] for each in (rounded, folded))
        )
        moved += int((wanted != nearest).sum())
        shapes = layouts(wanted, depthwise=name == "depthwise")
        is_held = any(np.array_equal(each, shape) for each in held for shape in shapes)
        assert is_held or (name == "stem" and any(is_in_blocks(wanted, each) for each in held)), name
    assert moved > 20


@pytest.mark.parametrize("target", ["litert", "onnxruntime"])
def test_fake_quantization_is_closer_to_the_file_than_float_is(target: Any, tmp_path: Path) -> None:
    """By the error that it leaves: what it foresees of the file's error is more than a third of its power."""
    from pipeline.network import predict_logits
    from pipeline.quantization.fake_quantization import fake_quantized, observed_ranges
    from pipeline.quantization.folded import fold

    inputs = images()
    network = randomized_network(inputs)
    folded = fold(network)
    quantized = fake_quantized(folded, observed_ranges(folded, inputs))
    runner = RUNNERS[target]()
    runner.load(str(export_int8(network, inputs, target, tmp_path)), num_threads=1)
    given = np.concatenate([np.array(runner.infer([each[None]])[0]) for each in inputs])
    from_float, from_rounded = (np.square(predict_logits(each, inputs) - given).sum() for each in (folded, quantized))
    assert from_rounded < 0.6 * from_float
