"""Rewrites of small graphs: the pattern goes, the function stays."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.targets.onnx_channels import pad_depthwise_channels
from pipeline.targets.onnx_first_layer import rescale_in_first_layer
from pipeline.targets.onnx_graph import OnnxGraph, attribute
from pipeline.targets.onnx_lowering import (
    clip_hard_swish_inputs,
    drop_idle_layout,
    expand_hard_activations,
    fold_shifts,
    push_scales,
)

sys.path.insert(0, str(Path(__file__).parent))

import onnx_small as small

THREE = np.float32(3)
SIXTH = np.float32(1 / 6)
HARD_SWISH = "a = Add(x, three)  c = Clip(a, zero, six)  s = Mul(c, sixth)  h = Mul(x, s)"
NUMBERS = {"three": THREE, "zero": np.float32(0), "six": np.float32(6), "sixth": SIXTH}


@dataclass(frozen=True)
class Case:
    """A rewrite of a graph.

    Attributes:
        name: Of the case.
        text: The graph.
        rewrite: What changes it.
        left: How many nodes of some kinds are left.
        constants: Of the graph.
        shape: Of the input.
        dtype: Of the input.
    """

    name: str
    text: str
    rewrite: Callable[[OnnxGraph], None]
    left: dict[str, int]
    constants: dict[str, Any]
    shape: tuple[int, ...] = (1, 3, 8, 8)
    dtype: type = np.float32
    other: dict[str, Any] = field(default_factory=dict)


def in_blocks(graph: OnnxGraph) -> None:
    rescale_in_first_layer(graph, in_blocks=True)


def shifted(graph: OnnxGraph) -> None:
    rescale_in_first_layer(graph, in_blocks=False)


def image(conv: str, size: str = "16,16", result: str = "?,?") -> str:
    return (
        f"(uint8[1,{size},3] image) => (float[1,8,{result}] y) {{ f = Cast <to=1> (image)  m = Mul(f, scale)"
        f"  o = Add(m, offset)  t = Transpose <perm=[0,3,1,2]> (o)  c = Conv {conv} (t, w, b)  y = Relu(c) }}"
    )


COLORS = {
    "scale": np.float32([0.017, 0.0175, 0.0174]),
    "offset": np.float32([-2.1, -2.0, -1.8]),
    "w": (8, 3, 3, 3),
    "b": (8,),
}
GRAY = COLORS | {"scale": np.float32(1 / 127.5), "offset": np.float32(-1)}
SAME = "<strides=[2,2], pads=[0,0,1,1]>"
PIXELS: dict[str, Any] = {"shape": (1, 16, 16, 3), "dtype": np.uint8}

CASES = [
    Case(
        "idle-reshape-goes",
        "(float[1,3,8,8] x) => (float[1,2,8,8] y) { r = Reshape(x, s) q = Relu(r) p = Reshape(q, s) y = Conv(p, w) }",
        drop_idle_layout,
        {"Reshape": 1},
        {"s": np.int64([1, 3, 8, 8]), "w": (2, 3, 1, 1)},
    ),
    Case(
        "reshape-that-does-something-stays",
        "(float[1,3,8,8] x) => (float[1,3,64] y) { q = Relu(x) y = Reshape(q, s) }",
        drop_idle_layout,
        {"Reshape": 1},
        {"s": np.int64([1, 3, 64])},
    ),
    Case(
        "hard-swish-operator",
        "(float[1,3,8,8] x) => (float[1,3,8,8] y) { y = HardSwish(x) }",
        expand_hard_activations,
        {"HardSwish": 0, "Add": 1, "Clip": 1, "Mul": 2},
        {},
    ),
    Case(
        "hard-sigmoid-operator",
        "(float[1,3,8,8] x) => (float[1,3,8,8] y) { y = HardSigmoid <alpha=0.25, beta=0.4> (x) }",
        expand_hard_activations,
        {"HardSigmoid": 0, "Add": 1, "Clip": 1, "Mul": 1},
        {},
    ),
    Case(
        "shift-into-bias",
        "(float[1,3,8,8] x) => (float[1,2,8,8] y) { c = Conv(x, w, b) a = Add(c, three) y = Relu(a) }",
        fold_shifts,
        {"Add": 0},
        {"w": (2, 3, 1, 1), "b": (2,), "three": THREE},
    ),
    Case(
        "shift-into-new-bias",
        "(float[1,4] x) => (float[1,2] y) { c = Gemm(x, w) a = Add(three, c) y = Relu(a) }",
        fold_shifts,
        {"Add": 0},
        {"w": (4, 2), "three": THREE},
        (1, 4),
    ),
    Case(
        "shift-of-what-others-take-stays",
        "(float[1,3,8,8] x) => (float[1,2,8,8] y) { c = Conv(x, w, b) a = Add(c, three) y = Mul(a, c) }",
        fold_shifts,
        {"Add": 1},
        {"w": (2, 3, 1, 1), "b": (2,), "three": THREE},
    ),
    Case(
        "hard-swish-input-is-clipped",
        f"(float[1,3,8,8] v) => (float[1,2,8,8] y) {{ x = Conv(v, u)  {HARD_SWISH}  y = Conv(h, w) }}",
        clip_hard_swish_inputs,
        {"Clip": 2},
        {"u": (3, 3, 1, 1), "w": (2, 3, 1, 1), **NUMBERS},
    ),
    Case(
        "hard-sigmoid-input-is-not",
        "(float[1,3,8,8] v) => (float[1,3,8,8] y) { x = Conv(v, u) a = Add(x, three) c = Clip(a, zero, six)"
        " y = Add(x, c) }",
        clip_hard_swish_inputs,
        {"Clip": 1},
        {"u": (3, 3, 1, 1), **NUMBERS},
    ),
    Case(
        "factor-into-weights",
        f"(float[1,3,8,8] x) => (float[1,2,8,8] y) {{ {HARD_SWISH}  y = Conv(h, w, b) }}",
        push_scales,
        {"Mul": 1},
        {"w": (2, 3, 1, 1), "b": (2,), **NUMBERS},
    ),
    Case(
        "factor-past-a-gate",
        f"(float[1,3,8,8] x) => (float[1,2,8,8] y) {{ {HARD_SWISH}  p = GlobalAveragePool(h)  r = Conv(p, v, d)"
        "  g = Sigmoid(r)  q = Mul(h, g)  y = Conv(q, w, b) }",
        push_scales,
        {"Mul": 2},
        {"w": (2, 3, 1, 1), "b": (2,), "v": (3, 3, 1, 1), "d": (3,), **NUMBERS},
    ),
    Case(
        "factor-meets-itself",
        "(float[1,3,8,8] x) => (float[1,2,8,8] y) { r = Relu(x) h = Mul(r, sixth) p = GlobalAveragePool(h)"
        " q = Mul(h, p) y = Conv(q, w) }",
        push_scales,
        {"Mul": 2},
        {"w": (2, 3, 1, 1), "sixth": SIXTH},
    ),
    Case(
        "factor-before-an-addition-stays",
        "(float[1,3,8,8] x) => (float[1,2,8,8] y) { r = Relu(x) h = Mul(r, sixth) q = Add(h, x) y = Conv(q, w) }",
        push_scales,
        {"Mul": 1},
        {"w": (2, 3, 1, 1), "sixth": SIXTH},
    ),
    Case(
        "factor-of-a-result-stays",
        "(float[1,3,8,8] x) => (float[1,3,8,8] y) { r = Relu(x) y = Mul(r, sixth) }",
        push_scales,
        {"Mul": 1},
        {"sixth": SIXTH},
    ),
    Case("blocks-of-colors", image(SAME), in_blocks, {"Mul": 0, "Add": 0, "Concat": 2, "Sub": 1}, COLORS, **PIXELS),
    Case("blocks-of-gray", image(SAME), in_blocks, {"Mul": 0, "Concat": 2}, GRAY, **PIXELS),
    Case(
        "blocks-at-stride-1",
        image("<pads=[1,1,1,1]>"),
        in_blocks,
        {"Mul": 0, "Concat": 2, "Sub": 1},
        COLORS,
        **PIXELS,
    ),
    Case(
        "blocks-of-a-large-kernel",
        image("<strides=[2,2], pads=[2,2,3,3]>"),
        in_blocks,
        {"Mul": 0, "Sub": 1},
        COLORS | {"w": (8, 3, 7, 7)},
        **PIXELS,
    ),
    Case(
        "no-blocks-where-columns-are-left-over",
        image("<strides=[2,2], pads=[1,1,1,1]>", "18,18"),
        in_blocks,
        {"Mul": 0, "Add": 1, "Concat": 0},
        COLORS,
        (1, 18, 18, 3),
        np.uint8,
    ),
    Case("shifted-pixels", image(SAME), shifted, {"Mul": 0, "Add": 1}, COLORS, **PIXELS),
    Case(
        "image-with-channels-first",
        "(uint8[1,3,16,16] image) => (float[1,8,8,8] y) { f = Cast <to=1> (image)  m = Sub(f, offset)"
        f"  o = Div(m, scale)  y = Conv {SAME} (o, w, b) }}",
        in_blocks,
        {"Div": 0, "Sub": 0, "Add": 1},
        COLORS
        | {
            "scale": np.float32([58, 57, 57.5]).reshape(3, 1, 1),
            "offset": np.float32([124, 116, 104]).reshape(1, 3, 1, 1),
        },
        (1, 3, 16, 16),
        np.uint8,
    ),
    Case(
        "depthwise-channels",
        "(float[1,3,8,8] x) => (float[1,2,8,8] y) { e = Conv(x, u, c)  a = Relu(e)"
        "  d = Conv <group=5, pads=[1,1,1,1]> (a, v, f)  p = GlobalAveragePool(d)  g = Conv(p, k, l)  s = Sigmoid(g)"
        "  m = Mul(d, s)  y = Conv(m, w, b) }",
        pad_depthwise_channels,
        {"Conv": 4},
        {
            "u": (5, 3, 1, 1),
            "c": (5,),
            "v": (5, 1, 3, 3),
            "f": (5,),
            "k": (5, 5, 1, 1),
            "l": (5,),
            "w": (2, 5, 1, 1),
            "b": (2,),
        },
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rewrite(case: Case) -> None:
    original = small.model(case.text, **case.constants)
    graph = OnnxGraph(original)
    case.rewrite(graph)
    changed = graph.model()
    counts = small.kinds(OnnxGraph(changed))
    assert {kind: counts[kind] for kind in case.left} == case.left
    rng = np.random.default_rng(1)
    values = rng.normal(0, 4, case.shape) if case.dtype is np.float32 else rng.integers(0, 256, case.shape)
    expected = small.run(original, values.astype(case.dtype))
    assert np.ptp(expected) > 0
    np.testing.assert_allclose(
        small.run(changed, values.astype(case.dtype)), expected, rtol=0, atol=2e-6 * np.ptp(expected)
    )


def test_padded_channels_are_zero_and_fill_vectors() -> None:
    (case,) = [case for case in CASES if case.name == "depthwise-channels"]
    graph = small.graph(case.text, **case.constants)
    pad_depthwise_channels(graph)
    (depthwise,) = [node for node in graph.nodes if attribute(node, "group", 1) > 1]
    assert attribute(depthwise, "group") == 16
    assert graph.constants[depthwise.input[1]].shape == (16, 1, 3, 3)
    assert not graph.constants[depthwise.input[1]][5:].any()
    assert [graph.constants[node.input[1]].shape for node in graph.nodes if node.op_type == "Conv"] == [
        (16, 3, 1, 1),
        (16, 1, 3, 3),
        (16, 16, 1, 1),
        (2, 16, 1, 1),
    ]


def test_channels_that_something_else_takes_stay() -> None:
    graph = small.graph(
        "(float[1,3,8,8] x) => (float[1,5,8,8] y) { e = Conv(x, u) d = Conv <group=5> (e, v) s = Softmax(d)"
        " y = Conv(s, w) }",
        u=(5, 3, 1, 1),
        v=(5, 1, 1, 1),
        w=(5, 5, 1, 1),
    )
    pad_depthwise_channels(graph)
    assert [attribute(node, "group", 1) for node in graph.nodes if node.op_type == "Conv"] == [1, 5, 1]


def test_weights_that_two_layers_share_are_scaled_for_one() -> None:
    text = (
        "(float[1,3,8,8] x) => (float[1,3,8,8] y) { r = Relu(x) h = Mul(r, sixth) c = Conv(h, w) d = Conv(x, w)"
        " y = Add(c, d) }"
    )
    original = small.model(text, w=(3, 3, 1, 1), sixth=SIXTH)
    graph = OnnxGraph(original)
    push_scales(graph)
    values = np.random.default_rng(1).normal(0, 4, (1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(small.run(graph.model(), values), small.run(original, values), rtol=0, atol=1e-5)


def test_unused_nodes_and_constants_are_not_written() -> None:
    graph = small.graph("(float[1,4] x) => (float[1,4] y) { z = Exp(x) y = Add(x, a) }", a=(4,), unused=(9,))
    written = graph.model().graph
    assert [node.op_type for node in written.node] == ["Add"]
    assert len(written.initializer) == 1
