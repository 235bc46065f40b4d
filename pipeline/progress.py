"""Progress events in words: plain lines for a pipe, a live display for a terminal. Nothing here prints by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

Write = Callable[[str], None]

_QUIET_S = 10.0


class Progress(Protocol):
    """Shows progress events; use it as a context manager."""

    def show(self, event: dict[str, Any]) -> None:
        """Takes one event."""

    def __enter__(self) -> Progress: ...

    def __exit__(self, *_: object) -> None: ...


def stage_line(event: dict[str, Any]) -> str | None:
    """Returns the line for a change of a stage's state; None for an event that is none."""
    state, name = event.get("state"), event.get("stage", "")
    if state == "cached":
        return f"{name}: cached"
    if state == "done":
        return f"{name}: done in {event['seconds']:.1f} s"
    if state == "failed":
        return f"{name}: FAILED: {event['message']}".removeprefix(": ")
    if state == "running":
        return f"{name}: running"
    return None


def step_text(event: dict[str, Any]) -> str | None:
    """Returns what an event says about work in progress; None where it says nothing a person wants to read."""
    if "epoch_done" in event:
        record = event["epoch_done"]
        return (
            f"epoch {record['epoch']}/{event['epochs']}: loss {record['loss']:.4f}, accuracy "
            f"{record['accuracy']:.4f}, validation accuracy {record['validation_accuracy']:.4f}, "
            f"{_rate(record)}{_speed(record)}{record['seconds']:.1f} s"
        )
    if "epoch" in event:
        return (
            f"epoch {event['epoch']}/{event['epochs']}: loss {event['loss']:.4f}, "
            f"accuracy {event['accuracy']:.4f}, {_speed(event)}{duration(event['left_s'])} left"
        )
    if "cases_done" in event:
        return f"{event['cases_done']} of {event['cases']} models measured"
    if "case" in event and event.get("state") == "loading":
        return f"loading {event['case']}"
    if "message" in event:
        return str(event["message"])
    return None


class PlainProgress:
    """One line for each stage and epoch, and for anything else at most one every ten seconds.

    Args:
        write: Takes a line without its end.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self._last = -_QUIET_S

    def show(self, event: dict[str, Any]) -> None:
        """Writes the event's line, if it has one and it is time."""
        if "warning" in event:
            self._write(f"warning: {event['warning']}")
            return
        line = stage_line(event)
        if line is None:
            text = step_text(event)
            now = time.monotonic()
            if text is None or ("epoch_done" not in event and now - self._last < _QUIET_S):
                return
            self._last = now
            line = f"{event.get('stage', '')}: {text}".removeprefix(": ")
        self._write(line)

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class LiveProgress:
    """A bar for the stage at work, and one line above it for each stage that is done.

    Args:
        console: A `rich.console.Console`.
        list_epochs: Whether each epoch that ends gets a line of its own as well.
    """

    def __init__(self, console: Any, *, list_epochs: bool = False) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.fields[stage]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._list_epochs = list_epochs
        self._task: Any = None
        self._stage = ""

    def show(self, event: dict[str, Any]) -> None:
        """Updates the display."""
        if "warning" in event:
            self._progress.console.print(f"[yellow]warning:[/] {_plain(str(event['warning']))}", highlight=False)
            return
        self._enter(str(event.get("stage", "")))
        state = event.get("state")
        if state in ("cached", "done", "failed") and "seconds" in event:
            mark = {"cached": "[dim]cached[/]", "done": f"[green]done[/] in {event['seconds']:.1f} s"}.get(
                str(state), "[red]failed[/]"
            )
            self._progress.console.print(f"{event['stage']:<28} {mark}", highlight=False)
            return
        text = step_text(event)
        if self._list_epochs and text is not None and "epoch_done" in event:
            self._progress.console.print(f"  {_plain(text)}", highlight=False)
            text = None
        self._progress.update(
            self._task,
            description=_plain(text) if text is not None else self._progress.tasks[0].description,
            total=event.get("total"),
            completed=event.get("done", 0),
        )

    def _enter(self, stage: str) -> None:
        if self._task is None:
            self._task = self._progress.add_task("", total=None, stage=stage)
        elif stage != self._stage:
            self._progress.reset(self._task, total=None, description="", stage=stage)
        self._stage = stage

    def __enter__(self) -> LiveProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def _plain(text: str) -> str:
    """Returns text in which rich finds no markup: paths and messages may hold brackets."""
    from rich.markup import escape

    return escape(text)


def duration(seconds: float) -> str:
    """Returns a time in the two units that say enough: `8 s`, `3 min 20 s`, `2 h 05 min`, `4 d 07 h`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours:02d} h"


def _rate(record: Mapping[str, Any]) -> str:
    rate = record.get("learning_rate")
    return "" if rate is None else f"learning rate {rate:.3g}, "


def _speed(record: Mapping[str, Any]) -> str:
    speed = record.get("images_per_second")
    return "" if speed is None else f"{speed:,.0f} images/s, "
