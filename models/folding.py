"""Removes from a trained network what training needs and a board does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

SCALE_SUFFIXES = ("_layer_scale", "_key_scale")
"""How the names of the layers end that `fold_scales` removes."""


def fold_scales(network: keras.Model) -> keras.Model:
    """The same function without MobileNetV4's factors on channels, for export.

    A layer scale, or the factor of attention's keys, multiplies the result of a linear convolution. Left in the graph
    it is an operator of its own and, in int8, one more rounding; the converters do not fold it. Here it becomes a part
    of the convolution or of the batch normalization before it.

    Args:
        network: A functional model; its layers that are called `<name>_layer_scale`, depthwise 1x1 convolutions, and
            `<name>_key_scale`, rescalings, are folded.

    Returns:
        A new model with weights of its own, or the network itself if it has none of these layers.

    Raises:
        ValueError: If such a layer follows something other than a convolution or a batch normalization.
    """
    import keras

    scales = {layer.name: layer for layer in network.layers if layer.name.endswith(SCALE_SUFFIXES)}
    if not scales:
        return network

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        return args[0] if layer.name in scales else layer(*args, **kwargs)

    folded = keras.models.clone_model(network, call_function=call)
    for layer in folded.layers:
        layer.set_weights(network.get_layer(layer.name).get_weights())
    for name, scale in scales.items():
        source = next(layer for layer in network.layers if layer.output is scale.input)
        match target := folded.get_layer(source.name):
            case keras.layers.BatchNormalization():
                changed = [target.gamma, target.beta]
            case keras.layers.Conv2D():
                changed = [target.kernel, *([target.bias] if target.use_bias else [])]
            case _:
                raise ValueError(
                    f"Layer {name!r} follows {source.name!r}, a {type(source).__name__}, expected a Conv2D or a "
                    "BatchNormalization to fold it into."
                )
        factor = scale.scale if isinstance(scale, keras.layers.Rescaling) else keras.ops.reshape(scale.kernel, (-1,))
        for weight in changed:
            weight.assign(weight * factor)
    return folded
