"""The first convolution of an ONNX network on images: it takes the scaling of pixels in, and reads pixels in blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.targets.onnx_graph import Array, OnnxGraph, attribute, bias_of

PIXEL_CENTER = 128
"""What is taken from pixels, so that they have a sign; the zero point of the image in int8."""

_MAX_CHANNELS = 3
"""Of an image; more channels are no image, and integer kernels take fours as they are."""

BLOCK = 4
"""Pixels that the first convolution takes at once."""


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
    chain = _chain(graph, image)
    if not chain or graph.types.get(image) != onnx.TensorProto.UINT8 or len(shape) != 4 or min(shape) < 1:
        return None
    *chain, conv = chain
    channels_at = 3 if any(node.op_type == "Transpose" for node in chain) else 1
    channels, is_float = shape[channels_at], False
    scale, offset = np.ones(1), np.zeros(1)
    for node in chain:
        if node.op_type == "Transpose":
            channels_at = 1
        elif node.op_type == "Cast":
            is_float = attribute(node, "to") == onnx.TensorProto.FLOAT
        else:
            number = _per_channel(graph, node.input[1], channels_at)
            if number is None or not is_float:
                return None
            scale, offset = _affine(node.op_type, number, scale, offset)
    weights = graph.constants.get(conv.input[1])
    fits = weights is not None and weights.shape[1] == channels <= _MAX_CHANNELS and bias_of(graph, conv) is not None
    if not fits or not is_float or not scale.all() or scale.size not in {1, channels}:
        return None
    return chain, conv, np.broadcast_to(scale, channels), np.broadcast_to(offset, channels)


def _chain(graph: OnnxGraph, image: str) -> list[Any]:
    """Returns the nodes from an image to the convolution on it, with that; none where it takes another way."""
    users = graph.users()
    chain: list[Any] = []
    value = image
    while True:
        takers = users.get(value, [])
        if len(takers) != 1 or graph.is_output(value) or takers[0].input[0] != value:
            return []
        node = takers[0]
        chain.append(node)
        if node.op_type == "Conv":
            return chain
        moved = [other for other in chain if other.op_type == "Transpose"]
        if node.op_type == "Transpose" and (len(moved) > 1 or list(attribute(node, "perm", ())) != [0, 3, 1, 2]):
            return []
        if node.op_type not in {"Transpose", "Cast", "Mul", "Div", "Add", "Sub"}:
            return []
        value = node.output[0]


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
    bias = bias_of(graph, conv)
    bias = np.zeros(len(weights)) if bias is None else bias
    center = graph.add_constant(f"{image}.center", np.array(PIXEL_CENTER, np.float32))
    value = graph.add_node(conv, "Cast", [image], f"{image}/float", to=1)
    value = graph.add_node(conv, "Sub", [value, center], f"{image}/centered")
    zero = (-offset / scale - PIXEL_CENTER).astype(np.float32)
    top, left, bottom, right = blocks.pads
    columns = left + width + right
    value = _surrounded(graph, conv, value, zero, 2, [(batch, height, size, channels) for size in (left, right)])
    value = _surrounded(graph, conv, value, zero, 1, [(batch, size, columns, channels) for size in (top, bottom)])
    shape = np.array([batch, top + height + bottom, columns // BLOCK, BLOCK * channels], np.int64)
    value = graph.add_node(conv, "Reshape", [value, graph.add_constant(f"{image}.blocks", shape)], f"{image}/blocks")
    conv.input[0] = graph.add_node(conv, "Transpose", [value], f"{image}/channels_first", perm=[0, 3, 1, 2])

    scaled = weights * scale.reshape(1, -1, 1, 1)
    shift = (weights * (offset + scale * PIXEL_CENTER).reshape(1, -1, 1, 1)).sum(axis=(1, 2, 3))
    per_block = BLOCK // blocks.stride[1]
    spread = np.zeros((per_block, len(weights), channels, blocks.kernel[0], blocks.num_blocks * BLOCK))
    for at in range(per_block):
        start = at * blocks.stride[1]
        spread[at, ..., start : start + blocks.kernel[1]] = scaled
    num_results = per_block * len(weights)
    by_block = spread.reshape(num_results, channels, blocks.kernel[0], blocks.num_blocks, BLOCK)
    kernel = by_block.transpose(0, 4, 1, 2, 3).reshape(num_results, -1, blocks.kernel[0], blocks.num_blocks)
    conv.input[1] = graph.add_constant(f"{conv.name}.weights", kernel.astype(np.float32))
    stored = np.tile(bias.astype(np.float64) + shift, per_block).astype(np.float32)
    conv.input[:] = [*conv.input[:2], graph.add_constant(f"{conv.name}.bias", stored)]
    _set(conv, kernel_shape=kernel.shape[2:], strides=(blocks.stride[0], 1), pads=(0, 0, 0, 0))
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


def _set(node: Any, **lists: tuple[int, ...]) -> None:
    """Sets attributes that are lists of whole numbers."""
    import onnx

    kept = [found for found in node.attribute if found.name not in lists]
    made = [onnx.helper.make_attribute(name, [int(number) for number in numbers]) for name, numbers in lists.items()]
    del node.attribute[:]
    node.attribute.extend([*kept, *made])
