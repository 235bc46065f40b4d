"""int8 for ONNX Runtime from ranges that are given: the graph, the scheme, quantize-dequantize pairs.

Everything here is a function of files: of the float model, whose weights may have been changed, and the ranges.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from pipeline.errors import InputError, UnsupportedModelError
from pipeline.model_source import Sample
from pipeline.targets import onnx_channels, onnx_first_layer, onnx_lowering, onnx_qdq, onnx_scale
from pipeline.targets.onnx_file import load_model
from pipeline.targets.onnx_graph import Array, OnnxGraph, has_bodies
from pipeline.targets.onnx_names import drop_unused_domains, name_after_position

SCHEMES: Mapping[str, str] = MappingProxyType(
    {
        "uint8": (
            "uint8 activations, int8 weights with a scale for each output channel, elementwise operations on integers, "
            "swish in float between integer convolutions"
        ),
        "uint8_swish": "as uint8, but swish on integers too: a table for the sigmoid, and a product",
        "converter": "what quantize_static does by default: int8 activations, one scale for all weights of a layer",
    }
)
"""The first is taken without a search; `converter` is what a user gets by hand."""


def lower(float_path: Path, scheme: str, out_path: Path) -> None:
    """Writes the float graph as a scheme wants it: the same function, to within 1e-6 of the outputs' range.

    Unless the scheme is the converter's: idle reshapes go; factors, such as the 1/6 of hard-swish, move into the
    weights that follow; the scaling of pixels moves into the first convolution, which takes pixels in blocks of four;
    depthwise convolutions get channels of zeros up to a multiple of 16. Names of layers stay.

    Args:
        float_path: As the target exports it in float32, with batch normalizations folded.
        scheme: A key of `SCHEMES`.
        out_path: Where to write.

    Raises:
        InputError: There is no such scheme.
    """
    _check_scheme(scheme)
    model = load_model(float_path)
    if scheme == "converter" or has_bodies(model):
        shutil.copyfile(float_path, out_path)
        return
    graph = OnnxGraph(model)
    onnx_lowering.drop_idle_layout(graph)
    onnx_lowering.expand_hard_activations(graph)
    onnx_lowering.fold_shifts(graph)
    onnx_lowering.clip_hard_swish_inputs(graph)
    onnx_lowering.push_scales(graph)
    onnx_first_layer.rescale_in_first_layer(graph, in_blocks=True)
    onnx_channels.pad_depthwise_channels(graph)
    graph.save(out_path)


def lower_float(float_path: Path, out_path: Path) -> None:
    """Writes a float graph that computes the same faster in float: what of `lower` helps there too.

    Raises:
        ModelFileError: The file is no ONNX model.
    """
    model = load_model(float_path)
    if has_bodies(model):
        shutil.copyfile(float_path, out_path)
        return
    graph = OnnxGraph(model)
    onnx_lowering.drop_idle_layout(graph)
    onnx_lowering.push_scales(graph)
    onnx_first_layer.rescale_in_first_layer(graph, in_blocks=False)
    graph.save(out_path)


def layers(path: Path) -> dict[str, str]:
    """Returns for each convolution and matrix product the value that it gives, in order; of some both factors vary.

    Of a layer with a rectifier it is the rectifier's, for in int8 both are one.
    """
    graph = OnnxGraph(load_model(path))
    users = graph.users()
    found = {}
    for node in onnx_qdq.linear_nodes(graph):
        takers = users.get(node.output[0], [])
        rectified = (
            len(takers) == 1 and takers[0].op_type in onnx_qdq.RECTIFIERS and not graph.is_output(node.output[0])
        )
        found[node.name] = takers[0].output[0] if rectified else node.output[0]
    return found


def linear_layers(path: Path) -> tuple[str, ...]:
    """Returns the names of the convolutions and matrix products, in order; of some products both factors vary."""
    return tuple(layers(path))


def operations(path: Path) -> tuple[str, ...]:
    """Returns the names of the nodes that can be left in float, in order: layers and elementwise operations."""
    return tuple(_quantizable(OnnxGraph(load_model(path))))


def observed(path: Path) -> tuple[str, ...]:
    """Returns the names of the activations that take a range, in order.

    The results of the model are among them for the scheme `converter`, which stores them too; the others leave what a
    matrix product gives in float, and take no range for it.
    """
    graph = OnnxGraph(load_model(path))
    values = onnx_qdq.activation_values(graph)
    return (*values, *(name for name in graph.outputs if name not in values and _is_float(graph, name)))


def activations(path: Path, samples: Iterable[Sample], names: Collection[str]) -> Iterator[dict[str, Array]]:
    """Yields the values of activations, sample by sample, computed by ONNX Runtime.

    Args:
        path: A float model.
        samples: What the model is fed with.
        names: Of values of the graph, as `observed` gives them; those that the file does not hold are left out.

    Raises:
        InputError: The graph has none of the values.
    """
    import onnx
    import onnxruntime

    model = load_model(path)
    inputs = {value.name for value in model.graph.input}
    known = {name for node in model.graph.node for name in node.output}
    made = [name for name in dict.fromkeys(names) if name not in inputs and name in known]
    given = [name for name in dict.fromkeys(names) if name in inputs]
    if names and not made and not given:
        raise InputError(f"{path.name} has no value {_listed(list(names))}. Take names from observed().")
    outputs = {value.name for value in model.graph.output}
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in made if name not in outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for sample in samples:
        values = dict(zip(made, session.run(made, dict(sample)), strict=True)) if made else {}
        yield {**values, **{name: sample[name] for name in given}}


def quantize(
    path: Path,
    scheme: str,
    ranges: Mapping[str, tuple[float, float]],
    float_layers: Collection[str],
    out_path: Path,
    *,
    reduce_range: bool = False,
) -> None:
    """Writes the int8 model.

    Args:
        path: What `lower` wrote for this scheme; its weights may have been changed since.
        scheme: A key of `SCHEMES`.
        ranges: Lowest and highest number of each of `observed`; they are widened to hold 0.
        float_layers: Names of `operations` that stay float; layers with the activation functions that follow them.
        out_path: Where to write.
        reduce_range: Whether weights keep to 7 bits, for x86 processors without VNNI.

    Raises:
        InputError: There is no such scheme or layer, or a range is missing or no range.
        UnsupportedModelError: ONNX Runtime can't quantize the model.
    """
    from onnxruntime.quantization import QuantType

    _check_scheme(scheme)
    model = load_model(path)
    graph = OnnxGraph(model)
    linear = {node.name for node in onnx_qdq.linear_nodes(graph)}
    unknown = sorted(set(float_layers) - set(_quantizable(graph)))
    if unknown:
        raise InputError(f"{path.name} has no layer {_listed(unknown)}. Take names from operations().")
    _check_ranges(ranges, path)
    if scheme == "converter" or has_bodies(model):
        better = {} if scheme == "converter" else {"activation_type": QuantType.QUInt8, "per_channel": True}
        _by_quantize_static(path, graph, ranges, float_layers, out_path, reduce_range=reduce_range, **better)
        return
    swishes = onnx_lowering.swish_nodes(graph) if scheme == "uint8" else []
    try:
        onnx_qdq.quantize_graph(
            graph,
            ranges,
            float_layers=linear & set(float_layers),
            float_nodes={*(set(float_layers) - linear), *(node.name for pair in swishes for node in pair)},
            reduce_range=reduce_range,
        )
    except KeyError as error:
        raise InputError(f"No range is given for {error.args[0]!r}. Give one for each of observed().") from error
    onnx_lowering.fuse_swish(graph, swishes)
    graph.save(out_path)


def scale_output(path: Path, factor: float, out_path: Path, *, output: str | None = None) -> None:
    """Writes a file with one float output multiplied by a positive number (`onnx_scale.scale_output`)."""
    onnx_scale.scale_output(path, factor, out_path, output=output)


def _by_quantize_static(
    path: Path,
    graph: OnnxGraph,
    ranges: Mapping[str, tuple[float, float]],
    float_layers: Collection[str],
    out_path: Path,
    *,
    reduce_range: bool,
    **options: Any,
) -> None:
    """Quantizes by quantize_static, which takes the ranges for a calibration that it did before.

    Models with loops or branches are quantized so in every scheme.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, quantize_static, save_tensors_data
    from onnxruntime.quantization.calibrate import TensorsData

    table = {
        name: (np.array(low, np.float32), np.array(high, np.float32))
        for name, (low, high) in onnx_qdq.ranges_of_all_values(graph, ranges).items()
    }
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=out_path.parent) as scratch:
        cache, quantized = Path(scratch) / "ranges.json", Path(scratch) / "int8.onnx"
        save_tensors_data(TensorsData(CalibrationMethod.MinMax, table), cache)
        try:
            quantize_static(
                str(path),
                str(quantized),
                nodes_to_exclude=list(float_layers),
                reduce_range=reduce_range,
                calibration_cache_path=str(cache),
                **options,
            )
        except Exception as error:  # ONNX Runtime's errors have no common class
            raise UnsupportedModelError(
                f"ONNX Runtime can't quantize the model: {' '.join(str(error).split())[:500]}", details=str(error)
            ) from error
        model: Any = onnx.load(str(quantized))
    name_after_position(model)
    drop_unused_domains(model)
    onnx.save(model, str(out_path))


def _quantizable(graph: OnnxGraph) -> list[str]:
    linear = {node.name for node in onnx_qdq.linear_nodes(graph)}
    return [node.name for node in graph.nodes if node.name in linear or node.op_type in onnx_qdq.ELEMENTWISE]


def _check_scheme(scheme: str) -> None:
    if scheme not in SCHEMES:
        raise InputError(f"ONNX Runtime has no int8 scheme {scheme!r}. Choose one of {', '.join(SCHEMES)}.")


def _check_ranges(ranges: Mapping[str, tuple[float, float]], path: Path) -> None:
    for name, (low, high) in ranges.items():
        if not (np.isfinite(low) and np.isfinite(high) and low <= high):
            raise InputError(
                f"The range of {name} in {path.name} is {low} to {high}; expected two finite numbers in order. "
                f"Look for what makes the network overflow."
            )


def _is_float(graph: OnnxGraph, name: str) -> bool:
    import onnx

    return bool(graph.types.get(name) == onnx.TensorProto.FLOAT)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
