"""A deployment to a fleet in words: its report, plain lines for a pipe, a live table for a terminal.

Nothing here prints by itself.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from devices.fleet import BAD, GOOD, STATES, Fleet, FleetBoard
from devices.fleet_boards import BoardStatus
from devices.fleet_rollout import End, Row
from devices.transport_config import LocalTransport, SshTransport
from devices.transports.ssh_client import describe
from devices.wording import counted
from pipeline.progress import duration

SCHEMA_VERSION = 1
OUTCOME_COLUMNS = ("outcome", "boards", "share")
FAILURE_COLUMNS = ("boards", "outcome", "step", "reason", "which")
BOARD_COLUMNS = ("board", "group", "reached", "releases in", "labels")
STATUS_COLUMNS = ("board", "group", "name", "in use", "release", "previous")

_NUM_NAMED = 6
_NUM_SHOWN = 16


def report_of(head: Mapping[str, Any], end: End, rows: Mapping[str, Row]) -> dict[str, Any]:
    """The report as JSON values.

    Args:
        head: Of the deployment: `fleet`, `release`, `digest`, `plan`, `seconds` and so on.
        end: How it ended.
        rows: What is known of each board.
    """
    counts: Counter[str] = Counter(row.state for row in rows.values())
    boards = [
        {
            "board": row.board.name,
            "group": row.board.group,
            "outcome": row.state,
            "step": row.step or None,
            "reason": row.reason or None,
            "tries": row.tries,
            "seconds": round(row.seconds, 2),
            **({"labels": dict(row.board.labels)} if row.board.labels else {}),
        }
        for row in rows.values()
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        **head,
        "state": end,
        "text": _ending(end, counts, head),
        "counts": {state: counts[state] for state in STATES},
        "failures": _groups(list(rows.values())),
        "boards": boards,
    }


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """What is printed below the tables."""
    page = f"Report: {report['directory']}/report.md"
    return [f"{report['fleet']}: {report['text']}", f"{duration(report['seconds'])}. {page}"]


def outcome_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """How many boards came to what."""
    counts, total = report["counts"], report["num_boards"]
    return [(state, f"{counts[state]:,}", f"{100 * counts[state] / total:.1f} %") for state in STATES if counts[state]]


def failure_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Boards that failed or are off, by reason."""
    rows: list[tuple[str, ...]] = []
    for each in report["failures"]:
        number, reason = f"{len(each['boards']):,}", each["reason"] or "-"
        rows.append((number, each["outcome"], each["step"] or "-", reason, _listed(each["boards"])))
    return rows


def markdown(report: Mapping[str, Any]) -> str:
    """The report as a page."""
    plan = report["plan"]
    begun = f"begun {report['began']}{', gone on with' if report['goes_on'] else ''}, {duration(report['seconds'])}"
    pace = f"canary {plan['canary']}, batch {plan['batch']}, {plan['parallel']} at a time"
    lines = [
        f"# {report['release']} to {report['fleet']}{' (dry run)' if report['dry_run'] else ''}",
        "",
        f"Release {report['digest']}: **{report['text']}** {counted(report['num_boards'], 'board')}, {begun}, {pace}.",
        "",
        *_table(OUTCOME_COLUMNS, outcome_rows(report)),
        "",
    ]
    if report["failures"]:
        cells = [
            (f"{len(each['boards']):,}", each["outcome"], each["step"] or "-", each["reason"] or "-")
            for each in report["failures"]
        ]
        lines += ["## Why", "", *_table(FAILURE_COLUMNS[:-1], cells), ""]
    lines += ["## Boards", ""]
    for state in STATES:
        names = [row["board"] for row in report["boards"] if row["outcome"] == state]
        if names:
            lines += [f"**{state}** ({len(names):,}): {', '.join(names)}", ""]
    return "\n".join(lines)


def board_rows(fleet: Fleet) -> list[tuple[str, ...]]:
    """Each board and how it is reached."""
    return [
        (board.name, board.group, _reached(board.profile.transport), str(board.root), _labels(board.labels))
        for board in fleet.boards
    ]


def board_values(fleet: Fleet) -> list[dict[str, Any]]:
    """The same as JSON values."""
    return [
        {
            "board": board.name,
            "group": board.group,
            "transport": board.profile.transport.model_dump(mode="json"),
            "root": str(board.root),
            "labels": dict(board.labels),
        }
        for board in fleet.boards
    ]


def status_rows(found: Sequence[BoardStatus]) -> list[tuple[str, ...]]:
    """What each board runs."""
    rows: list[tuple[str, ...]] = []
    for each in found:
        place = each.board.name, each.board.group
        if each.releases is None:
            rows.append((*place, "-", f"not reached: {each.reason}", "-", "-"))
            continue
        for row in each.releases or ({"name": None},):
            form = f"{row['target']} {row['precision']}" if row.get("target") else "-"
            rows.append((*place, row["name"] or "nothing", form, row.get("current") or "-", row.get("previous") or "-"))
    return rows


def status_values(found: Sequence[BoardStatus]) -> list[dict[str, Any]]:
    """The same as JSON values."""
    return [
        {
            "board": each.board.name,
            "group": each.board.group,
            "reached": each.releases is not None,
            "reason": each.reason or None,
            "releases": list(each.releases or ()),
        }
        for each in found
    ]


def status_line(found: Sequence[BoardStatus]) -> str:
    """How many boards run what."""
    running = Counter(
        f"{row['name']} {row['current']}" for each in found for row in each.releases or () if row["current"]
    )
    off = sum(each.releases is None for each in found)
    parts = [f"{counted(number, 'board')} {'runs' if number == 1 else 'run'} {what}" for what, number in
             running.most_common()]  # fmt: skip
    return (
        "; ".join([*parts, *([f"{counted(off, 'board')} can't be asked"] if off else [])]) or "No board has a release."
    )


def trust_values(found: Sequence[tuple[FleetBoard, dict[str, Any] | None, str]]) -> list[dict[str, Any]]:
    """What is set on each board, as JSON values."""
    return [{"board": board.name, **(told or {}), "reason": reason or None} for board, told, reason in found]


def trust_lines(found: Sequence[tuple[FleetBoard, dict[str, Any] | None, str]]) -> list[str]:
    """Boards by what is set there, then those that can't be told."""
    groups: dict[str, list[str]] = {}
    for board, told, reason in found:
        if told is None:
            text = f"can't be told: {reason}"
        else:
            settings = told["settings"]
            unsigned = "takes" if settings["allow_unsigned"] else "refuses"
            kept = counted(settings["keep"], "release")
            text = f"trusts {counted(told['signers'], 'key')}, {unsigned} unsigned bundles, keeps {kept} of each name"
        groups.setdefault(text, []).append(board.name)
    return [f"{_listed(names)}: {text}." for text, names in groups.items()]


def event_line(event: Mapping[str, Any]) -> str | None:
    """The line for what happened; None where a person need not read one."""
    if "head" in event:
        head = event["head"]
        again = f", {_tried(event['counts']):,} of them done before" if head["goes_on"] else ""
        return f"{head['release']} {head['digest']} to {counted(head['num_boards'], 'board')} of {head['fleet']}{again}"
    if "wave" in event:
        counts = event["counts"]
        failed, off = sum(counts[state] for state in BAD), counts["off"]
        past = f" ({_tried(counts):,} tried, {failed:,} failed, {off:,} off)" if _tried(counts) or off else ""
        return f"{event['wave']} of {counted(event['boards'], 'board')}{past}"
    if "pausing" in event:
        return f"pausing: {counted(event['pausing'], 'board')} under way; a second Ctrl-C leaves them to themselves"
    if "wait_s" in event:
        return f"waits {duration(event['wait_s'])}"
    if "row" in event:
        row: Row = event["row"]
        at = f" at {row.step}" if row.step and row.state in BAD else ""
        why = f": {row.reason}" if row.reason else f" in {row.seconds:.1f} s"
        return f"{row.board.name}: {row.state}{at}{why}"
    return None


class PlainFleet:
    """One line for each board and each wave.

    Args:
        write: Takes a line without its end.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def show(self, event: Mapping[str, Any]) -> None:
        """Writes the event's line, if it has one."""
        line = event_line(event)
        if line is not None:
            try:
                self._write(line)
            except BrokenPipeError:  # nobody reads any more, which is no reason to leave boards half way
                self._write = lambda _: None

    def __enter__(self) -> PlainFleet:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class LiveFleet:
    """A table of outcomes and of the boards at work; above it a line for each board that failed or is off.

    Args:
        console: A `rich.console.Console`.
    """

    def __init__(self, console: Any) -> None:
        from rich.live import Live

        self._console = console
        self._counts: Mapping[Any, int] = {}
        self._at_work: dict[str, str] = {}
        self._wave, self._began = "", time.monotonic()
        self._live = Live(
            console=console, get_renderable=self._table, refresh_per_second=4, transient=True, vertical_overflow="crop"
        )

    def show(self, event: Mapping[str, Any]) -> None:
        """Updates the display."""
        self._counts = dict(event.get("counts", self._counts))
        if "step" in event:
            self._at_work[event["board"]] = event["step"]
            return
        line = event_line(event) or ""
        if "row" in event:
            self._at_work.pop(event["row"].board.name, None)
            if event["row"].state not in GOOD:
                self._console.print(line, markup=False, highlight=False)
        elif "head" in event:
            self._console.print(line, markup=False, highlight=False)
        else:
            self._wave = line

    def __enter__(self) -> LiveFleet:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def _table(self) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        counts = self._counts
        total, done = sum(counts.values()), sum(counts.get(state, 0) for state in GOOD | BAD)
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for state in STATES:
            if counts.get(state):
                table.add_row(state, f"{counts[state]:,}")
        at_work = list(self._at_work.items())
        for name, step in at_work[:_NUM_SHOWN]:
            table.add_row(f"  {name}", step)
        if len(at_work) > _NUM_SHOWN:
            table.add_row(f"  and {len(at_work) - _NUM_SHOWN} more", "")
        head = f"{self._wave}; {duration(time.monotonic() - self._began)} so far"
        return Group(Text(head), ProgressBar(total=max(total, 1), completed=done, width=48), table)


def _ending(end: End, counts: Mapping[str, int], head: Mapping[str, Any]) -> str:
    failed, off, waiting = sum(counts[state] for state in BAD), counts["off"], counts["waiting"]
    limit = head["plan"]["max_failures"]
    tried = sum(counts[state] for state in BAD | GOOD)
    if end == "stopped":
        rest = f"; {counted(waiting, 'board')} not begun" if waiting else ""
        gone = f", {off:,} off" if off else ""
        return f"stopped: {failed:,} of {counted(tried, 'board')} failed, {limit} may{gone}{rest}."
    parts = [f"{failed:,} failed ({limit} may)"] if failed else []
    parts += [f"{off:,} off"] if off else []
    if end == "paused":
        return ", ".join(["paused", *parts, f"{waiting:,} waiting; the same command goes on"]) + "."
    return ", ".join(["done", *parts]) + "."


def _groups(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Boards by why they failed, the most frequent reason first; numbers and names in a reason tell none apart."""
    groups: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:
        if row.state in GOOD or not row.reason:
            continue
        key = row.state, row.step, _kind(row)
        group = groups.setdefault(
            key, {"outcome": row.state, "step": row.step or None, "reason": row.reason, "boards": []}
        )
        group["boards"].append(row.board.name)
    return sorted(groups.values(), key=lambda group: (-len(group["boards"]), group["outcome"], group["reason"]))


def _kind(row: Row) -> str:
    """A reason without what differs from board to board."""
    text = row.reason.replace(str(row.board.root), "ROOT")
    transport = row.board.profile.transport
    if isinstance(transport, SshTransport):
        text = text.replace(describe(transport), "BOARD").replace(transport.host, "BOARD")
    text = re.sub(rf"\b{re.escape(row.board.name)}\b", "BOARD", text)
    return re.sub(r"\d+(?:[.:]\d+)*", "#", text)


def _reached(transport: Any) -> str:
    if isinstance(transport, SshTransport):
        return describe(transport)
    return "this machine" if isinstance(transport, LocalTransport) else str(transport.kind)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NUM_NAMED:,} more" if len(names) > _NUM_NAMED else ""
    return ", ".join(names[:_NUM_NAMED]) + more


def _labels(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in labels.items())


def _tried(counts: Mapping[Any, int]) -> int:
    return sum(counts.get(state, 0) for state in GOOD | BAD)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    body = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *body)]
