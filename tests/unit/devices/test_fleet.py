"""Numbers of boards, their order, and what an error on a board means for the fleet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.address import host_hint
from devices.errors import (
    AgentCrashedError,
    BundleError,
    ConnectionFailedError,
    DeviceBusyError,
    DeviceError,
    FleetError,
    HostKeyError,
    ReleaseRefusedError,
    StorageFullError,
)
from devices.fleet import Fleet, FleetBoard, Share, Verdict, in_turn, parse_share, select_groups
from devices.fleet_boards import came_to, verdict_of
from devices.profile import load_profile
from devices.release import ReleaseStatus
from devices.transport_config import SshTransport


def make_board(name: str, group: str = "all", host: str | None = None) -> FleetBoard:
    transport = SshTransport(host=host or name)
    profile = load_profile("local").model_copy(update={"name": name, "transport": transport})
    return FleetBoard(profile, group, Path("~/releases"))


@pytest.mark.parametrize(
    ("text", "num_boards", "expected"),
    [("3", 10, 3), ("3", 2, 2), ("10%", 30, 3), ("10%", 31, 4), ("10%", 1, 1), ("0", 9, 0), ("0%", 9, 0),
     ("100%", 7, 7), ("0.1%", 1000, 1), (" 5 % ", 20, 1)],
)  # fmt: skip
def test_a_share_of_boards(text: str, num_boards: int, expected: int) -> None:
    assert parse_share(text, by="--batch").of(num_boards) == expected


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "101%", "5%%", "%", "1e3", "nan", "٣"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(
        FleetError, match=r"--batch is .*expected a number of boards, or a share of them, such as 3 or 5%"
    ):
        parse_share(text, by="--batch")


@pytest.mark.parametrize("text", ["0", "0%"])
def test_a_batch_has_a_board(text: str) -> None:
    with pytest.raises(FleetError, match="at least 1"):
        parse_share(text, by="--batch", at_least=1)


@given(st.integers(1, 100), st.integers(1, 10_000))
def test_a_share_in_per_cent_is_the_exact_one_rounded_up(percent: int, num_boards: int) -> None:
    assert Share(percent, percent=True).of(num_boards) == -(-percent * num_boards // 100)


@pytest.mark.parametrize(
    ("limit", "failed", "tried", "expected"),
    [("5%", 1, 20, False), ("5%", 1, 19, True), ("0", 0, 9, False), ("0", 1, 9, True), ("2", 2, 2, False),
     ("2", 3, 900, True), ("0%", 1, 900, True), ("100%", 5, 5, False)],
)  # fmt: skip
def test_how_many_may_fail(limit: str, failed: int, tried: int, expected: bool) -> None:
    assert parse_share(limit, by="limit").is_exceeded(failed, tried) == expected


def test_the_groups_take_turns() -> None:
    boards = [make_board(f"{group}{number}", group) for group, size in (("a", 3), ("b", 1), ("c", 2)) for number in
              range(size)]  # fmt: skip
    assert [board.name for board in in_turn(boards)] == ["a0", "b0", "c0", "a1", "c1", "a2"]


def test_a_group_that_is_none() -> None:
    fleet = Fleet("shop", (make_board("a1", "a"), make_board("b1", "b")))
    assert [board.name for board in select_groups(fleet, ["b"])] == ["b1"]
    assert select_groups(fleet, []) == fleet.boards
    with pytest.raises(FleetError, match="shop has no group 'c'; there are: a, b"):
        select_groups(fleet, ["c"])


def test_a_board_that_moves_is_another_place() -> None:
    assert make_board("a").place == make_board("a").place
    assert make_board("a").place != make_board("a", host="elsewhere").place
    assert Fleet("x", (make_board("a"),)).digest != Fleet("x", (make_board("a", host="b"),)).digest


@dataclass(frozen=True)
class Case:
    id: str
    error: DeviceError
    step: str
    expected: Verdict
    switched: bool = False


CASES = (
    Case("refused", BundleError("till refuses at the step 'signature': not signed."), "signature",
         Verdict("refused", "signature", "not signed")),
    Case("no room while it was sent", StorageFullError("till has no room"), "",
         Verdict("refused", "send", "till has no room")),
    Case("went back", ReleaseRefusedError("till refuses at the step 'health': it answers nobody."), "health",
         Verdict("rolled back", "health", "it answers nobody"), switched=True),
    Case("switched off", ConnectionFailedError(f"no route. {host_hint('till', 'till')}"), "",
         Verdict("off", "send", "no route", again=True)),
    Case("in use by somebody", DeviceBusyError("till is in use by ann"), "",
         Verdict("off", "send", "till is in use by ann", again=True)),
    Case("lost", ConnectionFailedError("it broke"), "unpack", Verdict("failed", "unpack", "it broke", again=True)),
    Case("killed", AgentCrashedError("it was ended"), "sync", Verdict("failed", "sync", "it was ended", again=True)),
    Case("a key that nobody knows", HostKeyError("unknown key"), "", Verdict("failed", "send", "unknown key")),
    Case("anything else", DeviceError("no Python"), "", Verdict("failed", "send", "no Python")),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_what_an_error_means(case: Case) -> None:
    assert verdict_of(make_board("till"), case.error, case.step, switched=case.switched) == case.expected


def status_of(**changes: object) -> ReleaseStatus:
    values = {"name": "net", "current": {}, "current_digest": "new", "previous_digest": "old", "releases": (),
              "running": None, "history": ()}  # fmt: skip
    return ReleaseStatus(**{**values, **changes})  # type: ignore[arg-type]


WENT_BACK = {"current_digest": "old", "previous_digest": "new"}
ROLLBACK = {"action": "rollback", "result": "done", "who": "ann"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (None, None),
        (status_of(), "updated"),
        (status_of(running={"digest": "new"}), None),
        (status_of(current=None), None),
        (status_of(current_digest="old"), None),
        (status_of(**WENT_BACK), None),
        (status_of(**WENT_BACK, history=(ROLLBACK,)), "rolled back"),
        (status_of(**WENT_BACK, history=({**ROLLBACK, "result": "refused"},)), None),
        (status_of(**WENT_BACK, history=(ROLLBACK, {"action": "install", "result": "refused"})), None),
    ],
)
def test_what_a_board_says_of_a_try_that_broke_off(row: ReleaseStatus | None, expected: str | None) -> None:
    found = came_to(row, "new")
    assert (found and found.state) == expected
