"""A bundle to all boards of a fleet: the directory of the deployment, its lock, its journal and its report."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from devices.board.release_home import now_text
from devices.fleet import GOOD, Fleet, FleetBoard, Plan, parse_share, select_groups
from devices.fleet_boards import Deployment
from devices.fleet_journal import Journal, hold_fleet, read_past
from devices.fleet_rollout import Act, Rollout, check_plan
from pipeline import packaging
from pipeline.artifacts import write_durably
from pipeline.errors import InputError
from pipeline.fleet_file import load_fleet
from pipeline.fleet_text import markdown, report_of
from pipeline.packaging import SUFFIX

GoOn = Literal["auto", "resume", "restart"]
"""Whether to go on with a deployment that has not ended, must, or must not."""

REPORT, PAGE = "report.json", "report.md"


@dataclass(frozen=True)
class Asked:
    """What somebody wants done with a bundle.

    Attributes:
        bundle: The file.
        runs: Directory of all runs.
        go_on: See `GoOn`.
        dry_run: Do everything on the boards but the switch.
    """

    bundle: Path
    runs: Path
    go_on: GoOn = "auto"
    dry_run: bool = False


def deploy_to_fleet(
    asked: Asked,
    fleet: Fleet,
    boards: Sequence[FleetBoard],
    plan: Plan,
    *,
    tell: Callable[[Mapping[str, Any]], None] = lambda _: None,
    make_act: Callable[[Deployment], Act] = lambda deployment: deployment,
) -> dict[str, Any]:
    """Deploys, or goes on.

    Args:
        asked: What.
        fleet: Where.
        boards: Of the fleet, those that are meant.
        plan: How.
        tell: Takes what happens, see `Rollout`.
        make_act: Makes what is done on one board; a test puts fake boards here.

    Returns:
        The report; it is in `report.json` and `report.md` beside the journal as well.

    Raises:
        BundleError: The bundle is damaged; no board was told of it.
        FleetError: The deployment can't begin or go on.
        InputError: There is nothing to go on with, or a choice to be made.
    """
    check_plan(plan, boards)
    if not asked.bundle.is_file():
        raise InputError(f"There is no bundle {asked.bundle}. `edgeship package` writes one.")
    home = asked.runs / "fleets" / fleet.name
    with hold_fleet(home, fleet.name, asked.bundle.name), _copied(asked.bundle, home) as copy:
        bundle = packaging.read(copy)
        directory = home / f"{bundle.digest}{'-dry-run' if asked.dry_run else ''}"
        goes_on = _goes_on(asked, boards, directory)
        with Journal(directory, anew=not goes_on) as journal, _pausing() as is_paused:
            head = {
                "fleet": fleet.name,
                "fleet_digest": fleet.digest,
                "release": bundle.manifest["name"],
                "digest": bundle.digest,
                "num_boards": len(boards),
                "plan": plan.to_dict(),
                "dry_run": asked.dry_run,
                "goes_on": goes_on,
            }
            act = make_act(Deployment(copy, bundle.manifest["name"], bundle.digest, asked.dry_run))
            retry_bad = journal.past.ended == "stopped"
            rollout = Rollout(boards, act, plan, journal, retry_bad=retry_bad, tell=tell, is_paused=is_paused)
            tell({"head": head, "counts": rollout.counts})
            journal.start(head)
            began = {"began": now_text()}
            clock = time.monotonic()
            end = rollout.run()
        report = report_of({**head, **began, "seconds": round(time.monotonic() - clock, 1)}, end, rollout.rows)
        _write(directory, report)
    return {**report, "directory": str(directory)}


def load(path: Path, root: Path, groups: Sequence[str]) -> tuple[Fleet, tuple[FleetBoard, ...]]:
    """The fleet of a file, and its boards of some groups; of all where none is named.

    Raises:
        InputError: The file can't be used.
        FleetError: There is no such group.
    """
    fleet = load_fleet(path, root)
    return fleet, select_groups(fleet, groups)


def make_plan(asked: Mapping[str, Any]) -> Plan:
    """The plan of what was said on the command line; None is the default.

    Raises:
        FleetError: A number of boards is none.
    """
    shares: dict[str, Any] = {
        name: parse_share(asked[name], by="--" + name.replace("_", "-"), at_least=least)
        for name, least in (("canary", 0), ("batch", 1), ("max_failures", 0))
        if asked[name] is not None
    }
    pace = ("parallel", "attempts", "retry_off_s", "pause_s")
    return Plan(**shares, **{name: asked[name] for name in pace if asked[name] is not None})


def exit_code(report: Mapping[str, Any]) -> int:
    """Of the command: 0 where it is done and some board has the release, 130 where it was interrupted, else 3."""
    if report["state"] == "paused":
        return 130
    return 0 if report["state"] == "done" and any(report["counts"][state] for state in GOOD) else 3


def _goes_on(asked: Asked, boards: Sequence[FleetBoard], directory: Path) -> bool:
    """Whether to go on with what is there."""
    if asked.go_on == "restart" or asked.dry_run:
        return False
    past = read_past(directory)
    if not past.exists and asked.go_on == "resume":
        raise InputError(f"There is nothing of {asked.bundle} to go on with in {directory}: leave --resume out.")
    if asked.go_on == "resume" or not past.exists:
        return past.exists
    if past.ended == "stopped":
        raise InputError(
            f"This deployment stopped because too many boards failed; {directory / PAGE} says which. --resume goes on "
            "and tries those again first, --restart begins anew."
        )
    left = [past.records[board.name].state for board in boards if board.name in past.records]
    return past.ended != "done" or len(left) < len(boards) or bool({"off", "failed"} & {*left})


@contextlib.contextmanager
def _copied(bundle: Path, directory: Path) -> Iterator[Path]:
    """A copy, so that all boards get the same bytes, whatever becomes of the file meanwhile."""
    copy = directory / f"bundle{SUFFIX}"
    try:
        shutil.copyfile(bundle, copy)
    except OSError as error:
        raise InputError(f"{bundle} can't be copied to {directory}: {error.strerror or error}.") from error
    try:
        yield copy
    finally:
        copy.unlink(missing_ok=True)


@contextlib.contextmanager
def _pausing() -> Iterator[Callable[[], bool]]:
    """Whether somebody asked, by the first Ctrl-C or SIGTERM; the second one interrupts."""
    asked: list[int] = []  # no Event: a handler may interrupt whoever holds its lock
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield lambda: False
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if asked:
            signal.default_int_handler(number, frame)
        asked.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(directory: Path, report: Mapping[str, Any]) -> None:
    try:
        write_durably(directory / REPORT, json.dumps(report, indent=2) + "\n")
        write_durably(directory / PAGE, markdown(report))
    except OSError as error:
        raise InputError(f"The report in {directory} can't be written: {error.strerror or error}.") from error
