"""int8 for OpenVINO on a small network with all that MobileNets have; where it runs, not how fast."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.quantization.quantizer import Quantizer
from pipeline.quantization.sensitivity import measure_sensitivity
from pipeline.targets import inspect_model
from pipeline.targets import openvino_int8 as target

ov = pytest.importorskip("openvino")

SIZE = 32
CHANNELS = 16
ONE_THREAD = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
CONVOLUTIONS = ("stem", "expand", "depthwise", "squeeze", "excite", "project", "logits")


def write_network(path: Path, *, concat: bool = False) -> None:
    """A stem, an inverted bottleneck with a gate, perhaps a concatenation, and a head whose scale follows it."""
    from openvino import opset13 as op

    rng = np.random.default_rng(0)

    def kernel(*shape: int) -> Any:
        return op.constant(rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32))

    def convolve(value: Any, name: str, weights: Any, *, stride: int = 1) -> Any:
        groups = len(weights.shape) == 5
        make = op.group_convolution if groups else op.convolution
        node = make(value, weights, [stride] * 2, [0, 0], [0, 0], [1, 1], auto_pad="same_upper")
        node.set_friendly_name(name)
        width = np.prod(weights.shape[:2]) if groups else weights.shape[0]
        bias = op.add(node, op.constant(rng.normal(0.3, 0.3, (1, width, 1, 1)).astype(np.float32)))
        bias.set_friendly_name(f"{name}/bias")
        return bias

    def named(node: Any, name: str) -> Any:
        node.set_friendly_name(name)
        return node

    image = op.parameter([1, SIZE, SIZE, 3], np.uint8, name="image")
    value = op.transpose(op.convert(image, np.float32), [0, 3, 1, 2])
    scale, shift = (
        np.array(values, np.float32).reshape(1, 3, 1, 1) for values in ([0.017, 0.018, 0.017], [-2, -2, -1.8])
    )
    value = named(op.add(op.multiply(value, scale), shift), "scaled")
    stem = named(op.hswish(convolve(value, "stem", kernel(CHANNELS, 3, 3, 3), stride=2)), "stem/act")
    value = named(op.hswish(convolve(stem, "expand", kernel(32, CHANNELS, 1, 1))), "expand/act")
    value = named(op.relu(convolve(value, "depthwise", kernel(32, 1, 1, 3, 3))), "depthwise/act")
    gate = named(op.reduce_mean(value, np.array([2, 3]), keep_dims=True), "pool")
    gate = named(op.relu(convolve(gate, "squeeze", kernel(8, 32, 1, 1))), "squeeze/act")
    gate = named(op.hsigmoid(convolve(gate, "excite", kernel(32, 8, 1, 1))), "gate")
    value = convolve(named(op.multiply(value, gate), "gated"), "project", kernel(CHANNELS, 32, 1, 1))
    value = op.concat([value, stem], axis=1) if concat else op.add(value, stem)
    value = op.reduce_mean(named(value, "block"), np.array([2, 3]), keep_dims=False)
    width = 2 * CHANNELS if concat else CHANNELS
    logits = named(op.matmul(value, kernel(10, width), False, True), "logits")
    logits = op.multiply(logits, rng.uniform(0.5, 2, (1, 10)).astype(np.float32))
    result = op.result(named(op.add(logits, rng.normal(0, 0.1, (1, 10)).astype(np.float32)), "shifted"))
    model = ov.Model([result], [image], "network")
    model.inputs[0].get_tensor().set_names({"image"})
    model.outputs[0].get_tensor().set_names({"logits"})
    ov.save_model(model, str(path), compress_to_fp16=False)


def samples(count: int = 8) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    coarse = rng.uniform(0, 255, (count, 4, 4, 3)).repeat(SIZE // 4, 1).repeat(SIZE // 4, 2)
    images = np.clip(coarse + rng.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)
    return [{"image": image[None]} for image in images]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "float.xml"
    write_network(path)
    return path


@pytest.fixture(scope="module")
def lowered(network: Path) -> dict[str, Path]:
    paths = {scheme: network.with_name(f"{scheme}.xml") for scheme in target.SCHEMES}
    for scheme, path in paths.items():
        target.lower(network, scheme, path)
    return paths


def ranges_of(path: Path) -> dict[str, tuple[float, float]]:
    """From the lowest to the highest value of each activation."""
    found: dict[str, tuple[float, float]] = {}
    for values in target.activations(path, samples(), target.observed(path)):
        for name, array in values.items():
            low, high = found.get(name, (np.inf, -np.inf))
            found[name] = (min(low, float(array.min())), max(high, float(array.max())))
    return found


def answers(path: Path, given: list[dict[str, np.ndarray]]) -> np.ndarray:
    compiled = ov.Core().compile_model(str(path), "CPU", ONE_THREAD)
    return np.concatenate([np.array(compiled(sample)[0]) for sample in given])


def snr_db(reference: np.ndarray, values: np.ndarray) -> float:
    return float(10 * np.log10((reference**2).mean() / ((values - reference) ** 2).mean()))


def executed(path: Path) -> list[tuple[str, set[str]]]:
    """What the plugin runs one after another (`brgconv_avx512_I8`), each with the names of operations in it."""
    compiled = ov.Core().compile_model(str(path), "CPU", ONE_THREAD | {"PERF_COUNT": True})
    compiled(samples(1)[0])
    rows = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    return [
        (
            row["primitiveType"].astype(str),
            # A matrix product may go by the name of what is merged with it alone.
            {name.split("/Dequantization")[0].replace("shifted", "logits") for name in names.split(",")},
        )
        for row in rows
        for names in [row["originalLayersNames"].astype(str)]
        if row["execTimeMcs"].astype(str) != "not_executed"
    ]


def in_float(path: Path) -> set[str]:
    """Which layers run in float."""
    return {name for kernel, names in executed(path) for name in names & set(CONVOLUTIONS) if "f32" in kernel}


def operations(path: Path) -> dict[str, Any]:
    return {node.get_friendly_name(): node for node in ov.Core().read_model(str(path)).get_ordered_ops()}


def quantized(
    path: Path,
    scheme: str,
    *,
    ranges: Any = None,
    float_layers: tuple[str, ...] = (),
    name: str = "int8",
    **options: Any,
) -> Path:
    out_path = path.with_name(f"{name}_{scheme}.xml")
    target.quantize(path, scheme, ranges or ranges_of(path), float_layers, out_path, **options)
    return out_path


@pytest.mark.parametrize("scheme", target.SCHEMES)
def test_lowering_keeps_the_function(network: Path, lowered: dict[str, Path], scheme: str) -> None:
    given = samples()
    reference, values = answers(network, given), answers(lowered[scheme], given)
    assert np.abs(values - reference).max() < 1e-6 * np.abs(reference).max()


@pytest.mark.parametrize("scheme", target.SCHEMES)
def test_no_scale_is_left_behind_a_matrix_product(lowered: dict[str, Path], scheme: str) -> None:
    """There the plugin's answers are arbitrary, which may go well for a while."""
    model = ov.Core().read_model(str(lowered[scheme]))
    [product] = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    assert [user.get_node().get_type_name() for user in product.output(0).get_target_inputs()] == ["Add"]


def test_names(lowered: dict[str, Path]) -> None:
    path = lowered["asymmetric"]
    assert target.linear_layers(path) == CONVOLUTIONS
    names = target.observed(path)
    assert names[0] == "scaled"
    assert {"stem/act", "expand/act", "depthwise/act", "pool", "squeeze/act", "gate", "gated"} < set(names)
    assert target.channelwise(path) == ("expand/act",)
    assert {"pool", "squeeze/act"}.isdisjoint(target.observed(lowered["converter"]))


def test_activations(lowered: dict[str, Path]) -> None:
    path = lowered["asymmetric"]
    given = samples(3)
    found = list(target.activations(path, given, ["scaled", "stem/act", "shifted"]))
    assert [set(each) for each in found] == [{"scaled", "stem/act", "shifted"}] * 3
    assert np.array_equal(np.concatenate([each["shifted"] for each in found]), answers(path, given))
    expected = given[1]["image"][0] * np.array([0.017, 0.018, 0.017], np.float32) + np.array([-2, -2, -1.8], np.float32)
    assert found[1]["scaled"].reshape(SIZE, SIZE, 3) == pytest.approx(expected, abs=1e-5)
    assert found[0]["stem/act"].shape == (1, CHANNELS, SIZE // 2, SIZE // 2)


def test_layers_alone(lowered: dict[str, Path]) -> None:
    """With everything else in float one layer alone takes rounded values, and with everything nothing does."""
    path, given = lowered["asymmetric"], samples()
    able = target.operations(path)
    assert {"pool", "gated", "block", *CONVOLUTIONS} <= set(able)
    assert list(target.layers(path).items())[:2] == [("stem", "stem/bias"), ("expand", "expand/bias")]
    assert target.layers(path)["logits"] == "shifted"
    nothing = quantized(path, "asymmetric", float_layers=able, name="nothing")
    assert not [name for name in operations(nothing) if name.endswith(("/quantized", "/weights"))]
    reference = answers(path, given)
    assert np.abs(answers(nothing, given) - reference).max() < 1e-6 * np.abs(reference).max()
    alone = quantized(path, "asymmetric", float_layers=tuple(name for name in able if name != "project"), name="alone")
    made = {name for name in operations(alone) if name.endswith(("/quantized", "/weights"))}
    assert made == {"gated/quantized", "project/weights"}
    whole = quantized(path, "asymmetric", name="whole")
    assert snr_db(reference, answers(whole, given)) < snr_db(reference, answers(alone, given)) < 100


def test_sensitivity_of_every_layer(lowered: dict[str, Path], tmp_path: Path) -> None:
    quantizer: Quantizer = target
    path = lowered["asymmetric"]
    found = measure_sensitivity(
        quantizer,
        path,
        scheme="asymmetric",
        ranges=ranges_of(path),
        samples=samples(4),
        output="logits",
        scratch=tmp_path,
    )
    assert tuple(each.layer for each in found) == CONVOLUTIONS
    assert all(each.alone_db is not None and 20 < each.alone_db < 100 for each in found)
    assert all(each.output_db is not None and 20 < each.output_db < 100 for each in found)


@pytest.mark.parametrize("scheme", target.SCHEMES)
def test_answers_of_one_thread(lowered: dict[str, Path], scheme: str) -> None:
    """The plugin's arbitrary answers behind a scaled matrix product would show here."""
    path = quantized(lowered[scheme], scheme)
    given = samples()
    reference = answers(lowered[scheme], given)
    assert snr_db(reference, answers(path, given)) > 25
    assert np.array_equal(answers(path, given), answers(path, given))


@pytest.mark.parametrize("scheme", target.SCHEMES)
def test_layers_run_in_integers(lowered: dict[str, Path], scheme: str) -> None:
    path = quantized(lowered[scheme], scheme)
    expected = {"squeeze", "excite"} if scheme == "converter" else set()
    assert in_float(path) == expected
    assert set(CONVOLUTIONS) == {name for _, names in executed(path) for name in names & set(CONVOLUTIONS)}
    assert inspect_model(path).precision == ("mixed" if expected else "int8")


def test_image_is_not_copied_twice(lowered: dict[str, Path]) -> None:
    """Before the first convolution one operation touches the image: it converts, scales and quantizes."""
    before = {
        scheme: [kernel for kernel, _ in itertools.takewhile(lambda row: "stem" not in row[1], executed(path))]
        for scheme in ("asymmetric", "converter")
        for path in [quantized(lowered[scheme], scheme)]
    }
    assert [kernel.split("_")[0] for kernel in before["asymmetric"]] == ["jit"]
    assert before["asymmetric"][0].endswith("I8")
    assert len(before["converter"]) > 1


def test_layers_in_float(lowered: dict[str, Path]) -> None:
    ranges = ranges_of(lowered["asymmetric"])
    chosen = ("depthwise", "squeeze", "logits")
    path = quantized(lowered["asymmetric"], "asymmetric", ranges=ranges, float_layers=chosen, name="mixed")
    assert in_float(path) == set(chosen)
    assert inspect_model(path).precision == "mixed"
    all_in_float = quantized(
        lowered["asymmetric"], "asymmetric", ranges=ranges, float_layers=CONVOLUTIONS, name="float"
    )
    given = samples()
    reference = answers(lowered["asymmetric"], given)
    snr = [snr_db(reference, answers(each, given)) for each in (quantized(lowered["asymmetric"], "asymmetric"), path)]
    assert snr[0] < snr[1] < snr_db(reference, answers(all_in_float, given))


def test_bytes_are_the_same(lowered: dict[str, Path]) -> None:
    files = [quantized(lowered["symmetric"], "symmetric", name=name) for name in ("first", "second")]
    for suffix in (".xml", ".bin"):
        first, second = (file.with_suffix(suffix).read_bytes() for file in files)
        assert first == second


@dataclasses.dataclass(frozen=True)
class Steps:
    reduce_range: bool
    largest: int


@pytest.mark.parametrize("case", [Steps(False, 127), Steps(True, 63)], ids=["8_bits", "7_bits"])
def test_weights_are_rounded_to_the_nearest_step(lowered: dict[str, Path], case: Steps) -> None:
    path = quantized(lowered["asymmetric"], "asymmetric", name="weights", reduce_range=case.reduce_range)
    before, after = operations(lowered["asymmetric"]), operations(path)
    for name in CONVOLUTIONS:
        axes = (0, 1) if name == "depthwise" else (0,)
        weights = target.constant_of(before[name], 1)
        stored = np.asarray(after[f"{name}/weights"].data)
        scale = np.asarray(after[f"{name}/weights/scale"].data)
        others = tuple(axis for axis in range(weights.ndim) if axis not in axes)
        assert stored.dtype == np.int8
        assert (np.abs(stored).max(axis=others) == case.largest).all()
        assert np.abs(stored * scale - weights).max() <= 0.5001 * scale.max()
        assert (np.abs(stored * scale - weights) <= 0.5001 * scale).all()


def test_weights_on_steps_are_kept(lowered: dict[str, Path]) -> None:
    """What a remedy rounded, up or down as it found better, is not rounded otherwise."""
    path = quantized(lowered["asymmetric"], "asymmetric", name="once")
    model = ov.Core().read_model(str(lowered["asymmetric"]))
    after = operations(path)
    rng = np.random.default_rng(2)
    chosen = {}
    for node in model.get_ordered_ops():
        name = node.get_friendly_name()
        if name in ("stem", "project", "logits"):
            steps = np.asarray(after[f"{name}/weights"].data).astype(np.int32)
            moved = np.where(np.abs(steps) < 126, steps + rng.integers(-1, 2, steps.shape), steps)
            chosen[name] = moved
            values = (moved * np.asarray(after[f"{name}/weights/scale"].data)).astype(np.float32)
            node.input(1).replace_source_output(ov.opset13.constant(values).output(0))
    rounded = path.with_name("rounded.xml")
    ov.save_model(model, str(rounded), compress_to_fp16=False)
    again = operations(quantized(rounded, "asymmetric", ranges=ranges_of(lowered["asymmetric"]), name="again"))
    for name, steps in chosen.items():
        assert np.array_equal(np.asarray(again[f"{name}/weights"].data), steps)


def test_ranges_are_those_given(lowered: dict[str, Path]) -> None:
    path = lowered["asymmetric"]
    given = ranges_of(path) | {"stem/act": (-0.3, 1.2), "depthwise/act": (0.0, 2.0)}
    nodes = operations(quantized(path, "asymmetric", ranges=given, name="given"))
    for name, (low, high) in given.items():
        quantizer = nodes[f"{name}/quantized"]
        bounds = [float(np.asarray(quantizer.input_value(index).get_node().data)) for index in range(1, 5)]
        expected = target.levels(low, high, symmetric=False)
        assert bounds == pytest.approx([*expected, *expected])
        assert quantizer.get_attributes()["levels"] == 256


def test_range_for_each_channel(lowered: dict[str, Path]) -> None:
    path = lowered["asymmetric"]
    ranges: dict[str, Any] = ranges_of(path)
    values = np.concatenate([each["expand/act"] for each in target.activations(path, samples(), ["expand/act"])])
    ranges["expand/act"] = (values.min(axis=(0, 2, 3)), values.max(axis=(0, 2, 3)))
    each = quantized(path, "asymmetric", ranges=ranges, name="each")
    assert operations(each)["expand/act/quantized"].input_value(1).get_shape() == [1, 32, 1, 1]
    assert not in_float(each)
    reference = answers(path, samples())
    assert snr_db(reference, answers(each, samples())) > 25
    with pytest.raises(InputError, match="shapes"):
        quantized(path, "asymmetric", ranges=ranges | {"gated": (np.zeros(32), np.ones(32))})


def test_joined_tensors_have_one_range(tmp_path: Path) -> None:
    write_network(tmp_path / "float.xml", concat=True)
    path = tmp_path / "lowered.xml"
    target.lower(tmp_path / "float.xml", "symmetric", path)
    [group] = target.placement(path).joined
    ranges = ranges_of(path) | {name: (-1.0 - index, 1.0) for index, name in enumerate(group)}
    nodes = operations(quantized(path, "symmetric", ranges=ranges))
    lows = [float(np.asarray(nodes[f"{name}/quantized"].input_value(1).get_node().data)) for name in group]
    assert lows == [-2.0, -2.0]


@given(
    st.floats(-100, 100, width=32),
    st.floats(0, 100, width=32),
    st.booleans(),
)
def test_levels(low: float, width: float, symmetric: bool) -> None:
    first, last = (float(bound) for bound in target.levels(low, low + width, symmetric=symmetric))
    step = (last - first) / 255
    assert step > 0
    assert round(-first / step) * step == pytest.approx(-first, abs=1e-6 * step)
    slack = 0 if symmetric else 0.5
    assert first - slack * step <= min(low, 0) * (1 - 1e-9) + 1e-9
    assert last + slack * step >= max(low + width, 0) * (1 - 1e-9) - 1e-9
    if low >= 0:
        assert first == 0
    elif symmetric:
        assert round(-first / step) == 128


def test_refusals(lowered: dict[str, Path]) -> None:
    path = lowered["asymmetric"]
    ranges = ranges_of(path)
    with pytest.raises(InputError, match="no scheme fastest"):
        target.lower(path, "fastest", path.with_name("no.xml"))
    with pytest.raises(InputError, match="nothing under nowhere"):
        quantized(path, "asymmetric", ranges=ranges, float_layers=("nowhere",))
    with pytest.raises(InputError, match="nothing under nowhere"):
        quantized(path, "asymmetric", ranges=ranges | {"nowhere": (0, 1)})
    with pytest.raises(InputError, match="no range for gated"):
        quantized(path, "asymmetric", ranges={name: ends for name, ends in ranges.items() if name != "gated"})
    with pytest.raises(InputError, match="finite ends"):
        quantized(path, "asymmetric", ranges=ranges | {"gated": (1, 0)})
    with pytest.raises(InputError, match="nothing under nowhere"):
        next(target.activations(path, samples(1), ["nowhere"]))
    assert set(next(target.activations(path, samples(1), ["nowhere", "gated"]))) == {"gated"}
