"""Models of one's own from the command line: converted, judged, measured, deployed, or refused with the reason."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.executor import child_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = """
import keras, numpy as np, onnx
from keras import layers as L
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

keras.utils.set_random_seed(0)
digits = load_digits()
images = np.repeat(np.repeat(digits.images, 2, 1), 2, 2)[..., None].repeat(3, -1) / 16 * 255
image = keras.Input((16, 16, 3), name="photo")
x = L.Conv2D(16, 3, strides=2, activation="relu")(image)
x = L.Conv2D(32, 3, strides=2, activation="relu")(x)
scores = L.Dense(10, activation="softmax", name="scores")(L.Flatten()(x))
model = keras.Model(image, scores)
model.compile("adam", "sparse_categorical_crossentropy")
model.fit(images / 127.5 - 1, digits.target, epochs=6, verbose=0)
model.save("classifier.keras")
model.export("classifier_directory", verbose=False)
kernel, bias = model.layers[1].get_weights()

left, right = keras.Input((12,), name="left"), keras.Input((12,), name="right")
both = L.Concatenate()([left, L.Dense(40, activation="relu")(right)])
keras.Model([left, right], {"first": L.Dense(30)(both), "second": L.Dense(20)(both)}).save("two.keras")
random = np.random.default_rng(0)
np.savez("two.npz", left=random.random((300, 12), np.float32), right=random.random((300, 12), np.float32))

vector = keras.Input((24,), name="vector")
narrow = L.Dense(16, activation="relu")(vector)
autoencoder = keras.Model(vector, L.Dense(24, name="again")(narrow))
values = random.random((400, 24), np.float32)
autoencoder.compile("adam", "mse")
autoencoder.fit(values, values, epochs=3, verbose=0)
autoencoder.save("autoencoder.keras")
strange = values + 3 * random.random((400, 24), np.float32)
both = np.concatenate([values, strange])
np.savez("vectors.npz", vector=both, labels=np.repeat([0, 1], 400))

series = keras.Input((12, 5), name="series")
keras.Model(series, L.Dense(3, name="next")(L.GRU(16)(series))).save("gru.keras")

# The first convolution of the classifier and a mean, as another framework would write it: channels first.
def constant(name, array):
    return numpy_helper.from_array(array.astype(np.float32), name)
nodes = [
    helper.make_node("Conv", ["x", "w", "b"], ["c"], strides=[2, 2]),
    helper.make_node("Relu", ["c"], ["r"]),
    helper.make_node("GlobalAveragePool", ["r"], ["p"]),
    helper.make_node("Flatten", ["p"], ["f"]),
    helper.make_node("MatMul", ["f", "m"], ["logits"]),
]
graph = helper.make_graph(
    nodes, "net",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
    [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
    [constant("w", kernel.transpose(3, 2, 0, 1)), constant("b", bias), constant("m", random.standard_normal((16, 10)))],
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), "net.onnx")
"""


@dataclass(frozen=True)
class Place:
    """A directory with models, and one store for all tests."""

    directory: Path

    def edgeship(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        done = self.execute(*arguments, "--json")
        assert done.returncode == code, done.stderr[-3000:]
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def refused(self, *arguments: str) -> str:
        done = self.execute(*arguments)
        assert done.returncode == 2, (done.returncode, done.stderr[-3000:])
        assert "Traceback" not in done.stderr
        return done.stderr.strip().splitlines()[-1] if "Error:" in done.stderr.splitlines()[-1] else done.stderr

    def execute(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "pipeline.cli", *arguments],
            check=False,
            cwd=self.directory,
            env={name: value for name, value in child_environment("tensorflow").items() if name != "KERAS_BACKEND"},
            capture_output=True,
            text=True,
            timeout=600,
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    directory = tmp_path_factory.mktemp("own")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        check=False,
        cwd=directory,
        env=child_environment("tensorflow"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Place(directory)


PIXELS = ("--scale", "0.00784313725", "--offset=-1")
TARGETS = ["litert", "onnxruntime", "openvino"]


def by_file(answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{row['target']}/{row['precision']}": row for row in answer["files"]}


@pytest.fixture(scope="module")
def converted(place: Place) -> dict[str, dict[str, Any]]:
    """The classifier in float32 and int8."""
    arguments = ("--precision", "float32", "--precision", "int8", "--data", "digits", *PIXELS)
    return by_file(place.edgeship("convert", "classifier.keras", *arguments, "--out", "converted"))


def test_a_keras_classifier_goes_to_all_runtimes(place: Place, converted: dict[str, dict[str, Any]]) -> None:
    assert sorted(converted) == sorted(
        f"{target}/{precision}" for target in TARGETS for precision in ("float32", "int8")
    )
    for label, row in converted.items():
        assert (place.directory / row["path"]).is_file()
        assert row["metric"] == "top1"
        assert row["accuracy"] > 0.85
        assert abs(row["accuracy_drop"]) < 0.02
        assert all(gate["passed"] for gate in row["gates"])
        if label.endswith("float32"):
            assert row["parity"]["max_logit_difference"] < 1e-4
            assert row["parity"]["top1_agreement"] == 1.0


def test_converted_files_and_their_source_are_judged_alike(place: Place, converted: dict[str, dict[str, Any]]) -> None:
    own = place.edgeship("eval", "classifier.keras", "--data", "digits", *PIXELS)
    assert own["accuracy"] == pytest.approx(converted["litert/float32"]["accuracy"], abs=1e-9)
    assert own["nll"] < 1.0  # of its probabilities: taken for logits, they would give over 1.4
    for target in TARGETS:
        file = converted[f"{target}/float32"]["path"]
        found = place.edgeship("eval", file, "--data", "digits", *PIXELS)
        assert (found["correct"], found["device"]) == (own["correct"], "local")
        assert found["nll"] == pytest.approx(own["nll"], rel=1e-3)
    directory = place.edgeship("eval", "classifier_directory", "--data", "digits", *PIXELS)
    assert directory["correct"] == own["correct"]


def test_every_format_is_measured(place: Place, converted: dict[str, dict[str, Any]]) -> None:
    models = ("classifier.keras", "net.onnx", converted["openvino/int8"]["path"])
    found = place.edgeship("bench", *models, "--min-count", "10", "--min-time", "0", "--shape", "x=1,3,16,16")
    names = [case["id"] for case in found["cases"]]
    assert names == [*(f"classifier.keras {target}/float32" for target in TARGETS), *models[1:]]
    assert all(case["error"] is None and case["latency_ms"]["p50"] > 0 for case in found["cases"])


@pytest.mark.parametrize(
    ("source", "reached"),
    [("litert", TARGETS), ("onnxruntime", TARGETS[1:]), ("openvino", TARGETS[2:])],
    ids=["tflite", "onnx", "xml"],
)
def test_files_of_runtimes_are_converted(
    place: Place, converted: dict[str, dict[str, Any]], source: str, reached: list[str]
) -> None:
    file = converted[f"{source}/float32"]["path"]
    precisions = ("--precision", "float32", "--precision", "int8")
    arguments = (*precisions, "--data", "digits", "--calibration-samples", "64", *PIXELS)
    files = by_file(place.edgeship("convert", file, *arguments, "--out", f"from-{source}"))
    assert {row["target"] for row in files.values()} == set(reached)
    for label, row in files.items():
        assert abs(row["accuracy_drop"]) < 0.02
        if label.endswith("float32"):
            assert row["parity"]["max_logit_difference"] < 1e-4
    same = files[f"{source}/float32"]
    if source == "litert":  # the others are written anew by their own libraries
        assert same["sha256"] == converted[f"{source}/float32"]["sha256"]


def test_a_quantized_file_stays_what_it_is(place: Place, converted: dict[str, dict[str, Any]]) -> None:
    file = converted["litert/int8"]["path"]
    files = by_file(place.edgeship("convert", file, "--target", "litert", *PIXELS, "--out", "same"))
    assert list(files) == ["litert/int8"]
    assert files["litert/int8"]["sha256"] == converted["litert/int8"]["sha256"]
    message = place.refused("convert", file, "--precision", "float32", *PIXELS, "--out", "refused")
    assert "holds int8" in message


RECIPE = """\
name: own-net
data: {source: digits, size: [16, 16]}
model:
  path: net.onnx
  inputs: [{name: x, layout: NCHW, scale: [0.007, 0.008, 0.009], offset: -1.0, shape: [1, 3, 16, 16]}]
quantization: {calibration_images: 64}
gates: {int8: {max_accuracy_drop: 0.2, min_top1_agreement: 0.7}}
benchmark: {min_count: 10, min_time_s: 0, warm_up_time_s: 0}
"""


def test_a_recipe_takes_onnx_to_what_it_reaches_and_deploys_it(place: Place) -> None:
    (place.directory / "net.yaml").write_text(RECIPE)
    report = place.edgeship("run", "net.yaml")
    labels = {f"{row['target']}/{row['precision']}" for row in report["artifacts"]}
    assert labels == {f"{target}/{precision}" for target in TARGETS[1:] for precision in ("float32", "float16", "int8")}
    assert report["failures"] == []
    for row in report["artifacts"]:
        # By chance a tenth would be right; the weights are random, so not many are.
        assert row["metric"] == "top1"
        if row["precision"] == "float32":
            assert row["parity"]["max_logit_difference"] < 1e-4
    measured = {(row["target"], row["precision"]): row for row in report["benchmarks"]}
    for row in report["artifacts"]:
        assert measured[row["target"], row["precision"]]["accuracy"] == pytest.approx(row["accuracy"], abs=0.02)
    assert report["selected"]["local"]["selected"] in labels
    again = place.edgeship("run", "net.yaml")
    assert all(stage["cached"] for stage in again["stages"])

    root = str(place.directory / "releases")
    deployed = place.edgeship("deploy", "net.yaml", "--root", root)
    release = deployed["release"]
    assert release["inputs"][0]["transform"]["layout"] == "NCHW"
    current = place.directory / "releases" / "own-net" / "current"
    golden = np.load(current / "golden_input_0.npy")
    assert (golden.dtype, golden.shape[1:]) == (np.uint8, (16, 16, 3))


def test_two_inputs_and_two_outputs_keep_their_names(place: Place) -> None:
    arguments = ("--data", "two.npz", "--precision", "float32", "--precision", "int8", "--calibration-samples", "64")
    files = by_file(place.edgeship("convert", "two.keras", *arguments, "--out", "two"))
    assert len(files) == 6
    for label, row in files.items():
        assert [output["name"] for output in row["outputs"]] == ["first", "second"]
        assert (row["metric"], row["accuracy"], row["accuracy_drop"]) == (None, None, None)
        assert row["parity"]["top1_agreement"] is None
        limit = 1e-4 if label.endswith("float32") else 0.2
        assert row["parity"]["max_logit_difference"] < limit


@pytest.mark.parametrize(("metric", "expected"), [("auc", (0.95, 1.0)), ("mse", (0.0, 10.0))])
def test_an_autoencoder_is_judged_by_its_error(place: Place, metric: str, expected: tuple[float, float]) -> None:
    arguments = ("--data", "vectors.npz", "--metric", metric)
    own = place.edgeship("eval", "autoencoder.keras", *arguments)
    assert expected[0] < own["accuracy"] <= expected[1]
    assert own["accuracy_interval"][0] <= own["accuracy"] <= own["accuracy_interval"][1]
    files = place.edgeship("convert", "autoencoder.keras", *arguments, "--precision", "float32", "--out", "auto")
    for row in files["files"]:
        assert row["accuracy"] == pytest.approx(own["accuracy"], rel=1e-4)
        assert abs(row["accuracy_drop"]) < 1e-4


def test_a_network_over_time_is_converted_on_random_samples(place: Place) -> None:
    files = by_file(
        place.edgeship("convert", "gru.keras", "--target", "litert", "--target", "openvino", "--out", "gru")
    )
    assert {"litert/float32", "openvino/float32"} <= set(files)
    assert not [label for label in files if label.endswith("int8")]
    for row in files.values():
        assert row["accuracy"] is None
    assert all(files[f"{target}/float32"]["parity"]["max_logit_difference"] < 1e-4 for target in ("litert", "openvino"))


def test_what_a_runtime_lacks_is_named_and_loses_only_itself(place: Place) -> None:
    """A loop over time has no int8 in LiteRT: bad input, exit code 2; its float32 is there all the same."""
    series = np.random.default_rng(0).random((160, 12, 5), np.float32)
    np.savez(place.directory / "series.npz", series=series)
    arguments = ("--target", "litert", "--precision", "float32", "--precision", "int8", "--data", "series.npz")
    more = ("--calibration-samples", "64", "--out", "loop")
    answer = place.edgeship("convert", "gru.keras", *arguments, *more, code=2)
    assert list(by_file(answer)) == ["litert/float32"]
    (message,) = answer["failures"]
    assert "LiteRT has no int8 kernel for While" in message


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("convert", "net.onnx", "--target", "litert", "--shape", "x=1,3,16,16"), ["litert", "net.onnx"]),
        (("convert", "classifier.keras", "--precision", "int8"), ["int8", "random", "arrays"]),
        (("convert", "classifier.keras", "--data", "digits"), ["photo", "float32", "scale"]),
        (("convert", "net.onnx", "--data", "two.npz", "--shape", "x=1,3,16,16"), ["left, right", "x"]),
        (("convert", "nothing.keras"), ["nothing.keras"]),
        (("convert", "net.onnx", "--shape", "y=1,3,16,16"), ["y", "x"]),
        (("convert", "net.onnx", "--shape", "x=1,three"), ["--shape", "x=1,three"]),
        (("convert", "classifier.keras", "--scale", "a"), ["--scale is a"]),
        (("convert", "two.keras", "--metric", "mse"), ["metric", "random"]),
    ],
    ids=["unreachable", "int8 without data", "no scale", "other arrays", "no file", "unknown input", "bad shape",
         "bad scale", "metric on random data"],
)  # fmt: skip
def test_refused(place: Place, arguments: tuple[str, ...], parts: list[str]) -> None:
    message = place.refused(*arguments, "--out", "refused")
    for part in parts:
        assert part in message, message
    assert not (place.directory / "refused").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("eval", "two.keras", "--data", "two.npz"), ["nothing", "--metric"]),
        (("eval", "gru.keras", "--data", "digits"), ["series", "no image"]),
        (("eval", "classifier.keras", "--data", "digits"), ["photo", "scale"]),
        (
            ("eval", "autoencoder.keras", "--data", "vectors.npz", "--metric", "auc", "--split", "validation"),
            ["--split"],
        ),
        (("eval", "autoencoder.keras", "--data", "vectors.npz", "--metric", "auc", "--device", "fake"), ["TensorFlow"]),
    ],
    ids=["no metric", "images for a series", "no scale", "split", "device"],
)
def test_eval_refused(place: Place, arguments: tuple[str, ...], parts: list[str]) -> None:
    message = place.refused(*arguments)
    for part in parts:
        assert part in message, message
