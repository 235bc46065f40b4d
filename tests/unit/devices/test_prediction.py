"""Predictions and measurements of fake models with several inputs and outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest

from devices.board.agent import BoardAgent
from devices.board.errors import AgentError, ModelRejected
from devices.board.runners.contract import tensor_record
from devices.errors import DeviceError, ModelRejectedError
from devices.measurement import (
    BenchmarkSettings,
    Case,
    Prediction,
    SampleFile,
    benchmark,
    describe_model,
    predict,
)
from devices.profile import load_profile

COUNT = 5
HALF = {"scale": [0.5], "zero_point": [-3], "axis": None}
AXIS = {"scale": [1.0, 0.25], "zero_point": [0, 2], "axis": 1}
COLUMNS = {"scale": [1.0, 0.5, 0.25], "zero_point": [10, 20, 30], "axis": 1}
INPUTS = [
    {"name": "picture", "shape": [1, 3, 2, 2], "dtype": "float32", "aliases": ["picture:0"]},
    {"name": "codes", "shape": [1, 4], "dtype": "int8", "quantization": HALF},
    {"name": "table", "shape": [2, 3], "dtype": "int16"},
    {"name": "columns", "shape": [2, 3], "dtype": "uint8", "quantization": COLUMNS},
]
OUTPUTS = [
    {"name": "logits", "shape": [1, 3], "dtype": "float32"},
    {"name": "coded", "shape": [1, 2], "dtype": "int8", "quantization": AXIS},
    {"name": "whole", "shape": [2, 2], "dtype": "int64"},
    {"name": "number", "shape": [], "dtype": "float64"},
]
NUM_FEATURES, NUM_VALUES = 12 + 4 + 6 + 6, 3 + 2 + 4 + 1


def write_model(
    path: Path, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], *, features: int, values: int
) -> Case:
    generator = np.random.default_rng(0)
    with path.open("wb") as stream:
        np.savez(
            stream,
            weights=generator.normal(size=(features, values)).astype(np.float32),
            bias=generator.normal(size=values).astype(np.float32),
            tensors=json.dumps({"inputs": inputs, "outputs": outputs}),
        )
    return Case(id=path.stem, runtime="fake", path=str(path))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return write_model(tmp_path / "many.fake", INPUTS, OUTPUTS, features=NUM_FEATURES, values=NUM_VALUES)


def stored_samples() -> dict[str, np.ndarray[Any, Any]]:
    generator = np.random.default_rng(1)
    return {
        "picture": generator.integers(0, 256, (COUNT, 2, 2, 3), np.uint8),
        "codes": generator.uniform(-50, 50, (COUNT, 4)).astype(np.float32),
        "table": generator.integers(-9, 9, (COUNT, 2, 3), np.int16),
        "columns": generator.integers(-9, 9, (COUNT, 2, 3), np.int32),
    }


TRANSFORMS: dict[str, dict[str, Any] | None] = {
    "picture": {"layout": "NCHW", "dtype": "float32", "scale": [1 / 255, 0.5, 1.0], "offset": -1.0},
    "codes": {"dtype": "float32"},
    "table": None,
    "columns": {"dtype": "float32", "scale": 0.25},
}


def write_samples(directory: Path, samples: dict[str, np.ndarray[Any, Any]], **changes: Any) -> list[SampleFile]:
    files = []
    for name, values in samples.items():
        np.save(directory / f"{name}.npy", values)
        transform = changes.get(name, TRANSFORMS.get(name))
        files.append(SampleFile(name=name, path=str(directory / f"{name}.npy"), transform=transform))
    return files


def expected_values(case: Case, samples: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """What the layer gives, `(count, NUM_VALUES)`, before the outputs' types round it."""
    picture = samples["picture"] * np.float32([1 / 255, 0.5, 1.0]) - 1
    codes = np.clip(np.rint(samples["codes"] / 0.5) - 3, -128, 127)
    step, zero_point = np.float64(COLUMNS["scale"]), np.float64(COLUMNS["zero_point"])
    columns = step * (np.clip(np.rint(samples["columns"] * 0.25 / step) + zero_point, 0, 255) - zero_point)
    features = [picture.transpose(0, 3, 1, 2), 0.5 * (codes + 3), samples["table"], columns]
    with np.load(case.path) as model:
        flat = np.concatenate([each.reshape(COUNT, -1) for each in features], axis=1).astype(np.float32)
        values: np.ndarray[Any, Any] = flat @ model["weights"] + model["bias"]
    return values


def run(case: Case, files: list[SampleFile], directory: Path, labels: str | None = None) -> Prediction:
    return predict(load_profile("fake"), case, files, labels, str(directory / "out"))


def test_all_inputs_and_outputs(case: Case, tmp_path: Path) -> None:
    samples = stored_samples()
    expected = expected_values(case, samples)
    labels = expected[:, :3].argmax(axis=1)
    labels[0] = (labels[0] + 1) % 3
    np.save(tmp_path / "labels.npy", labels)
    files = write_samples(tmp_path, samples)
    for order in (files, files[::-1]):
        answer = run(case, order, tmp_path, str(tmp_path / "labels.npy"))
        assert (answer.count, answer.correct, answer.non_finite) == (COUNT, COUNT - 1, 0)
        assert [(output.name, output.shape, output.dtype) for output in answer.outputs] == [
            ("logits", (COUNT, 3), "float32"),
            ("coded", (COUNT, 2), "int8"),
            ("whole", (COUNT, 2, 2), "int64"),
            ("number", (COUNT,), "float64"),
        ]
        assert [output.path for output in answer.outputs] == [
            str(tmp_path / "out" / f"output_{index}.npy") for index in range(4)
        ]
        logits, coded, whole, number = (np.load(output.path) for output in answer.outputs)
        assert {array.dtype.name for array in (logits, coded, whole, number)} == {"float32"}
        np.testing.assert_allclose(logits, expected[:, :3], rtol=1e-4, atol=1e-4)
        scale, zero_point = np.float64(AXIS["scale"]), np.float64(AXIS["zero_point"])
        integers = np.clip(np.rint(expected[:, 3:5] / scale) + zero_point, -128, 127)
        np.testing.assert_array_equal(coded, (integers - zero_point) * scale)
        np.testing.assert_array_equal(whole, np.trunc(expected[:, 5:9]).reshape(COUNT, 2, 2))
        np.testing.assert_allclose(number, expected[:, 9], rtol=1e-4, atol=1e-4)
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [f"output_{index}.npy" for index in range(4)]


def test_an_alias_names_an_input_too(case: Case, tmp_path: Path) -> None:
    files = write_samples(tmp_path, stored_samples())
    named = run(case, files, tmp_path).outputs[0].path
    expected = np.load(named)
    again = [files[0].model_copy(update={"name": "picture:0"}), *files[1:]]
    np.testing.assert_array_equal(np.load(run(case, again, tmp_path).outputs[0].path), expected)


def test_answers_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    case = write_model(
        tmp_path / "m.fake",
        [{"name": "x", "shape": [None, 2], "dtype": "float32"}],
        [{"name": name, "shape": [1, 1], "dtype": "float32"} for name in ("y", "z")],
        features=2,
        values=2,
    )
    np.save(tmp_path / "x.npy", np.float32([[0, 1], [np.nan, 0], [1, 1], [np.nan, np.nan]]))
    answer = run(case, [SampleFile(path=str(tmp_path / "x.npy"))], tmp_path)
    assert [output.non_finite for output in answer.outputs] == [2, 2]
    assert answer.non_finite == 4


class Bad(NamedTuple):
    id: str
    words: str
    samples: Mapping[str, Any] = MappingProxyType({})
    transforms: Mapping[str, Any] = MappingProxyType({})


GOOD = stored_samples()
BAD = [
    Bad(
        "missing",
        "nothing is given for 'table'; the model takes 'picture', 'codes', 'table', 'columns'",
        {"table": None},
    ),
    Bad("unknown", "no input 'tables'; the model takes 'picture'", {"tables": GOOD["table"]}),
    Bad("count", "3 for 'codes'.*expected as many for each", {"codes": GOOD["codes"][:3]}),
    Bad("none", "codes.npy holds no samples", {"codes": GOOD["codes"][:0]}),
    Bad("number", r"one number; expected an array \(count, ...\)", {"codes": np.float32(3)}),
    Bad(
        "shape",
        r"are int16 \(5, 3, 2\), but .* 'table' takes rows int16 \(2, 3\)",
        {"table": GOOD["table"].swapaxes(1, 2)},
    ),
    Bad(
        "batched",
        r"float32 \(1, 4\) after .* takes rows int8 \(4,\)|int8 \(1, 4\) after",
        {"codes": GOOD["codes"][:, None]},
    ),
    Bad("columns", r"columns.npy.*shape \(1, 2, 2\), but .* 3 scales", {"columns": GOOD["columns"][:, :, :2]}),
    Bad("dtype", r"'table' takes rows int16", {"table": GOOD["table"].astype(np.int32)}),
    Bad("plain", r"are float32 \(5, 4\), but .* 'codes' takes rows int8 \(4,\).*transform", {}, {"codes": None}),
    Bad("layout", r"each row float32 \(2, 2, 3\) after the transform", {}, {"picture": {"layout": "NHWC"}}),
    Bad("type", r"each row float16 \(3, 2, 2\)", {}, {"picture": {"layout": "NCHW", "dtype": "float16"}}),
    Bad("key", "transform for the input 'picture' can't be used: .*unknown: mean", {}, {"picture": {"mean": 0}}),
    Bad("channels", "sample 0 of .*picture.npy.*scale has 2 numbers", {}, {"picture": {"scale": [1, 2]}}),
    Bad(
        "nan",
        r"sample 3 of .*codes.npy for the input 'codes': a value is not a number",
        {"codes": np.float32([[0] * 4] * 3 + [[np.nan] * 4] * 2)},
    ),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.id)
def test_samples_that_do_not_fit_are_refused(bad: Bad, case: Case, tmp_path: Path) -> None:
    samples = {name: values for name, values in {**GOOD, **bad.samples}.items() if values is not None}
    with pytest.raises(DeviceError, match=bad.words):
        run(case, write_samples(tmp_path, samples, **bad.transforms), tmp_path)
    assert not (tmp_path / "out").exists()


def test_names_and_files_that_can_not_be_used_are_refused(case: Case, tmp_path: Path) -> None:
    files = write_samples(tmp_path, GOOD)
    with pytest.raises(DeviceError, match="without the name of an input; the model takes 'picture'"):
        run(case, [files[0].model_copy(update={"name": None}), *files[1:]], tmp_path)
    with pytest.raises(DeviceError, match="the input 'picture' is given twice"):
        run(case, [*files, files[0].model_copy(update={"name": "picture:0"})], tmp_path)
    with pytest.raises(DeviceError, match="nothing is given for 'picture', 'codes', 'table', 'columns'"):
        run(case, [], tmp_path)
    for name, content in (("text.npy", b"not an array"), ("empty.npy", b""), ("objects.npy", None)):
        if content is None:
            np.save(tmp_path / name, np.array([{}], object), allow_pickle=True)
        else:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DeviceError, match=rf"the samples .*{name} can't be read"):
            run(case, [files[0].model_copy(update={"path": str(tmp_path / name)}), *files[1:]], tmp_path)
    with pytest.raises(DeviceError, match=r"absent\.npy can't be read"):
        run(case, [files[0].model_copy(update={"path": str(tmp_path / "absent.npy")}), *files[1:]], tmp_path)
    np.savez(tmp_path / "archive.npz", GOOD["picture"])
    with pytest.raises(DeviceError, match=r"archive\.npz are an archive"):
        run(case, [files[0].model_copy(update={"path": str(tmp_path / "archive.npz")}), *files[1:]], tmp_path)


def test_labels_need_logits(tmp_path: Path) -> None:
    case = write_model(
        tmp_path / "m.fake",
        [{"name": "x", "shape": [1, 2], "dtype": "float32"}],
        [{"name": "map", "shape": [1, 2, 3], "dtype": "float32"}],
        features=2,
        values=6,
    )
    np.save(tmp_path / "x.npy", np.zeros((2, 2), np.float32))
    np.save(tmp_path / "labels.npy", np.array([0, 1]))
    files = [SampleFile(name="x", path=str(tmp_path / "x.npy"))]
    assert run(case, files, tmp_path).outputs[0].shape == (2, 2, 3)
    with pytest.raises(DeviceError, match=r"first output has the shape \(1, 2, 3\); expected logits \(1, classes\)"):
        run(case, files, tmp_path, str(tmp_path / "labels.npy"))


@pytest.mark.parametrize("device", ["fake", "local"])
def test_shapes_are_given_by_name(device: str, tmp_path: Path) -> None:
    free = {"name": "x", "shape": [None, None, 3], "dtype": "float32"}
    output = {"name": "y", "shape": [1, 2], "dtype": "float32"}
    case = write_model(tmp_path / "m.fake", [free], [output], features=2 * 4 * 3, values=2)
    with pytest.raises(ModelRejectedError, match=r"'x' has the shape \(\?, \?, 3\).*give a shape for 'x'"):
        describe_model(load_profile(device), case)
    shaped = case.model_copy(update={"input_shapes": {"x": (2, 4, 3)}})
    described = describe_model(load_profile(device), shaped)
    assert described["inputs"] == [tensor_record("x", [None, None, 3], "float32")]
    assert described["outputs"] == [tensor_record("y", [1, 2], "float32")]
    settings = BenchmarkSettings(warm_up_count=1, warm_up_time_s=0, min_count=5, min_time_s=0)
    (measured,) = benchmark(load_profile(device), [shaped], settings).cases
    assert measured.error is None
    assert measured.input_shapes == {"x": (2, 4, 3)}
    np.save(tmp_path / "x.npy", np.zeros((3, 2, 4, 3), np.float32))
    answer = predict(load_profile(device), shaped, [SampleFile(path=str(tmp_path / "x.npy"))], None, str(tmp_path))
    assert answer.count == 3
    other = case.model_copy(update={"input_shapes": {"x": (2, 5, 3)}})
    with pytest.raises(ModelRejectedError, match="its inputs hold 30 values, its weights take 24"):
        describe_model(load_profile(device), other)


class _Scripted:
    """A runner with given answers, one list of outputs for each inference."""

    def __init__(self, answers: list[list[Any]]) -> None:
        self._answers = answers

    def load(self, path: str, *, num_threads: int, input_shapes: Any = None) -> None:
        del path, num_threads, input_shapes

    def infer(self, inputs: Any) -> list[Any]:
        del inputs
        answer = self._answers.pop(0)
        if not answer:
            raise RuntimeError("shapes do not match")
        return answer

    def describe(self) -> dict[str, Any]:
        return {"inputs": [tensor_record("x", [1, 2], "float32")], "outputs": [tensor_record("y", [None], "float32")]}


def scripted(answers: list[list[Any]], directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The handlers of an agent with these answers, and the parameters of a prediction of two samples."""
    (directory / "model").write_bytes(b"")
    np.save(directory / "x.npy", np.zeros((2, 2), np.float32))
    handlers = BoardAgent({"scripted": lambda: _Scripted(answers)}).handlers()
    handlers["load"]({"runtime": "scripted", "path": str(directory / "model"), "num_threads": 1}, print)
    inputs = [{"name": None, "path": str(directory / "x.npy"), "transform": None}]
    return handlers, {"inputs": inputs, "outputs": str(directory / "out")}


def test_outputs_are_written_where_they_are_asked_for(tmp_path: Path) -> None:
    answers = [np.float32([[0, 0]]), np.float32([[4, np.nan]]), np.float32([[5, 6]])]
    handlers, params = scripted([[answer] for answer in answers], tmp_path)
    events: list[dict[str, Any]] = []
    answer = handlers["predict"](params, events.append)
    path = str(tmp_path / "out" / "output_0.npy")
    assert answer["outputs"] == [{"name": "y", "path": path, "shape": [2, 2], "dtype": "float32", "non_finite": 1}]
    np.testing.assert_array_equal(np.load(path), np.float32([[4, np.nan], [5, 6]]))
    assert events == [{"done": 2, "total": 2}]
    handlers["unload"]({}, print)
    assert (tmp_path / "out" / "output_0.npy").exists()


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([np.zeros((1, 3)), np.zeros((1, 4))], r"shape \(1, 4\) for sample 1 and \(1, 3\) for those before"),
        ([np.zeros((1, 3)), [1, 2]], r"output 'y' is list \(float32\); expected an array"),
        ([np.array(["a"]), np.array(["a"])], "output 'y' is str"),
    ],
    ids=["varying", "list", "text"],
)
def test_answers_that_make_no_file_leave_none(answers: list[Any], words: str, tmp_path: Path) -> None:
    handlers, params = scripted([[np.zeros(1)], *([answer] for answer in answers)], tmp_path)
    with pytest.raises(AgentError, match=words):
        handlers["predict"](params, print)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_first_inference_that_fails_is_the_model(tmp_path: Path) -> None:
    with pytest.raises(ModelRejected, match=r"random inputs \(float32 \(1, 2\)\) failed: shapes do not match; check"):
        scripted([[]], tmp_path)


def test_answers_without_values_are_written(tmp_path: Path) -> None:
    handlers, params = scripted([[np.zeros((1, 0, 4))]] * 3, tmp_path)
    (output,) = handlers["predict"](params, print)["outputs"]
    assert output["shape"] == [2, 0, 4]
    assert np.load(output["path"]).shape == (2, 0, 4)
