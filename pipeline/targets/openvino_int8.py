"""int8 in OpenVINO: NNCF says where values are quantized, the table of ranges to what.

A quantized activation is a FakeQuantize operation with 256 levels, one of them zero; a quantized weight is an int8
constant, a Convert and a Multiply by one scale for each output channel. The CPU plugin makes integer arithmetic of
both.

Measured on x86 with VNNI, one thread, 224x224: gates of squeeze-and-excite in int8 make MobileNetV3-small 6 % faster
than gates in float, one range for all channels of a depthwise convolution's input 3 % faster than NNCF's one for each.
Ranges that are not symmetric cost up to 2 % and gain more than a decibel behind hard-swish and swish, whose values
below zero are few.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError
from pipeline.model_source import Sample
from pipeline.targets import openvino_scale
from pipeline.targets.openvino_graph import fold_scales, hide_gates, number_anew, scale_rows
from pipeline.targets.openvino_placement import Placement, Site, linear_operations, placement, taker_of, tensor_name

Bound = float | npt.NDArray[np.floating[Any]]
Range = tuple[Bound, Bound]
"""The lowest and the highest value; arrays `(channels,)` where `channelwise` names the tensor."""


@dataclass(frozen=True)
class Scheme:
    """How a network is made int8.

    Attributes:
        sentence: What it is, for people.
        gates: Whether gates of squeeze-and-excite are quantized; NNCF leaves them in float wherever it recognizes one.
        symmetric: Whether ranges with values below zero are made symmetric (int8), or keep their ends (uint8 with a
            zero point).
    """

    sentence: str
    gates: bool
    symmetric: bool


_SCHEMES = {
    "asymmetric": Scheme(
        "Everything in int8, activations between the ends of their ranges with a zero point.",
        gates=True,
        symmetric=False,
    ),
    "symmetric": Scheme(
        "Everything in int8, activations that go below zero in ranges symmetric about it, without zero points.",
        gates=True,
        symmetric=True,
    ),
    "converter": Scheme(
        "NNCF's defaults: gates of squeeze-and-excite in float, activations without zero points.",
        gates=False,
        symmetric=True,
    ),
}

SCHEMES: Mapping[str, str] = {name: scheme.sentence for name, scheme in _SCHEMES.items()}
"""The first is taken where nothing is searched."""

_LEVELS = 256
_WEIGHT_STEPS = 127
_REDUCED_WEIGHT_STEPS = 63


def lower(float_path: Path, scheme: str, out_path: Path) -> None:
    """Writes the float model in the form that the scheme quantizes; it computes the same.

    Raises:
        InputError: There is no such scheme.
    """
    import openvino as ov

    chosen = _scheme(scheme)
    model = _read(float_path)
    fold_scales(model)
    if chosen.gates:
        hide_gates(model)
        scale_rows(model)
    _save(model, out_path, ov)


def layers(path: Path) -> dict[str, str]:
    """Returns for each convolution and matrix product with stored weights the tensor that it gives, its bias added.

    They are in the order in which they run.
    """
    model = _read(path)  # whose nodes live no longer than it does
    return {node.get_friendly_name(): tensor_name(_with_bias(node)) for node in linear_operations(model)}


def linear_layers(path: Path) -> tuple[str, ...]:
    """Returns the names of the convolutions and matrix products with stored weights, in the order they run."""
    return tuple(layers(path))


def operations(path: Path) -> tuple[str, ...]:
    """Returns the names of all operations that can be left in float, in the order they run."""
    model = _read(path)
    return tuple(node.get_friendly_name() for node in _quantizable(model, placement(path)))


def observed(path: Path) -> tuple[str, ...]:
    """Returns the names of the activations that take a range, in the order they are computed."""
    return tuple(site.tensor for site in placement(path).sites)


def channelwise(path: Path) -> tuple[str, ...]:
    """Returns those of `observed` that only depthwise convolutions take, which may have a range for each channel."""
    return tuple(site.tensor for site in placement(path).sites if site.channels)


def activations(path: Path, samples: Iterable[Sample], names: Collection[str]) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yields for each sample what a model, in float or int8, computes under the names.

    Args:
        path: The model.
        samples: What it is fed with.
        names: Of `observed`, of outputs, or of any operation of the file; those that it does not hold are left out.

    Yields:
        By name, float32, as the file lays the tensor out: `(1, channels, height, width)` behind convolutions.

    Raises:
        InputError: The file holds none of the names.
    """
    import openvino as ov
    from openvino import opset13

    model = _read(path)
    known = {tensor_name(port): port for node in model.get_ordered_ops() for port in node.outputs()}
    known |= {name: port.get_node().input_value(0) for port in model.outputs for name in port.get_names()}
    wanted = [name for name in dict.fromkeys(names) if name in known]
    if not wanted:
        _check_names(names, known, path)
    results = [opset13.result(known[name]) for name in wanted]
    # One thread, so that sums have one order and ranges one value wherever they are taken.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = ov.Core().compile_model(ov.Model(results, model.get_parameters()), "CPU", settings)
    request = compiled.create_infer_request()
    for sample in samples:
        request.infer({key: np.ascontiguousarray(value) for key, value in sample.items()})
        yield {name: np.array(request.get_output_tensor(index).data) for index, name in enumerate(wanted)}


def quantize(
    path: Path,
    scheme: str,
    ranges: Mapping[str, Range],
    float_layers: Collection[str],
    out_path: Path,
    *,
    reduce_range: bool = False,
) -> None:
    """Writes the int8 model; the same arguments give the same bytes.

    Args:
        path: What `lower` wrote for the scheme. Its weights are rounded to the nearest step of their output channel,
            the largest magnitude being the last step: weights that lie on such steps stay what they are.
        scheme: A name of `SCHEMES`.
        ranges: For each name of `observed`.
        float_layers: Names of `operations` that stay in float; what they take is not rounded for them.
        out_path: The `.xml`; the `.bin` is written beside it.
        reduce_range: Whether weights keep to 7 bits, for x86 processors without VNNI.

    Raises:
        InputError: There is no such scheme, a name is not in the file, or a range is missing or impossible.
    """
    import openvino as ov

    chosen, places = _scheme(scheme), placement(path)
    model = _read(path)
    able = [node.get_friendly_name() for node in _quantizable(model, places)]
    _check_names(set(float_layers) - set(able), able, path)
    known = [site.tensor for site in places.sites]
    _check_names(set(ranges) - set(known), known, path)
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    bounds = _bounds(places, ranges, symmetric=chosen.symmetric)
    for site in places.sites:
        _quantize_activation(nodes, site, bounds[site.tensor], float_layers)
    steps = _REDUCED_WEIGHT_STEPS if reduce_range else _WEIGHT_STEPS
    for weights in places.weights:
        if weights.consumer not in float_layers:
            _quantize_weights(nodes[weights.consumer], weights.port, weights.axes, steps)
    model.validate_nodes_and_infer_types()
    _save(model, out_path, ov)


def scale_output(path: Path, factor: float, out_path: Path, *, output: str | None = None) -> None:
    """Writes a file with one float output multiplied by a positive number (`openvino_scale.scale_output`)."""
    openvino_scale.scale_output(path, factor, out_path, output=output)


def _quantizable(model: Any, places: Placement) -> list[Any]:
    """Returns the operations that take something quantized."""
    nodes = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    names = {taker_of(nodes[name], port).get_friendly_name() for site in places.sites for name, port in site.consumers}
    names |= {weights.consumer for weights in places.weights}
    return [node for name, node in nodes.items() if name in names]


def _with_bias(node: Any) -> Any:
    """Returns what an operation gives, with the constant that is added to it, if one is."""
    users = [user.get_node() for user in node.output(0).get_target_inputs()]
    if len(users) == 1 and users[0].get_type_name() == "Add":
        sources = [port.get_node().get_type_name() for port in users[0].input_values()]
        if "Constant" in sources:
            return users[0].output(0)
    return node.output(0)


def _bounds(places: Placement, ranges: Mapping[str, Range], *, symmetric: bool) -> dict[str, Range]:
    """Returns the first and the last level of each activation. Parts that are joined have the same.

    Raises:
        InputError: A range is missing or impossible.
    """
    missing = [site.tensor for site in places.sites if site.tensor not in ranges]
    if missing:
        raise InputError(f"There is no range for {', '.join(missing)}. Give one for each name of `observed`.")
    given = {site.tensor: _checked(site, ranges[site.tensor]) for site in places.sites}
    for group in places.joined:
        low = min(float(np.min(given[name][0])) for name in group)
        high = max(float(np.max(given[name][1])) for name in group)
        given.update((name, (low, high)) for name in group)
    return {name: levels(low, high, symmetric=symmetric) for name, (low, high) in given.items()}


def _checked(site: Site, bounds: Range) -> Range:
    low, high = (np.asarray(bound, np.float64) for bound in bounds)
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low <= high).all()):
        raise InputError(f"The range of {site.tensor} is {low} to {high}; expected finite ends, the lower one first.")
    if low.shape != high.shape or low.shape not in ((), (site.channels,)):
        allowed = f"single values or {site.channels} channels" if site.channels else "single values"
        raise InputError(f"The range of {site.tensor} has shapes {low.shape} and {high.shape}; expected {allowed}.")
    return low, high


def levels(low: Bound, high: Bound, *, symmetric: bool) -> Range:
    """Returns the values of the first and the last of 256 levels, one of which is zero.

    Without values below zero the first level is zero. Otherwise, symmetric levels are those of int8 with the smallest
    step that reaches both ends; the others have the step of the whole range and the nearest zero point (Jacob et al.
    2018, section 2.1 and 3.1), so that one end may be cut by half a step.

    Args:
        low: The lowest value, or `(channels,)` of them.
        high: The highest value, not below `low`.
        symmetric: Whether there is no zero point where values are below zero.
    """
    low, high = np.minimum(np.asarray(low, np.float64), 0.0), np.maximum(np.asarray(high, np.float64), 0.0)
    # Nothing but zeros: any step will do.
    high = np.where(high - low > 0, high, 1.0)
    last = _LEVELS - 1
    if symmetric:
        step = np.maximum(-low / (_LEVELS // 2), high / (_LEVELS // 2 - 1))
        zero_point = np.where(low < 0, float(_LEVELS // 2), 0.0)
        step = np.where(low < 0, step, high / last)
    else:
        step = (high - low) / last
        zero_point = np.clip(np.round(-low / step), 0, last)
    return -zero_point * step, (last - zero_point) * step


def _quantize_activation(nodes: Mapping[str, Any], site: Site, bounds: Range, float_layers: Collection[str]) -> None:
    """Puts a FakeQuantize between a tensor and those that take it quantized, layers in float excepted."""
    from openvino import opset13

    consumers = [
        (name, port)
        for name, port in site.consumers
        if taker_of(nodes[name], port).get_friendly_name() not in float_layers
    ]
    if not consumers:
        return
    source = nodes[site.node].output(site.output)
    shape = [1] * len(source.get_partial_shape())
    low, high = (np.asarray(bound, np.float32) for bound in bounds)
    if low.ndim:
        shape[1] = low.size
        low, high = low.reshape(shape), high.reshape(shape)
    ends = [opset13.constant(bound) for bound in (low, high)]
    quantized = opset13.fake_quantize(source, *ends, *ends, levels=_LEVELS)
    quantized.set_friendly_name(f"{site.tensor}/quantized")
    for name, port in consumers:
        nodes[name].input(port).replace_source_output(quantized.output(0))


def _quantize_weights(node: Any, port: int, axes: tuple[int, ...], steps: int) -> None:
    """Replaces stored weights by int8 ones and a scale for each position on the axes."""
    from openvino import Type, opset13

    weights = constant_of(node, port)
    others = tuple(axis for axis in range(weights.ndim) if axis not in axes)
    largest = np.abs(weights).max(axis=others, keepdims=True).astype(np.float64)
    scale = np.where(largest > 0, largest / steps, 1.0).astype(np.float32)
    rounded = np.clip(np.round(weights / scale.astype(np.float64)), -steps, steps).astype(np.int8)
    name = node.get_friendly_name()
    stored = opset13.constant(rounded)
    stored.set_friendly_name(f"{name}/weights")
    values = opset13.convert(stored, Type.f32)
    values.set_friendly_name(f"{name}/weights/float")
    scales = opset13.constant(scale)
    scales.set_friendly_name(f"{name}/weights/scale")
    product = opset13.multiply(values, scales)
    product.set_friendly_name(f"{name}/weights/scaled")
    node.input(port).replace_source_output(product.output(0))


def constant_of(node: Any, port: int) -> npt.NDArray[np.float64]:
    """Returns the weights that an operation takes; those stored as float16 pass a Convert."""
    source = node.input_value(port).get_node()
    while source.get_type_name() == "Convert":
        source = source.input_value(0).get_node()
    return np.asarray(source.data, np.float64)


def _scheme(name: str) -> Scheme:
    if name not in _SCHEMES:
        raise InputError(f"There is no scheme {name} for OpenVINO; expected one of {', '.join(_SCHEMES)}.")
    return _SCHEMES[name]


def _check_names(unknown: Collection[str], known: Collection[str], path: Path) -> None:
    if unknown:
        raise InputError(
            f"{path} has nothing under {', '.join(sorted(unknown))}; expected names among {', '.join(known)}."
        )


def _read(path: Path) -> Any:
    import openvino as ov

    return ov.Core().read_model(str(path))


def _save(model: Any, path: Path, ov: Any) -> None:
    ov.save_model(model, str(path), compress_to_fp16=False)
    number_anew(path)
