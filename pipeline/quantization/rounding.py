"""AdaRound: learns for each weight whether to round up or down (Nagel et al. 2020, arXiv:2004.10568).

Layer by layer, in order, the rounded weights are chosen so that the layer gives, on what the rounded network before it
gives, what the float layer gives on what the float network gives (equation 25, without the activation function). That
error is a quadratic form of the weights, so calibration images are needed for its matrices alone: a step of learning
costs one product with them, whatever the images' size and number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.quantization.arithmetic import Range, channel_axes, largest_whole, round_weights, weight_steps
from pipeline.quantization.config import IntegerArithmetic, RoundingConfig
from pipeline.quantization.graph import array_of, copy_network, is_linear
from pipeline.quantization.layerwise import LayerRun
from pipeline.stages.base import Tell

if TYPE_CHECKING:
    import keras

Array = npt.NDArray[np.float64]

_ZETA, _GAMMA = 1.1, -0.1
"""How far the sigmoid reaches beyond 0 and 1 before it is cut (equation 23)."""

_FARTHEST = 30.0
"""No logit goes beyond: its exponential would be none in single precision."""

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8
"""Adam's."""


@dataclass(frozen=True)
class Moments:
    """What a layer's error depends on, for each group of channels that share inputs.

    The error of weights `w` (groups, taps, channels) is the sum over groups and channels of
    `w' inputs w - 2 cross' w + power`, a mean over images and places.

    Attributes:
        inputs: (groups, taps, taps), the second moments of what the layer takes in the rounded network.
        cross: (groups, taps, channels), its moments with what the float layer gives, without the bias.
        power: (groups, channels), the second moments of what the float layer gives.
    """

    inputs: Array
    cross: Array
    power: Array

    def errors(self, weights: Array) -> Array:
        """The mean squared error of each channel, (groups, channels)."""
        bent = self.inputs @ weights
        return np.asarray((weights * bent).sum(axis=1) - 2 * (weights * self.cross).sum(axis=1) + self.power)


def learn_rounding(
    network: keras.Model,
    inputs: npt.NDArray[Any],
    ranges: Mapping[str, Range],
    config: RoundingConfig | None = None,
    *,
    arithmetic: IntegerArithmetic | None = None,
    reference: keras.Model | None = None,
    tell: Tell | None = None,
) -> keras.Model:
    """Returns the network with weights that are whole steps, chosen by what they do to each layer's result.

    The largest weights of a channel keep their place, so that a target finds the same step and, by rounding to the
    nearest, the same weights. A channel for which nothing better than the nearest weights was found gets those.

    Args:
        network: Folded; it is not changed.
        inputs: Calibration images (images, ...).
        ranges: Of the activations.
        config: How it is learned.
        arithmetic: What integers can tell apart; None takes 8 bits.
        reference: Whose results are wanted, with the same layers, where the network's weights were changed before.
        tell: Takes progress events.

    Raises:
        UnsupportedModelError: As in `fake_quantization.fake_quantized`.
    """
    from pipeline.quantization.fake_quantization import fake_quantized

    config, arithmetic = config or RoundingConfig(), arithmetic or IntegerArithmetic()
    result = copy_network(network)
    quantized = fake_quantized(network, ranges, arithmetic)
    expected, found = LayerRun(network if reference is None else reference, inputs), LayerRun(quantized, inputs)
    names = [layer.name for layer in network.layers if is_linear(layer) and layer.name not in arithmetic.float_layers]
    for index, name in enumerate(names, 1):
        layer = result.get_layer(name)
        moments = layer_moments(layer, expected, found)
        kernel, before, after = rounded_kernel(layer, moments, config, bits=arithmetic.weight_bits)
        quantized.get_layer(name).take_kernel(kernel)
        layer.kernel.assign(kernel)
        if tell is not None:
            tell(
                {
                    "message": f"rounding: {name}",
                    "done": index,
                    "total": len(names),
                    "nearest_error": before,
                    "error": after,
                }
            )
    return result


def layer_moments(layer: keras.Layer, expected: LayerRun, found: LayerRun) -> Moments:
    """Returns the moments of a layer that is next to run in both networks.

    Args:
        layer: Of the network whose weights are rounded; its bias is taken off the float results.
        expected: The float network.
        found: The rounded one.
    """
    bias = array_of(layer.bias) if layer.use_bias else np.float32(0)
    sums: list[Array] = []
    count = 0
    for taken, given in zip(found.inputs_of(layer.name), expected.outputs_of(layer.name), strict=True):
        taps = _taps(layer, taken)
        wanted = _grouped(layer, given - bias)
        across = taps.transpose(0, 2, 1)
        parts = [across @ taps, across @ wanted, np.square(wanted).sum(axis=1)]
        sums = [np.asarray(part, np.float64) + (sums[place] if sums else 0.0) for place, part in enumerate(parts)]
        count += taps.shape[1]
    return Moments(*(each / count for each in sums))


def rounded_kernel(
    layer: keras.Layer, moments: Moments, config: RoundingConfig, *, bits: int = 8
) -> tuple[npt.NDArray[np.float32], float, float]:
    """Returns a layer's kernel in whole steps, and the mean squared errors of the nearest one and of this one."""
    kernel = array_of(layer.kernel)
    axes = channel_axes(kernel, depthwise=_is_depthwise(layer))
    steps = np.broadcast_to(weight_steps(kernel, axes, bits).astype(np.float64), kernel.shape)
    weights, unit = _rows(layer, kernel / steps), _rows(layer, steps)
    nearest = _rows(layer, round_weights(kernel, axes, bits) / steps)
    learned = _learned(weights, unit, moments, config, largest=largest_whole(bits))
    before, after = moments.errors(np.rint(nearest) * unit), moments.errors(learned * unit)
    is_better = after < before
    chosen = np.where(is_better[:, None, :], learned, np.rint(nearest)) * unit
    return _from_rows(layer, chosen), float(before.mean()), float(np.minimum(after, before).mean())


def _learned(weights: Array, unit: Array, moments: Moments, config: RoundingConfig, *, largest: int) -> Array:
    """The weights, in steps, after learning; all arguments (groups, taps, channels)."""
    floor = np.floor(weights)
    is_kept = np.abs(np.rint(weights)) >= largest
    # The rectified sigmoid starts where the weight is, so nothing is rounded yet (equation 23).
    share = (weights - floor - _GAMMA) / (_ZETA - _GAMMA)
    logits = np.log(share / (1 - share)).astype(np.float32)
    # The error that rounding at random makes: with it, one weight of the regularizer fits layers of every size.
    noise = np.einsum("gkk,gkc->gc", moments.inputs, np.square(unit) / 12)[:, None, :]
    noise = np.maximum(noise, 1e-30)
    # In single precision from here on, which is twice as fast; the gradient is that of the error in units of the noise
    # by the weight in steps: scale * (inputs (offset + up * unit) - cross), with the offset multiplied out.
    still = np.where(is_kept, np.rint(weights), floor) * unit
    constant = (2 * unit / noise * (moments.inputs @ still - moments.cross)).astype(np.float32)
    scale, step_size = (2 * unit / noise).astype(np.float32), np.where(is_kept, 0, unit).astype(np.float32)
    second_moments = moments.inputs.astype(np.float32)
    first, second = np.zeros_like(logits), np.zeros_like(logits)
    warmup = int(config.warmup * config.steps)
    for step in range(config.steps):
        sigmoid = 1 / (1 + np.exp(-logits))
        stretched = sigmoid * (_ZETA - _GAMMA) + _GAMMA
        up = np.clip(stretched, 0, 1)
        gradient = constant + scale * (second_moments @ (up * step_size))
        if step >= warmup:
            progress = (step - warmup) / max(1, config.steps - warmup)
            exponent = config.last_exponent + (config.first_exponent - config.last_exponent) * (1 - progress)
            away = 2 * up - 1
            slope = -2 * exponent * np.abs(away) ** (exponent - 1) * np.sign(away)
            gradient = gradient + config.regularization * slope
        is_inside = (stretched > 0) & (stretched < 1)
        gradient = gradient * is_inside * sigmoid * (1 - sigmoid) * (_ZETA - _GAMMA)
        first = _BETA_1 * first + (1 - _BETA_1) * gradient
        second = _BETA_2 * second + (1 - _BETA_2) * np.square(gradient)
        moved = first / (1 - _BETA_1 ** (step + 1)) / (np.sqrt(second / (1 - _BETA_2 ** (step + 1))) + _EPSILON)
        logits = np.clip(logits - config.learning_rate * moved, -_FARTHEST, _FARTHEST)
    rounded = np.clip(floor + (logits >= 0), -largest, largest)
    return np.where(is_kept, np.rint(weights), rounded)


def _taps(layer: keras.Layer, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """What each weight of an output meets: (groups, images * places, taps), the taps in the kernel's order."""
    import keras

    if isinstance(layer, keras.layers.Dense):
        return values.reshape(1, -1, values.shape[-1])
    windows = _windows(layer, values)
    images, height, width, channels = windows.shape[:4]
    if _is_depthwise(layer):
        return windows.transpose(3, 0, 1, 2, 4, 5).reshape(channels, images * height * width, -1)
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(1, images * height * width, -1)


def _windows(layer: keras.Layer, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The part of a map under each place of a kernel: (images, height, width, channels, kernel's height and width)."""
    if layer.data_format != "channels_last" or tuple(layer.dilation_rate) != (1, 1) or getattr(layer, "groups", 1) != 1:
        raise ValueError(
            f"{layer.name} has data_format {layer.data_format}, dilation {layer.dilation_rate}, "
            f"{getattr(layer, 'groups', 1)} groups: expected channels_last, no dilation and one group"
        )
    (kernel_height, kernel_width), (down, right) = layer.kernel_size, layer.strides
    if layer.padding == "same":
        margins = [_margin(values.shape[1], kernel_height, down), _margin(values.shape[2], kernel_width, right)]
        values = np.pad(values, [(0, 0), *margins, (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(values, (kernel_height, kernel_width), axis=(1, 2))
    return windows[:, ::down, ::right]


def _margin(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after a side, as "same" has it in TensorFlow: the odd one after."""
    missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return missing // 2, missing - missing // 2


def _grouped(layer: keras.Layer, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """A layer's results as (groups, images * places, channels)."""
    if _is_depthwise(layer):
        return values.reshape(-1, layer.kernel.shape[2], layer.kernel.shape[3]).transpose(1, 0, 2)
    return values.reshape(1, -1, values.shape[-1])


def _rows(layer: keras.Layer, kernel: npt.NDArray[Any]) -> Array:
    """A kernel as (groups, taps, channels)."""
    if _is_depthwise(layer):
        return kernel.transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1, kernel.shape[3]).astype(np.float64)
    return kernel.reshape(1, -1, kernel.shape[-1]).astype(np.float64)


def _from_rows(layer: keras.Layer, rows: Array) -> npt.NDArray[np.float32]:
    """The reverse of `_rows`."""
    shape = tuple(layer.kernel.shape)
    if _is_depthwise(layer):
        height, width, channels, multiplier = shape
        return rows.reshape(channels, height, width, multiplier).transpose(1, 2, 0, 3).astype(np.float32)
    return rows.reshape(shape).astype(np.float32)


def _is_depthwise(layer: keras.Layer) -> bool:
    import keras

    return isinstance(layer, keras.layers.DepthwiseConv2D)
