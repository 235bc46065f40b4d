"""The steps of an epoch against Keras' own loop over them."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipeline.training.epoch import run_steps, train_epoch
from pipeline.training.supervision import Feed

sys.path.insert(0, str(Path(__file__).parent))

from tiny import make


class Noted(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []
        self.logs: dict[str, float] = {}

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        assert batch == len(self.losses)
        self.losses.append(float(logs["step_loss"]))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002 (Keras)
        self.logs = {name: float(value) for name, value in logs.items()}


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_the_same_bits_as_fit(monkeypatch: pytest.MonkeyPatch, class_weights: str) -> None:
    trained = []
    for way in ("steps", "fit"):
        keras.utils.set_random_seed(3)
        training, _ = make(monkeypatch, class_weights=class_weights)
        model, noted = training.model(), Noted()
        batches = (batch.as_keras() for epoch in (0, 1) for batch in training.batches(epoch))
        if way == "fit":
            model.fit(batches, steps_per_epoch=7, shuffle=False, verbose=0, callbacks=[noted])
        else:
            run_steps(model, batches, noted, steps=7)
        assert len(noted.losses) == 7
        assert noted.model is model
        trained.append(([np.array(variable) for variable in model.trained_state()], noted.losses, noted.logs))
    (steps, losses, logs), (fitted, expected, expected_logs) = trained
    assert losses == expected
    assert logs == expected_logs
    for one, other in zip(steps, fitted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_metrics_start_anew_with_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    training, _ = make(monkeypatch)
    model = training.model()
    batches = [batch.as_keras() for batch in training.batches()]
    run_steps(model, iter(batches), Noted(), steps=4)
    noted = Noted()
    run_steps(model, iter(batches), noted, steps=2)
    assert noted.logs["loss"] == pytest.approx(np.mean(noted.losses), rel=1e-5)


@pytest.mark.parametrize("way", ["loader", "step"])
def test_an_error_comes_as_itself_and_the_feed_is_closed(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    training, _ = make(monkeypatch)
    error = OSError("cut")

    def cut() -> Any:
        yield from itertools.islice(training.batches(), 2)
        if way == "loader":
            raise error

    class Watch(Noted):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            super().on_train_batch_end(batch, logs)
            if way == "step":
                raise error

    feed = Feed(cut(), first_step=0)
    with pytest.raises(OSError, match="cut") as caught:
        train_epoch(training.model(), feed, Watch(), steps=4)
    assert caught.value is error
    assert caught.value.__cause__ is None
    assert list(feed.tuples()) == []
