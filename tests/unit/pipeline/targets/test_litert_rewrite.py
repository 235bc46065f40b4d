"""Changes of float `.tflite` graphs, on small ones built here and run by the interpreter."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ModelFileError
from pipeline.targets.litert_graph import NO_ACTIVATION, RELU, RELU6, Graph
from pipeline.targets.litert_rewrite import (
    UNCLAMPED,
    center_image,
    drop_clamps,
    feed_centered,
    find_centering,
    lower_activations,
)

SIDE, CHANNELS = 5, 3
Builder = Any


def run(content: bytes, *arrays: Any) -> list[Any]:
    """What a file gives, without delegates: what it computes, not how."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    interpreter.allocate_tensors()
    for detail, array in zip(interpreter.get_input_details(), arrays, strict=True):
        interpreter.set_tensor(detail["index"], array)
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def kernel(rng: np.random.Generator, outputs: int, side: int = 1, inputs: int = CHANNELS) -> Any:
    return rng.normal(0, np.sqrt(2 / (side * side * inputs)), (outputs, side, side, inputs)).astype(np.float32)


def codes(graph: Graph) -> dict[str, int]:
    return dict(Counter(graph.code(operator) for operator in graph.operators))


@dataclass(frozen=True)
class SwishCase:
    """Where a hard-swish stands, and what it becomes.

    Attributes:
        id: Of the test.
        added: The operations beside the two convolutions.
        is_shared: Whether something else takes its input, too.
        activation: Of the convolution before it.
        is_output: Whether its input is a result of the graph.
        follows_input: Whether no convolution comes before it.
    """

    id: str
    added: dict[str, int]
    is_shared: bool = False
    activation: int = NO_ACTIVATION
    is_output: bool = False
    follows_input: bool = False

    def build(self, builder: Builder, rng: np.random.Generator) -> bytes:
        made = builder()
        image = made.tensor("image", (1, SIDE, SIDE, CHANNELS))
        x = image
        if not self.follows_input:
            bias = rng.normal(0, 1, 4)
            x = made.convolution(image, 3 * kernel(rng, 4, 3), bias, "first", activation=self.activation)
        shape = (1, SIDE, SIDE, CHANNELS if self.follows_input else 4)
        y = made.operation("HARD_SWISH", [x], "swish", shape)
        if self.is_shared:
            y = made.operation("MUL", [x, y], "product", shape)
        result = made.convolution(y, kernel(rng, 2, 3, shape[-1]), rng.normal(0, 1, 2), "last")
        return bytes(made.content([image], [result, x] if self.is_output else [result]))


SWISHES = [
    SwishCase("after-convolution", {"ADD": 1, "MINIMUM": 1, "MUL": 1}),
    SwishCase("shared", {"ADD": 1, "MUL": 3}, is_shared=True),
    SwishCase("after-relu", {"ADD": 1, "MUL": 2}, activation=RELU),
    SwishCase("of-a-result", {"ADD": 1, "MUL": 2}, is_output=True),
    SwishCase("of-an-input", {"ADD": 1, "MUL": 2}, follows_input=True),
]


@pytest.mark.parametrize("case", SWISHES, ids=lambda case: case.id)
def test_hard_swish_becomes(case: SwishCase, tflite_builder: Builder) -> None:
    rng = np.random.default_rng(0)
    before = case.build(tflite_builder, rng)
    graph = Graph(before)
    lower_activations(graph)
    after = graph.content()
    convolutions = 1 if case.follows_input else 2
    assert codes(Graph(after)) == {"CONV_2D": convolutions, **case.added}
    image = rng.normal(0, 3, (1, SIDE, SIDE, CHANNELS)).astype(np.float32)
    for expected, found in zip(run(before, image), run(after, image), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.ptp(expected))


def test_names_survive(tflite_builder: Builder) -> None:
    graph = Graph(SWISHES[0].build(tflite_builder, np.random.default_rng(0)))
    lower_activations(graph)
    names = {graph.code(operator): graph.name(operator.outputs[0]) for operator in graph.operators}
    assert names == {"CONV_2D": "last", "ADD": "swish/gate" + UNCLAMPED, "MINIMUM": "swish/gate", "MUL": "swish"}


def hard_sigmoid(builder: Builder, rng: np.random.Generator, activation: int, factor: Any) -> bytes:
    made = builder()
    image = made.tensor("image", (1, SIDE, SIDE, CHANNELS))
    x = made.convolution(image, 4 * kernel(rng, 2), rng.normal(3, 1, 2), "expand", activation=activation)
    y = made.operation("MUL", [x, made.constant("factor", factor)], "gate", (1, SIDE, SIDE, 2))
    result = made.convolution(y, kernel(rng, 2, 1, 2), None, "last")
    return bytes(made.content([image], [result]))


@dataclass(frozen=True)
class FactorCase:
    """A product with a constant, and the operations that are left beside two convolutions."""

    id: str
    activation: int
    factor: Any
    left: dict[str, int]


FACTORS = [
    FactorCase("relu6", RELU6, np.float32(1 / 6), {"MINIMUM": 1}),
    FactorCase("relu", RELU, np.float32(0.3), {}),
    FactorCase("none", NO_ACTIVATION, np.float32(0.3), {}),
    FactorCase("of-one-element", RELU6, np.array([0.25], np.float32), {"MINIMUM": 1}),
    FactorCase("negative", RELU6, np.float32(-1), {"MUL": 1}),
    FactorCase("by-channel", RELU6, np.array([1, 2], np.float32), {"MUL": 1}),
    FactorCase("tanh", 4, np.float32(0.5), {"MUL": 1}),
]


@pytest.mark.parametrize("case", FACTORS, ids=lambda case: case.id)
def test_constant_factor(case: FactorCase, tflite_builder: Builder) -> None:
    rng = np.random.default_rng(1)
    before = hard_sigmoid(tflite_builder, rng, case.activation, case.factor)
    graph = Graph(before)
    lower_activations(graph)
    after = graph.content()
    assert codes(Graph(after)) == {"CONV_2D": 2, **case.left}
    image = rng.normal(0, 3, (1, SIDE, SIDE, CHANNELS)).astype(np.float32)
    if case.activation != 4:  # the kernels without a delegate have no fused tanh
        [expected], [found] = run(before, image), run(after, image)
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.ptp(expected))


def test_factor_of_a_result_stays(tflite_builder: Builder) -> None:
    made = tflite_builder()
    image = made.tensor("image", (1, SIDE, SIDE, CHANNELS))
    x = made.convolution(image, kernel(np.random.default_rng(0), 2), None, "first", activation=RELU6)
    result = made.operation("MUL", [x, made.constant("factor", np.float32(1 / 6))], "result", (1, SIDE, SIDE, 2))
    graph = Graph(made.content([image], [result], signature=False))
    lower_activations(graph)
    assert [graph.name(index) for index in graph.outputs] == ["result"]
    assert codes(graph) == {"CONV_2D": 1, "MUL": 1}


@pytest.mark.parametrize("whole", [True, False], ids=["whole-map", "windows"])
def test_average_over_a_map(whole: bool, tflite_builder: Builder) -> None:
    rng, side = np.random.default_rng(0), SIDE if whole else 2
    made, left = tflite_builder(), 1 if whole else 2
    image = made.tensor("image", (1, SIDE, SIDE, CHANNELS))
    sizes = {"strideH": 2, "strideW": 2, "filterHeight": side, "filterWidth": side, "padding": 1}
    result = made.operation("AVERAGE_POOL_2D", [image], "average", (1, left, left, CHANNELS), **sizes)
    before = made.content([image], [result])
    graph = Graph(before)
    lower_activations(graph)
    assert codes(graph) == {"MEAN" if whole else "AVERAGE_POOL_2D": 1}
    values = rng.normal(0, 3, (1, SIDE, SIDE, CHANNELS)).astype(np.float32)
    [expected], [found] = run(before, values), run(graph.content(), values)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.ptp(expected))


def test_dropped_clamps_tell_their_ends(tflite_builder: Builder) -> None:
    rng = np.random.default_rng(1)
    graph = Graph(hard_sigmoid(tflite_builder, rng, RELU6, np.float32(1 / 6)))
    lower_activations(graph)
    lowered = graph.content()
    assert drop_clamps(graph, ()) == {"expand": pytest.approx(1.0)}
    assert codes(graph) == {"CONV_2D": 2}
    assert graph.name(graph.operators[0].outputs[0]) == "expand"
    kept = Graph(lowered)
    assert drop_clamps(kept, {"expand"}) == {}
    assert codes(kept) == {"CONV_2D": 2, "MINIMUM": 1}


def scaled(builder: Builder, rng: np.random.Generator, scale: Any, offset: Any, *, second: str | None = None) -> bytes:
    """An image that is scaled, then taken by a convolution, and perhaps by a second operation."""
    made = builder()
    image = made.tensor("image", (1, SIDE, SIDE, CHANNELS), "uint8")
    shape = (1, SIDE, SIDE, CHANNELS)
    x = made.operation("CAST", [image], "floats", shape)
    x = made.operation("MUL", [x, made.constant("scale", np.float32(scale))], "product", shape)
    x = made.operation("ADD", [x, made.constant("offset", np.float32(offset))], "scaled", shape)
    results = [made.convolution(x, kernel(rng, 4, 3), rng.normal(0, 1, 4), "first")]
    if second == "convolution":
        results += [made.convolution(x, kernel(rng, 2, 3), None, "second")]
    elif second is not None:
        results += [made.operation("LOGISTIC", [x], "second", shape)]
    return bytes(made.content([image], results))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_scaling_of_an_image_is_folded(data: st.DataObject, tflite_builder: Builder) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000), label="seed"))
    scales = data.draw(st.sampled_from([(), (CHANNELS,)]), label="shape of the scale")
    offsets = data.draw(st.sampled_from([(), (CHANNELS,)]), label="shape of the offset")
    second = data.draw(st.sampled_from([None, "convolution"]), label="second")
    scale = rng.uniform(0.004, 0.02, scales)
    offset = -scale.mean() * rng.uniform(60, 190, offsets)
    before = scaled(tflite_builder, rng, scale, offset, second=second)
    graph = Graph(before)
    center_image(graph)
    after = graph.content()
    assert "MUL" not in codes(Graph(after))
    image = rng.integers(0, 256, (1, SIDE, SIDE, CHANNELS), dtype=np.uint8)
    for expected, found in zip(run(before, image), run(after, image), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.ptp(expected))


def test_scaling_that_something_else_takes_stays(tflite_builder: Builder) -> None:
    before = scaled(tflite_builder, np.random.default_rng(0), 1 / 127.5, -1.0, second="LOGISTIC")
    graph = Graph(before)
    center_image(graph)
    assert codes(graph) == codes(Graph(before))
    assert find_centering(graph) is None


def test_centered_image_differs_at_the_edges_only(tflite_builder: Builder) -> None:
    rng = np.random.default_rng(0)
    graph = Graph(scaled(tflite_builder, rng, 1 / 127.5, -1.0))
    center_image(graph)
    centering = find_centering(graph)
    assert centering is not None
    assert centering.zeros == pytest.approx((127.5,))
    assert centering.ends == pytest.approx((-127.5, 127.5))
    assert centering.level in {127, 128}
    before = graph.content()
    graph = Graph(before)
    centering = find_centering(graph)
    assert centering is not None
    feed_centered(graph, centering)
    image = rng.integers(0, 256, (1, SIDE, SIDE, CHANNELS), dtype=np.uint8)
    [expected], [found] = run(before, image), run(graph.content(), image.astype(np.float32) - centering.level)
    inside = (slice(None), slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-5 * np.ptp(expected))
    weights = graph.constant(graph.operators[0].inputs[1])  # of a pixel step each
    assert weights is not None
    assert 0 < np.abs(found - expected).max() < 0.5 * np.abs(weights).sum((1, 2, 3)).max()


def test_shared_kernels_stay_for_the_others(tflite_builder: Builder) -> None:
    rng = np.random.default_rng(0)
    made = tflite_builder()
    image = made.tensor("image", (1, SIDE, SIDE, CHANNELS))
    weights, shape = made.constant("kernel", kernel(rng, CHANNELS)), (1, SIDE, SIDE, CHANNELS)
    bias, steps = made.constant("bias", np.float32([1, 2, 3])), {"strideH": 1, "strideW": 1}
    steps |= {"dilationHFactor": 1, "dilationWFactor": 1}
    first = made.operation("CONV_2D", [image, weights, bias], "first", shape, **steps)
    swish = made.operation("HARD_SWISH", [first], "swish", shape)
    second = made.operation("CONV_2D", [swish, weights, bias], "second", shape, **steps)
    before = made.content([image], [second])
    graph = Graph(before)
    lower_activations(graph)
    values = rng.normal(0, 3, shape).astype(np.float32)
    [expected], [found] = run(before, values), run(graph.content(), values)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.ptp(expected))


def test_what_nothing_uses_is_not_written(tflite_builder: Builder) -> None:
    made = tflite_builder()
    made.constant("left over", np.zeros(100_000, np.float32))
    image = made.tensor("image", (1, 2))
    result = made.operation("LOGISTIC", [image], "result", (1, 2))
    before = made.content([image], [result])
    graph = Graph(before)
    after = graph.content()
    assert len(after) < 5_000 < len(before)
    assert [graph.name(index) for index in (*graph.inputs, *graph.outputs)] == ["image", "result"]
    [entry] = graph.model.signatureDefs[0].outputs
    assert graph.name(entry.tensorIndex) == "result"
    assert Graph(after).content() == after


def test_no_flatbuffer() -> None:
    with pytest.raises(ModelFileError, match="TFL3"):
        Graph(b"not a model at all")


def test_names_are_found(tflite_builder: Builder) -> None:
    graph = Graph(SWISHES[0].build(tflite_builder, np.random.default_rng(0)))
    assert graph.name(graph.index("swish")) == "swish"
    with pytest.raises(KeyError, match="nowhere"):
        graph.index("nowhere")
    with pytest.raises(ValueError, match="another name"):
        graph.add_tensor("swish", (1,), "float32")
