"""Rewrites of a float ONNX graph that keep its function and let more of it run as fast integer operators.

Each takes an `OnnxGraph` whose layout is channels first and changes it in place. What they need of a graph is checked;
where a pattern is not there, nothing happens.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.targets.onnx_graph import Array, OnnxGraph, attribute, is_depthwise

PIXEL_CENTER = 128
"""What is taken from pixels, so that they have a sign; the zero point of the image in int8."""

_INDICATOR = 255
"""What the channel holds that tells pixels from padding."""

_LAYOUT = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Identity", "Dropout"}
_HOMOGENEOUS = {"GlobalAveragePool", "AveragePool", "MaxPool", "Relu", *_LAYOUT}
"""Operations that give `c` times their result for `c` times their first input, for c > 0."""


def drop_idle_layout(graph: OnnxGraph) -> None:
    """Takes out reshapes and transposes that change nothing, as a converter leaves them around 1x1 images."""
    for node in list(graph.nodes):
        same = node.op_type in {"Identity", "Dropout"} and len([name for name in node.output if name]) == 1
        if node.op_type == "Reshape":
            known = graph.shapes.get(node.input[0])
            same = known is not None and known == graph.shapes.get(node.output[0])
        elif node.op_type == "Transpose":
            order = attribute(node, "perm", ())
            same = list(order) == list(range(len(order))) and bool(order)
        if same and node.input[0] in graph.makers():
            graph.bypass(node)


def expand_hard_activations(graph: OnnxGraph) -> None:
    """Writes HardSwish and HardSigmoid as Add, Clip and Mul, of which integer forms exist."""
    for node in list(graph.nodes):
        if node.op_type not in {"HardSwish", "HardSigmoid"}:
            continue
        swish = node.op_type == "HardSwish"
        alpha = 1 / 6 if swish else attribute(node, "alpha", 0.2)
        beta = 0.5 if swish else attribute(node, "beta", 0.5)
        source, result, name = node.input[0], node.output[0], node.name or node.output[0]
        shift = graph.add_constant(f"{name}.shift", np.array(beta / alpha, np.float32))
        low = graph.add_constant(f"{name}.low", np.array(0, np.float32))
        high = graph.add_constant(f"{name}.high", np.array(1 / alpha, np.float32))
        factor = graph.add_constant(f"{name}.factor", np.array(alpha, np.float32))
        shifted = graph.add_node(node, "Add", [source, shift], f"{name}/shift")
        clipped = graph.add_node(node, "Clip", [shifted, low, high], f"{name}/clip")
        gate = f"{name}/gate" if swish else result
        graph.add_node(node, "Mul", [clipped, factor], gate, name=f"{name}/scale")
        if swish:
            graph.add_node(node, "Mul", [source, gate], result, name=name)
        graph.remove(node)


def fold_shifts(graph: OnnxGraph) -> None:
    """Folds a number that is added to what a linear layer gives into its bias, if nothing else takes the layer's result.

    So hard-sigmoid needs no addition of its own, and its clipping can become a part of the layer.
    """
    for node in list(graph.nodes):
        if node.op_type != "Add":
            continue
        makers, users = graph.makers(), graph.users()
        for source, other in (node.input, reversed(node.input)):
            layer, shift = makers.get(source), graph.scalar(other)
            if shift is None or layer is None or layer.op_type not in {"Conv", "Gemm"}:
                continue
            if len(users[source]) > 1 or graph.is_output(source) or not _has_plain_bias(graph, layer):
                continue
            name, bias = _bias(graph, layer)
            if bias is None:
                continue
            stored = graph.add_constant(name, (bias + shift).astype(bias.dtype))
            layer.input[:] = [*layer.input[:2], stored]
            node.input[:] = [source, other]
            graph.bypass(node)
            break


def clip_hard_swish_inputs(graph: OnnxGraph) -> None:
    """Clips what goes into a hard-swish at -3, below which it is 0 anyway.

    In int8 the clipping costs nothing, being the end of the range, and the range is spent on values that count.
    """
    users = graph.users()
    for clip in [node for node in graph.nodes if node.op_type == "Clip" and len(node.input) > 1]:
        add = graph.makers().get(clip.input[0])
        if add is None or add.op_type != "Add" or graph.scalar(clip.input[1]) != 0 or len(users[clip.input[0]]) > 1:
            continue
        shift, source = graph.scalar(add.input[1]), add.input[0]
        gates = _only_products(graph, clip.output[0])
        takers = users.get(source, [])
        if shift is None or shift <= 0 or graph.is_output(source) or source in graph.constants or not gates:
            continue
        if len(takers) != 2 or not all(taker is add or any(taker is gate for gate in gates) for taker in takers):
            continue
        low = graph.add_constant(f"{clip.name}.lowest", np.array(-shift, np.float32))
        clipped = graph.add_node(add, "Clip", [source, low], f"{clip.name}/input")
        graph.replace_uses(source, clipped, of=takers)


def _only_products(graph: OnnxGraph, name: str) -> list[Any]:
    """Returns the products that take a value, looking through a scaling of it; none if anything else takes it."""
    users = graph.users().get(name, [])
    if any(user.op_type != "Mul" for user in users) or graph.is_output(name):
        return []
    found = []
    for user in users:
        others = [other for other in user.input if other != name]
        if any(graph.scalar(other) is not None for other in others):
            found += _only_products(graph, user.output[0])
        else:
            found.append(user)
    return found


def push_scales(graph: OnnxGraph) -> None:
    """Moves multiplications by a positive number on, into the weights of the linear layers that follow.

    They pass products, averages and rectifiers. Where something follows that can't take the number, it stays.
    """
    for node in list(graph.nodes):
        if node.op_type != "Mul":
            continue
        for source, other in (node.input, reversed(node.input)):
            factor = graph.scalar(other)
            if factor is None or factor <= 0 or source in graph.constants or source in graph.inputs:
                continue
            layers = _absorbers(graph, node.output[0])
            if layers is None:
                continue
            for layer in layers:
                _scale_weights(graph, layer, factor)
            node.input[:] = [source, other]
            graph.bypass(node)
            break


def _absorbers(graph: OnnxGraph, name: str) -> list[Any] | None:
    """Returns the layers that make up for a factor on a value, or None if that can't be done."""
    layers: list[Any] = []
    passed: list[Any] = []
    users = graph.users()
    waiting = [name]
    while waiting:
        value = waiting.pop()
        if graph.is_output(value):
            return None
        for user in users.get(value, []):
            if any(user is other for other in (*passed, *layers)) or list(user.input).count(value) > 1:
                return None
            if user.op_type in {"Conv", "Gemm", "MatMul"}:
                if user.input[0] != value or user.input[1] not in graph.constants:
                    return None
                layers.append(user)
            elif user.op_type == "Mul" or (user.op_type in _HOMOGENEOUS and user.input[0] == value):
                passed.append(user)
                waiting.append(user.output[0])
            else:
                return None
    return layers


def _scale_weights(graph: OnnxGraph, layer: Any, factor: float) -> None:
    weights = graph.constants[layer.input[1]]
    scaled = (weights.astype(np.float64) * factor).astype(weights.dtype)
    layer.input[1] = graph.add_constant(f"{layer.name}.weights", scaled)


def rescale_in_first_layer(graph: OnnxGraph, *, pad_channels: bool) -> None:
    """Folds the scaling of pixels to the network's range into the first convolution.

    Args:
        graph: Of a network on `(1, height, width, channels)`, uint8, or the same with channels first.
        pad_channels: For int8: the image as it is becomes the convolution's input, with zero point `PIXEL_CENTER`. A
            channel more, which is constant, carries the offsets: padded pixels of a convolution are 0 in it, so
            that they stay 0 in the network's range too, exactly. And integer kernels want channels in fours.
            Else the scale alone is folded, and the offsets are added once, channels first.
    """
    for image in graph.inputs:
        found = _first_layer(graph, image)
        if found is None:
            continue
        chain, conv, scale, offset = found
        for node in chain:
            graph.remove(node)
        source = image
        if any(node.op_type == "Transpose" for node in chain):
            source = graph.add_node(conv, "Transpose", [image], f"{image}/channels_first", perm=[0, 3, 1, 2])
        if pad_channels:
            _take_pixels(graph, conv, image, source, scale, offset)
        else:
            _take_shifted(graph, conv, image, source, scale, offset)


def _first_layer(graph: OnnxGraph, image: str) -> tuple[list[Any], Any, Array, Array] | None:
    """Returns what lies between an image and the convolution on it, and the scale and offset that this amounts to."""
    import onnx

    shape = graph.shapes.get(image, ())
    if graph.types.get(image) != onnx.TensorProto.UINT8 or len(shape) != 4 or min(shape) < 1:
        return None
    users = graph.users()
    chain: list[Any] = []
    value, channels_at, is_float = image, 3, False
    scale, offset = np.ones(1), np.zeros(1)
    while True:
        takers = users.get(value, [])
        if len(takers) != 1 or graph.is_output(value):
            return None
        node = takers[0]
        if node.op_type == "Conv":
            break
        if node.op_type == "Transpose" and channels_at == 3 and list(attribute(node, "perm", ())) == [0, 3, 1, 2]:
            channels_at = 1
        elif node.op_type == "Cast" and attribute(node, "to") == onnx.TensorProto.FLOAT:
            is_float = True
        elif node.op_type in {"Mul", "Div", "Add", "Sub"} and is_float and node.input[0] == value:
            number = _per_channel(graph, node.input[1], channels_at)
            if number is None:
                return None
            scale, offset = _affine(node.op_type, number, scale, offset)
        else:
            return None
        chain.append(node)
        value = node.output[0]
    if channels_at == 3 and not any(other.op_type == "Transpose" for other in chain):
        channels_at = 1  # an image that comes channels first
    weights = graph.constants.get(node.input[1])
    channels = shape[3] if any(other.op_type == "Transpose" for other in chain) else shape[1]
    if weights is None or not is_float or channels > 3 or weights.shape[1] != channels or channels_at != 1:
        return None
    return chain, node, np.broadcast_to(scale, channels), np.broadcast_to(offset, channels)


def _affine(kind: str, number: Array, scale: Array, offset: Array) -> tuple[Array, Array]:
    match kind:
        case "Mul":
            return scale * number, offset * number
        case "Div":
            return scale / number, offset / number
        case "Add":
            return scale, offset + number
        case _:
            return scale, offset - number


def _per_channel(graph: OnnxGraph, name: str, channels_at: int) -> Array | None:
    """Returns a constant that has one number, or one for each channel, as a vector."""
    values = graph.constants.get(name)
    if values is None or values.ndim > 4:
        return None
    shape = (1,) * (4 - values.ndim) + values.shape
    if any(size != 1 for at, size in enumerate(shape) if at != channels_at):
        return None
    return values.reshape(-1).astype(np.float64)


def _take_pixels(graph: OnnxGraph, conv: Any, image: str, source: str, scale: Array, offset: Array) -> None:
    weights = graph.constants[conv.input[1]].astype(np.float64)
    channels = weights.shape[1]
    shape = graph.shapes[image]
    height, width = shape[1:3] if source != image else shape[2:4]
    spare = 4 - channels
    # The layout optimizer would carry its transposes past a padding of channels, where it is slow; not past reshapes.
    flat = graph.add_constant(f"{image}.flat", np.array([shape[0] * channels, height * width], np.int64))
    pads = graph.add_constant(f"{image}.pads", np.array([0, 0, spare, 0], np.int64))
    value = graph.add_constant(f"{image}.indicator", np.array(_INDICATOR, np.uint8))
    planes = graph.add_constant(f"{image}.planes", np.array([shape[0], 4, height, width], np.int64))
    center = graph.add_constant(f"{image}.center", np.array(PIXEL_CENTER, np.float32))
    value = graph.add_node(conv, "Pad", [graph.add_node(conv, "Reshape", [source, flat], f"{image}/flat"), pads, value],
                           f"{image}/padded")  # fmt: skip
    value = graph.add_node(conv, "Reshape", [value, planes], f"{image}/planes")
    value = graph.add_node(conv, "Cast", [value], f"{image}/float", to=1)
    conv_input = graph.add_node(conv, "Sub", [value, center], f"{image}/centered")
    per_channel = (1, -1, 1, 1)
    inside = (weights * (offset + scale * PIXEL_CENTER).reshape(per_channel)).sum(axis=1, keepdims=True)
    extra = np.repeat(np.zeros_like(inside), spare, axis=1)
    extra[:, :1] = inside / (_INDICATOR - PIXEL_CENTER)
    folded = np.concatenate([weights * scale.reshape(per_channel), extra], axis=1).astype(np.float32)
    conv.input[0] = conv_input
    conv.input[1] = graph.add_constant(f"{conv.name}.weights", folded)


def _take_shifted(graph: OnnxGraph, conv: Any, image: str, source: str, scale: Array, offset: Array) -> None:
    weights = graph.constants[conv.input[1]].astype(np.float64)
    value = graph.add_node(conv, "Cast", [source], f"{image}/float", to=1)
    shift = offset / scale
    number = np.array(shift[0]) if (shift == shift[0]).all() else shift.reshape(1, -1, 1, 1)
    stored = graph.add_constant(f"{image}.shift", number.astype(np.float32))
    conv.input[0] = graph.add_node(conv, "Add", [value, stored], f"{image}/shifted")
    folded = (weights * scale.reshape(1, -1, 1, 1)).astype(np.float32)
    conv.input[1] = graph.add_constant(f"{conv.name}.weights", folded)


def _has_plain_bias(graph: OnnxGraph, layer: Any) -> bool:
    plain = attribute(layer, "alpha", 1.0) == 1.0 and attribute(layer, "beta", 1.0) == 1.0
    return layer.op_type == "Conv" or plain


def _bias(graph: OnnxGraph, layer: Any) -> tuple[str, Array | None]:
    """Returns a name for a layer's new bias, and its values, zeros where it has none; None if they are not stored."""
    weights = graph.constants.get(layer.input[1])
    if weights is None:
        return "", None
    if len(layer.input) > 2 and layer.input[2]:
        return f"{layer.name}.bias", graph.constants.get(layer.input[2])
    outputs_at = 0 if layer.op_type == "Conv" or attribute(layer, "transB", 0) else 1
    return f"{layer.name}.bias", np.zeros(weights.shape[outputs_at], weights.dtype)


__all__ = [
    "PIXEL_CENTER",
    "clip_hard_swish_inputs",
    "drop_idle_layout",
    "expand_hard_activations",
    "fold_shifts",
    "is_depthwise",
    "push_scales",
    "rescale_in_first_layer",
]
