"""Rewriting of OpenVINO graphs: the same function in a form that quantizes well."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_NUMBERED = re.compile(r'(<layer id="\d+" name=")([A-Z][A-Za-z0-9]*)_(\d+)(?=["/])')
"""The name of a layer that OpenVINO or NNCF made up, or what one was derived from."""


def number_anew(path: Path) -> None:
    """Numbers the layers that OpenVINO numbers by a counter of the process by their place in the file instead."""
    numbers: dict[tuple[str, str], int] = {}
    counts: dict[str, int] = {}

    def renamed(found: re.Match[str]) -> str:
        kind, number = found[2], found[3]
        if (kind, number) not in numbers:
            counts[kind] = counts.get(kind, 0) + 1
            numbers[kind, number] = counts[kind]
        return f"{found[1]}{kind}_{numbers[kind, number]}"

    path.write_text(_NUMBERED.sub(renamed, path.read_text(encoding="utf-8")), encoding="utf-8")


def fold_scales(model: Any) -> None:
    """Multiplies scales behind matrix products, such as those of batch norms, into their weights.

    With one thread, the CPU plugin of OpenVINO 2026.4 reads memory that nothing wrote where an int8 MatMul has a
    Multiply behind it, and the answers are arbitrary.
    """
    import numpy as np
    from openvino import opset13

    for node in model.get_ordered_ops():
        if node.get_type_name() != "Multiply":
            continue
        sources = [node.input_value(index).get_node() for index in range(2)]
        product = next((source for source in sources if source.get_type_name() == "MatMul"), None)
        scale = next((source for source in sources if source.get_type_name() == "Constant"), None)
        if product is None or scale is None or len(product.output(0).get_target_inputs()) != 1:
            continue
        weights = product.input_value(1).get_node()
        if weights.get_type_name() != "Constant" or len(weights.output(0).get_target_inputs()) != 1:
            continue
        values, factors = np.asarray(weights.data), np.asarray(scale.data)
        transposed = bool(product.get_attributes()["transpose_b"])
        width = values.shape[0 if transposed else -1]
        if values.ndim != 2 or factors.size not in (1, width) or factors.shape[-1:] not in ((), (1,), (width,)):
            continue
        factors = np.broadcast_to(factors.reshape(-1), (width,))
        scaled = opset13.constant((values * (factors[:, None] if transposed else factors)).astype(values.dtype))
        scaled.set_friendly_name(weights.get_friendly_name())
        product.input(1).replace_source_output(scaled.output(0))
        node.output(0).replace(product.output(0))


def hide_gates(model: Any) -> None:
    """Takes the pooling of squeeze-and-excite gates apart into a mean without dimensions and their return.

    NNCF leaves gates in float wherever it recognizes one, and has no option against it. The file would be neither
    int8 nor what the other runtimes have. It does not recognize a gate with an operation more, which computes nothing.
    """
    import numpy as np
    from openvino import opset13

    for node in model.get_ordered_ops():
        if node.get_type_name() != "ReduceMean" or not node.get_attributes()["keep_dims"]:
            continue
        users = [port.get_node().get_type_name() for port in node.output(0).get_target_inputs()]
        axes = node.input_value(1).get_node()
        if users != ["Convolution"] or axes.get_type_name() != "Constant":
            continue
        mean = opset13.reduce_mean(node.input_value(0), axes, keep_dims=False)
        mean.set_friendly_name(node.get_friendly_name())
        node.output(0).replace(opset13.unsqueeze(mean, np.asarray(axes.data)).output(0))


def scale_rows(model: Any) -> None:
    """Scales images before they are transposed, whole rows `(1, height, width * channels)` at a time.

    A scale and a shift for each of three channels behind the Transpose keep the plugin from merging it with them: it
    then copies the image twice more, which is 90 of MobileNetV4-conv-small's 850 microseconds in int8. On rows, it
    scales, quantizes and transposes in one go.
    """
    import numpy as np
    from openvino import opset13

    for transpose in model.get_ordered_ops():
        order = transpose.input_value(1).get_node() if transpose.get_type_name() == "Transpose" else None
        if order is None or order.get_type_name() != "Constant" or list(order.data) != [0, 3, 1, 2]:
            continue
        source = transpose.input_value(0)
        steps = _channelwise_steps(transpose)
        if not source.get_partial_shape().is_static or not steps:
            continue
        _, height, width, channels = source.get_partial_shape().to_shape()
        # A Reshape behind the Convert would keep the plugin from converting and scaling in one go.
        convert = source.get_node() if source.get_node().get_type_name() == "Convert" else None
        stored = convert.input_value(0) if convert else source
        value = opset13.reshape(stored, np.array([-1, height, width * channels]), special_zero=False)
        if convert:
            value = opset13.convert(value, source.get_element_type())
            value.set_friendly_name(convert.get_friendly_name())
        for step, values in steps:
            tiled = opset13.constant(np.tile(np.broadcast_to(values.reshape(-1), (channels,)), width)[None, None])
            make = opset13.multiply if step.get_type_name() == "Multiply" else opset13.add
            value = make(value, tiled)
            value.set_friendly_name(step.get_friendly_name())
        image = opset13.reshape(value, np.array([-1, height, width, channels]), special_zero=False)
        moved = opset13.transpose(image, order)
        moved.set_friendly_name(transpose.get_friendly_name())
        steps[-1][0].output(0).replace(moved.output(0))
    model.validate_nodes_and_infer_types()


def _channelwise_steps(transpose: Any) -> list[tuple[Any, Any]]:
    """Returns the multiplications and additions right behind a Transpose, if one has a value for each channel."""
    import numpy as np

    steps: list[tuple[Any, Any]] = []
    channels = transpose.output(0).get_partial_shape()[1].get_length()
    node = transpose
    while True:
        users = [user.get_node() for user in node.output(0).get_target_inputs()]
        if len(users) != 1 or users[0].get_type_name() not in {"Multiply", "Add"}:
            break
        node = users[0]
        stored = [port.get_node() for port in node.input_values() if port.get_node().get_type_name() == "Constant"]
        if len(stored) != 1:
            break
        values = np.asarray(stored[0].data)
        if values.shape not in ((), (1,) * values.ndim, (1, channels, 1, 1), (channels, 1, 1)):
            break
        steps.append((node, values))
    return steps if any(values.size > 1 for _, values in steps) else []
