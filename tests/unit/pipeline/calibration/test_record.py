"""What calibrating leaves behind: metrics, the reliability diagram as data and as a picture, the map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from devices.board.confidence import CONFIDENCE_FILE, ConfidenceMap, read_confidence_map, top_class
from pipeline.calibration.methods import Method
from pipeline.calibration.picture import draw_reliability
from pipeline.calibration.record import SplitLogits, calibrate_confidence
from pipeline.calibration.reliability import PICTURE_FILE, RELIABILITY_FILE, reliability_bins
from pipeline.errors import DataError, StageError
from pipeline.metrics import expected_calibration_error


def split(count: int, *, seed: int, classes: int = 5, sharpened: float = 3.0) -> SplitLogits:
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 1.5, (count, classes))
    labels = (honest + rng.gumbel(size=honest.shape)).argmax(axis=1)
    return SplitLogits((honest * sharpened).astype(np.float32), labels)


def calibrated(out: Path, method: Method = "temperature") -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    scaling, metrics = calibrate_confidence(method, split(400, seed=0), split(600, seed=1), out, events.append)
    return scaling, metrics, events


@pytest.mark.parametrize("method", ["temperature", "vector", "isotonic", "none"])
def test_metrics_and_files(tmp_path: Path, method: Method) -> None:
    scaling, metrics, events = calibrated(tmp_path, method)
    assert json.loads(json.dumps(metrics)) == metrics
    assert metrics["method"] == method
    assert (metrics["temperature"] is None) == (method == "vector")
    before, after = metrics["test"]["before"], metrics["test"]["after"]
    assert before["ece_interval"][0] > after["ece_interval"][1] or method == "none"
    assert (after == before) == (method == "none")
    assert (after["accuracy"] == before["accuracy"]) or method == "vector"
    assert (tmp_path / CONFIDENCE_FILE).is_file() == (method == "isotonic")
    assert read_confidence_map(str(tmp_path)) == scaling.confidence_map
    assert not any("warning" in event for event in events)
    diagrams = json.loads((tmp_path / RELIABILITY_FILE).read_text())
    assert diagrams["method"] == method
    for name, count in (("validation", 400), ("test", 600)):
        for when in ("before", "after"):
            diagram = diagrams[name][when]
            gaps = [
                row["count"] / count * abs(row["accuracy"] - row["confidence"])
                for row in diagram["bins"]
                if row["count"]
            ]
            assert sum(row["count"] for row in diagram["bins"]) == count
            assert sum(gaps) == pytest.approx(metrics[name][when]["ece"]) == pytest.approx(diagram["ece"])
    drawn = ElementTree.fromstring((tmp_path / PICTURE_FILE).read_text())  # noqa: S314 (of our own making)
    assert drawn.tag.endswith("svg")


def test_the_same_data_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        calibrated(tmp_path / name, "isotonic")
    for file in (RELIABILITY_FILE, PICTURE_FILE, CONFIDENCE_FILE):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    text = (tmp_path / "a" / PICTURE_FILE).read_text()
    assert "<dc:date>" not in text
    assert "<dc:creator>" not in text


def test_the_picture_is_drawn_whatever_the_users_style_is(tmp_path: Path) -> None:
    import matplotlib as mpl

    panels = [{"title": "T", **diagram(split(300, seed=2))}]
    draw_reliability(panels, tmp_path / "plain.svg")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        draw_reliability(panels, tmp_path / "styled.svg")
        assert mpl.rcParams["font.size"] == 30, "the user's style is left as it was"
    assert (tmp_path / "plain.svg").read_bytes() == (tmp_path / "styled.svg").read_bytes()


def test_the_picture_shows_gaps_in_their_colours(tmp_path: Path) -> None:
    """Pixels of the hatch: vermilion where confidence is too high, green where it is too low."""
    for name, sharpened in (("over", 4.0), ("under", 0.25)):
        draw_reliability([{"title": name, **diagram(split(3000, seed=3, sharpened=sharpened))}], tmp_path / "p.png")
        pixels = np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).astype(int)
        upper = pixels[: pixels.shape[0] // 2]
        over = (np.abs(upper - [0xD5, 0x5E, 0x00]).sum(axis=2) < 30).sum()
        under = (np.abs(upper - [0x00, 0x9E, 0x73]).sum(axis=2) < 30).sum()
        assert (over > 2 * under) if name == "over" else (under > 2 * over)


def diagram(given: SplitLogits) -> dict[str, Any]:
    top, _ = top_class(given.logits, None)
    return {
        "ece": expected_calibration_error(given.logits, given.labels),
        "ece_interval": [0.0, 1.0],
        "accuracy": float((top == given.labels).mean()),
        "bins": reliability_bins(given.logits, given.labels),
    }


def test_bins_by_hand() -> None:
    logits = np.log(np.array([[0.9, 0.1], [0.95, 0.05], [0.3, 0.7]]))
    rows = reliability_bins(logits, np.array([0, 1, 1]), bins=5)
    assert [row["count"] for row in rows] == [0, 0, 0, 1, 2]
    assert rows[0] == {
        "low": 0.0, "high": 0.2, "count": 0, "confidence": None, "accuracy": None, "accuracy_interval": None,
    }  # fmt: skip
    assert rows[4]["confidence"] == pytest.approx(0.925)
    assert rows[4]["accuracy"] == 0.5
    low, high = rows[4]["accuracy_interval"]
    assert 0.05 < low < 0.5 < high < 0.95
    mapped = reliability_bins(logits, np.array([0, 1, 1]), ConfidenceMap((0.5,), (0.55,)), bins=5)
    assert [row["count"] for row in mapped] == [0, 0, 3, 0, 0]


def test_doubts_are_told_and_recorded(tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    _, metrics = calibrate_confidence("temperature", split(30, seed=0), split(50, seed=1), tmp_path, events.append)
    assert "30 images" in metrics["calibration_warnings"][0]
    assert {"warning": metrics["calibration_warnings"][0]} in events


def test_an_empty_split_and_a_diverged_network_are_named(tmp_path: Path) -> None:
    nothing = SplitLogits(np.empty((0, 5)), np.empty(0, np.int64))
    with pytest.raises(DataError, match=r"The validation split has no images.*data\.validation_fraction"):
        calibrate_confidence("none", nothing, split(50, seed=1), tmp_path, lambda _: None)
    diverged = split(50, seed=1)
    diverged.logits[3, 2] = np.nan
    with pytest.raises(StageError, match="NaN or infinite on the test split"):
        calibrate_confidence("none", split(50, seed=0), diverged, tmp_path, lambda _: None)
    assert list(tmp_path.iterdir()) == []
