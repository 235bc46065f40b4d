"""Real runtimes and models of several inputs and outputs, other layouts, other types, and free dimensions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from devices.errors import DeviceError, ModelRejectedError
from devices.measurement import BenchmarkSettings, Case, Prediction, SampleFile, benchmark, describe_model, predict
from devices.profile import load_profile

COUNT = 6

# `pair` is logits = [zebra, apple] @ w and second = apple @ v, with zebra (1, 4, 6, 3), in ONNX (batch, 3, 4, 6).
# `open` has free dimensions. `kinds` has a type for each input, `odd` answers in ways that are no arrays.
MAKE_MODELS = """
import pathlib, sys
import numpy as np, tensorflow as tf, onnx, openvino as ov
from onnx import TensorProto as T, helper as h, numpy_helper as n

out = pathlib.Path(sys.argv[1])
random = np.random.default_rng(0)
w, v = random.normal(size=(77, 3)).astype("f4"), random.normal(size=(5, 5)).astype("f4")
np.savez(out / "weights.npz", w=w, v=v)

class Module(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec((1, 4, 6, 3), tf.float32, "zebra"),
                                  tf.TensorSpec((1, 5), tf.float32, "apple")])
    def pair(self, zebra, apple):
        return {"logits": tf.concat([tf.reshape(zebra, (1, 72)), apple], 1) @ w, "second": apple @ v}

    @tf.function(input_signature=[tf.TensorSpec((1, None, None, 3), tf.float32, "image"),
                                  tf.TensorSpec((None, 2), tf.float32, "extra")])
    def open(self, image, extra):
        return {"mean": tf.reduce_mean(image, (1, 2)), "twice": image * 2.0, "more": extra + 1.0}

    @tf.function(input_signature=[])
    def nothing(self):
        return {"noise": tf.random.uniform((1, 3))}

module = Module()
for name in ("pair", "open", "nothing"):
    tf.saved_model.save(module, str(out / name), signatures={"serving_default": getattr(module, name)})
    (out / f"{name}.tflite").write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(out / name)).convert())
tf.saved_model.save(module, str(out / "both"), signatures={"one": module.pair, "two": module.open})
both = tf.lite.TFLiteConverter.from_saved_model(str(out / "both"), signature_keys=["one", "two"])
(out / "both.tflite").write_bytes(both.convert())
converter = tf.lite.TFLiteConverter.from_saved_model(str(out / "pair"))
converter.optimizations = [tf.lite.Optimize.DEFAULT]
converter.representative_dataset = lambda: ({"zebra": random.uniform(-1, 1, (1, 4, 6, 3)).astype("f4"),
                                             "apple": random.uniform(0, 1, (1, 5)).astype("f4")} for _ in range(50))
converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
converter.inference_input_type = converter.inference_output_type = tf.int8
(out / "pair8.tflite").write_bytes(converter.convert())

def save(name, nodes, inputs, outputs, constants=None, *, xml=True):
    graph = h.make_graph(nodes, name, [h.make_tensor_value_info(*each) for each in inputs],
                         [each if isinstance(each, onnx.ValueInfoProto) else h.make_tensor_value_info(*each)
                          for each in outputs],
                         [n.from_array(np.asarray(value), key) for key, value in (constants or {}).items()])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), out / f"{name}.onnx")
    if xml:
        ov.save_model(ov.convert_model(out / f"{name}.onnx"), out / f"{name}.xml", compress_to_fp16=False)

save("pair", [h.make_node("Transpose", ["zebra"], ["nhwc"], perm=[0, 2, 3, 1]),
              h.make_node("Reshape", ["nhwc", "flat"], ["features"]),
              h.make_node("Concat", ["features", "apple"], ["all"], axis=1),
              h.make_node("MatMul", ["all", "w"], ["logits"]), h.make_node("MatMul", ["apple", "v"], ["second"])],
     [("zebra", T.FLOAT, ["batch", 3, 4, 6]), ("apple", T.FLOAT, [1, 5])],
     [("logits", T.FLOAT, None), ("second", T.FLOAT, None)], {"w": w, "v": v, "flat": np.int64([1, 72])})
save("open", [h.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
              h.make_node("Add", ["image", "image"], ["twice"]), h.make_node("Add", ["extra", "one"], ["more"])],
     [("image", T.FLOAT, [1, "height", "width", 3]), ("extra", T.FLOAT, ["rows", 2])],
     [("mean", T.FLOAT, None), ("twice", T.FLOAT, None), ("more", T.FLOAT, None)],
     {"axes": np.int64([1, 2]), "one": np.float32(1)})
kinds = {"f16": T.FLOAT16, "f64": T.DOUBLE, "flag": T.BOOL, "i8": T.INT8, "i64": T.INT64, "u16": T.UINT16}
save("kinds", [*(h.make_node("Cast", [name], [f"{name}_cast"], to=T.FLOAT) for name in kinds),
               h.make_node("Sum", [f"{name}_cast" for name in kinds], ["sum"]),
               h.make_node("Add", ["i64", "i64"], ["twice"]), h.make_node("Not", ["flag"], ["unset"]),
               h.make_node("Cast", ["f64"], ["half"], to=T.FLOAT16),
               h.make_node("Concat", ["sum", "sum"], ["rows"], axis=0),
               h.make_node("ReduceMax", ["sum"], ["highest"], keepdims=0)],
     [(name, kind, [1, 2]) for name, kind in kinds.items()],
     [("sum", T.FLOAT, None), ("twice", T.INT64, None), ("unset", T.BOOL, None), ("half", T.FLOAT16, None),
      ("rows", T.FLOAT, None), ("highest", T.FLOAT, None)])
save("varying", [h.make_node("NonZero", ["x"], ["where"])], [("x", T.FLOAT, [1, 3])], [("where", T.INT64, None)],
     xml=False)
save("listed", [h.make_node("SequenceConstruct", ["x"], ["list"])], [("x", T.FLOAT, [1, 3])],
     [h.make_tensor_sequence_value_info("list", T.FLOAT, None)], xml=False)
save("text", [h.make_node("Identity", ["x"], ["y"])], [("x", T.STRING, [1])], [("y", T.STRING, [1])], xml=False)
save("nothing", [h.make_node("RandomUniform", [], ["noise"], shape=[1, 3])], [], [("noise", T.FLOAT, None)], xml=False)

from openvino import opset13 as ops
source = ops.parameter([1, 3], np.float32, name="node")
source.output(0).set_names({"pear", "fig"})
plain = ops.parameter([1, 3], np.float32, name="plain")
ov.save_model(ov.Model([ops.add(source, plain)], [source, plain], "names"), out / "names.xml")
some = ops.parameter([1, 3], np.float32, name="x")
some.output(0).set_names({"x"})
where = ops.non_zero(some, "i64")
where.output(0).set_names({"where"})
ov.save_model(ov.Model([where], [some], "varying"), out / "varying.xml")
noise = ops.random_uniform([1, 3], np.float32(0), np.float32(1), "f32")
ov.save_model(ov.Model([noise], [], "nothing"), out / "nothing.xml")
"""

SUFFIXES = {"litert": "tflite", "onnxruntime": "onnx", "openvino": "xml"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made in a process of its own, which keeps TensorFlow out of this one."""
    out = tmp_path_factory.mktemp("models")
    done = subprocess.run([sys.executable, "-c", MAKE_MODELS, str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def case_of(runtime: str, models: Path, name: str, **values: Any) -> Case:
    return Case(id=name, runtime=runtime, path=str(models / f"{name}.{SUFFIXES[runtime]}"), **values)


def run(case: Case, samples: dict[str, Any], directory: Path, **transforms: dict[str, Any]) -> dict[str, Any]:
    """The outputs by name; `samples` are by the input's name."""
    answer = run_all(case, samples, directory, **transforms)
    assert [Path(output.path).name for output in answer.outputs] == [
        f"output_{index}.npy" for index in range(len(answer.outputs))
    ]
    return {output.name: np.load(output.path) for output in answer.outputs}


def run_all(case: Case, samples: dict[str, Any], directory: Path, **transforms: dict[str, Any]) -> Prediction:
    files = []
    for index, (name, values) in enumerate(samples.items()):
        path = directory / f"samples_{index}.npy"
        np.save(path, values)
        files.append(SampleFile(name=name, path=str(path), transform=transforms.get(name)))
    return predict(load_profile("local"), case, files, None, str(directory / "out"))


class Pair(NamedTuple):
    """Samples of `pair` and what the network makes of them."""

    zebra: np.ndarray[Any, Any]
    apple: np.ndarray[Any, Any]
    logits: np.ndarray[Any, Any]
    second: np.ndarray[Any, Any]


SCALE, OFFSET = [2 / 255, 1 / 255, 1 / 510], [-1.0, 0.0, 0.5]


@pytest.fixture(scope="module")
def pair(models: Path) -> Pair:
    """Zebra is stored as bytes, of which the scale and offset above make real values."""
    random = np.random.default_rng(1)
    zebra = random.integers(0, 256, (COUNT, 4, 6, 3), np.uint8)
    apple = random.uniform(0, 1, (COUNT, 5)).astype(np.float32)
    real = zebra * np.float32(SCALE) + np.float32(OFFSET)
    with np.load(models / "weights.npz") as weights:
        logits = np.concatenate([real.reshape(COUNT, -1), apple], axis=1) @ weights["w"]
        return Pair(zebra, apple, logits, apple @ weights["v"])


@pytest.mark.parametrize("runtime", SUFFIXES)
def test_two_inputs_and_two_outputs_by_name(runtime: str, models: Path, pair: Pair, tmp_path: Path) -> None:
    layout = "NHWC" if runtime == "litert" else "NCHW"
    transform = {"layout": layout, "dtype": "float32", "scale": SCALE, "offset": OFFSET}
    case = case_of(runtime, models, "pair")
    for samples in ({"zebra": pair.zebra, "apple": pair.apple}, {"apple": pair.apple, "zebra": pair.zebra}):
        outputs = run(case, samples, tmp_path, zebra=transform)
        assert outputs.keys() == {"logits", "second"}
        np.testing.assert_allclose(outputs["logits"], pair.logits, atol=1e-4)
        np.testing.assert_allclose(outputs["second"], pair.second, atol=1e-5)
    described = describe_model(load_profile("local"), case)
    shapes = {record["name"]: record["shape"] for record in described["inputs"] + described["outputs"]}
    zebra_shape = [1, 4, 6, 3] if runtime == "litert" else [None, 3, 4, 6]
    assert (shapes["zebra"], shapes["apple"], shapes["second"]) == (zebra_shape, [1, 5], [1, 5])
    assert described["runtime"] == runtime
    settings = BenchmarkSettings(warm_up_time_s=0, min_count=20, min_time_s=0)
    (measured,) = benchmark(load_profile("local"), [case], settings).cases
    assert measured.error is None
    assert measured.input_shapes == {"zebra": tuple(size or 1 for size in zebra_shape), "apple": (1, 5)}


def test_quantized_inputs_and_outputs(models: Path, pair: Pair, tmp_path: Path) -> None:
    case = case_of("litert", models, "pair8")
    described = describe_model(load_profile("local"), case)
    records = {record["name"]: record for record in described["inputs"] + described["outputs"]}
    assert {record["dtype"] for record in records.values()} == {"int8"}
    float_zebra = {"dtype": "float32", "scale": SCALE, "offset": OFFSET}
    samples = {"zebra": pair.zebra, "apple": pair.apple}
    outputs = run(case, samples, tmp_path, zebra=float_zebra, apple={"dtype": "float32"})

    def integers(name: str, real: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        quantization = records[name]["quantization"]
        values = np.rint(real / np.float32(quantization["scale"][0])) + quantization["zero_point"][0]
        return np.clip(values, -128, 127).astype(np.int8)

    real = pair.zebra * np.float32(SCALE) + np.float32(OFFSET)
    stored = {"zebra": integers("zebra", real), "apple": integers("apple", pair.apple)}
    again = run(case, stored, tmp_path)
    for name, expected in (("logits", pair.logits), ("second", pair.second)):
        np.testing.assert_array_equal(outputs[name], again[name])
        quantization = records[name]["quantization"]
        steps = outputs[name].astype(np.float64) / quantization["scale"][0]
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
        assert np.ptp(steps) > 20
        assert np.abs(outputs[name] - expected).max() < 0.05 * np.ptp(expected)
    with pytest.raises(DeviceError, match=r"each row uint8 \(4, 6, 3\) after the transform.*takes rows int8"):
        run(case, samples, tmp_path, zebra={"dtype": "uint8"}, apple={"dtype": "float32"})


@pytest.mark.parametrize("runtime", SUFFIXES)
def test_free_dimensions(runtime: str, models: Path, tmp_path: Path) -> None:
    shapes = {"image": (1, 5, 7, 3), "extra": (4, 2)}
    case = case_of(runtime, models, "open", input_shapes=shapes)
    random = np.random.default_rng(2)
    image = random.random((COUNT, 5, 7, 3), np.float32)
    extra = random.random((COUNT, 4, 2), np.float32)
    outputs = run(case, {"image": image, "extra": extra}, tmp_path)
    np.testing.assert_allclose(outputs["mean"], image.mean(axis=(1, 2)), atol=1e-6)
    np.testing.assert_array_equal(outputs["twice"], image * 2)
    np.testing.assert_array_equal(outputs["more"], extra + 1)
    described = describe_model(load_profile("local"), case)
    free = {record["name"]: record["shape"] for record in described["inputs"]}
    assert free == {"image": [1, None, None, 3], "extra": [None, 2]}
    settings = BenchmarkSettings(warm_up_time_s=0, min_count=20, min_time_s=0)
    measured, no_batch = benchmark(
        load_profile("local"),
        [case, case.model_copy(update={"id": "one", "input_shapes": {"image": (1, 5, 7, 3)}})],
        settings,
    ).cases
    assert measured.error is None
    assert measured.input_shapes == shapes
    assert no_batch.input_shapes == {"image": (1, 5, 7, 3), "extra": (1, 2)}


class BadShapes(NamedTuple):
    id: str
    shapes: dict[str, tuple[int, ...]]
    words: str


BAD_SHAPES = [
    BadShapes("none", {}, r"'image' has the shape \(1, \?, \?, 3\), where only the first dimension may be free; give"),
    BadShapes("fixed", {"image": (1, 5, 7, 4)}, r"'image' is \[1, 5, 7, 4\], but the model takes \(1, \?, \?, 3\)"),
    BadShapes("rank", {"image": (5, 7, 3)}, r"'image' is \[5, 7, 3\], but the model takes \(1, \?, \?, 3\)"),
    BadShapes("name", {"picture": (1, 5, 7, 3)}, r"input 'picture', but the model has no such input; it has: "),
]


@pytest.mark.parametrize("runtime", SUFFIXES)
@pytest.mark.parametrize("bad", BAD_SHAPES, ids=lambda bad: bad.id)
def test_shapes_that_do_not_fit_are_refused(runtime: str, bad: BadShapes, models: Path) -> None:
    with pytest.raises(ModelRejectedError, match=bad.words):
        describe_model(load_profile("local"), case_of(runtime, models, "open", input_shapes=bad.shapes))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_inputs_and_outputs_of_other_types(runtime: str, models: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    samples = {
        "f16": random.integers(-4, 4, (COUNT, 2)).astype(np.float16),
        "f64": random.integers(-4, 4, (COUNT, 2)).astype(np.float64) / 8,
        "flag": random.integers(0, 2, (COUNT, 2)).astype(np.bool_),
        "i8": random.integers(-128, 128, (COUNT, 2), np.int8),
        "i64": random.integers(-1000, 1000, (COUNT, 2)),
        "u16": random.integers(0, 2000, (COUNT, 2), np.uint16),
    }
    samples["f16"][0, 0] = np.inf
    answer = run_all(case_of(runtime, models, "kinds"), samples, tmp_path)
    outputs = {output.name: np.load(output.path) for output in answer.outputs}
    total = np.sum([values.astype(np.float32) for values in samples.values()], axis=0)
    np.testing.assert_array_equal(outputs["sum"], total)
    np.testing.assert_array_equal(outputs["twice"], samples["i64"] * 2)
    np.testing.assert_array_equal(outputs["unset"], 1 - samples["flag"].astype(int))
    np.testing.assert_array_equal(outputs["half"], samples["f64"])
    np.testing.assert_array_equal(outputs["rows"], np.stack([total, total], axis=1))
    np.testing.assert_array_equal(outputs["highest"], total.max(axis=1))
    assert {values.dtype.name for values in outputs.values()} == {"float32"}
    by_name = {output.name: output for output in answer.outputs}
    assert by_name["rows"].shape == (COUNT, 2, 2)
    assert by_name["highest"].shape == (COUNT,)
    dtypes = {"sum": "float32", "twice": "int64", "unset": "bool", "half": "float16"}
    assert {name: output.dtype for name, output in by_name.items()} == {
        **dtypes,
        "rows": "float32",
        "highest": "float32",
    }
    non_finite = {name for name, output in by_name.items() if output.non_finite == 1}
    assert non_finite == {"sum", "rows", "highest"}
    assert answer.non_finite == 3


def test_names_of_a_file_with_two_signatures_are_those_of_its_tensors(models: Path) -> None:
    described = describe_model(load_profile("local"), case_of("litert", models, "both"))
    assert {record["name"] for record in described["inputs"]} == {"one_apple:0", "one_zebra:0"}


def test_the_names_of_the_tensors_are_known_beside_those_of_the_signature(
    models: Path, pair: Pair, tmp_path: Path
) -> None:
    samples = {"serving_default_zebra:0": pair.zebra.astype(np.float32), "apple": pair.apple}
    outputs = run(case_of("litert", models, "pair"), samples, tmp_path)
    np.testing.assert_allclose(outputs["second"], pair.second, atol=1e-5)


def test_openvino_ports_answer_to_all_of_their_names(models: Path, tmp_path: Path) -> None:
    case = case_of("openvino", models, "names")
    described = describe_model(load_profile("local"), case)
    assert [record["name"] for record in described["inputs"]] == ["fig", "plain"]
    values = np.arange(COUNT * 3, dtype=np.float32).reshape(COUNT, 3)
    for name in ("fig", "pear", "node"):
        (output,) = run(case, {"plain": values * 10, name: values}, tmp_path).values()
        np.testing.assert_array_equal(output, values * 11)
    with pytest.raises(DeviceError, match="no input 'banana'; the model takes 'fig', 'plain'"):
        run(case, {"plain": values, "banana": values}, tmp_path)


@pytest.mark.parametrize("runtime", SUFFIXES)
def test_a_model_without_inputs_is_refused(runtime: str, models: Path) -> None:
    with pytest.raises(ModelRejectedError, match="the model has no inputs"):
        describe_model(load_profile("local"), case_of(runtime, models, "nothing"))


def test_answers_that_make_no_array_are_refused(models: Path, tmp_path: Path) -> None:
    samples = np.float32([[0, 1, 1], [1, 1, 1]])
    for runtime in ("onnxruntime", "openvino"):
        with pytest.raises(DeviceError, match=r"'where' has the shape \(2, 3\) for sample 1 and \(2, 2\) for those be"):
            run(case_of(runtime, models, "varying"), {"x": samples}, tmp_path)
    with pytest.raises(DeviceError, match=r"output 'list' is list \(seq\(tensor\(float\)\)\); expected an array"):
        run(case_of("onnxruntime", models, "listed"), {"x": samples}, tmp_path)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ModelRejectedError, match=r"input 'x' has the type tensor\(string\)"):
        describe_model(load_profile("local"), case_of("onnxruntime", models, "text"))
