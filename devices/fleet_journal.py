"""What a deployment to a fleet has done so far: one JSON object a line, only ever added to, held by one process.

A line that begins a board comes before anything happens there, its verdict after. So whatever ends this process, the
next one knows which boards it must ask. A torn last line is passed over and removed. Lines are not synced one by one:
a board whose verdict a power cut took is asked again, which does it no harm.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from devices.board.places import who
from devices.board.release_home import now_text
from devices.errors import FleetError
from devices.fleet import STATES, State

VERSION = 1
JOURNAL = "journal.jsonl"
_PREVIOUS = "journal.previous.jsonl"
_REASON_CHARACTERS = 400


@dataclass(frozen=True)
class Record:
    """What is known of one board.

    Attributes:
        place: Where it was then, see `FleetBoard.place`.
        state: Of the board; `begun` where nothing was heard since.
        step: See `Verdict`.
        reason: See `Verdict`, cut where it is long.
        tries: How often it was tried.
        seconds: The last try took.
        again: See `Verdict`.
    """

    place: str
    state: State | str
    step: str = ""
    reason: str = ""
    tries: int = 0
    seconds: float = 0.0
    again: bool = False


BEGUN = "begun"


@dataclass
class Past:
    """What a journal says.

    Attributes:
        exists: Whether there is one.
        ended: How its last run ended: `done`, `stopped`, `paused`; empty where it was killed.
        records: Of all boards that it names.
    """

    exists: bool = False
    ended: str = ""
    records: dict[str, Record] = field(default_factory=dict)


class Journal:
    """Adds lines; use it as a context manager.

    Args:
        directory: Of the deployment; made where it is missing.
        anew: Whether to put the old journal aside.

    Attributes:
        past: What was there before.

    Raises:
        FleetError: It can't be read or written, or is none.
    """

    def __init__(self, directory: Path, *, anew: bool = False) -> None:
        self.path = directory / JOURNAL
        with _explained(self.path):
            directory.mkdir(parents=True, exist_ok=True)
            if anew and self.path.exists():
                self.path.replace(directory / _PREVIOUS)
            self.past, size = _read(self.path)
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(self._fd, size)

    def start(self, header: Mapping[str, Any]) -> None:
        """A run begins, or goes on."""
        self._add({"journal": VERSION, "who": _process(), "when": now_text(), **header}, sync=True)

    def note(self, board: str, record: Record) -> None:
        """A board is about to be tried, or was."""
        values = {name: value for name, value in asdict(record).items() if value not in ("", 0, 0.0, False)}
        if len(record.reason) > _REASON_CHARACTERS:
            values["reason"] = record.reason[: _REASON_CHARACTERS - 3] + "..."
        self._add({"board": board, **values, "when": now_text()})

    def end(self, how: str) -> None:
        """The run ends."""
        self._add({"end": how, "when": now_text()}, sync=True)

    def _add(self, values: Mapping[str, Any], *, sync: bool = False) -> None:
        with _explained(self.path):
            view = memoryview(json.dumps(values).encode() + b"\n")
            while view:
                view = view[os.write(self._fd, view) :]
            if sync:
                os.fsync(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def read_past(directory: Path) -> Past:
    """What the journal of a deployment says; changes nothing.

    Raises:
        FleetError: It can't be read, or is none.
    """
    with _explained(directory / JOURNAL):
        return _read(directory / JOURNAL)[0]


@contextlib.contextmanager
def hold_fleet(directory: Path, fleet: str, bundle: str) -> Iterator[None]:
    """Holds a fleet against other deployments that share the directory; the lock ends with the process.

    Args:
        directory: Of all deployments to this fleet.
        fleet: Its name.
        bundle: What is deployed, for those who find it held.

    Raises:
        FleetError: Somebody else holds it.
    """
    holder, lock = directory / "holder.json", FileLock(directory / ".lock")
    with _explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise FleetError(
                f"{fleet} is being deployed to by {_holder_text(holder)}. Wait for it, or interrupt it there: it ends "
                "the boards that are under way and can be gone on with."
            ) from error
        try:
            holder.write_text(json.dumps({"who": _process(), "since": now_text(), "bundle": bundle}), encoding="utf-8")
        except OSError:
            lock.release()
            raise
    try:
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _process() -> str:
    """This process, for people."""
    return f"{who()} (process {os.getpid()})"


def _read(path: Path) -> tuple[Past, int]:
    """What it says, and its length up to a torn last line."""
    past, size = Past(), 0
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return past, 0
    with stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                break
            _take(past, line, path, number)
            size += len(line)
    return past, size


def _take(past: Past, line: bytes, path: Path, number: int) -> None:
    try:
        values = json.loads(line)
        if "journal" in values:
            if values["journal"] != VERSION:
                raise FleetError(
                    f"{path}, line {number}: a journal of version {values['journal']}, this Edgeship knows {VERSION}. "
                    "Go on with the version that began it, or say --restart."
                )
            past.exists, past.ended = True, ""
        elif "end" in values:
            past.ended = values["end"]
        else:
            known = {name: values[name] for name in Record.__dataclass_fields__ if name in values}
            record = Record(**known)
            if record.state not in (*STATES, BEGUN):
                raise ValueError(record.state)
            past.records[values["board"]] = record
    except (ValueError, TypeError, KeyError) as error:
        raise FleetError(
            f"{path}, line {number}, is damaged. --restart begins anew and asks each board; nothing is lost by that."
        ) from error


def _holder_text(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"{holder['who']} since {holder['since']} (release {holder['bundle']})"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise FleetError(
            f"{path} can't be used: {error.strerror or error}. Free some space or mend permissions, and say the same "
            "again: it asks the boards that were under way."
        ) from error
