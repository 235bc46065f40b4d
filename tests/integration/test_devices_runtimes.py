"""Real runtimes behind real agents: a tiny network in three formats, good files and broken ones."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from devices.board import litert_times
from devices.board.litert_times import find_library
from devices.errors import AgentCrashedError, DeviceError, ModelRejectedError
from devices.measurement import BenchmarkSettings, Case, ImageInput, SampleFile, benchmark, predict, profile_case
from devices.profile import load_profile

SIDE, CLASSES, IMAGES = 16, 5, 24

MAKE_MODELS = """
import pathlib, sys
import numpy as np, keras, tensorflow as tf, onnx, onnxruntime, openvino as ov
from onnx import TensorProto as T, helper as h, numpy_helper as n

out, side, classes = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
keras.utils.set_random_seed(0)
image = keras.Input((side, side, 3), batch_size=1, dtype="uint8")
x = keras.layers.Rescaling(1 / 127.5, offset=-1)(image)
conv, dense = keras.layers.Conv2D(4, 3), keras.layers.Dense(classes)
x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(conv(x)))
network = keras.Model(image, dense(x))
converter = tf.lite.TFLiteConverter.from_keras_model(network)
(out / "net.tflite").write_bytes(converter.convert())
large = keras.Input((64, 64, 3), batch_size=1, dtype="uint8")
x = keras.layers.Conv2D(48, 3, activation="relu")(keras.layers.Rescaling(1 / 255)(large))
x = keras.layers.Conv2D(48, 3, activation="relu")(keras.layers.Lambda(lambda values: tf.cumsum(values, axis=1))(x))
converter = tf.lite.TFLiteConverter.from_keras_model(keras.Model(large, keras.layers.GlobalAveragePooling2D()(x)))
(out / "pieces.tflite").write_bytes(converter.convert())

def onnx_model(name, input_type, shape, transpose, outputs):
    w, b = conv.get_weights(); dw, db = dense.get_weights()
    tensors = {"scale": np.float32(1 / 127.5), "one": np.float32(1), "w": w.transpose(3, 2, 0, 1).copy(), "b": b,
               "dw": dw, "db": db, "axes": np.int64([2, 3])}
    nodes = [h.make_node("Cast", ["image"], ["cast"], to=T.FLOAT), h.make_node("Mul", ["cast", "scale"], ["mul"]),
             h.make_node("Sub", ["mul", "one"], ["sub"])]
    if transpose:
        nodes.append(h.make_node("Transpose", ["sub"], ["nchw"], perm=[0, 3, 1, 2]))
    else:
        nodes.append(h.make_node("Identity", ["sub"], ["nchw"]))
    nodes += [h.make_node("Conv", ["nchw", "w", "b"], ["conv"]), h.make_node("Relu", ["conv"], ["relu"]),
              h.make_node("ReduceMean", ["relu", "axes"], ["mean"], keepdims=0),
              h.make_node("Gemm", ["mean", "dw", "db"], ["logits"])]
    infos = [h.make_tensor_value_info(name, T.FLOAT, None) for name in outputs]
    graph = h.make_graph(nodes, "net", [h.make_tensor_value_info("image", input_type, shape)], infos,
                         [n.from_array(np.asarray(value), key) for key, value in tensors.items()])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), out / name)

onnx_model("net.onnx", T.UINT8, [1, side, side, 3], True, ["logits"])
onnx_model("nchw.onnx", T.FLOAT, ["batch", 3, side, side], False, ["logits", "mean"])
onnx_model("free.onnx", T.FLOAT, [1, 3, "height", "width"], False, ["logits"])
ov.save_model(ov.convert_model(out / "net.onnx"), out / "net.xml", compress_to_fp16=False)
images = np.random.default_rng(0).integers(0, 256, (int(sys.argv[4]), side, side, 3), np.uint8)
np.save(out / "images.npy", images)
np.save(out / "expected.npy", np.concatenate([network(each[None]).numpy() for each in images]))
"""

FILES = {"litert": "net.tflite", "onnxruntime": "net.onnx", "openvino": "net.xml"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network in each format; made in a process of its own, which keeps TensorFlow out of this one."""
    out = tmp_path_factory.mktemp("models")
    arguments = [sys.executable, "-c", MAKE_MODELS, str(out), str(SIDE), str(CLASSES), str(IMAGES)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.mark.parametrize("runtime", FILES)
def test_predictions_agree_with_the_network(runtime: str, models: Path, tmp_path: Path) -> None:
    expected = np.load(models / "expected.npy")
    labels = expected.argmax(axis=1)
    labels[0] = (labels[0] + 1) % CLASSES
    np.save(tmp_path / "labels.npy", labels)
    case = Case(id=runtime, runtime=runtime, path=str(models / FILES[runtime]))
    events: list[dict[str, Any]] = []
    answer = predict(
        load_profile("local"),
        case,
        [SampleFile(path=str(models / "images.npy"))],
        str(tmp_path / "labels.npy"),
        str(tmp_path),
        tell=events.append,
    )
    np.testing.assert_allclose(np.load(tmp_path / "output_0.npy"), expected, atol=1e-5)
    assert (answer.count, answer.correct, answer.non_finite) == (IMAGES, IMAGES - 1, 0)
    (image,) = answer.model["inputs"]
    assert (image["shape"], image["dtype"], image["quantization"]) == ([1, SIDE, SIDE, 3], "uint8", None)
    assert events[-1] == {"case": runtime, "done": IMAGES, "total": IMAGES}


def test_interleaved_benchmark(models: Path) -> None:
    cases = [Case(id=runtime, runtime=runtime, path=str(models / name)) for runtime, name in FILES.items()]
    cases += [
        Case(id="nchw", runtime="onnxruntime", path=str(models / "nchw.onnx"), num_threads=2),
        Case(id="nchw-ov", runtime="openvino", path=str(models / "nchw.onnx")),
        Case(id="free", runtime="onnxruntime", path=str(models / "free.onnx")),
    ]
    settings = BenchmarkSettings(warm_up_time_s=0.05, min_count=60, min_time_s=0.0)
    result = benchmark(load_profile("local"), cases, settings)
    by_id = {case.id: case for case in result.cases}
    error = by_id.pop("free").error
    assert error is not None
    assert error.kind == "ModelRejectedError"
    assert "only the first dimension may be free; give a shape for 'image'" in error.message
    for case in by_id.values():
        assert case.error is None, case.error
        assert case.latency_ms is not None
        assert case.latency_ms.count >= 60
        assert case.latency_ms.min <= case.latency_ms.p50 <= case.latency_ms.p90 <= case.latency_ms.max
        assert case.load_ms is not None
        assert case.peak_memory_mb is not None
        assert case.baseline_memory_mb is not None
        assert case.peak_memory_mb > case.baseline_memory_mb
    assert by_id["nchw"].num_threads == 2
    model = by_id["nchw"].model
    assert model is not None
    free = {"name": "image", "shape": [None, 3, SIDE, SIDE], "dtype": "float32", "quantization": None}
    assert model["inputs"] == [free]
    assert by_id["nchw"].input_shapes == {"image": (1, 3, SIDE, SIDE)}
    assert [output["name"] for output in model["outputs"]] == ["logits", "mean"]
    assert len(by_id["openvino"].files) == 2
    assert result.facts["cores"] > 0


class Damage(NamedTuple):
    id: str
    file: str
    keep: float
    noise: bool = False


DAMAGES = [
    *(
        Damage(f"{name}-cut-{keep}", name, keep)
        for name in ("net.tflite", "net.onnx", "net.xml", "net.bin")
        for keep in (0, 0.1, 0.5, 0.95)
    ),
    *(Damage(f"{name}-noise", name, 1, noise=True) for name in ("net.tflite", "net.onnx", "net.xml")),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.id)
def test_a_damaged_file_is_a_clear_error(damage: Damage, models: Path, tmp_path: Path) -> None:
    for name in ("net.tflite", "net.onnx", "net.xml", "net.bin"):
        data = (models / name).read_bytes()
        if name == damage.file:
            data = data[: int(len(data) * damage.keep)]
            if damage.noise:
                data = np.random.default_rng(1).integers(0, 256, len(data), np.uint8).tobytes()
        (tmp_path / name).write_bytes(data)
    model = "net.xml" if damage.file == "net.bin" else damage.file
    runtime = next(runtime for runtime, name in FILES.items() if name == model)
    case = Case(id="damaged", runtime=runtime, path=str(tmp_path / model))
    settings = BenchmarkSettings(warm_up_time_s=0, min_count=10, min_time_s=0, load_timeout_s=60)
    error = benchmark(load_profile("local"), [case], settings).cases[0].error
    assert error is not None
    assert error.kind in {ModelRejectedError.__name__, AgentCrashedError.__name__}
    assert "Traceback" not in error.message
    assert str(tmp_path / model) in error.message


def test_another_file_than_the_expected_is_refused(models: Path) -> None:
    case = Case(id="net", runtime="litert", path=str(models / "net.tflite"), sha256="0" * 64)
    with pytest.raises(ModelRejectedError, match="another file"):
        predict(load_profile("local"), case, [SampleFile(path=str(models / "images.npy"))], None, str(models / "never"))
    assert not (models / "never").exists()


def test_images_of_another_size_are_refused(models: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "small.npy", np.zeros((2, 8, 8, 3), np.uint8))
    case = Case(id="net", runtime="litert", path=str(models / "net.tflite"))
    with pytest.raises(DeviceError, match=r"uint8 \(2, 8, 8, 3\)"):
        predict(load_profile("local"), case, [SampleFile(path=str(tmp_path / "small.npy"))], None, str(tmp_path))


class Placement(NamedTuple):
    """Where the operations of the network run, and whether the runtime tells how long each takes."""

    runtime: str
    operations: set[str]
    timed: bool


PLACEMENTS = [
    Placement("litert", {"CONV_2D", "FULLY_CONNECTED"}, timed=False),  # what ran is told beside the operations
    Placement("onnxruntime", {"Gemm"}, timed=True),
    Placement("openvino", {"Convolution", "FullyConnected"}, timed=True),
]


@pytest.mark.parametrize("placement", PLACEMENTS, ids=lambda placement: placement.runtime)
def test_where_operations_run(placement: Placement, models: Path) -> None:
    case = Case(id="net", runtime=placement.runtime, path=str(models / FILES[placement.runtime]))
    found = profile_case(load_profile("local"), case, count=5)
    layers = found["layers"]
    assert placement.operations <= {layer["operation"] for layer in layers}
    assert found["operations"] == len(layers)
    assert all(layer["where"] for layer in layers)
    assert all((layer["ms"] is not None) == placement.timed for layer in layers)
    assert found["reason"] is None
    assert ("kernels" in found) != placement.timed
    if placement.runtime == "onnxruntime":
        assert {layer["where"] for layer in layers} == {"CPUExecutionProvider"}
        assert found["delegated_share"] == 1
    if placement.runtime == "litert":
        where = {layer["operation"]: layer["where"] for layer in layers}
        assert where["CONV_2D"] == where["FULLY_CONNECTED"] == "XNNPACK"
        assert where["CAST"] == "built-in kernel"
        assert found["partitions"] == 1
        assert found["delegated_share"] == (len(layers) - 1) / len(layers)


def test_the_time_of_each_layer_that_litert_runs(models: Path) -> None:
    """Of a network that XNNPACK takes in two pieces, with a cumulative sum between them."""
    case = Case(id="pieces", runtime="litert", path=str(models / "pieces.tflite"), num_threads=1)
    found = profile_case(load_profile("local"), case, count=20)
    assert found["reason"] is None
    kernels = found["kernels"]
    outside = [layer["operation"] for layer in found["layers"] if layer["where"] != "XNNPACK"]
    assert outside == [kernel["operation"] for kernel in kernels if kernel["where"] != "XNNPACK"] == ["CAST", "CUMSUM"]
    assert found["partitions"] == 2
    assert len({kernel["name"] for kernel in kernels}) == len(kernels)
    convolutions = [kernel["ms"] for kernel in kernels if kernel["operation"] == "Convolution"]
    assert len(convolutions) == 2
    assert convolutions[1] > 2 * convolutions[0] > 0, "the second has 16 times as many multiply-adds"
    assert found["inference_ms"] > 0


def test_the_layers_of_litert_take_what_the_inference_takes(models: Path, tmp_path: Path) -> None:
    """Inference by inference, for other programs may use the machine: the layers are within it, and most of it."""
    np.zeros((1, 64, 64, 3), np.uint8).tofile(tmp_path / "input")
    details = _input_details(models / "pieces.tflite")
    question = {"library": find_library("ai-edge-litert", version("ai-edge-litert")), "num_threads": 1, "count": 30,
                "model": str(models / "pieces.tflite"),
                "inputs": [{"name": details["name"], "path": str(tmp_path / "input")}]}  # fmt: skip
    (tmp_path / "question.json").write_text(json.dumps(question))
    program = Path(litert_times.__file__).with_name("litert_profiler.py")
    command = [sys.executable, "-I", str(program), str(tmp_path / "question.json"), str(tmp_path / "answer.json")]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    inferences = json.loads((tmp_path / "answer.json").read_text())["inferences"]
    assert len(inferences) == 30
    shares = [sum(us for kind, _, _, us in each["events"] if kind in (2, 8)) / 1000 / each["ms"] for each in inferences]
    assert max(shares) <= 1
    assert max(shares) > 0.5


def _input_details(path: Path) -> dict[str, Any]:
    from ai_edge_litert.interpreter import Interpreter

    details: dict[str, Any] = Interpreter(str(path)).get_input_details()[0]
    return details


def test_free_dimensions_are_profiled_with_the_shapes_given(models: Path) -> None:
    for runtime in ("onnxruntime", "openvino"):
        case = Case(
            id="free", runtime=runtime, path=str(models / "free.onnx"), input_shapes={"image": (1, 3, SIDE, SIDE)}
        )
        assert profile_case(load_profile("local"), case, count=2)["layers"]


@pytest.mark.parametrize("runtime", FILES)
def test_memory_of_the_runtime_and_the_way_of_an_image(runtime: str, models: Path, tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.jpg")
    record = {"size": [SIDE, SIDE], "resize": "stretch", "crop": "none", "interpolation": "bilinear"}
    image = ImageInput(path=str(tmp_path / "image.jpg"), preprocess=record, transform={"dtype": "uint8"})
    case = Case(id="net", runtime=runtime, path=str(models / FILES[runtime]), image=image)
    settings = BenchmarkSettings(warm_up_time_s=0, min_count=40, min_time_s=0, runtime_memory=True, cores="0")
    measured = benchmark(load_profile("local"), [case], settings).cases[0]
    assert measured.error is None
    assert measured.runtime_memory_mb is not None
    assert measured.peak_memory_mb is not None
    assert 3 < measured.runtime_memory_mb < measured.peak_memory_mb
    assert measured.cores == (0,)
    assert measured.end_to_end is not None
    assert measured.end_to_end.decoder.startswith("Pillow ")
    assert measured.end_to_end.latency_ms.count >= 40
