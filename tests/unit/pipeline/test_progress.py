from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

import pytest
from rich.console import Console

import pipeline.progress
from pipeline.progress import LiveProgress, PlainProgress, duration, stage_line, step_text

EPOCH = {"epoch": 3, "epochs": 30, "loss": 0.51234, "accuracy": 0.8, "left_s": 75.4}
RECORD = {"epoch": 3, "loss": 0.5, "accuracy": 0.8, "validation_accuracy": 0.75, "seconds": 2.0}


@dataclass(frozen=True)
class Words:
    id: str
    event: dict[str, Any]
    stage: str | None
    step: str | None


@pytest.mark.parametrize(
    "words",
    [
        Words("cached", {"stage": "data", "state": "cached", "seconds": 0.0}, "data: cached", None),
        Words("done", {"stage": "data", "state": "done", "seconds": 1.26}, "data: done in 1.3 s", None),
        Words("running", {"stage": "data", "state": "running", "key": "k"}, "data: running", None),
        Words("waiting", {"stage": "data", "state": "waiting", "key": "k"}, None, None),
        Words("failed", {"stage": "x", "state": "failed", "message": "why"}, "x: FAILED: why", "why"),
        Words("failed-case", {"case": "m", "state": "failed", "message": "m: why"}, "FAILED: m: why", "m: why"),
        Words("epoch", EPOCH, None, "epoch 3/30: loss 0.5123, accuracy 0.8000, 1 min 15 s left"),
        Words("last-epoch", {**EPOCH, "left_s": 5.2}, None, "epoch 3/30: loss 0.5123, accuracy 0.8000, 5 s left"),
        Words(
            "epoch-done",
            {"epoch_done": RECORD, "epochs": 30},
            None,
            "epoch 3/30: loss 0.5000, accuracy 0.8000, validation accuracy 0.7500, 2.0 s",
        ),
        Words(
            "epoch-with-speed",
            {**EPOCH, "learning_rate": 0.003, "images_per_second": 8123.4},
            None,
            "epoch 3/30: loss 0.5123, accuracy 0.8000, 8,123 images/s, 1 min 15 s left",
        ),
        Words(
            "epoch-done-with-speed",
            {"epoch_done": {**RECORD, "learning_rate": 0.00312, "images_per_second": 812.3}, "epochs": 30},
            None,
            "epoch 3/30: loss 0.5000, accuracy 0.8000, validation accuracy 0.7500, learning rate 0.00312, "
            "812 images/s, 2.0 s",
        ),
        Words("history", {"history": [RECORD]}, None, None),
        Words("cases", {"cases": 9, "cases_done": 4, "inferences_least": 10}, None, "4 of 9 models measured"),
        Words("loading", {"case": "litert/int8", "state": "loading"}, None, "loading litert/int8"),
        Words("message", {"message": "reading"}, None, "reading"),
        Words("numbers-only", {"done": 3, "total": 9}, None, None),
    ],
    ids=lambda words: words.id,
)
def test_events_in_words(words: Words) -> None:
    assert stage_line(words.event) == words.stage
    assert step_text(words.event) == words.step


def test_plain_lines_say_each_stage_epoch_and_warning_and_little_else(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(pipeline.progress.time, "monotonic", lambda: now[0])
    lines: list[str] = []
    with PlainProgress(lines.append) as progress:
        progress.show({"stage": "train", "state": "running"})
        progress.show({"stage": "train", "message": "one"})
        progress.show({"stage": "train", "message": "too soon"})
        progress.show({"stage": "train", "warning": "mind this"})
        progress.show({"stage": "train", "epoch_done": RECORD, "epochs": 30})
        now[0] = 9.9
        progress.show({"stage": "train", "message": "still too soon"})
        now[0] = 10.1
        progress.show({"stage": "train", "done": 1})
        progress.show({"message": "two"})
        progress.show({"stage": "train", "state": "done", "seconds": 3.0})

    assert lines == [
        "train: running",
        "train: one",
        "warning: mind this",
        "train: epoch 3/30: loss 0.5000, accuracy 0.8000, validation accuracy 0.7500, 2.0 s",
        "two",
        "train: done in 3.0 s",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599.4, "59 min 59 s"), (3599.6, "1 h 00 min"),
     (86_369, "23 h 59 min"), (86_399, "1 d 00 h"), (400_000, "4 d 15 h")],
)  # fmt: skip
def test_times_in_the_units_that_say_enough(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def shown(*events: dict[str, Any], list_epochs: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, color_system=None)
    with LiveProgress(console, list_epochs=list_epochs) as progress:
        for event in events:
            progress.show(event)
            progress._progress.refresh()
    return stream.getvalue()


def test_the_live_display_shows_the_stage_at_work_and_lists_those_that_ended() -> None:
    text = shown(
        {"stage": "data", "state": "cached", "seconds": 0.0},
        {"stage": "train", "state": "running"},
        {"stage": "train", **EPOCH, "done": 3, "total": 30},
        {"stage": "train", "done": 4, "total": 30},
        {"stage": "train", "state": "done", "seconds": 3.0},
        {"stage": "export/x", "state": "failed", "seconds": 3.0, "message": "no"},
    )

    for words in ("data", "cached", "epoch 3/30", "done in 3.0 s", "export/x", "failed"):
        assert words in text


def test_epochs_get_lines_of_their_own_where_that_is_asked_for() -> None:
    events = [
        {"stage": "train", "epoch_done": {**RECORD, "epoch": number}, "epochs": 3, "done": number, "total": 3}
        for number in (1, 2, 3)
    ]

    def lines_of(text: str) -> list[str]:
        plain = re.sub(r"\x1b\[[0-9?;]*[A-Za-z]", "", text)
        return [line.strip() for line in re.split(r"[\r\n]", plain) if line.strip().startswith("epoch")]

    assert lines_of(shown(*events)) == []
    listed = lines_of(shown(*events, list_epochs=True))
    assert [line[:9] for line in listed] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]


def test_brackets_in_texts_are_no_markup() -> None:
    text = shown(
        {"stage": "data", "warning": "in [/srv/a] and [bold]"},
        {"stage": "data", "message": "reading [/srv/b]"},
        {"stage": "data", "done": 1, "total": 2},
    )

    assert "in [/srv/a] and [bold]" in text
    assert "reading [/srv/b]" in text
