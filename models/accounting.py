"""Parameters and multiply-adds, counted from a Keras graph.

What a published number of parameters counts differs only in batch normalization, so the count takes it as a
choice (figures: MobileNetV2 1.0 and EfficientNet-Lite0, 1,000 classes):

| batch_norm | counts of each normalized channel | MobileNetV2 | Lite0 | who counts so |
|---|---|---|---|---|
| `excluded` | nothing | 3,470,760 | 4,609,992 | the MobileNet tables: 3.47 M |
| `folded` | one bias, what is left after folding | 3,487,816 | 4,631,000 | files for boards |
| `trainable` | gamma and beta | 3,504,872 | 4,652,008 | the EfficientNet tables: 4.7 M |
| `all` | gamma, beta, moving mean and variance | 3,538,984 | 4,694,024 | `keras.Model.count_params` |

A multiply-add is one multiplication with its addition in a convolution, a dense layer or a product of two
activations (attention), for one image. What else a published number counts is a choice too:

| convention | adds to them | Lite0 | who counts so |
|---|---|---|---|
| `folded` | nothing: normalization is folded | 385.2 M | MobileNets, EfficientNetV2 |
| `evaluated` | 2 for each normalized value | 398.7 M | timm (fvcore) |
| `profiled` | 3 for each normalized value, 1 for each scaled one, 1/2 for each sum | 405.7 M | EfficientNet-Lite |

`profiled` is half of what the profiler of TensorFlow 1 counts (`total_float_ops`) in a training graph whose batch
normalizations are written out: 2 operations a value for the mean, 2 for the squared differences, 1 for the scale and 1
for the shift. It gives the numbers of EfficientNet-Lite's table (631 M, 899 M, 1.44 G and 2.64 G; 406 M for the 407 M
of Lite0), which are 3 to 6 % above what the convolutions and the classifier do. Biases, activations and pooling are
counted by none of the three.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import keras

BatchNormCount = Literal["excluded", "folded", "trainable", "all"]
MultiplyAddCount = Literal["folded", "evaluated", "profiled"]


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One layer of a network.

    Args:
        name: The layer's name.
        type: The layer's class, such as `Conv2D`.
        output_shape: Without the batch: `(height, width, channels)` or `(features,)`.
        parameters: Number of parameters, counted as asked.
        multiply_adds: For one image.
    """

    name: str
    type: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int


def layer_table(model: keras.Model, *, batch_norm: BatchNormCount = "trainable") -> list[LayerRow]:
    """Every layer and every operation of `keras.ops` of a flat functional model, in the order of the graph.

    Args:
        model: A network whose image size is fixed.
        batch_norm: What counts as a parameter in batch normalization; see the module's table.

    Raises:
        ValueError: If `batch_norm` is unknown, if the image size is open, or if a layer has weights and is of
            a type that can't be counted.
    """
    if batch_norm not in get_args(BatchNormCount):
        raise ValueError(f"batch_norm is {batch_norm!r}, expected one of {', '.join(get_args(BatchNormCount))}.")
    return [
        LayerRow(
            name=layer.name,
            type=type(layer).__name__,
            output_shape=_output_shape(layer),
            parameters=_parameters(layer, batch_norm),
            multiply_adds=_multiply_adds(layer),
        )
        for layer in getattr(model, "operations", model.layers)
    ]


def count_parameters(model: keras.Model, *, batch_norm: BatchNormCount = "trainable") -> int:
    """Number of parameters of a network, frozen layers included; arguments and errors as in `layer_table`."""
    return sum(row.parameters for row in layer_table(model, batch_norm=batch_norm))


def count_multiply_adds(model: keras.Model, *, convention: MultiplyAddCount = "folded") -> int:
    """Number of multiply-adds for one image.

    Args:
        model: A network whose image size is fixed.
        convention: What else counts as one; see the module's table.

    Raises:
        ValueError: If `convention` is unknown, and as in `layer_table`.
    """
    if convention not in get_args(MultiplyAddCount):
        raise ValueError(f"convention is {convention!r}, expected one of {', '.join(get_args(MultiplyAddCount))}.")
    halves = _HALF_MULTIPLY_ADDS[convention]
    rows = layer_table(model)
    extra = sum(halves.get(row.type, 0) * math.prod(row.output_shape) for row in rows)
    return sum(row.multiply_adds for row in rows) + extra // 2


_HALF_MULTIPLY_ADDS: dict[MultiplyAddCount, dict[str, int]] = {
    "folded": {},
    "evaluated": {"BatchNormalization": 4},
    "profiled": {"BatchNormalization": 6, "Rescaling": 2, "Add": 1},
}
"""Halves of a multiply-add for each value of the result, by the layer's type."""


def _output_shape(layer: keras.layers.Layer) -> tuple[int, ...]:
    """Shape without the batch."""
    shape = tuple(layer.output.shape[1:])
    if None in shape:
        raise ValueError(
            f"Layer {layer.name!r} has the output shape {shape}, expected a fixed one: build the network "
            "with a fixed image size."
        )
    return shape


def _total_size(weights: Iterable[keras.Variable]) -> int:
    """Number of values in all weights together."""
    return sum(math.prod(weight.shape) for weight in weights)


def _parameters(layer: keras.layers.Layer, batch_norm: BatchNormCount) -> int:
    """Parameters of one layer, whether or not they are frozen at the moment."""
    import keras

    if not isinstance(layer, keras.layers.BatchNormalization) or batch_norm == "all":
        return _total_size(getattr(layer, "weights", ()))
    match batch_norm:
        case "excluded":
            return 0
        case "folded":
            return _total_size([layer.moving_mean])
        case "trainable":
            return _total_size(weight for weight in (layer.gamma, layer.beta) if weight is not None)


def _multiply_adds(layer: keras.layers.Layer) -> int:
    """Multiply-adds of one layer: the kernel's size times the number of positions it is applied at."""
    import keras

    counted = keras.layers.Conv2D | keras.layers.DepthwiseConv2D | keras.layers.Dense
    if isinstance(layer, counted):
        return math.prod(_output_shape(layer)[:-1]) * _total_size([layer.kernel])
    if not isinstance(layer, keras.layers.Layer) or isinstance(layer, keras.layers.Dot):
        return _product_multiply_adds(layer)
    if layer.weights and not isinstance(layer, keras.layers.BatchNormalization):
        raise ValueError(
            f"Layer {layer.name!r} is a {type(layer).__name__} with weights, expected Conv2D, "
            "DepthwiseConv2D, Dense or BatchNormalization: add its arithmetic to models/accounting.py, or "
            "flatten a nested model."
        )
    return 0


def _product_multiply_adds(operation: keras.Operation) -> int:
    """Multiply-adds of a product of two activations: the size of the result times the length that is summed over."""
    match type(operation).__name__:
        case "Dot":
            axis = operation.axes if isinstance(operation.axes, int) else operation.axes[0]
            return math.prod(_output_shape(operation)) * int(operation.input[0].shape[axis])
        case "Matmul":
            return math.prod(_output_shape(operation)) * int(operation.input[0].shape[-1])
        case "Einsum":
            return _einsum_multiply_adds(operation)
    return 0


def _einsum_multiply_adds(operation: keras.Operation) -> int:
    """The product of all index lengths but the batch's."""
    terms = operation.subscripts.split("->")[0].split(",")
    lengths = {
        index: length
        for term, tensor in zip(terms, operation.input, strict=True)
        for index, length in zip(term.strip(), tensor.shape, strict=True)
    }
    return math.prod(length for length in lengths.values() if length is not None)
