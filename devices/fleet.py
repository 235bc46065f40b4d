"""A fleet: many boards that get the same release, in which order, and how many may fail."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from devices.errors import FleetError
from devices.profile import DeviceProfile

State = Literal["updated", "already in use", "tested", "refused", "failed", "rolled back", "off", "waiting"]
"""What became of a board:

updated: the release is in use there, and was not before; already in use: it was.
tested: everything but the switch was done, as asked.
refused: the board did not take the release, and says at which step and why. rolled back: it took it and went back.
failed: it can't be told to; the connection broke while the release was being installed, or its key is not known.
off: it could not be reached, or somebody else held it. waiting: its turn has not come.
"""
STATES: tuple[State, ...] = get_args(State)
GOOD: frozenset[State] = frozenset({"updated", "already in use", "tested"})
BAD: frozenset[State] = frozenset({"refused", "failed", "rolled back"})
"""The states that count as failures; a board that is off is none."""


@dataclass(frozen=True)
class FleetBoard:
    """One board.

    Attributes:
        profile: How it is reached; its name is the board's.
        group: Which one it is in.
        root: Directory of its releases; `~` is the home there.
        labels: Whatever its owner wants to remember.
    """

    profile: DeviceProfile
    group: str
    root: Path
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Unique in its fleet."""
        return self.profile.name

    @property
    def place(self) -> str:
        """A digest of where it is: what is known of a board counts no more once it stands elsewhere."""
        where = [self.profile.transport.model_dump(mode="json"), self.profile.python, str(self.root)]
        return hashlib.sha256(json.dumps(where, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Fleet:
    """All boards.

    Attributes:
        name: Of the fleet.
        boards: In the order of the file.
    """

    name: str
    boards: tuple[FleetBoard, ...]

    @property
    def digest(self) -> str:
        """Another one once a board comes, goes or moves."""
        lines = [f"{board.name} {board.place}\n" for board in self.boards]
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Verdict:
    """What became of one try.

    Attributes:
        state: Of the board.
        step: At which it came up: one of `devices.board.release_install.STEPS`, or `send`.
        reason: Why it is none of `GOOD`.
        again: Whether trying again may help.
    """

    state: State
    step: str = ""
    reason: str = ""
    again: bool = False


@dataclass(frozen=True)
class Share:
    """A number of boards, or a share of them.

    Attributes:
        value: Boards, or per cent.
        percent: Whether it is per cent.
    """

    value: float
    percent: bool

    def of(self, num_boards: int) -> int:
        """How many boards it is of so many, rounded up."""
        # 10 % of 30 is 3, which binary fractions miss by a hair.
        exact = round(self.value * num_boards / 100, 9) if self.percent else self.value
        return min(num_boards, math.ceil(exact))

    def is_exceeded(self, num_failed: int, num_tried: int) -> bool:
        """Whether so many failed boards of those that were tried are too many."""
        if self.percent:
            return num_failed * 100 > self.value * num_tried
        return num_failed > self.value

    def __str__(self) -> str:
        return f"{self.value:g}{'%' if self.percent else ''}"


def parse_share(text: str, *, by: str, at_least: int = 0) -> Share:
    """Reads `3` or `5%`.

    Args:
        text: As the user gave it.
        by: What it was given as, for the message.
        at_least: The smallest number that makes sense; of a share, anything above 0 does then.

    Raises:
        FleetError: It is neither.
    """
    match = re.fullmatch(r"\s*([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*(%?)\s*", text)
    value = float(match[1]) if match else 0.0
    percent = bool(match and match[2])
    whole = percent or value == int(value)
    low = value == 0 and at_least > 0 if percent else value < at_least
    if match is None or not whole or (percent and value > 100) or low:
        least = f", at least {at_least}" if at_least else ""
        raise FleetError(
            f"{by} is {text!r}; expected a number of boards{least}, or a share of them, such as 3 or 5% (up to 100%)."
        )
    return Share(value, percent)


@dataclass(frozen=True)
class Plan:
    """How a release goes through a fleet.

    Attributes:
        canary: Boards that get it first, and must have it before any other does.
        batch: Boards that get it then, at a time.
        max_failures: How many may fail, of those tried so far.
        parallel: Boards at the same time.
        attempts: How often a board is tried that could not be reached.
        retry_off_s: At least so long between two tries.
        pause_s: Between two batches.
    """

    canary: Share = Share(1, percent=False)
    batch: Share = Share(10, percent=True)
    max_failures: Share = Share(5, percent=True)
    parallel: int = 8
    attempts: int = 3
    retry_off_s: float = 30.0
    pause_s: float = 0.0

    def to_dict(self) -> dict[str, str | int | float]:
        """As JSON values."""
        return {
            "canary": str(self.canary),
            "batch": str(self.batch),
            "max_failures": str(self.max_failures),
            "parallel": self.parallel,
            "attempts": self.attempts,
            "retry_off_s": self.retry_off_s,
            "pause_s": self.pause_s,
        }


def in_turn(boards: Iterable[FleetBoard]) -> list[FleetBoard]:
    """The first of each group, then the second of each: a release that one kind of board can't take shows early."""
    groups: dict[str, list[FleetBoard]] = {}
    for board in boards:
        groups.setdefault(board.group, []).append(board)
    longest = max(map(len, groups.values()), default=0)
    return [rows[index] for index in range(longest) for rows in groups.values() if index < len(rows)]


def select_groups(fleet: Fleet, groups: Sequence[str]) -> tuple[FleetBoard, ...]:
    """The boards of some groups; all where none is named.

    Raises:
        FleetError: There is no such group.
    """
    known = list(dict.fromkeys(board.group for board in fleet.boards))
    for name in groups:
        if name not in known:
            raise FleetError(f"{fleet.name} has no group '{name}'; there are: {', '.join(known)}.")
    return tuple(board for board in fleet.boards if not groups or board.group in groups)
