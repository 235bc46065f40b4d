"""What is folded into the network, the calibration set, the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.board.confidence import read_confidence_map
from pipeline.calibration.measures import measures
from pipeline.errors import DataError
from pipeline.metrics import negative_log_likelihood
from pipeline.network import predict_logits
from pipeline.quantization.section import CalibrationSetConfig
from pipeline.reference import (
    MIN_PARITY_IMAGES,
    CalibrateConfig,
    write_calibration_set,
    write_reference,
)
from pipeline.stages.calibrate import CalibrateStage


class Linear:
    """As much of a Keras model as calibration touches: one layer `logits`."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.weights = [rng.normal(size=(12, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)]

    def predict_on_batch(self, images: Any) -> Any:
        return images.reshape(len(images), -1).astype(np.float32) / 255 @ self.weights[0] + self.weights[1]

    def get_layer(self, name: str) -> Linear:
        assert name == "logits"
        return self

    def get_weights(self) -> list[Any]:
        return self.weights

    def set_weights(self, weights: list[Any]) -> None:
        assert all(weight.dtype == np.float32 for weight in weights)
        self.weights = weights


def make_data(folder: Path, *, train: int = 90, validation: int = 60, test: int = 130) -> Path:
    rng = np.random.default_rng(1)
    records = []
    for split, count in (("train", train), ("validation", validation), ("test", test)):
        np.save(folder / f"{split}_images.npy", rng.integers(0, 256, (count, 2, 2, 3), dtype=np.uint8))
        np.save(folder / f"{split}_labels.npy", np.arange(count) % 3)
        records += [
            {"split": split, "row": row, "name": f"{split}/{row}", "digest": f"d-{split}-{row}"} for row in range(count)
        ]
    (folder / "index.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records[::-1]))
    (folder / "dataset.json").write_text(json.dumps({"classes": ["a", "b", "c"]}))
    return folder


def stage(**calibrate: Any) -> CalibrateStage:
    return CalibrateStage(calibrate=CalibrateConfig(**calibrate), quantization=CalibrationSetConfig())


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_folding_scales_the_logits_and_keeps_the_class(tmp_path: Path, method: str) -> None:
    data, model = make_data(tmp_path), Linear()
    images, labels = np.load(data / "validation_images.npy"), np.load(data / "validation_labels.npy")
    before = predict_logits(model, images)
    metrics = stage(method=method)._calibrate(model, data, tmp_path, lambda _: None)
    after = predict_logits(model, images)
    assert metrics["temperature"] != 1
    np.testing.assert_allclose(after * metrics["temperature"], before, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(after.argmax(axis=1), before.argmax(axis=1))
    assert negative_log_likelihood(after, labels) <= negative_log_likelihood(before, labels)
    for split in ("validation", "test"):
        assert metrics[split]["before"]["accuracy"] == metrics[split]["after"]["accuracy"]
    confidence_map = read_confidence_map(str(tmp_path))
    assert (confidence_map is None) == (method == "temperature")
    assert measures(after, labels, confidence_map)["ece"] == pytest.approx(
        metrics["validation"]["after"]["ece"], abs=1e-6
    )


def test_vector_scaling_is_folded_and_its_accuracy_is_that_of_the_folded_network(tmp_path: Path) -> None:
    data, model = make_data(tmp_path, validation=300), Linear()
    images, labels = np.load(data / "test_images.npy"), np.load(data / "test_labels.npy")
    before = predict_logits(model, images)
    metrics = stage(method="vector")._calibrate(model, data, tmp_path, lambda _: None)
    after = predict_logits(model, images)
    assert metrics["temperature"] is None
    assert (after.argmax(axis=1) != before.argmax(axis=1)).any(), "this network's classes are biased"
    assert metrics["test"]["before"]["accuracy"] == pytest.approx((before.argmax(axis=1) == labels).mean())
    assert metrics["test"]["after"]["accuracy"] == pytest.approx((after.argmax(axis=1) == labels).mean())
    assert metrics["test"]["after"]["nll"] == pytest.approx(negative_log_likelihood(after, labels), rel=1e-5)


def test_without_calibration_the_weights_stay(tmp_path: Path) -> None:
    model = Linear()
    weights = model.weights
    metrics = stage(method="none")._calibrate(model, make_data(tmp_path), tmp_path, lambda _: None)
    assert metrics["temperature"] == 1
    assert model.weights is weights


def test_an_empty_validation_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="The validation split has no images"):
        stage()._calibrate(Linear(), make_data(tmp_path, validation=0), tmp_path, lambda _: None)


def draw(data: Path, out_dir: Path, **settings: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    return write_calibration_set(data, out_dir, CalibrationSetConfig(**settings), events.append), events


def test_the_calibration_set_is_listed_with_names_and_digests(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    listed, _ = draw(data, tmp_path, calibration_images=64, seed=3)
    assert listed["count"] == 64
    assert listed["rows"] == sorted(set(listed["rows"]))
    assert listed["names"] == [f"train/{row}" for row in listed["rows"]]
    assert listed["digests"] == [f"d-train-{row}" for row in listed["rows"]]
    images = np.load(tmp_path / "calibration_input_0.npy")
    np.testing.assert_array_equal(images, np.load(data / "train_images.npy")[listed["rows"]])
    assert draw(data, tmp_path, calibration_images=64, seed=3)[0] == listed
    assert draw(data, tmp_path, calibration_images=64, seed=4)[0] != listed


def test_doubts_about_the_calibration_set_are_told_and_listed(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    rows = draw(data, tmp_path, calibration_images=64)[0]["rows"]
    np.save(data / "test_images.npy", np.load(data / "train_images.npy")[rows[:3]])
    listed, events = draw(data, tmp_path, calibration_images=64)
    assert listed["in_test_split"] == 3
    assert [event["warning"] for event in events] == listed["warnings"]
    assert any("3 of the 64 calibration samples" in warning for warning in listed["warnings"])


def test_too_few_training_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="100 images from 90"):
        draw(make_data(tmp_path), tmp_path, calibration_images=100)


def logits_of(images: Any) -> Any:
    return np.asarray(images).reshape(len(images), -1).astype(np.float32)


def test_the_reference_is_the_test_split(tmp_path: Path) -> None:
    data = make_data(tmp_path)
    assert write_reference(data, tmp_path, logits_of) == {"reference_images": 130, "test_images": 130}
    np.testing.assert_array_equal(np.load(tmp_path / "reference_input_0.npy"), np.load(data / "test_images.npy"))


def test_a_small_test_split_is_topped_up_from_validation(tmp_path: Path) -> None:
    data = make_data(tmp_path, test=100)
    assert write_reference(data, tmp_path, logits_of) == {"reference_images": MIN_PARITY_IMAGES, "test_images": 100}
    images = np.load(tmp_path / "reference_input_0.npy")
    np.testing.assert_array_equal(images[:100], np.load(data / "test_images.npy"))
    np.testing.assert_array_equal(images[100:], np.load(data / "validation_images.npy")[:28])
    assert len(np.load(tmp_path / "reference_labels.npy")) == 100
    assert len(np.load(tmp_path / "reference_output_0.npy")) == MIN_PARITY_IMAGES


def test_too_few_images_to_verify_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs at least 128"):
        write_reference(make_data(tmp_path, test=60, validation=67), tmp_path, logits_of)
