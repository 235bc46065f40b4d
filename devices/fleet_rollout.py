"""A release through a fleet: canaries first, then batches, and a stop where too many boards fail.

What is done on one board is a function that is passed in; here is only who is next. Boards work in threads, as many as
the plan allows, and all that is decided, written or told happens on the one thread that calls `run`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from devices.errors import FleetError
from devices.fleet import BAD, GOOD, FleetBoard, Plan, State, Verdict, in_turn
from devices.fleet_journal import BEGUN, Journal, Past, Record

OnStep = Callable[[str], None]
End = Literal["done", "stopped", "paused"]
"""How a deployment ends: nothing is left to do; too many boards failed; somebody asked for it."""
_NUM_EVENTS = 256
_LOOK_S = 0.1
_NOT_SEEN_SINCE = "; it was not reached since"


class Act(Protocol):
    """Does what is to be done on one board, on a thread of its own; called for many boards at once."""

    def __call__(self, board: FleetBoard, *, ask: bool, on_step: OnStep) -> Verdict:
        """Tries one board.

        Args:
            board: Which.
            ask: Whether to ask first what is in use there: an earlier try may have got that far.
            on_step: Is told of each step there.
        """


@dataclass
class Row:
    """What is known of one board, while it is worked on.

    Attributes:
        board: Which.
        state: Of the board.
        step: See `Verdict`.
        reason: See `Verdict`.
        again: See `Verdict`.
        ask: See `Act`.
        is_lost: Whether it was lost while it was at the release, and not reached since.
        tries: In this run.
        seconds: The last try took.
        begun: When the last try began, by the monotonic clock.
    """

    board: FleetBoard
    state: State = "waiting"
    step: str = ""
    reason: str = ""
    again: bool = False
    ask: bool = False
    is_lost: bool = False
    tries: int = 0
    seconds: float = 0.0
    begun: float = field(default=-1e9, repr=False)


class Rollout:
    """One deployment.

    Args:
        boards: All that are to get the release.
        act: Does it on one board.
        plan: How.
        journal: Knows what was done before, and gets what is done now.
        retry_bad: Whether boards that failed before are tried again from the start.
        tell: Takes what happens: `{"wave", "boards"}`, `{"board", "step"}`, `{"row"}`, `{"wait_s"}`,
            `{"pausing"}` (how many boards are still at work).
        is_paused: Once it says so, no board is begun any more.

    Attributes:
        rows: By board, in the order in which their turns come.
        counts: How many boards are in each state.
    """

    def __init__(
        self,
        boards: Sequence[FleetBoard],
        act: Act,
        plan: Plan,
        journal: Journal,
        *,
        retry_bad: bool = False,
        tell: Callable[[Mapping[str, Any]], None] = lambda _: None,
        is_paused: Callable[[], bool] = lambda: False,
    ) -> None:
        self._act, self._plan, self._journal, self._tell = act, plan, journal, tell
        self._is_paused = is_paused
        self.rows = {board.name: _taken_over(board, journal.past, retry_bad=retry_bad) for board in in_turn(boards)}
        self.counts: Counter[State] = Counter(row.state for row in self.rows.values())
        self._events: queue.Queue[tuple[Row, str | Verdict]] = queue.Queue(_NUM_EVENTS)
        self._at_work: dict[str, Row] = {}

    def run(self) -> End:
        """Does it. An interrupt leaves boards that are under way to themselves; the next run asks them.

        Raises:
            FleetError: The journal can't be written. The next run asks the boards that are under way.
        """
        try:
            end = self._run()
        except KeyboardInterrupt:
            end = "paused"
            for row in self._at_work.values():
                self._set_state(row, "waiting")
                row.reason = "it was under way; the next run asks it"
        self._journal.end(end)
        return end

    def _run(self) -> End:
        waiting = deque(row for row in self.rows.values() if row.state == "waiting")
        num_canaries, num_batch, first = self._plan.canary.of(len(self.rows)), self._plan.batch.of(len(self.rows)), True
        growth = 1
        while waiting or self._aside():
            if self._is_too_much(0):
                return "stopped"
            num_missing = num_canaries - self._num_tried()
            if not waiting:
                name, size, due = "retry", 0, self._wait_for_aside()
            elif num_missing > 0:
                # Of a fleet that is off for the most part, canaries would else be looked for one by one.
                name, size, due = "canary", max(num_missing, min(growth * num_missing, num_batch)), []
                growth *= 2
            else:
                self._wait(0.0 if first else self._plan.pause_s)
                # The last try is kept for the end: boards that are off have the most time to come back then.
                name, size, due = "batch", num_batch, self._ready(self._aside(spare=1))
            if self._is_paused():
                return "paused"
            first = False
            wave = [*due, *(waiting.popleft() for _ in range(min(size, len(waiting))))]
            waiting.extendleft(reversed(self._wave(name, wave)))
        return "stopped" if self._is_too_much(0) else "done"

    def _wave(self, name: str, rows: Sequence[Row]) -> list[Row]:
        """Tries boards, some at a time, and one whose connection broke once more; returns those that were not begun."""
        self._tell({"wave": name, "boards": len(rows), "counts": self.counts})
        todo, repeated, told = deque(rows), set[str](), False
        while self._at_work or todo:
            while todo and len(self._at_work) < self._plan.parallel and not self._is_halted(len(todo)):
                self._begin(todo.popleft())
            if not self._at_work:
                break
            row, event = self._events.get()
            if self._is_paused() and not told:
                told = True
                self._tell({"pausing": len(self._at_work)})
            if isinstance(event, str):
                self._tell({"board": row.board.name, "step": event})
                continue
            self._end(row, event)
            if row.state == "failed" and row.again and row.tries < self._plan.attempts:
                if row.board.name not in repeated:
                    self._set_state(row, "waiting")
                    todo.append(row)
                repeated.add(row.board.name)
        for row in todo:
            if row.board.name in repeated:  # its second try does not come any more
                self._set_state(row, "failed")
        return [row for row in todo if row.state == "waiting"]

    def _begin(self, row: Row) -> None:
        self._journal.note(row.board.name, Record(row.board.place, BEGUN, tries=row.tries + 1))
        row.tries, row.begun = row.tries + 1, time.monotonic()
        self._at_work[row.board.name] = row
        threading.Thread(target=self._work, args=(row,), name=f"fleet {row.board.name}", daemon=True).start()

    def _work(self, row: Row) -> None:
        verdict = Verdict("failed", reason="its thread was ended")
        try:
            verdict = self._act(row.board, ask=row.ask, on_step=lambda step: self._events.put((row, step)))
        except Exception as error:  # noqa: BLE001 (one board's trouble, whatever it is, must not end the fleet's)
            verdict = Verdict("failed", reason=f"unexpected {type(error).__name__}: {error}")
        finally:
            self._events.put((row, verdict))

    def _end(self, row: Row, verdict: Verdict) -> None:
        del self._at_work[row.board.name]
        if verdict.state == "off" and row.is_lost:
            # It was lost while it was at the release, which may be why: a failure, and not just a board that is off.
            reason = row.reason.removesuffix(_NOT_SEEN_SINCE) + _NOT_SEEN_SINCE
            verdict = Verdict("failed", row.step, reason, again=True)
        # A try that broke off may have got as far as the switch: the next one asks.
        row.is_lost = verdict.state == "failed" and verdict.again
        row.ask = row.ask or row.is_lost
        self._set_state(row, verdict.state)
        row.step, row.reason, row.again = verdict.step, verdict.reason, verdict.again
        row.seconds = time.monotonic() - row.begun
        self._journal.note(row.board.name, _record(row))
        self._tell({"row": row, "counts": self.counts})

    def _set_state(self, row: Row, state: State) -> None:
        self.counts[row.state] -= 1
        self.counts[state] += 1
        row.state = state

    def _is_halted(self, num_todo: int) -> bool:
        """Whether no board may be begun: somebody asked, or too many have failed even if all others succeed."""
        return self._is_paused() or self._is_too_much(len(self._at_work) + num_todo)

    def _is_too_much(self, num_pending: int) -> bool:
        failed = sum(self.counts[state] for state in BAD)
        return failed > 0 and self._plan.max_failures.is_exceeded(failed, self._num_tried() + num_pending)

    def _num_tried(self) -> int:
        return sum(self.counts[state] for state in BAD | GOOD)

    def _aside(self, *, spare: int = 0) -> list[Row]:
        """Boards that are to be tried again, and have more than so many tries left."""
        limit = self._plan.attempts - spare
        return [row for row in self.rows.values() if row.again and row.state in ("off", "failed") and row.tries < limit]

    def _ready(self, aside: Iterable[Row]) -> list[Row]:
        """Those whose last try is long enough ago."""
        now = time.monotonic() + 1e-3
        return [row for row in aside if self._next_try(row) <= now]

    def _wait_for_aside(self) -> list[Row]:
        """Waits for the first that can be tried again; returns all that can then, or none after a request to pause."""
        aside = self._aside()
        self._wait(min(map(self._next_try, aside)) - time.monotonic())
        return self._ready(aside)

    def _next_try(self, row: Row) -> float:
        return row.begun + row.seconds + self._plan.retry_off_s

    def _wait(self, seconds: float) -> None:
        """Waits, or until somebody asks to pause."""
        if seconds > 0 and not self._is_paused():
            self._tell({"wait_s": seconds})
            end = time.monotonic() + seconds
            while not self._is_paused() and (left := end - time.monotonic()) > 0:
                time.sleep(min(left, _LOOK_S))


def check_plan(plan: Plan, boards: Sequence[FleetBoard]) -> None:
    """Refuses what can't be done.

    Raises:
        FleetError: It can't.
    """
    if not boards:
        raise FleetError("there is no board to deploy to.")
    if plan.batch.of(len(boards)) < 1:
        raise FleetError(f"a batch of {plan.batch} has no board; give at least 1.")


def _taken_over(board: FleetBoard, past: Past, *, retry_bad: bool) -> Row:
    """What is known of a board from an earlier run."""
    known = past.records.get(board.name)
    if known is None or known.place != board.place:
        return Row(board)
    if known.state in (BEGUN, "waiting") or (retry_bad and known.state in BAD):
        return Row(board, ask=known.state in (BEGUN, "failed"))
    state: Any = known.state
    # What the transport failed at may have been mended; what the board refuses it would refuse again.
    again, is_lost = state in ("off", "failed"), state == "failed" and known.again
    return Row(board, state, known.step, known.reason, again=again, ask=is_lost, is_lost=is_lost, seconds=known.seconds)


def _record(row: Row) -> Record:
    return Record(
        row.board.place, row.state, step=row.step, reason=row.reason, tries=row.tries, seconds=round(row.seconds, 3),
        again=row.again,
    )  # fmt: skip
