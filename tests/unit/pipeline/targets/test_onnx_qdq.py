"""Quantize-dequantize pairs in small graphs: where they are, which numbers they hold, what ONNX Runtime runs."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.targets import inspect_model, onnxruntime_int8
from pipeline.targets.onnx_graph import OnnxGraph
from pipeline.targets.onnx_qdq import activation_parameters, activation_values

sys.path.insert(0, str(Path(__file__).parent))

import onnx_small as small

BLOCK = (
    "(float[1,16,8,8] x) => (float[1,4] logits) { a = Conv(x, u, b) r = Relu(a) c = Conv(r, v, b) s = Add(x, c)"
    " p = GlobalAveragePool(s) q = Flatten(p) logits = Gemm(q, w, d) }"
)

WEIGHTS: dict[str, Any] = {"u": (16, 16, 1, 1), "v": (16, 16, 1, 1), "b": (16,), "w": (16, 4), "d": (4,)}
LAYERS = ("Conv0", "Conv2", "Gemm6")


def write(tmp_path: Path, text: str = BLOCK, **constants: Any) -> Path:
    import onnx

    path = tmp_path / "float.onnx"
    onnx.save(small.model(text, **(constants or WEIGHTS)), str(path))
    return path


def samples(shape: tuple[int, ...] = (1, 16, 8, 8), count: int = 8) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [{"x": rng.normal(0, 1, shape).astype(np.float32)} for _ in range(count)]


def ranges(path: Path, shape: tuple[int, ...] = (1, 16, 8, 8)) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for values in onnxruntime_int8.activations(path, samples(shape), onnxruntime_int8.observed(path)):
        for name, array in values.items():
            low, high = found.get(name, (0.0, 0.0))
            found[name] = (min(low, float(array.min())), max(high, float(array.max())))
    return found


def stored_ranges(path: Path) -> list[tuple[float, float]]:
    """What the QuantizeLinear nodes of a file can represent, in order."""
    import onnx

    graph = OnnxGraph(onnx.load(str(path)))
    found = []
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            scale, zero = (float(graph.constants[name]) for name in node.input[1:])
            found.append((-zero * scale, (255 - zero) * scale))
    return found


def quantized(tmp_path: Path, path: Path, *, scheme: str = "uint8", float_layers: Any = (), **options: Any) -> Path:
    out = tmp_path / "int8.onnx"
    shape = tuple(OnnxGraph(onnx_load(path)).shapes["x"])
    onnxruntime_int8.quantize(path, scheme, ranges(path, shape), float_layers, out, **options)
    return out


def onnx_load(path: Path) -> Any:
    import onnx

    return onnx.load(str(path))


def noise_db(path: Path, out: Path) -> float:
    """Signal to noise of the quantized results."""
    pairs = [(small.run(onnx_load(path), sample["x"]), small.run(onnx_load(out), sample["x"])) for sample in samples()]
    expected, found = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return float(10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum()))


def test_what_takes_a_range(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert onnxruntime_int8.linear_layers(path) == LAYERS
    # Not `a`, which a rectifier alone takes, nor `q`, which moves `p`.
    assert onnxruntime_int8.observed(path) == ("x", "r", "c", "s", "p", "logits")


def test_activations_are_those_of_the_graph(tmp_path: Path) -> None:
    path = write(tmp_path)
    (sample, *_), (values, *_) = samples(), onnxruntime_int8.activations(path, samples(), ["r", "x", "logits"])
    weights = OnnxGraph(onnx_load(path)).constants
    rectified = np.einsum("oi,nihw->nohw", weights["u"][:, :, 0, 0], sample["x"]) + weights["b"][:, None, None]
    np.testing.assert_allclose(values["r"], np.maximum(rectified, 0), atol=1e-5)
    np.testing.assert_array_equal(values["x"], sample["x"])
    assert values.keys() == {"r", "x", "logits"}


def test_all_layers_run_on_integers(tmp_path: Path) -> None:
    path = write(tmp_path)
    out = quantized(tmp_path, path)
    counts = small.optimized(out, tmp_path)
    assert (counts["QLinearConv"], counts["QLinearAdd"], counts["QLinearGlobalAveragePool"], counts["QGemm"]) == (
        2,
        1,
        1,
        1,
    )
    assert counts["Conv"] == counts["Relu"] == counts["Gemm"] == counts["DequantizeLinear"] == 0
    assert noise_db(path, out) > 30


def test_the_ranges_given_are_in_the_file(tmp_path: Path) -> None:
    path, out = write(tmp_path), tmp_path / "int8.onnx"
    given_ranges = {"x": (-4.0, 6.2), "r": (0.0, 5.1), "c": (-3.0, 2.1), "s": (-5.0, 5.2), "p": (-1.0, 1.55)}
    onnxruntime_int8.quantize(path, "uint8", given_ranges, (), out)
    expected = [*given_ranges.values(), given_ranges["p"]]  # the last moved by Flatten
    found = stored_ranges(out)
    assert len(found) == len(expected)
    for (low, high), (given_low, given_high) in zip(sorted(found), sorted(expected), strict=True):
        step = (given_high - given_low) / 255
        assert high - low == pytest.approx(given_high - given_low, rel=1e-6)
        assert abs(low - given_low) <= step / 2 + 1e-6


def test_a_float_layer_stays_float_when_it_runs(tmp_path: Path) -> None:
    path = write(tmp_path)
    out = quantized(tmp_path, path, float_layers=("Conv0",))
    counts = small.optimized(out, tmp_path)
    assert (counts["Conv"], counts["QLinearConv"]) == (1, 1)
    held = OnnxGraph(onnx_load(out))
    assert [held.constants[node.input[1]].dtype for node in held.nodes if node.name == "Conv0"] == [np.float32]


def test_without_integer_layers_nothing_is_stored(tmp_path: Path) -> None:
    path = write(tmp_path)
    counts = Counter(node.op_type for node in onnx_load(quantized(tmp_path, path, float_layers=LAYERS)).graph.node)
    assert counts["QuantizeLinear"] == counts["DequantizeLinear"] == 0


@pytest.mark.parametrize(("reduce_range", "levels"), [(False, 127), (True, 64)])
def test_weights_are_symmetric_for_each_channel(tmp_path: Path, reduce_range: bool, levels: int) -> None:
    path = write(tmp_path)
    held = OnnxGraph(onnx_load(quantized(tmp_path, path, reduce_range=reduce_range)))
    weights = OnnxGraph(onnx_load(path)).constants
    for layer, original, axis in (("Conv0", weights["u"], 0), ("Gemm6", weights["w"], 1)):
        (node,) = [node for node in held.nodes if node.name == layer]
        stored, scale, zero = (held.constants[name] for name in held.makers()[node.input[1]].input)
        others = tuple(at for at in range(original.ndim) if at != axis)
        assert stored.dtype == np.int8
        assert not zero.any()
        assert (np.abs(stored).max(axis=others) == levels).all()
        shape = tuple(-1 if at == axis else 1 for at in range(original.ndim))
        assert (np.abs(stored * scale.reshape(shape) - original) <= scale.reshape(shape) * 0.501).all()


def test_a_rectifier_outside_the_range_is_clipped_to_its_limits(tmp_path: Path) -> None:
    text = "(float[1,16,4,4] x) => (float[1,16,4,4] y) { a = Conv(x, u, b) r = Clip(a, zero, six) y = Conv(r, v) }"
    path, out = (
        write(tmp_path, text, **(WEIGHTS | {"zero": np.float32(0), "six": np.float32(6)})),
        tmp_path / "int8.onnx",
    )
    onnxruntime_int8.quantize(path, "uint8", {"x": (-1, 1), "r": (-2.0, 9.0), "y": (-1, 1)}, (), out)
    assert any((low, high) == (0, pytest.approx(6)) for low, high in stored_ranges(out))
    assert not any(node.op_type == "Clip" for node in onnx_load(out).graph.node)


def test_a_bias_that_is_large_for_its_weights_fits(tmp_path: Path) -> None:
    text = "(float[1,16,4,4] x) => (float[1,16,4,4] y) { y = Conv(x, u, b) }"
    constants = {"u": np.full((16, 16, 1, 1), 1e-9, np.float32), "b": np.linspace(-1, 1, 16, dtype=np.float32)}
    path, out = write(tmp_path, text, **constants), tmp_path / "int8.onnx"
    onnxruntime_int8.quantize(path, "uint8", {"x": (-1, 1), "y": (-1, 1)}, (), out)
    found = small.run(onnx_load(out), np.zeros((1, 16, 4, 4), np.float32))[0, :, 0, 0]
    np.testing.assert_allclose(found, constants["b"], atol=0.005)


SWISH = (
    "(float[1,16,8,8] x) => (float[1,16,8,8] y) { a = Conv(x, u, b) g = Sigmoid(a) s = Mul(a, g) c = Conv(s, v, b)"
    " y = Relu(c) }"
)


@pytest.mark.parametrize(
    ("scheme", "expected"), [("uint8", {"QuickGelu": 1}), ("uint8_swish", {"QLinearSigmoid": 1, "QLinearMul": 1})]
)
def test_swish(tmp_path: Path, scheme: str, expected: dict[str, int]) -> None:
    path = write(tmp_path, SWISH, **WEIGHTS)
    out = quantized(tmp_path, path, scheme=scheme)
    counts = small.optimized(out, tmp_path)
    kinds = ("QuickGelu", "QLinearSigmoid", "QLinearMul", "Sigmoid", "Mul", "Conv")
    assert {kind: counts[kind] for kind in kinds if counts[kind]} == expected
    assert noise_db(path, out) > 30


def test_names_of_layers_are_kept_and_bytes_repeat(tmp_path: Path) -> None:
    path = write(tmp_path, SWISH, **WEIGHTS)
    first = quantized(tmp_path, path).read_bytes()
    out = quantized(tmp_path, path)
    assert out.read_bytes() == first
    assert {node.name for node in onnx_load(path).graph.node if node.op_type == "Conv"} == {
        node.name for node in onnx_load(out).graph.node if node.op_type == "Conv"
    }


def test_the_converters_scheme_is_what_quantize_static_does(tmp_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._samples = iter(samples())

        def get_next(self) -> Any:
            return next(self._samples, None)

    path, by_hand = write(tmp_path), tmp_path / "by_hand.onnx"
    quantize_static(str(path), str(by_hand), Reader())
    out = quantized(tmp_path, path, scheme="converter")
    for sample in samples():
        np.testing.assert_array_equal(
            small.run(onnx_load(out), sample["x"]), small.run(onnx_load(by_hand), sample["x"])
        )
    assert Counter(node.op_type for node in onnx_load(out).graph.node) == Counter(
        node.op_type for node in onnx_load(by_hand).graph.node
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheme": "uint9"}, "no int8 scheme 'uint9'.*uint8"),
        ({"float_layers": ["Conv9"]}, "no layer 'Conv9'"),
        ({"ranges": {"x": (-1.0, 1.0)}}, "No range is given for 'r'"),
        ({"ranges": {"x": (-1.0, float("inf"))}}, "range of x .* finite"),
        ({"ranges": {"x": (1.0, -1.0)}}, "range of x .* in order"),
    ],
    ids=["scheme", "layer", "missing", "infinite", "reversed"],
)
def test_what_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path)
    arguments = {"scheme": "uint8", "ranges": {}, "float_layers": (), "out_path": tmp_path / "int8.onnx"} | change
    with pytest.raises(InputError, match=message):
        onnxruntime_int8.quantize(path, **arguments)


def test_unknown_activations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no value 'nothing'"):
        next(onnxruntime_int8.activations(write(tmp_path), samples(), ["nothing"]))


def test_integers_that_are_added_are_no_activations(tmp_path: Path) -> None:
    graph = small.graph(
        "(float[1,4] x) => (float[1,4] y) { s = Shape(x) t = Add(s, zero) y = Reshape(x, t) }", zero=np.int64([0, 0])
    )
    assert activation_values(graph) == ["x"]


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_activation_parameters(first: float, second: float) -> None:
    low, high = sorted((first, second))
    stored = activation_parameters(low, high)
    low, high = min(low, 0.0), max(high, 0.0)
    scale, zero = float(stored.scale), int(stored.zero_point)
    assert scale > 0
    assert 0 <= zero <= 255
    if high - low > 1e-30:
        assert -zero * scale == pytest.approx(low, abs=scale * 0.501)
        assert (255 - zero) * scale == pytest.approx(high, abs=scale * 0.502)


def test_a_float_layer_between_integers_stays_float(tmp_path: Path) -> None:
    """ONNX Runtime quantizes float weights between two pairs by itself, if the graph does not keep it from that."""
    text = (
        "(float[1,16,8,8] x) => (float[1,16,8,8] y) { a = Conv(x, u, b) r = Relu(a) c = Conv(r, v, e) s = Relu(c)"
        " y = Conv(s, w, d) }"
    )
    shapes = {"u": (16, 16, 1, 1), "v": (16, 16, 1, 1), "w": (16, 16, 1, 1), "b": (16,), "e": (16,), "d": (16,)}
    out = quantized(tmp_path, write(tmp_path, text, **shapes), float_layers=("Conv2",))
    summary = inspect_model(out)
    assert (summary.precision, summary.float_operations) == ("mixed", ("Conv2",))
    counts = small.optimized(out, tmp_path)
    assert (counts["Conv"], counts["QLinearConv"]) == (1, 2)


def test_models_with_branches_go_through_quantize_static(tmp_path: Path) -> None:
    text = (
        "(float[1,16,8,8] x) => (float[1,16,8,8] y) { a = Conv(x, u, b) m = ReduceMax <keepdims=0> (a)"
        " t = Greater(m, zero) y = If (t) <then_branch = p () => (float[1,16,8,8] r) { r = Relu(a) },"
        " else_branch = n () => (float[1,16,8,8] q) { q = Neg(a) }> }"
    )
    path = write(tmp_path, text, **(WEIGHTS | {"zero": np.float32(0)}))
    lowered = tmp_path / "lowered.onnx"
    onnxruntime_int8.lower(path, "uint8", lowered)
    assert lowered.read_bytes() == path.read_bytes()
    out = quantized(tmp_path, lowered)
    assert inspect_model(out).precision == "int8"
    assert noise_db(path, out) > 30
