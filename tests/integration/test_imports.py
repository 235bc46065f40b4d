"""Models of one's own, as their frameworks write them, on their way through the import stage's process."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import EdgeshipError, InputError, ModelFileError
from pipeline.executor import StageExecutor, child_environment
from pipeline.imports import ModelDescription, import_model
from pipeline.imports.inspection import inspect_in_child
from pipeline.signature import read_signature
from pipeline.stages.import_model import ImportStage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MODELS_SCRIPT = r"""
import json, os, sys
from pathlib import Path

import flatbuffers
import keras
import numpy as np
import onnx
import openvino as ov
import openvino.opset13 as ops
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper, numpy_helper

out = Path(sys.argv[1])
os.chdir(out)
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
layers = keras.layers


def net(name="My-Input", size=8, softmax=True, batch=None):
    image = keras.Input((size, size, 3), name=name, batch_size=batch)
    x = layers.Conv2D(4, 3, activation="relu")(image)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(5, activation="softmax" if softmax else None, name="probs")(x))


# Keras
model = net()
model.compile("sgd", "mse")  # which import leaves out
model.save("net.keras")
model.save("net.h5")
model.save_weights("net.weights.h5")
net().save_weights("only.weights.h5")
os.link("only.weights.h5", "only.h5")
net(size=None).save("free.keras")
net(batch=4).save("batch4.keras")

left, right = keras.Input((6,), name="left"), keras.Input((4,), name="right", dtype="float16")
joined = layers.Concatenate()([left, layers.Rescaling(1.0)(right)])
first, second = layers.Dense(3, name="zeta")(joined), layers.Dense(2, activation="softmax", name="alpha")(joined)
keras.Model({"a": left, "b": right}, [first, second]).save("two.keras")
sequence = keras.Sequential([keras.Input((12, 3)), layers.GRU(4), layers.Dense(2)])
sequence.save("gru.keras")
keras.Sequential([layers.Dense(3, name="dense")]).save("unbuilt.keras")


class Scaled(keras.layers.Layer):
    def call(self, x):
        return 2 * x


@keras.saving.register_keras_serializable(package="mine")
class Registered(Scaled):
    pass


@keras.saving.register_keras_serializable(package="mine")
class Whole(keras.Model):
    def __init__(self, **kw):
        super().__init__(**kw)
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


def squared(x):
    return x * x


keras.Sequential([keras.Input((3,)), Scaled(), Registered(), Scaled(name="again")]).save("custom.keras")
keras.Sequential([keras.Input((3,)), Registered()]).save("registered.keras")
keras.Sequential([keras.Input((3,)), Registered()]).save("registered.h5")
keras.Sequential([keras.Input((3,)), layers.Dense(2, activation=squared)]).save("function.keras")
keras.Sequential([keras.Input((3,)), layers.Lambda(lambda x: x + 1, name="plus_one")]).save("lambda.keras")
keras.Sequential([keras.Input((3,)), layers.Lambda(lambda x: x + 1, name="plus_one")]).save("lambda.h5")
whole = Whole()
whole(np.zeros((1, 3), np.float32))
whole.save("subclass.keras")

# SavedModels
model.export("exported", verbose=False)
spec = lambda shape, dtype="float32", name=None: tf.TensorSpec(shape, dtype, name=name)


class Module(tf.Module):
    def __init__(self):
        super().__init__()
        self.weight = tf.Variable(rng.normal(size=(6, 5)).astype("float32"))

    @tf.function(input_signature=[spec([None, None, 6], name="Series"), spec([None, 2], "int32", "bias")])
    def two(self, series, bias):
        return {"b_last": series @ self.weight, "a_first": tf.reduce_sum(bias)}

    @tf.function(input_signature=[spec([None, 6])])
    def one(self, x):
        return {"y": x @ self.weight}

    @tf.function(input_signature=[spec([None], "string")])
    def text(self, x):
        return {"y": tf.strings.length(x)}

    @tf.function(input_signature=[spec([None, 6])])
    def python(self, x):
        return {"y": tf.numpy_function(lambda v: v, [x], "float32")}

    @tf.function(input_signature=[spec(None)])
    def any_rank(self, x):
        return {"y": x * self.weight[0, 0]}

    @tf.function(input_signature=[spec([None, 6])])
    def selects(self, x):
        return {"y": tf.boolean_mask(x, x > 0)}


module = Module()
for name in ("two", "one", "text", "python", "any_rank", "selects"):
    tf.saved_model.save(module, name, signatures={"serving_default": getattr(module, name)})
tf.saved_model.save(module, "several", signatures={"serving_default": module.one, "other": module.text})
tf.saved_model.save(module, "unsigned")

# TensorFlow Lite
def convert(directory, **settings):
    converter = tf.lite.TFLiteConverter.from_saved_model(directory)
    for key, value in settings.items():
        target = converter.target_spec if key == "supported_ops" else converter
        setattr(target, key, value)
    return converter.convert()

builtins, select = tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS
Path("net.tflite").write_bytes(convert("exported"))


class Hard(tf.Module):
    @tf.function(input_signature=[spec([1, 3, 3])])
    def hard(self, x):
        return {"y": tf.linalg.inv(x)}


hard = Hard()
tf.saved_model.save(hard, "hard", signatures={"serving_default": hard.hard})
Path("flex.tflite").write_bytes(convert("hard", supported_ops=[builtins, select]))
Path("custom.tflite").write_bytes(convert("hard", supported_ops=[builtins], allow_custom_ops=True))
static = net(batch=1)
static.export("static", verbose=False)
images = rng.normal(size=(32, 1, 8, 8, 3)).astype("float32")
Path("int8.tflite").write_bytes(convert(
    "static", optimizations=[tf.lite.Optimize.DEFAULT], supported_ops=[tf.lite.OpsSet.TFLITE_BUILTINS_INT8],
    representative_dataset=lambda: ([image] for image in images),
    inference_input_type=tf.int8, inference_output_type=tf.int8,
))

# A signature that names a graph the file does not have: the interpreter follows it into nowhere.
schema_model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(Path("net.tflite").read_bytes(), 0))
schema_model.signatureDefs[0].subgraphIndex = 1000
builder = flatbuffers.Builder()
builder.Finish(schema_model.Pack(builder), b"TFL3")
Path("crashing.tflite").write_bytes(bytes(builder.Output()))

# ONNX
def weights(name, *shape):
    return numpy_helper.from_array(rng.normal(size=shape).astype("float32"), name)


def value(name, shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def onnx_model(nodes, inputs, outputs, constants=(), domains=()):
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(constants))
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


node = helper.make_node
classifier = [
    node("Conv", ["image", "kernel"], ["maps"]),
    node("GlobalAveragePool", ["maps"], ["pooled"]),
    node("Flatten", ["pooled"], ["flat"]),
    node("Softmax", ["flat"], ["probs"]),
]
kernel = weights("kernel", 4, 3, 3, 3)
net_onnx = onnx_model(classifier, [value("image", ["n", 3, "h", "w"])], [value("probs", ["n", 4])], [kernel])
onnx.save(net_onnx, "net.onnx")
onnx.save(net_onnx, "outside.onnx", save_as_external_data=True, location="outside.weights", size_threshold=0)
onnx.save(onnx_model([node("Foo", ["x"], ["y"], domain="acme")], [value("x", [1, 3])], [value("y", [1, 3])],
    domains=["acme"]), "custom.onnx")
onnx.save(onnx_model([node("Bar", ["x"], ["y"])], [value("x", [1, 3])], [value("y", [1, 3])]), "unknown.onnx")
onnx.save(onnx_model([node("Relu", ["z"], ["y"])], [value("x", [1, 3])], [value("y", [1, 3])]), "dangling.onnx")
onnx.save(onnx_model([node("Identity", ["x"], ["y"])], [value("x", [1, 3], TensorProto.STRING)],
    [value("y", [1, 3], TensorProto.STRING)]), "text.onnx")
constant = node("Constant", [], ["y"], value=weights("c", 1, 3))
onnx.save(onnx_model([constant], [], [value("y", [1, 3])]), "sourceless.onnx")
sinkless = onnx_model([node("Relu", ["x"], ["y"])], [value("x", [1, 3])], [value("y", [1, 3])])
del sinkless.graph.output[:]
onnx.save(sinkless, "sinkless.onnx")
onnx.save(onnx_model([node("Relu", ["x"], ["y"])], [value("x", [4, 3])], [value("y", [4, 3])]), "batch4.onnx")
onnx.save(onnx_model([node("Add", ["left", "right"], ["sum"]), node("Mul", ["left", "right"], ["product"])],
    [value("left", ["n", "t"]), value("right", ["n", "t"])], [value("sum", ["n", "t"]), value("product", ["p", "q"])]),
    "pair.onnx")

# OpenVINO
openvino_kernel = rng.normal(size=(4, 3, 3, 3)).astype("float32")


def openvino_model(image, name):
    conv = ops.convolution(image, openvino_kernel, [1, 1], [0, 0], [0, 0], [1, 1])
    pooled = ops.reduce_mean(conv, np.array([2, 3]), False)
    found = ov.Model([ops.softmax(pooled, 1)], [image], "net")
    if name:
        found.inputs[0].get_tensor().set_names({name})
        found.outputs[0].get_tensor().set_names({"probs"})
    return found


named = openvino_model(ops.parameter([-1, 3, 8, 8], np.float32, name="node"), "image")
ov.save_model(named, "net.xml", compress_to_fp16=False)
ov.save_model(openvino_model(ops.parameter([-1, 3, -1, -1], np.float32, name="nameless"), ""), "nameless.xml")
unknown = Path("net.xml").read_text().replace('type="SoftMax" version="opset8"', 'type="Twirl" version="acme"')
assert "Twirl" in unknown
Path("custom.xml").write_text(unknown)
Path("cut.xml").write_bytes(Path("net.xml").read_bytes())
Path("cut.bin").write_bytes(Path("net.bin").read_bytes()[:100])
Path("custom.bin").write_bytes(Path("net.bin").read_bytes())

# What they give
def head(x, kernel):  # of the networks with channels first: convolution, mean, softmax
    maps = tf.nn.conv2d(x, kernel.transpose(2, 3, 1, 0), 1, "VALID").numpy().mean(axis=(1, 2))
    return np.exp(maps) / np.exp(maps).sum(axis=1, keepdims=True)


x = rng.normal(size=(3, 1, 8, 8, 3)).astype("float32")
np.savez("expected.npz", x=x, onnx=head(x[:, 0], numpy_helper.to_array(kernel)),
    openvino=head(x[:, 0], openvino_kernel),
    keras=np.concatenate([model(each, training=False) for each in x]))
"""

REFERENCE_SCRIPT = r"""
import sys
from pathlib import Path
import numpy as np
from pipeline.imports.reference import reference_outputs
from pipeline.model_source import ModelSource
from pipeline.signature import read_signature

with np.load(sys.argv[1]) as archive:
    samples = archive["x"]
for place in sys.argv[2:]:
    source = ModelSource(Path(place), read_signature(Path(place)))
    rows = []
    for sample in samples:
        row = {}
        for tensor in source.signature.inputs:
            value = sample if tensor.shape == (1, 8, 8, 3) else sample.transpose(0, 3, 1, 2)
            if tensor.dtype == "int8":
                value = np.clip(np.rint(value / np.float32(0.05)), -128, 127)
            row[tensor.name] = np.resize(value, tensor.shape).astype(tensor.dtype)
        rows.append(row)
    np.savez(Path(place) / "reference.npz", **reference_outputs(source, rows, lambda event: None))
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all formats, good and bad."""
    directory = tmp_path_factory.mktemp("models")
    run_script(MODELS_SCRIPT, directory)
    return directory


def run_script(script: str, *arguments: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        check=False,
        env=child_environment("tensorflow"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]


Import = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def import_into() -> Iterator[Import]:
    """Imports a model into a directory; one process serves all tests."""
    with StageExecutor([].append) as executor:

        def run(path: Path, out_dir: Path, limit_s: float = 180.0, **description: Any) -> dict[str, Any]:
            out_dir.mkdir(exist_ok=True)
            stage = ImportStage.model_validate({"path": str(path), "description": description, "cpu_limit_s": limit_s})
            return executor.run(stage, {}, out_dir)

        yield run


@dataclass(frozen=True)
class Good:
    """A model and what it is imported as: inputs and outputs as `name dtype shape`."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    files: tuple[str, ...]
    described: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


SAVED, ONNX, TFLITE, OPENVINO = ("saved_model",), ("model.onnx",), ("model.tflite",), ("model.bin", "model.xml")
FIXED = {"inputs": [{"shape": (1, 3, 8, 8)}]}
SERIES = {"inputs": [{"name": "Series", "shape": (1, 4, 6)}, {"name": "bias", "shape": (1, 2)}]}

GOOD = [
    Good("net.keras", ("My_Input float32 1x8x8x3",), ("probs float32 1x5 probabilities",), SAVED),
    Good("net.h5", ("My_Input float32 1x8x8x3",), ("probs float32 1x5 probabilities",), SAVED),
    Good(
        "free.keras",
        ("My_Input float32 1x9x7x3",),
        ("probs float32 1x5 probabilities",),
        SAVED,
        {"inputs": [{"name": "My-Input", "shape": (1, 9, 7, 3)}]},
    ),
    Good(
        "two.keras",
        ("a float32 1x6", "b float16 1x4"),
        ("zeta float32 1x3 values", "alpha float32 1x2 probabilities"),
        SAVED,
    ),
    Good("gru.keras", ("input_layer float32 1x12x3",), ("dense float32 1x2 logits",), SAVED, {"metric": "top1"}),
    Good(
        "unbuilt.keras",
        ("input_0 float32 1x7",),
        ("dense float32 1x3 values",),
        SAVED,
        {"inputs": [{"shape": (1, 7)}]},
    ),
    Good("exported", ("My_Input float32 1x8x8x3",), ("output_0 float32 1x5 probabilities",), SAVED),
    Good(
        "two",
        ("Series float32 1x4x6", "bias int32 1x2"),
        ("a_first int32 values", "b_last float32 1x4x5 values"),
        SAVED,
        SERIES,
    ),
    Good("any_rank", ("x float32 1x2x3",), ("y float32 1x2x3 values",), SAVED, {"inputs": [{"shape": (1, 2, 3)}]}),
    Good("selects", ("x float32 1x6",), ("y float32 -1 values",), SAVED),
    Good("net.onnx", ("image float32 1x3x8x8",), ("probs float32 1x4 probabilities",), ONNX, FIXED),
    Good("outside.onnx", ("image float32 1x3x8x8",), ("probs float32 1x4 probabilities",), ONNX, FIXED),
    Good(
        "pair.onnx",
        ("left float32 1x3", "right float32 1x3"),
        ("sum float32 1x3 values", "product float32 1x3 values"),
        ONNX,
        {"inputs": [{"name": "right", "shape": (1, 3)}, {"name": "left", "shape": (1, 3)}]},
    ),
    Good("net.tflite", ("My-Input float32 1x8x8x3",), ("output_0 float32 1x5 probabilities",), TFLITE),
    Good("int8.tflite", ("My-Input int8 1x8x8x3",), ("output_0 int8 1x5 probabilities",), TFLITE),
    Good("net.xml", ("image float32 1x3x8x8",), ("probs float32 1x4 probabilities",), OPENVINO),
    Good("nameless.xml", ("nameless float32 1x3x8x8",), ("* float32 1x4 probabilities",), OPENVINO, FIXED),
]  # fmt: skip


def words(tensor: dict[str, Any], *last: str) -> str:
    return " ".join(filter(None, (tensor["name"], tensor["dtype"], "x".join(map(str, tensor["shape"])), *last)))


@pytest.mark.parametrize("case", GOOD, ids=str)
def test_a_model_is_imported(models: Path, tmp_path: Path, import_into: Import, case: Good) -> None:
    metrics = import_into(models / case.name, tmp_path / "out", **case.described)
    signature = metrics["signature"]
    assert tuple(words(tensor) for tensor in signature["inputs"]) == case.inputs
    outputs = tuple(words(tensor, tensor["kind"]) for tensor in signature["outputs"])
    if case.outputs[0].startswith("*"):  # a name that OpenVINO makes up
        outputs = tuple(f"* {text.partition(' ')[2]}" for text in outputs)
    assert outputs == case.outputs
    assert read_signature(tmp_path / "out").model_dump(mode="json") == signature
    files = sorted(path.name for path in (tmp_path / "out").iterdir() if path.name != "signature.json")
    assert tuple(files) == case.files
    assert metrics["size_bytes"] > 0
    assert (metrics["num_operations"] is None) == (case.files == SAVED)


def test_parameters_are_counted_where_the_format_tells(models: Path, tmp_path: Path, import_into: Import) -> None:
    count = {
        name: import_into(models / name, tmp_path / name, **described)["parameters"]
        for name, described in (("net.keras", {}), ("exported", {}), ("net.onnx", FIXED), ("net.tflite", {}))
    }
    assert count == {"net.keras": 137, "exported": 137, "net.onnx": 108, "net.tflite": None}


def test_the_outputs_of_the_import_are_those_of_the_framework(
    models: Path, tmp_path: Path, import_into: Import
) -> None:
    imported = {
        "net.keras": {}, "net.h5": {}, "exported": {}, "net.tflite": {}, "int8.tflite": {},
        "net.onnx": FIXED, "outside.onnx": FIXED, "net.xml": {}, "two.keras": {},
    }  # fmt: skip
    for name, described in imported.items():
        import_into(models / name, tmp_path / name, **described)
    run_script(REFERENCE_SCRIPT, models / "expected.npz", *(tmp_path / name for name in imported))
    with np.load(models / "expected.npz") as archive:
        expected = dict(archive)
    found = {name: dict(np.load(tmp_path / name / "reference.npz")) for name in imported}
    for outputs in found.values():
        assert all(rows.dtype == np.float32 and len(rows) == 3 for rows in outputs.values())
    for name in ("net.keras", "net.h5", "exported", "net.tflite"):
        (rows,) = found[name].values()
        assert np.abs(rows - expected["keras"]).max() < 1e-6, name
    for name in ("net.onnx", "outside.onnx"):
        assert np.abs(found[name]["probs"] - expected["onnx"]).max() < 1e-6, name
    assert np.abs(found["net.xml"]["probs"] - expected["openvino"]).max() < 1e-6
    # probabilities again, in steps of 1/256; the int8 network itself is a few of those away
    rows = found["int8.tflite"]["output_0"]
    assert np.abs(rows.sum(axis=1) - 1).max() < 0.02
    assert np.array_equal(rows * 256, np.rint(rows * 256))
    assert {name: rows.shape for name, rows in found["two.keras"].items()} == {"zeta": (3, 3), "alpha": (3, 2)}


@dataclass(frozen=True)
class Bad:
    name: str
    says: tuple[str, ...]
    described: dict[str, Any] = field(default_factory=dict)
    error: type[InputError] = ModelFileError

    def __str__(self) -> str:
        return f"{self.name}-{self.says[0]}".replace(" ", "_")


BAD = [
    Bad("custom.keras", ("custom classes or functions Scaled, mine>Registered,", "can't load code", "model.export(")),
    Bad("registered.keras", ("the custom class or function mine>Registered,", "SavedModel")),
    Bad("registered.h5", ("the custom class or function mine>Registered,", "SavedModel")),
    Bad("subclass.keras", ("mine>Whole",)),
    Bad("function.keras", ("the custom class or function squared,",)),
    Bad("lambda.keras", ("Python code in its layer Lambda plus_one",)),
    Bad("lambda.h5", ("Python code in its layer Lambda plus_one",)),
    Bad("only.h5", ("weights without an architecture", "model.weights")),
    Bad("batch4.keras", ("has the shape (4, 8, 8, 3)", "batch of 1"), error=InputError),
    Bad("free.keras", ("(?, ?, ?, 3)", "shape: [1, 224, 224, 3]"), error=InputError),
    Bad("free.keras", ("can't be run with the inputs My_Input (1, 2, 2, 3)", "State shapes"),
        {"inputs": [{"shape": (1, 2, 2, 3)}]}, InputError),
    Bad("unbuilt.keras", ("does not say what it takes",), error=InputError),
    Bad("net.keras", ("names My-Imput", "Did you mean"), {"inputs": [{"name": "My-Imput"}]}, InputError),
    Bad("net.keras", ("said to take uint8, but in the file it takes float32",),
        {"inputs": [{"dtype": "uint8"}]}, InputError),
    Bad("two.keras", ("The model has 2 inputs (a float32 (?, 6), b float16 (?, 4))",),
        {"inputs": [{"scale": 1.0}]}, InputError),
    Bad("gru.keras", ("only images of 4 have one",), {"inputs": [{"layout": "NHWC", "scale": 1.0}]}, InputError),
    Bad("several", ("2 signatures: serving_default(x); other(x)", "Expected exactly one")),
    Bad("unsigned", ("no serving signature",)),
    Bad("text", ("input x has the type string",)),
    Bad("python", ("calls Python code",)),
    Bad("custom.onnx", ("custom operations acme::Foo",)),
    Bad("unknown.onnx", ("No Op registered for Bar",)),
    Bad("dangling.onnx", ("no valid ONNX model", "topologically sorted")),
    Bad("text.onnx", ("input x has the type string",)),
    Bad("sourceless.onnx", ("has no inputs",)),
    Bad("sinkless.onnx", ("has no outputs",)),
    Bad("batch4.onnx", ("(4, 3); expected a batch of 1",), error=InputError),
    Bad("net.onnx", ("shape: [1, 3, 224, 224]",), error=InputError),
    Bad("pair.onnx", ("must be equal in all inputs",),
        {"inputs": [{"name": "left", "shape": (1, 3)}, {"name": "right", "shape": (1, 4)}]}, InputError),
    Bad("net.tflite", ("names logits", "output_0 float32 (1, 5)"), {"outputs": [{"name": "logits"}]}, InputError),
    Bad("selects", ("model.metric is auc", "first output y has the shape (-1,)"), {"metric": "auc"}, InputError),
    Bad("flex.tflite", ("operations of TensorFlow itself (MatrixInverse)", "TFLITE_BUILTINS")),
    Bad("custom.tflite", ("custom operations MatrixInverse",)),
    Bad("custom.xml", ("OpenVINO", "Twirl")),
    Bad("cut.xml", ("OpenVINO",)),
    Bad("nameless.xml", ("Input nameless has the shape (?, 3, ?, ?)",), error=InputError),
]  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=str)
def test_a_model_that_can_not_be_imported_is_refused_with_the_reason(
    models: Path, tmp_path: Path, import_into: Import, case: Bad
) -> None:
    with pytest.raises(InputError) as caught:
        import_into(models / case.name, tmp_path / "out", **case.described)
    assert type(caught.value) is case.error
    assert_told(caught.value, models / case.name)
    for text in case.says:
        assert text in caught.value.message


def test_weights_that_one_file_can_not_hold_stay_outside(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.imports.onnx.MAX_BYTES", 500)
    import_model(models / "outside.onnx", tmp_path, ModelDescription.model_validate(FIXED))
    assert (tmp_path / "model.onnx").stat().st_size < 600
    assert (tmp_path / "model.onnx.data").stat().st_size >= 4 * 108
    shutil.copyfile(models / "expected.npz", tmp_path / "expected.npz")
    run_script(REFERENCE_SCRIPT, tmp_path / "expected.npz", tmp_path)
    expected = np.load(tmp_path / "expected.npz")["onnx"]
    assert np.abs(np.load(tmp_path / "reference.npz")["probs"] - expected).max() < 1e-6


def assert_told(error: EdgeshipError, path: Path) -> None:
    """One printable line with the path, and exit code 2."""
    assert error.exit_code == 2, error.message
    assert str(path) in error.message
    assert "\n" not in error.message
    assert error.message.isprintable()
    assert "Traceback" not in error.message


def test_a_model_that_crashes_its_parser_is_reported(models: Path) -> None:
    with pytest.raises(ModelFileError, match=r"crashes the parser of its format.*SIGSEGV") as caught:
        inspect_in_child(models / "crashing.tflite", ModelDescription())
    assert_told(caught.value, models / "crashing.tflite")


def test_inspection_leaves_nothing_behind(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    metrics = inspect_in_child(models / "net.tflite", ModelDescription())
    assert metrics["format"] == "tflite"
    assert metrics["num_operations"] == sum(metrics["operations"].values()) > 0
    assert list(tmp_path.iterdir()) == []


# --- damaged files


def damaged(content: bytes, seed: int) -> bytes:
    """Cut off at a place of chance, or with some bytes of chance."""
    chance = random.Random(seed)
    if seed % 2 == 0:
        return content[: chance.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(chance.choice((1, 4, 16))):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


@dataclass(frozen=True)
class Damaged:
    name: str
    parts: tuple[str, ...] = ("",)
    described: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


DAMAGED = [
    Damaged("net.keras"),
    Damaged("net.h5"),
    Damaged("exported", ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001")),
    Damaged("net.onnx", described=FIXED),
    Damaged("net.tflite"),
    Damaged("net.xml", ("", "../net.bin")),
]
SEEDS = range(20)


def damage(models: Path, place: Path, case: Damaged, seed: int) -> Path:
    path = place / case.name
    if (models / case.name).is_dir():
        shutil.copytree(models / case.name, path)
    else:
        shutil.copyfile(models / case.name, path)
    if path.suffix == ".xml":
        shutil.copyfile(models / "net.bin", place / "net.bin")
    part = case.parts[seed // 2 % len(case.parts)]
    target = path.parent / part.removeprefix("../") if part.startswith("../") else path / part if part else path
    target.write_bytes(damaged(target.read_bytes(), seed))
    return path


@pytest.mark.parametrize("case", DAMAGED, ids=str)
def test_a_damaged_file_is_imported_or_refused(
    models: Path, tmp_path: Path, import_into: Import, case: Damaged
) -> None:
    told: list[str] = []
    for seed in SEEDS:
        place = tmp_path / str(seed)
        place.mkdir()
        path = damage(models, place, case, seed)
        try:
            import_into(path, place / "out", **case.described)
        except EdgeshipError as error:
            told.append(error.message)
            assert_told(error, path)
    assert len(told) >= len(SEEDS) // 2  # what is cut off is never taken
    assert not [text for text in told if "crashes" in text]  # which costs a process, and has tests of its own


def test_a_damaged_file_that_keeps_its_parser_busy_is_given_up(
    models: Path, tmp_path: Path, import_into: Import
) -> None:
    """HDF5 reads this one's attribute for ever."""
    import_into(models / "net.h5", tmp_path / "out")  # what takes time is loaded before the limit counts
    path = tmp_path / "net.h5"
    path.write_bytes(damaged((models / "net.h5").read_bytes(), 29))
    with pytest.raises(ModelFileError, match=r"busy without end \(it was stopped after 3 s") as caught:
        import_into(path, tmp_path / "out", limit_s=3.0)
    assert_told(caught.value, path)
