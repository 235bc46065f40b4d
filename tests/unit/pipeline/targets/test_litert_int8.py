"""int8 `.tflite` files from given ranges, of a small network with everything that a mobile network has."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import UnsupportedModelError
from pipeline.targets import inspect_model, litert_int8
from pipeline.targets.litert_graph import RELU6, Graph
from pipeline.targets.litert_weights import read_weights, write_weights
from tests.delegation import placement

SIDE = 8
COUNT = 6
Range = tuple[float, float]


def network(builder: Any, *, offset: Any = -1.0) -> bytes:
    """An image, a stem with hard-swish, a gate with a hard sigmoid, a concatenation, a pooling, a dense layer."""
    rng, made = np.random.default_rng(0), builder()

    def kernel(outputs: int, side: int, inputs: int) -> Any:
        return rng.normal(0, np.sqrt(2 / (side * side * inputs)), (outputs, side, side, inputs))

    image = made.tensor("image", (1, SIDE, SIDE, 3), "uint8")
    x = made.operation("CAST", [image], "floats", (1, SIDE, SIDE, 3))
    x = made.operation("MUL", [x, made.constant("scale", np.float32(1 / 127.5))], "product", (1, SIDE, SIDE, 3))
    x = made.operation("ADD", [x, made.constant("offset", np.float32(offset))], "scaled", (1, SIDE, SIDE, 3))
    x = made.convolution(x, 2 * kernel(4, 3, 3), rng.normal(1, 1, 4), "stem")
    x = made.operation("HARD_SWISH", [x], "swish", (1, SIDE, SIDE, 4))
    axes = made.constant("axes", np.array([1, 2], np.int32))
    gate = made.operation("MEAN", [x, axes], "squeeze", (1, 1, 1, 4), keepDims=True)
    gate = made.convolution(gate, kernel(4, 1, 4), rng.normal(3, 1, 4), "expand", activation=RELU6)
    gate = made.operation("MUL", [gate, made.constant("sixth", np.float32(1 / 6))], "gate", (1, 1, 1, 4))
    x = made.operation("MUL", [x, gate], "gated", (1, SIDE, SIDE, 4))
    y = made.convolution(x, kernel(4, 3, 4), rng.normal(0, 1, 4), "branch", activation=RELU6)
    x = made.operation("CONCATENATION", [x, y], "both", (1, SIDE, SIDE, 8), axis=3)
    sizes = {"strideH": 2, "strideW": 2, "filterHeight": 2, "filterWidth": 2}
    x = made.operation("MAX_POOL_2D", [x], "pooled", (1, SIDE // 2, SIDE // 2, 8), **sizes)
    flat = SIDE * SIDE * 2
    x = made.operation("RESHAPE", [x, made.constant("shape", np.array([1, flat], np.int32))], "flat", (1, flat))
    weights = made.constant("dense/kernel", np.float32(rng.normal(0, np.sqrt(2 / flat), (5, flat))))
    bias = made.constant("dense/bias", np.float32(rng.normal(0, 1, 5)))
    x = made.operation("FULLY_CONNECTED", [x, weights, bias], "logits", (1, 5))
    return bytes(made.content([image], [x]))


SAMPLES = [
    {"in0": image[None]} for image in np.random.default_rng(1).integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8)
]


@dataclasses.dataclass(frozen=True)
class Lowered:
    """The network as a scheme wants it, and the ranges that the samples give."""

    path: Path
    ranges: Mapping[str, Range]

    def quantize(self, out_path: Path, float_layers: tuple[str, ...] = (), **options: Any) -> Path:
        scheme = self.path.stem
        litert_int8.quantize(self.path, scheme, {**self.ranges}, float_layers, out_path, **options)
        return out_path


def lowered(directory: Path, content: bytes, scheme: str) -> Lowered:
    source, path = directory / "float.tflite", directory / f"{scheme}.tflite"
    source.write_bytes(content)
    litert_int8.lower(source, scheme, path)
    names = litert_int8.observed(path)
    rows = list(litert_int8.activations(path, SAMPLES, names))
    ranges = {name: (min(row[name].min() for row in rows), max(row[name].max() for row in rows)) for name in names}
    return Lowered(path, {name: (float(low), float(high)) for name, (low, high) in ranges.items()})


@pytest.fixture(scope="module")
def delegated(tmp_path_factory: pytest.TempPathFactory, tflite_builder: Any) -> Lowered:
    return lowered(tmp_path_factory.mktemp("delegated"), network(tflite_builder), "delegated")


@pytest.fixture(scope="module")
def by_converter(tmp_path_factory: pytest.TempPathFactory, tflite_builder: Any) -> Lowered:
    return lowered(tmp_path_factory.mktemp("converter"), network(tflite_builder), "converter")


def logits(path: Path) -> Any:
    [name] = [Graph.read(path).name(index) for index in Graph.read(path).outputs]
    return np.concatenate([row[name] for row in litert_int8.activations(path, SAMPLES, [name])])


def quantized(graph: Graph, name: str) -> tuple[float, int]:
    found = graph.quantization(graph.index(name))
    assert found is not None
    [scale], [zero] = found
    return float(scale), int(zero)


def layer(graph: Graph, name: str) -> Any:
    return graph.producer(graph.index(name))


def test_lowered_is_the_same_function(delegated: Lowered, by_converter: Lowered) -> None:
    expected, found = logits(by_converter.path), logits(delegated.path)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.ptp(expected))
    kinds = Counter(Graph.read(delegated.path).code(operator) for operator in Graph.read(delegated.path).operators)
    assert kinds["HARD_SWISH"] == 0
    assert kinds["MINIMUM"] == 2


def test_names(delegated: Lowered, by_converter: Lowered) -> None:
    layers = ("stem", "expand", "branch", "logits")
    assert litert_int8.linear_layers(delegated.path) == litert_int8.linear_layers(by_converter.path) == layers
    rest = ("gated", "branch", "both", "pooled", "flat", "logits")
    assert litert_int8.observed(delegated.path) == ("stem", "swish/gate", "swish", "squeeze", "expand", *rest)
    before = ("floats", "product", "scaled", "stem", "swish", "squeeze", "expand", "gate")
    assert litert_int8.observed(by_converter.path) == (*before, *rest)


def test_all_of_it_is_delegated(delegated: Lowered, by_converter: Lowered, tmp_path: Path) -> None:
    path = delegated.quantize(tmp_path / "int8.tflite")
    assert placement(path) == (1, [])
    pieces, left = placement(by_converter.quantize(tmp_path / "converter.tflite"))
    assert (pieces > 1, left) == (True, ["CAST", "HARD_SWISH"])
    graph = inspect_model(path)
    assert (graph.precision, graph.float_operations) == ("int8", ())
    assert [(tensor.name, tensor.dtype) for tensor in graph.inputs] == [("in0", "uint8")]
    assert [(tensor.name, tensor.dtype) for tensor in graph.outputs] == [("out0", "float32")]
    assert set(graph.operations) & {"CAST", "MINIMUM", "HARD_SWISH"} == set()
    expected = logits(delegated.path)
    assert np.abs(logits(path) - expected).max() < 0.05 * np.ptp(expected)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_given_ranges_are_in_the_file(data: st.DataObject, delegated: Lowered, tmp_path: Path) -> None:
    name = data.draw(st.sampled_from(["stem", "swish", "squeeze", "gated", "logits"]), label="tensor")
    low = data.draw(st.floats(-20, 0), label="low")
    high = data.draw(st.floats(0.1, 20), label="high")
    changed = Lowered(delegated.path, {**delegated.ranges, name: (low, high)})
    graph = Graph.read(changed.quantize(tmp_path / "int8.tflite"))
    scale, zero = quantized(graph, name)
    assert scale == pytest.approx((high - low) / 255, rel=1e-5)
    assert (-128 - zero) * scale == pytest.approx(low, abs=0.51 * scale)


def test_clamps_become_ranges(delegated: Lowered, tmp_path: Path) -> None:
    wide = Lowered(delegated.path, {**delegated.ranges, "expand": (-3.0, 50.0), "swish/gate": (0.0, 50.0)})
    graph = Graph.read(wide.quantize(tmp_path / "int8.tflite"))
    assert quantized(graph, "expand") == (pytest.approx(1 / 255), -128)
    assert quantized(graph, "swish/gate") == (pytest.approx(6**0.5 / 255), -128)
    narrow = Lowered(delegated.path, {**delegated.ranges, "expand": (0.0, 0.5)})
    assert quantized(Graph.read(narrow.quantize(tmp_path / "int8.tflite")), "expand")[0] == pytest.approx(0.5 / 255)


def test_each_pixel_value_has_a_step(delegated: Lowered, tmp_path: Path) -> None:
    graph = Graph.read(delegated.quantize(tmp_path / "int8.tflite"))
    stem = layer(graph, "stem")
    found = graph.quantization(stem.inputs[0])
    assert found is not None
    assert float(found[0][0]) == 1.0
    fed = graph.quantization(graph.inputs[0])
    assert fed is not None
    assert (float(fed[0][0]), int(fed[1][0])) == (1.0, int(found[1][0]) + 128)


def test_zeros_of_each_channel(tflite_builder: Any, tmp_path: Path) -> None:
    content = network(tflite_builder, offset=(-0.9, -1.0, -1.1))
    both = {scheme: lowered(tmp_path, content, scheme) for scheme in ("converter", "delegated")}
    expected = logits(both["converter"].path)
    np.testing.assert_allclose(logits(both["delegated"].path), expected, atol=1e-5 * np.ptp(expected))
    path = both["delegated"].quantize(tmp_path / "int8.tflite")
    assert placement(path) == (1, [])
    assert "CAST" not in inspect_model(path).operations
    assert quantized(Graph.read(path), "scaled_quantized")[0] == pytest.approx((255 + 0.2 * 127.5) / 255)
    assert np.abs(logits(path) - expected).max() < 0.05 * np.ptp(expected)


def test_one_range_where_tflite_wants_one(delegated: Lowered, tmp_path: Path) -> None:
    graph = Graph.read(delegated.quantize(tmp_path / "int8.tflite"))
    joined = layer(graph, "both")
    takes = [graph.quantization(index) for index in joined.inputs]
    same = [quantized(graph, name) for name in ("both", "pooled", "flat")]
    assert len(set(same)) == 1
    assert {(float(found[0][0]), int(found[1][0])) for found in takes if found is not None} == {same[0]}


def test_scales_of_weights_and_biases(delegated: Lowered, tmp_path: Path) -> None:
    graph, held = Graph.read(delegated.quantize(tmp_path / "int8.tflite")), read_weights(delegated.path)
    for name in ("expand", "branch"):
        source, kernel, bias = (graph.quantization(index) for index in layer(graph, name).inputs)
        assert source is not None
        assert kernel is not None
        assert bias is not None
        largest = np.abs(held[name].kernel).max((1, 2, 3))
        np.testing.assert_allclose(kernel[0], largest / 127, rtol=1e-5)
        np.testing.assert_allclose(bias[0], source[0] * kernel[0], rtol=1e-5)
        stored = graph.constant(layer(graph, name).inputs[2])
        np.testing.assert_allclose(stored * bias[0], held[name].bias, atol=bias[0].max())


@dataclasses.dataclass(frozen=True)
class FloatCase:
    """Layers that stay float, and what else is then in the file."""

    id: str
    layers: tuple[str, ...]
    holds: str = ""


FLOAT_CASES = [
    FloatCase("first", ("stem",)),
    FloatCase("clamped", ("expand",), "MINIMUM"),
    FloatCase("last", ("logits",)),
    FloatCase("two", ("branch", "logits")),
    FloatCase("no-layer", ("swish/gate",), "MINIMUM"),
]


@pytest.mark.parametrize("case", FLOAT_CASES, ids=lambda case: case.id)
def test_float_layers_stay_float(case: FloatCase, delegated: Lowered, tmp_path: Path) -> None:
    path = delegated.quantize(tmp_path / "mixed.tflite", case.layers)
    found = inspect_model(path)
    linear = {name for name in case.layers if name in litert_int8.linear_layers(path)}
    assert {name.removesuffix("/unclamped") for name in found.float_operations} == linear
    assert found.precision == ("mixed" if linear else "int8")
    assert not case.holds or case.holds in found.operations
    expected = logits(delegated.path)
    assert np.abs(logits(path) - expected).max() < 0.05 * np.ptp(expected)


def test_all_layers_in_float_is_nearly_exact(delegated: Lowered, tmp_path: Path) -> None:
    names = (*litert_int8.observed(delegated.path), "scaled")
    expected = logits(delegated.path)
    found = logits(delegated.quantize(tmp_path / "float.tflite", names))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.ptp(expected))


def test_same_bytes_twice(delegated: Lowered, tmp_path: Path) -> None:
    twice = [delegated.quantize(tmp_path / f"{count}.tflite", ("branch",)).read_bytes() for count in range(2)]
    assert twice[0] == twice[1]
    assert delegated.quantize(tmp_path / "reduced.tflite", ("branch",), reduce_range=True).read_bytes() == twice[0]


def test_int16x8(delegated: Lowered, tmp_path: Path) -> None:
    path = delegated.quantize(tmp_path / "wide.tflite", precision="int16x8")
    assert inspect_model(path).precision == "int16x8"
    expected = logits(delegated.path)
    assert np.abs(logits(path) - expected).max() < 0.02 * np.ptp(expected)


@pytest.mark.parametrize("precision", ["int8_dynamic", "int8_weights"])
def test_weights_alone(precision: Any, by_converter: Lowered, tmp_path: Path) -> None:
    path = tmp_path / "weights.tflite"
    litert_int8.quantize_weights(by_converter.path, precision, path)
    assert inspect_model(path).precision == precision
    expected = logits(by_converter.path)
    assert 0 < np.abs(logits(path) - expected).max() < 0.05 * np.ptp(expected)


def test_activations_of_integers_are_expanded(delegated: Lowered, tmp_path: Path) -> None:
    path = delegated.quantize(tmp_path / "int8.tflite")
    names = ["stem", "swish", "gated"]
    scales = {name: quantized(Graph.read(path), name)[0] for name in names}
    floats, integers = (list(litert_int8.activations(file, SAMPLES, names)) for file in (delegated.path, path))
    assert len(floats) == COUNT
    for row, other in zip(floats, integers, strict=True):
        for name in names:
            assert row[name].shape == (1, SIDE, SIDE, 4)
            assert np.abs(row[name] - other[name]).max() < 4 * scales[name]
            assert np.abs(row[name] - other[name]).max() > 0


@dataclasses.dataclass(frozen=True)
class Wrong:
    """An argument that is refused, and what the message names."""

    id: str
    message: str
    ranges: Mapping[str, Range] = dataclasses.field(default_factory=dict)
    without: str = ""
    float_layers: tuple[str, ...] = ()
    scheme: str = "delegated"


WRONG = [
    Wrong("no-range", "1 tensors of delegated.tflite have no range, the first is gated", without="gated"),
    Wrong("turned", "the range of gated is", ranges={"gated": (1.0, -1.0)}),
    Wrong("endless", "the range of stem is", ranges={"stem": (0.0, float("inf"))}),
    Wrong("no-number", "the range of stem is", ranges={"stem": (float("nan"), 1.0)}),
    Wrong("no-layer", "no operation that gives nowhere", float_layers=("nowhere",)),
    Wrong("no-scheme", "no scheme 'fast' for LiteRT; there are delegated, float_attention, converter", scheme="fast"),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.id)
def test_refused(case: Wrong, delegated: Lowered, tmp_path: Path) -> None:
    ranges = {name: ends for name, ends in {**delegated.ranges, **case.ranges}.items() if name != case.without}
    with pytest.raises(ValueError, match=case.message):
        litert_int8.quantize(delegated.path, case.scheme, ranges, case.float_layers, tmp_path / "int8.tflite")


def test_the_tool_refuses(tflite_builder: Any, tmp_path: Path) -> None:
    made = tflite_builder()
    image = made.tensor("same", (1, 2))
    result = made.operation("LOGISTIC", [made.operation("LOGISTIC", [image], "name", (1, 2))], "name", (1, 2))
    (tmp_path / "float.tflite").write_bytes(made.content([image], [result]))
    with pytest.raises(UnsupportedModelError, match=r"ai-edge-quantizer can.t quantize the model: .*not unique"):
        litert_int8.quantize_weights(tmp_path / "float.tflite", "int8_weights", tmp_path / "out.tflite")


def test_weights_are_read_and_written(delegated: Lowered, tmp_path: Path) -> None:
    held = read_weights(delegated.path)
    assert {name: (each.kind, each.source, each.output_axis) for name, each in held.items()} == {
        "stem": ("CONV_2D", "scaled", 0),
        "expand": ("CONV_2D", "squeeze", 0),
        "branch": ("CONV_2D", "gated", 0),
        "logits": ("FULLY_CONNECTED", "flat", 0),
    }
    last = held["logits"]
    assert last.bias is not None
    changed = dataclasses.replace(last, kernel=2 * last.kernel, bias=2 * last.bias)
    write_weights(delegated.path, {"logits": changed}, tmp_path / "changed.tflite")
    np.testing.assert_allclose(logits(tmp_path / "changed.tflite"), 2 * logits(delegated.path), rtol=1e-5)
    again = read_weights(tmp_path / "changed.tflite")
    np.testing.assert_array_equal(again["stem"].kernel, held["stem"].kernel)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("nowhere", {}, "no kernel for nowhere"),
        ("logits", {"kernel": np.zeros((2, 2), np.float32)}, r"a kernel of the shape \(5, 128\), and \(2, 2\)"),
        ("logits", {"bias": np.zeros(3, np.float32)}, r"a bias of the shape \(5,\), and \(3,\)"),
    ],
    ids=["name", "kernel", "bias"],
)
def test_wrong_weights(name: str, change: Any, message: str, delegated: Lowered, tmp_path: Path) -> None:
    weights = dataclasses.replace(read_weights(delegated.path)["logits"], **change)
    with pytest.raises(ValueError, match=message):
        write_weights(delegated.path, {name: weights}, tmp_path / "changed.tflite")
