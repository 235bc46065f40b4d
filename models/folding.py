"""Removes from a trained network what training needs and a board does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

SCALE_SUFFIXES = ("_layer_scale", "_key_scale")
"""How the names of MobileNetV4's factors on channels end."""


def fold_for_inference(network: keras.Model) -> keras.Model:
    """The same function with fewer layers, for export.

    Converters fold a batch normalization into the convolution before it, but neither what MobileNetV4 multiplies its
    channels with (layer scales, the factor of attention's keys) nor, all of them, a normalization after a dense layer.
    Left in the graph each is an operator of its own and, in int8, one more rounding. Here it becomes a part of the
    layer before it.

    Args:
        network: A functional model. Folded are its layers called `<name>_layer_scale` (depthwise 1x1 convolutions
            without bias), those called `<name>_key_scale` (rescalings), and batch normalizations that alone take what
            a linear dense layer gives.

    Returns:
        A new model with weights of its own, or the network itself if there is nothing to fold.

    Raises:
        ValueError: If a scale follows something other than a convolution or a batch normalization.
    """
    import keras

    sources = {layer.name: _source(network, layer) for layer in network.layers if _is_scale(layer)}
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            source = _source(network, layer)
            if isinstance(source, keras.layers.Dense) and _is_linear(source) and _num_users(network, source) == 1:
                sources[layer.name] = source
    if not sources:
        return network

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        return args[0] if layer.name in sources else layer(*args, **kwargs)

    folded = keras.models.clone_model(network, call_function=call)
    for layer in folded.layers:
        layer.set_weights(network.get_layer(layer.name).get_weights())
    for name, source in sources.items():
        factor, shift = _affine(network.get_layer(name))
        _apply(folded.get_layer(source.name), factor, shift, name=name)
    return folded


def _is_scale(layer: keras.layers.Layer) -> bool:
    return bool(layer.name.endswith(SCALE_SUFFIXES))


def _is_linear(layer: keras.layers.Dense) -> bool:
    import keras

    return layer.activation is keras.activations.linear and layer.use_bias


def _source(network: keras.Model, layer: keras.layers.Layer) -> keras.layers.Layer:
    """The layer whose result this one takes."""
    return next(other for other in network.layers if other.output is layer.input)


def _num_users(network: keras.Model, source: keras.layers.Layer) -> int:
    import keras

    inputs = (keras.tree.flatten(layer.input) for layer in network.layers)
    return sum(any(tensor is source.output for tensor in tensors) for tensors in inputs)


def _affine(layer: keras.layers.Layer) -> tuple[Any, Any]:
    """Factor and shift of each channel that the layer amounts to."""
    import keras

    if isinstance(layer, keras.layers.Rescaling):
        return layer.scale, 0.0
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        return keras.ops.reshape(layer.kernel, (-1,)), 0.0
    factor = layer.gamma / keras.ops.sqrt(layer.moving_variance + layer.epsilon)
    return factor, layer.beta - layer.moving_mean * factor


def _apply(target: keras.layers.Layer, factor: Any, shift: Any, *, name: str) -> None:
    """Makes the factor and the shift a part of the target; `name` is the layer they come from."""
    import keras

    match target:
        case keras.layers.BatchNormalization():
            kernel, bias = target.gamma, target.beta
        case keras.layers.Conv2D() | keras.layers.Dense():
            kernel, bias = target.kernel, target.bias if target.use_bias else None
        case _:
            raise ValueError(
                f"Layer {name!r} follows {target.name!r}, a {type(target).__name__}, expected a Conv2D or a "
                "BatchNormalization to fold it into."
            )
    kernel.assign(kernel * factor)
    if bias is not None:
        bias.assign(bias * factor + shift)
