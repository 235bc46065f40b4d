"""Who is next: canaries, batches, the stop, boards that are off, and what an interrupted run leaves to the next."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from devices.errors import FleetError
from devices.fleet import FleetBoard, Plan, Share, Verdict, parse_share
from devices.fleet_journal import JOURNAL, Journal, Record, hold_fleet, read_past
from devices.fleet_rollout import OnStep, Rollout, check_plan
from devices.profile import load_profile

LOCAL = load_profile("local")
UPDATED = Verdict("updated")
REFUSED = Verdict("refused", "self-test", "other answers")
OFF = Verdict("off", "send", "no route", again=True)
LOST = Verdict("failed", "unpack", "it broke", again=True)
QUICK = Plan(retry_off_s=0.0, parallel=3, max_failures=Share(0, percent=False))


def make_boards(number: int, groups: int = 1) -> list[FleetBoard]:
    return [
        FleetBoard(LOCAL.model_copy(update={"name": f"b{index}"}), f"g{index % groups}", Path(f"/boards/{index}"))
        for index in range(number)
    ]


@dataclass
class Script:
    """An act that says what it was told to, the last thing again and again; all other boards are updated.

    Attributes:
        verdicts: By board.
        calls: Boards in the order in which they were tried, and whether they were asked.
        at_once: How many were tried at the same time, at most.
        then: Is called in each.
    """

    verdicts: Mapping[str, Sequence[Verdict]] = field(default_factory=dict)
    then: Callable[[str], None] = lambda _: None
    calls: list[tuple[str, bool]] = field(default_factory=list)
    at_once: int = 0
    now: int = 0
    mutex: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, board: FleetBoard, *, ask: bool, on_step: OnStep) -> Verdict:
        with self.mutex:
            self.calls.append((board.name, ask))
            self.now += 1
            self.at_once = max(self.at_once, self.now)
            number = sum(name == board.name for name, _ in self.calls)
        on_step("unpack")
        time.sleep(0.002)
        self.then(board.name)
        with self.mutex:
            self.now -= 1
        told = self.verdicts.get(board.name, [UPDATED])
        return told[min(number, len(told)) - 1]

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@dataclass
class Done:
    """How a run ended."""

    end: str
    states: dict[str, str]
    events: list[Mapping[str, Any]]
    rollout: Rollout

    def waves(self) -> list[tuple[str, int]]:
        return [(event["wave"], event["boards"]) for event in self.events if "wave" in event]


def deploy(directory: Path, boards: Sequence[FleetBoard], act: Any, plan: Plan = QUICK, **options: Any) -> Done:
    events: list[Mapping[str, Any]] = []
    with Journal(directory) as journal:
        rollout = Rollout(boards, act, plan, journal, tell=lambda event: events.append(dict(event)), **options)
        journal.start({})
        end = rollout.run()
    states = {name: row.state for name, row in rollout.rows.items()}
    assert +rollout.counts == Counter(states.values())
    return Done(end, states, events, rollout)


def test_canaries_first_one_of_each_group_then_batches(tmp_path: Path) -> None:
    act = Script()
    plan = replace(QUICK, canary=Share(2, percent=False), batch=Share(30, percent=True))
    done = deploy(tmp_path, make_boards(12, groups=2), act, plan)
    assert done.end == "done"
    assert done.waves() == [("canary", 2), ("batch", 4), ("batch", 4), ("batch", 2)]
    assert set(act.names[:2]) == {"b0", "b1"}
    assert {done.rollout.rows[name].board.group for name in act.names[:2]} == {"g0", "g1"}
    assert sorted(act.names) == sorted(f"b{index}" for index in range(12))
    assert set(done.states.values()) == {"updated"}


def test_no_more_boards_at_once_than_asked_for(tmp_path: Path) -> None:
    act = Script()
    deploy(tmp_path, make_boards(40), act, replace(QUICK, batch=Share(100, percent=True)))
    assert act.at_once == 3


def test_a_canary_that_fails_stops_it(tmp_path: Path) -> None:
    act = Script({"b1": [REFUSED]})
    done = deploy(tmp_path, make_boards(20), act, replace(QUICK, canary=Share(2, percent=False)))
    assert done.end == "stopped"
    assert set(act.names) == {"b0", "b1"}
    assert Counter(done.states.values()) == {"waiting": 18, "updated": 1, "refused": 1}
    assert (done.rollout.rows["b1"].step, done.rollout.rows["b1"].reason) == ("self-test", "other answers")


def test_failures_within_the_limit_do_not_stop_it(tmp_path: Path) -> None:
    act = Script({"b5": [REFUSED], "b9": [REFUSED]})
    done = deploy(tmp_path, make_boards(20), act, replace(QUICK, max_failures=Share(2, percent=False)))
    assert done.end == "done"
    assert Counter(done.states.values()) == {"updated": 18, "refused": 2}


def test_a_batch_ends_early_once_too_many_have_failed_whatever_the_rest_does(tmp_path: Path) -> None:
    act = Script({f"b{index}": [REFUSED] for index in range(1, 100)})
    plan = replace(QUICK, batch=Share(99, percent=False), max_failures=parse_share("5%", by="limit"))
    done = deploy(tmp_path, make_boards(100), act, plan)
    assert done.end == "stopped"
    assert len(act.names) <= 1 + 6 + QUICK.parallel


def test_boards_that_are_off_are_no_failures_and_are_tried_again(tmp_path: Path) -> None:
    act = Script({"b0": [OFF, OFF, UPDATED], "b3": [OFF], "b5": [OFF, UPDATED]})
    done = deploy(tmp_path, make_boards(8), act)
    assert done.end == "done"
    assert done.states == {f"b{index}": "off" if index == 3 else "updated" for index in range(8)}
    assert Counter(act.names) == {"b0": 3, "b1": 1, "b2": 1, "b3": 3, "b4": 1, "b5": 2, "b6": 1, "b7": 1}
    assert act.names[-1] == "b3" or act.names[-2] == "b3"
    assert done.waves()[:2] == [("canary", 1), ("canary", 1)], "another board is a canary instead"


def test_canaries_of_a_fleet_that_is_off_are_not_looked_for_one_by_one(tmp_path: Path) -> None:
    act = Script({f"b{index}": [OFF] for index in range(100)})
    plan = replace(QUICK, attempts=1, canary=Share(2, percent=False))
    done = deploy(tmp_path, make_boards(110), act, plan)
    assert [size for name, size in done.waves() if name == "canary"] == [2, 4, 8, *[11] * 8]
    assert done.end == "done"
    assert Counter(done.states.values()) == {"off": 100, "updated": 10}


def test_the_last_try_of_a_board_that_is_off_comes_after_all_others(tmp_path: Path) -> None:
    act = Script({"b0": [OFF]})
    deploy(tmp_path, make_boards(10), act, replace(QUICK, attempts=2))
    assert act.names[0] == "b0"
    assert act.names[-1] == "b0"
    assert act.names.count("b0") == 2


def test_there_is_time_between_two_tries(tmp_path: Path) -> None:
    times: list[float] = []
    act = Script({"b0": [OFF]}, then=lambda name: times.append(time.monotonic()) if name == "b0" else None)
    done = deploy(tmp_path, make_boards(1), act, replace(QUICK, attempts=3, retry_off_s=0.2))
    assert [later - earlier >= 0.2 for earlier, later in itertools.pairwise(times)] == [True, True]
    assert sum("wait_s" in event for event in done.events) == 2


def test_a_connection_that_broke_is_tried_once_more_at_once_and_the_board_is_asked(tmp_path: Path) -> None:
    act = Script({"b0": [LOST, UPDATED]})
    done = deploy(tmp_path, make_boards(4), act)
    assert done.end == "done"
    assert act.calls[:2] == [("b0", False), ("b0", True)]
    assert done.states["b0"] == "updated"


def test_a_connection_that_breaks_twice_is_a_failure(tmp_path: Path) -> None:
    done = deploy(tmp_path, make_boards(4), Script({"b0": [LOST]}))
    assert done.end == "stopped"
    assert done.states["b0"] == "failed"


def test_a_board_that_is_lost_and_not_seen_again_counts_as_a_failure(tmp_path: Path) -> None:
    done = deploy(tmp_path, make_boards(4), Script({"b0": [LOST, OFF]}))
    assert done.end == "stopped"
    row = done.rollout.rows["b0"]
    assert (row.state, row.step, row.reason) == ("failed", "unpack", "it broke; it was not reached since")


def test_a_board_whose_second_try_does_not_come_is_no_board_that_waits(tmp_path: Path) -> None:
    pause = threading.Event()
    act = Script({"b0": [LOST]}, then=lambda _: pause.set())
    done = deploy(
        tmp_path, make_boards(2), act, replace(QUICK, max_failures=Share(1, percent=False)), is_paused=pause.is_set
    )
    assert done.end == "paused"
    assert done.states == {"b0": "failed", "b1": "waiting"}


def test_whatever_an_act_raises_is_that_boards_trouble_alone(tmp_path: Path) -> None:
    def act(board: FleetBoard, *, ask: bool, on_step: OnStep) -> Verdict:
        if board.name == "b2":
            raise RuntimeError("a bug")
        return UPDATED

    done = deploy(tmp_path, make_boards(5), act, replace(QUICK, max_failures=Share(1, percent=False)))
    assert done.end == "done"
    assert done.states["b2"] == "failed"
    assert done.rollout.rows["b2"].reason == "unexpected RuntimeError: a bug"


def test_a_pause_lets_boards_end_and_the_next_run_goes_on(tmp_path: Path) -> None:
    pause = threading.Event()
    act = Script(then=lambda name: pause.set() if name == "b4" else None)
    first = deploy(tmp_path, make_boards(12), act, is_paused=pause.is_set)
    assert first.end == "paused"
    assert sum("pausing" in event for event in first.events) == 1
    assert {first.states[name] for name in act.names} == {"updated"}
    again = Script()
    second = deploy(tmp_path, make_boards(12), again)
    assert second.end == "done"
    assert not {*act.names} & {*again.names}
    assert len(act.names) + len(again.names) == 12
    assert "canary" not in dict(second.waves()), "there was one"


def test_a_pause_that_comes_when_nothing_is_left_changes_nothing(tmp_path: Path) -> None:
    pause = threading.Event()
    act = Script(then=lambda name: pause.set() if name == "b2" else None)
    assert deploy(tmp_path, make_boards(3), act, replace(QUICK, parallel=1), is_paused=pause.is_set).end == "done"


def test_a_pause_ends_the_wait_for_boards_that_are_off(tmp_path: Path) -> None:
    pause = threading.Event()
    threading.Timer(0.2, pause.set).start()
    done = deploy(
        tmp_path, make_boards(1), Script({"b0": [OFF]}), replace(QUICK, retry_off_s=3600), is_paused=pause.is_set
    )
    assert done.end == "paused"
    assert done.states == {"b0": "off"}


def test_an_interrupt_leaves_what_is_under_way_to_be_asked(tmp_path: Path) -> None:
    def tell(event: Mapping[str, Any]) -> None:
        if event.get("board") == "b0":
            raise KeyboardInterrupt

    with Journal(tmp_path) as journal:
        rollout = Rollout(make_boards(3), Script(), QUICK, journal, tell=tell)
        journal.start({})
        assert rollout.run() == "paused"
    assert rollout.rows["b0"].state == "waiting"
    assert "under way" in rollout.rows["b0"].reason
    act = Script()
    assert deploy(tmp_path, make_boards(3), act).end == "done"
    assert act.calls[0] == ("b0", True)
    assert all(not asked for name, asked in act.calls if name != "b0")


def test_a_run_that_was_killed_when_it_should_have_stopped_does_not_go_on(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.start({})
        journal.note("b0", Record(make_boards(1)[0].place, "refused", reason="other answers", tries=1))
    act = Script()
    assert deploy(tmp_path, make_boards(50), act, replace(QUICK, canary=Share(0, percent=False))).end == "stopped"
    assert act.names == []


def test_after_a_stop_those_that_failed_are_tried_first_where_that_is_asked_for(tmp_path: Path) -> None:
    boards = make_boards(10)
    assert deploy(tmp_path, boards, Script({"b0": [REFUSED]})).end == "stopped"
    as_it_was = Script()
    assert deploy(tmp_path, boards, as_it_was).end == "stopped"
    assert as_it_was.names == []
    act = Script()
    done = deploy(tmp_path, boards, act, retry_bad=True)
    assert done.end == "done"
    assert act.names[0] == "b0"
    assert done.waves()[0] == ("canary", 1)


def test_a_board_that_moved_is_tried_anew(tmp_path: Path) -> None:
    boards = make_boards(3)
    deploy(tmp_path, boards, Script())
    moved = [replace(boards[0], root=Path("/elsewhere")), *boards[1:]]
    act = Script()
    deploy(tmp_path, moved, act)
    assert act.names == ["b0"]


def test_a_torn_last_line_is_passed_over_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    deploy(tmp_path, make_boards(5), Script())
    path = tmp_path / JOURNAL
    whole = path.read_bytes()
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:cut])
        past = read_past(tmp_path)
        assert len(past.records) <= 5
    path.write_bytes(whole[:-30])
    act = Script()
    assert deploy(tmp_path, make_boards(5), act).end == "done"
    assert len(act.names) <= 1
    assert read_past(tmp_path).ended == "done"
    path.write_bytes(whole[:40] + b"\x00" + whole[41:])
    with pytest.raises(FleetError, match=r"line 1, is damaged\. --restart"):
        read_past(tmp_path)


@pytest.mark.parametrize("line", ["7", "[]", '{"board": "a"}', '{"board": "a", "place": "x", "state": "flying"}', "{}"])
def test_a_line_that_is_none(line: str, tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text('{"journal": 1}\n' + line + "\n")
    with pytest.raises(FleetError, match="line 2, is damaged"):
        read_past(tmp_path)


def test_a_journal_of_a_later_version(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).write_text('{"journal": 9}\n')
    with pytest.raises(FleetError, match="a journal of version 9, this Edgeship knows 1"):
        read_past(tmp_path)


def test_a_journal_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / JOURNAL).mkdir()
    with pytest.raises(FleetError, match=r"journal\.jsonl can't be used: Is a directory"):
        Journal(tmp_path)


def test_a_fleet_is_deployed_to_by_one_at_a_time(tmp_path: Path) -> None:
    with hold_fleet(tmp_path, "shop", "one.edgeship"):
        second = hold_fleet(tmp_path, "shop", "two.edgeship")
        with pytest.raises(FleetError, match=r"shop is being deployed to by .*process \d+\) since .*one\.edgeship"):
            second.__enter__()
    with hold_fleet(tmp_path, "shop", "two.edgeship"):
        pass
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


@pytest.mark.parametrize(
    ("plan", "num_boards"),
    [(QUICK, 0), (replace(QUICK, batch=Share(0, percent=False)), 3)],
    ids=["no board", "no batch"],
)
def test_a_plan_that_leads_nowhere(plan: Plan, num_boards: int) -> None:
    with pytest.raises(FleetError):
        check_plan(plan, make_boards(num_boards))
