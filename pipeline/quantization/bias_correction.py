"""Bias correction: takes out of each layer what rounding adds to its mean (Nagel et al. 2019, section 4.2).

This is the empirical form: the means come from calibration images, and each layer is corrected with the rounded and
corrected layers before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.quantization.arithmetic import Range
from pipeline.quantization.config import IntegerArithmetic
from pipeline.quantization.graph import array_of, copy_network, is_linear
from pipeline.quantization.layerwise import LayerRun
from pipeline.stages.base import Tell

if TYPE_CHECKING:
    import keras


def correct_biases(
    network: keras.Model,
    inputs: npt.NDArray[Any],
    ranges: Mapping[str, Range],
    arithmetic: IntegerArithmetic | None = None,
    *,
    reference: keras.Model | None = None,
    tell: Tell | None = None,
) -> keras.Model:
    """Returns the network with biases under which the rounded one gives the float one's means.

    A layer without a bias is left alone; what rounding does to its mean is left to the layers after it.

    Args:
        network: Folded; it is not changed.
        inputs: Calibration images (images, ...).
        ranges: Of the activations.
        arithmetic: What integers can tell apart; None takes 8 bits.
        reference: Whose means are wanted, with the same layers, where the network's weights were changed before.
        tell: Takes progress events.

    Raises:
        UnsupportedModelError: As in `fake_quantization.fake_quantized`.
    """
    from pipeline.quantization.fake_quantization import fake_quantized

    corrected = copy_network(network)
    quantized = fake_quantized(network, ranges, arithmetic)
    expected = LayerRun(network if reference is None else reference, inputs)
    found = LayerRun(quantized, inputs)
    names = [layer.name for layer in network.layers if is_linear(layer) and layer.use_bias]
    for index, name in enumerate(names, 1):
        shift = channel_means(expected.outputs_of(name)) - channel_means(found.outputs_of(name))
        for changed in (corrected, quantized):
            bias = changed.get_layer(name).bias
            bias.assign((array_of(bias) + shift).astype(np.float32))
        if tell is not None:
            tell({"message": f"bias correction: {name}", "done": index, "total": len(names)})
    return corrected


def channel_means(batches: Iterable[npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
    """Returns the mean of each channel over images and places.

    Args:
        batches: Each (images, ..., channels).
    """
    total: Any = 0.0
    count = 0
    for values in batches:
        rows = values.reshape(-1, values.shape[-1])
        total = total + rows.sum(axis=0, dtype=np.float64)
        count += len(rows)
    return np.asarray(total / count)
