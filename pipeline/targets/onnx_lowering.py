"""Rewrites of a float ONNX graph that keep its function and let more of it run as fast integer operators.

Each takes an `OnnxGraph` whose layout is channels first and changes it in place. What they need of a graph is checked;
where a pattern is not there, nothing happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.targets.onnx_graph import Array, OnnxGraph, attribute, is_depthwise

PIXEL_CENTER = 128
"""What is taken from pixels, so that they have a sign; the zero point of the image in int8."""

BLOCK = 4
"""Pixels that the first convolution takes at once."""

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


def rescale_in_first_layer(graph: OnnxGraph, *, in_blocks: bool) -> None:
    """Folds the scaling of pixels to the network's range into the first convolution.

    Args:
        graph: Of a network on `(1, height, width, channels)`, uint8, or the same with channels first.
        in_blocks: For int8: the convolution takes the pixels themselves, less `PIXEL_CENTER`, in blocks of four, and
            gives what belongs to a block at once (see `_take_blocks`). Else the scale alone is folded, and offsets are
            added once, channels first, where that is fast.
    """
    for image in graph.inputs:
        found = _first_layer(graph, image)
        if found is None:
            continue
        chain, conv, scale, offset = found
        channels_last = any(node.op_type == "Transpose" for node in chain)
        blocks = _blocks(graph, image, conv) if in_blocks and channels_last else None
        for node in chain:
            graph.remove(node)
        if blocks is not None:
            _take_blocks(graph, conv, image, scale, offset, blocks)
            continue
        source = image
        if channels_last:
            source = graph.add_node(conv, "Transpose", [image], f"{image}/channels_first", perm=[0, 3, 1, 2])
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


@dataclass(frozen=True)
class _Blocks:
    """How a convolution reads an image in blocks of `BLOCK` pixels of a row.

    Attributes:
        kernel: Height and width of its kernel.
        stride: Down and across; the latter divides `BLOCK`.
        pads: Rows above, columns to the left, rows below, columns to the right, all written into the image.
        num_blocks: Blocks of a row that one application of the new kernel takes.
        outputs: Height and width of the result.
    """

    kernel: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[int, int, int, int]
    num_blocks: int
    outputs: tuple[int, int]


def _blocks(graph: OnnxGraph, image: str, conv: Any) -> _Blocks | None:
    """Returns how a convolution can read blocks, or None where sizes don't divide."""
    _, height, width, _ = graph.shapes[image]
    weights = graph.constants[conv.input[1]]
    result = graph.shapes.get(conv.output[0], ())
    stride = tuple(attribute(conv, "strides", (1, 1)))
    pads = tuple(attribute(conv, "pads", (0, 0, 0, 0)))
    plain = attribute(conv, "group", 1) == 1 and set(attribute(conv, "dilations", (1, 1))) == {1}
    if not plain or attribute(conv, "auto_pad", b"NOTSET") != b"NOTSET" or len(result) != 4 or len(stride) != 2:
        return None
    if BLOCK % stride[1] or result[3] % (BLOCK // stride[1]) or graph.is_output(conv.output[0]):
        return None
    kernel = weights.shape[2:]
    num_blocks = -(-(BLOCK - stride[1] + kernel[1]) // BLOCK)
    padded = BLOCK * (result[3] * stride[1] // BLOCK + num_blocks - 1)
    right = padded - width - pads[1]
    bottom = (result[2] - 1) * stride[0] + kernel[0] - height - pads[0]
    if right < 0 or bottom < 0 or right > padded // 2:
        return None
    return _Blocks(kernel, stride, (pads[0], pads[1], bottom, right), num_blocks, result[2:])


def _take_blocks(graph: OnnxGraph, conv: Any, image: str, scale: Array, offset: Array, blocks: _Blocks) -> None:
    """Lets a convolution take pixels in blocks of `BLOCK`, as they lie in memory: a block's numbers are its channels.

    So it has a multiple of four channels, which integer kernels want, and nothing is moved: three channels would be
    copied together pixel by pixel. The new kernel is the old one once for each result that starts in a block; results
    are channels too, until a reshape makes columns of them again.

    Padding is written into the image, as the (fractional) pixel that is 0 in the network's range.
    """
    batch, height, width, channels = graph.shapes[image]
    weights = graph.constants[conv.input[1]].astype(np.float64)
    name, bias = _bias(graph, conv)
    assert bias is not None
    center = graph.add_constant(f"{image}.center", np.array(PIXEL_CENTER, np.float32))
    value = graph.add_node(conv, "Cast", [image], f"{image}/float", to=1)
    value = graph.add_node(conv, "Sub", [value, center], f"{image}/centered")
    zero = (-offset / scale - PIXEL_CENTER).astype(np.float32)
    top, left, bottom, right = blocks.pads
    columns = left + width + right
    value = _surrounded(graph, conv, value, zero, 2, [(batch, height, size, channels) for size in (left, right)])
    value = _surrounded(graph, conv, value, zero, 1, [(batch, size, columns, channels) for size in (top, bottom)])
    shape = np.array([batch, top + height + bottom, columns // BLOCK, BLOCK * channels], np.int64)
    value = graph.add_node(
        conv, "Reshape", [value, graph.add_constant(f"{image}.blocks", shape)], f"{image}/blocks"
    )
    conv.input[0] = graph.add_node(conv, "Transpose", [value], f"{image}/channels_first", perm=[0, 3, 1, 2])

    scaled = weights * scale.reshape(1, -1, 1, 1)
    shift = (weights * (offset + scale * PIXEL_CENTER).reshape(1, -1, 1, 1)).sum(axis=(1, 2, 3))
    per_block = BLOCK // blocks.stride[1]
    spread = np.zeros((per_block, len(weights), channels, blocks.kernel[0], blocks.num_blocks * BLOCK))
    for at in range(per_block):
        start = at * blocks.stride[1]
        spread[at, ..., start : start + blocks.kernel[1]] = scaled
    spread = spread.reshape(per_block * len(weights), channels, blocks.kernel[0], blocks.num_blocks, BLOCK)
    spread = spread.transpose(0, 4, 1, 2, 3).reshape(len(spread), BLOCK * channels, blocks.kernel[0], blocks.num_blocks)
    conv.input[1] = graph.add_constant(f"{conv.name}.weights", spread.astype(np.float32))
    stored = np.tile(bias.astype(np.float64) + shift, per_block).astype(np.float32)
    conv.input[:] = [*conv.input[:2], graph.add_constant(name, stored)]
    _set(conv, kernel_shape=spread.shape[2:], strides=(blocks.stride[0], 1), pads=(0, 0, 0, 0))
    _columns_again(graph, conv, (batch, *blocks.outputs, len(weights)))


def _surrounded(
    graph: OnnxGraph, before: Any, value: str, zero: Array, axis: int, shapes: list[tuple[int, ...]]
) -> str:
    """Puts pixels of one color before and behind a value; nothing where the shape of them has none."""
    parts = [
        graph.add_constant(f"{value}.padding", np.broadcast_to(zero, shape).copy()) if 0 not in shape else ""
        for shape in shapes
    ]
    if not any(parts):
        return value
    around = [name for name in (parts[0], value, parts[1]) if name]
    return graph.add_node(before, "Concat", around, f"{value}/padded", axis=axis)


def _columns_again(graph: OnnxGraph, conv: Any, shape: tuple[int, ...]) -> None:
    """Makes columns of the results of a block, behind the rectifier that alone takes them, if there is one."""
    users, last = graph.users(), conv
    takers = users.get(last.output[0], [])
    while len(takers) == 1 and takers[0].op_type in {"Relu", "Clip"} and not graph.is_output(takers[0].output[0]):
        last = takers[0]
        takers = users.get(last.output[0], [])
    value = last.output[0]
    for name in (conv.output[0], value):
        graph.shapes.pop(name, None)
    columns = graph.add_constant(f"{value}.columns", np.array(shape, np.int64))
    moved = graph.add_node(takers[0], "Transpose", [value], f"{value}/channels_last", perm=[0, 2, 3, 1])
    moved = graph.add_node(takers[0], "Reshape", [moved, columns], f"{value}/columns")
    moved = graph.add_node(takers[0], "Transpose", [moved], f"{value}/channels_first", perm=[0, 3, 1, 2])
    graph.shapes[moved] = (shape[0], shape[3], shape[1], shape[2])
    graph.replace_uses(value, moved, of=takers)


def _take_shifted(graph: OnnxGraph, conv: Any, image: str, source: str, scale: Array, offset: Array) -> None:
    weights = graph.constants[conv.input[1]].astype(np.float64)
    value = graph.add_node(conv, "Cast", [source], f"{image}/float", to=1)
    shift = offset / scale
    number = np.array(shift[0]) if (shift == shift[0]).all() else shift.reshape(1, -1, 1, 1)
    stored = graph.add_constant(f"{image}.shift", number.astype(np.float32))
    conv.input[0] = graph.add_node(conv, "Add", [value, stored], f"{image}/shifted")
    folded = (weights * scale.reshape(1, -1, 1, 1)).astype(np.float32)
    conv.input[1] = graph.add_constant(f"{conv.name}.weights", folded)


def pad_depthwise_channels(graph: OnnxGraph, multiple: int = 16) -> None:
    """Adds channels of zeros around depthwise convolutions until their number is a multiple.

    Integer kernels for depthwise convolutions exist for whole vectors of channels only. A zero channel stays zero
    through activations that keep 0, and the layer that follows has zero weights for it.
    """
    for node in [node for node in graph.nodes if node.op_type == "Conv"]:
        weights = graph.constants.get(node.input[1])
        if weights is None or not is_depthwise(node, weights) or attribute(node, "group") % multiple == 0:
            continue
        channels = attribute(node, "group")
        found = _channel_group(graph, node, channels)
        if found is None or weights.shape[0] != channels:
            continue
        for layer, widened in found:
            _widen(graph, layer, widened, -channels % multiple)


def _channel_group(graph: OnnxGraph, start: Any, channels: int) -> list[tuple[Any, str]] | None:
    """Returns the layers that share the channels of a depthwise convolution, each with what of it has them.

    That is `outputs`, `inputs`, or `both` for a depthwise one; None if anything else takes or gives these channels.
    """
    makers, users = graph.makers(), graph.users()
    seen: set[str] = set()
    found: dict[int, tuple[Any, str]] = {}
    waiting = [start.input[0], start.output[0]]
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        maker = makers.get(value)
        shape = graph.shapes.get(value, ())
        if maker is None or graph.is_output(value) or len(shape) != 4 or shape[1] != channels:
            return None
        for node in (maker, *users.get(value, [])):
            role = _role(graph, node, value)
            if role is None:
                return None
            if role in {"inputs", "outputs", "both"}:
                if found.setdefault(id(node), (node, role))[1] != role:
                    return None
            if role in {"both", "through"}:
                waiting += [name for name in (*node.input, *node.output) if name and name not in graph.constants]
    return list(found.values())


def _role(graph: OnnxGraph, node: Any, value: str) -> str | None:
    """Returns how a node shares the channels of a value; None if it does in a way that is not known here."""
    if node.op_type == "Conv":
        weights = graph.constants.get(node.input[1])
        if weights is None or value in node.input[1:] or _bias(graph, node)[1] is None:
            return None
        if is_depthwise(node, weights):
            return "both" if weights.shape[0] == attribute(node, "group") else None
        if attribute(node, "group", 1) != 1:
            return None
        return "outputs" if value in node.output else "inputs"
    if node.op_type in {"Relu", "Clip", "Add", "Mul", "Sigmoid", "QuickGelu", "GlobalAveragePool", "AveragePool"}:
        stored = [name for name in node.input if name in graph.constants]
        return "through" if all(graph.scalar(name) is not None for name in stored) else None
    return None


def _widen(graph: OnnxGraph, layer: Any, role: str, extra: int) -> None:
    weights = graph.constants[layer.input[1]]
    widths = [(0, 0)] * weights.ndim
    widths[1 if role == "inputs" else 0] = (0, extra)
    layer.input[1] = graph.add_constant(f"{layer.name}.weights", np.pad(weights, widths))
    if role != "inputs" and len(layer.input) > 2 and layer.input[2]:
        name, bias = _bias(graph, layer)
        assert bias is not None
        layer.input[2] = graph.add_constant(name, np.pad(bias, (0, extra)))
    if role == "both":
        for found in layer.attribute:
            if found.name == "group":
                found.i += extra


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


def _set(node: Any, **lists: tuple[int, ...]) -> None:
    """Sets attributes that are lists of whole numbers."""
    import onnx

    kept = [found for found in node.attribute if found.name not in lists]
    made = [onnx.helper.make_attribute(name, [int(number) for number in numbers]) for name, numbers in lists.items()]
    del node.attribute[:]
    node.attribute.extend([*kept, *made])
