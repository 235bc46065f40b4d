from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import DataError, InputError
from pipeline.samples import split_samples
from pipeline.signature import InputTensor, OutputTensor, Signature, Transform
from pipeline.sources.samples import ArraysConfig, RandomConfig
from pipeline.stages.samples import SamplesStage


def arrays(path: Path, **values: Any) -> ArraysConfig:
    np.savez(path / "samples.npz", **values)
    return ArraysConfig(source="arrays", path=str(path / "samples.npz"), test_fraction=0.25)


def signature(*inputs: InputTensor) -> Signature:
    output = OutputTensor(name="y", dtype="float32", shape=(1, 2))
    return Signature(source="onnx", model="model.onnx", inputs=inputs, outputs=(output,))


def tensor(name: str, *shape: int, dtype: str = "float32", transform: Transform | None = None) -> InputTensor:
    return InputTensor(name=name, dtype=dtype, shape=(1, *shape), transform=transform)


def prepared(config: ArraysConfig, path: Path) -> Path:
    out = path / "data"
    out.mkdir()
    SamplesStage(source=config).run({}, out, lambda _: None)
    return out


def test_two_splits_share_no_sample_and_lose_none(tmp_path: Path) -> None:
    values = np.arange(40, dtype=np.float32).reshape(40, 1)
    data = prepared(arrays(tmp_path, x=values, labels=np.arange(40)), tmp_path)
    train, test = np.load(data / "train_inputs_0.npy"), np.load(data / "test_inputs_0.npy")
    assert (len(train), len(test)) == (30, 10)
    assert sorted([*train[:, 0], *test[:, 0]]) == values[:, 0].tolist()
    np.testing.assert_array_equal(np.load(data / "test_labels.npy"), test[:, 0])


def test_samples_become_what_the_inputs_take_by_name(tmp_path: Path) -> None:
    first, second = np.random.default_rng(0).random((2, 8, 3)).astype(np.float32)
    data = prepared(arrays(tmp_path, b=second, a=first), tmp_path)
    samples = split_samples(data, "test", signature(tensor("a", 3), tensor("b", 3)))
    assert len(samples) == 2
    for sample in samples:
        (row,) = np.flatnonzero((first == sample["a"]).all(axis=1))
        np.testing.assert_array_equal(sample["b"][0], second[row])


def test_one_input_takes_the_one_array_whatever_its_name(tmp_path: Path) -> None:
    data = prepared(arrays(tmp_path, inputs=np.zeros((4, 3), np.float32)), tmp_path)
    assert len(split_samples(data, "train", signature(tensor("serving_x", 3)))) == 3


def test_transform(tmp_path: Path) -> None:
    pixels = np.full((4, 2, 5, 3), 255, np.uint8)
    data = prepared(arrays(tmp_path, x=pixels), tmp_path)
    scaled = Transform(layout="NCHW", scale=2 / 255, offset=(-1.0, 0.0, 1.0))
    samples = split_samples(data, "test", signature(tensor("x", 3, 2, 5, transform=scaled)))
    (sample,) = list(samples)
    assert sample["x"].shape == (1, 3, 2, 5)
    np.testing.assert_allclose(sample["x"][0, :, 0, 0], [1.0, 2.0, 3.0], rtol=1e-6)
    (described,) = samples.for_device()
    assert described.name == "x"
    assert json.loads(json.dumps(described.transform))["layout"] == "NCHW"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([tensor("z", 3), tensor("b", 3)], "the model takes z"),
        ([tensor("a", 4), tensor("b", 3)], r"input a takes float32 \[1, 4\]"),
        ([tensor("a", 3, dtype="float16"), tensor("b", 3)], "scale: 1.0"),
    ],
    ids=["unknown name", "another shape", "another type"],
)
def test_samples_that_do_not_fit(tmp_path: Path, tensors: list[InputTensor], message: str) -> None:
    data = prepared(arrays(tmp_path, a=np.zeros((4, 3), np.float32), b=np.zeros((4, 3), np.float32)), tmp_path)
    with pytest.raises(InputError, match=message):
        split_samples(data, "test", signature(*tensors))


def test_images_feed_one_input_alone(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": ["a", "b"]}))
    np.save(tmp_path / "test_images.npy", np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="takes 2 inputs"):
        split_samples(tmp_path, "test", signature(tensor("a", 8, 8, 3), tensor("b", 1)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": np.zeros(3, int)}, "one for each input"),
        ({"x": np.zeros((3, 2)), "y": np.zeros((4, 2))}, r"x 3, y 4"),
        ({"x": np.zeros((1, 2))}, "has 1 samples"),
        ({"x": np.array(["a", "b"])}, "expected numbers"),
        ({"x": np.array([[1.0], [np.nan]])}, "NaN"),
        ({"x": np.zeros((3, 2)), "labels": np.zeros(3)}, "expected whole numbers"),
        ({"x": np.array([{}, {}])}, "without pickled objects"),
    ],
    ids=["no input", "counts", "one sample", "text", "nan", "labels", "pickle"],
)
def test_arrays_that_can_not_be_used(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    config = arrays(tmp_path, **values)
    with pytest.raises(DataError, match=message):
        config.read()


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    config = ArraysConfig(source="arrays", path=str(path))
    with pytest.raises(DataError, match="no file at"):
        config.fingerprint()
    path.write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(DataError, match=r"can't be read as \.npz"):
        config.read()


def test_random_samples_are_the_same_each_time_and_differ_between_inputs() -> None:
    config = RandomConfig(count=5, low=-2.0, high=2.0)
    drawn = config.draw((3,), "float32", index=0)
    assert drawn.shape == (5, 3)
    assert drawn.dtype == np.float32
    assert drawn.min() < 0 < drawn.max() <= 2.0
    np.testing.assert_array_equal(drawn, config.draw((3,), "float32", index=0))
    assert not np.array_equal(drawn, config.draw((3,), "float32", index=1))
    pixels = config.draw((100,), "uint8", index=0)
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert set(np.unique(config.draw((50,), "int32", index=0))) == {0, 1}
    with pytest.raises(DataError, match=r"no random samples of complex64"):
        config.draw((1,), "complex64", index=0)
