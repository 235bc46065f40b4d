"""A deployment to a fleet of boards that are none: going on, refusing to, and the report."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from devices.errors import BundleError, FleetError
from devices.fleet import Fleet, FleetBoard, Plan, Share, Verdict
from devices.fleet_boards import BoardStatus, Deployment
from devices.fleet_journal import hold_fleet
from devices.profile import load_profile
from devices.transport_config import SshTransport
from pipeline import fleet_text
from pipeline.errors import InputError
from pipeline.fleet_deployment import PAGE, REPORT, Asked, GoOn, deploy_to_fleet, exit_code, make_plan
from tests.bundles import make_bundle, opened

PLAN = Plan(retry_off_s=0.0, max_failures=Share(0, percent=False))
OFF = Verdict("off", "send", "no route", again=True)
LOCAL = load_profile("local")


def make_board(number: int) -> FleetBoard:
    transport = SshTransport(host=f"10.0.0.{number}", user="pi")
    profile = LOCAL.model_copy(update={"name": f"b{number}", "transport": transport})
    return FleetBoard(profile, "all", Path("~/releases"))


@dataclass
class Place:
    """A fleet of ten, a bundle, and what its boards say."""

    directory: Path
    bundle: Path
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    then: Callable[[str], None] = lambda _: None
    tried: list[str] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)

    @property
    def fleet(self) -> Fleet:
        return Fleet("shop", tuple(make_board(number) for number in range(10)))

    @property
    def home(self) -> Path:
        return self.directory / "runs" / "fleets" / "shop"

    @property
    def found(self) -> Path:
        return self.home / opened(self.bundle).digest

    def deploy(self, go_on: GoOn = "auto", plan: Plan = PLAN, **options: Any) -> dict[str, Any]:
        self.tried.clear()
        dry_run = options.pop("dry_run", False)
        asked = Asked(self.bundle, self.directory / "runs", go_on, dry_run)
        fleet = self.fleet
        return deploy_to_fleet(asked, fleet, fleet.boards, plan, make_act=self.make_act, **options)

    def make_act(self, deployment: Deployment) -> Any:
        def act(board: FleetBoard, *, ask: bool, on_step: Any) -> Verdict:
            self.tried.append(board.name)
            self.contents.append(deployment.bundle.read_bytes())
            self.then(board.name)
            return self.verdicts.get(board.name, Verdict("tested" if deployment.dry_run else "updated"))

        return act


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, make_bundle(tmp_path / "net.edgeship"))


def test_all_boards_get_it_and_a_report_says_so(place: Place) -> None:
    report = place.deploy()
    assert (report["state"], report["text"], exit_code(report)) == ("done", "done.", 0)
    assert report["counts"]["updated"] == 10
    assert report["release"] == "net"
    assert report["digest"] == opened(place.bundle).digest
    assert report["plan"]["canary"] == "1"
    kept = json.loads((place.found / REPORT).read_text())
    assert kept == {key: value for key, value in report.items() if key != "directory"}
    assert "**updated** (10): b0, b1" in (place.found / PAGE).read_text()
    assert {path.name for path in place.found.iterdir()} == {"journal.jsonl", REPORT, PAGE}


def test_what_is_done_is_done_again_from_the_start(place: Place) -> None:
    place.deploy()
    report = place.deploy()
    assert not report["goes_on"]
    assert len(place.tried) == 10
    assert (place.found / "journal.previous.jsonl").is_file()


def test_boards_that_were_off_are_what_is_left(place: Place) -> None:
    place.verdicts = {"b3": OFF}
    report = place.deploy()
    assert (report["state"], report["text"], exit_code(report)) == ("done", "done, 1 off.", 0)
    place.verdicts = {}
    report = place.deploy()
    assert place.tried == ["b3"]
    assert report["goes_on"]
    assert report["counts"]["updated"] == 10


def test_a_fleet_that_is_off_as_a_whole(place: Place) -> None:
    place.verdicts = {f"b{number}": OFF for number in range(10)}
    report = place.deploy()
    assert (report["state"], report["text"], exit_code(report)) == ("done", "done, 10 off.", 3)


def test_after_a_stop_somebody_has_to_choose(place: Place) -> None:
    place.verdicts = {"b0": Verdict("refused", "self-test", "other answers")}
    report = place.deploy()
    assert report["text"] == "stopped: 1 of 1 board failed, 0 may; 9 boards not begun."
    assert exit_code(report) == 3
    with pytest.raises(InputError, match=r"stopped because too many boards failed; .*--resume goes on .*--restart"):
        place.deploy()
    assert place.tried == []
    place.verdicts = {}
    assert place.deploy("resume")["text"] == "done."
    assert place.tried[0] == "b0"


def test_another_beginning(place: Place) -> None:
    place.verdicts = {"b0": Verdict("refused", "self-test", "other answers")}
    place.deploy()
    place.verdicts = {}
    report = place.deploy("restart")
    assert report["text"] == "done."
    assert len(place.tried) == 10


def test_there_is_nothing_to_go_on_with(place: Place) -> None:
    with pytest.raises(InputError, match=r"nothing of .* to go on with"):
        place.deploy("resume")
    assert place.tried == []


def test_a_pause(place: Place) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def ask(name: str) -> None:
        handler = signal.getsignal(signal.SIGTERM)
        assert callable(handler), "a signal would end this process"
        if name == "b2":
            handler(signal.SIGTERM, None)

    place.then = ask
    report = place.deploy()
    assert signal.getsignal(signal.SIGTERM) is before
    assert report["state"] == "paused"
    assert exit_code(report) == 130
    assert "waiting; the same command goes on" in report["text"]
    first = set(place.tried)
    place.then = lambda _: None
    assert place.deploy()["counts"]["updated"] == 10
    assert not first & set(place.tried)


def test_a_trial_keeps_out_of_the_way(place: Place) -> None:
    report = place.deploy(dry_run=True)
    assert report["counts"]["tested"] == 10
    assert exit_code(report) == 0
    assert not place.found.exists()
    assert "(dry run)" in (place.home / f"{opened(place.bundle).digest}-dry-run" / PAGE).read_text()
    assert place.deploy()["counts"]["updated"] == 10
    assert place.deploy(dry_run=True)["counts"]["tested"] == 10


def test_all_boards_get_the_same_bytes_whatever_becomes_of_the_file(place: Place) -> None:
    whole = place.bundle.read_bytes()
    place.then = lambda name: place.bundle.write_bytes(b"another one") and None if name == "b0" else None
    place.deploy()
    assert set(place.contents) == {whole}


def test_a_damaged_bundle_reaches_no_board(place: Place) -> None:
    data = bytearray(place.bundle.read_bytes())
    data[-2000] ^= 1
    place.bundle.write_bytes(data)
    with pytest.raises(BundleError):
        place.deploy()
    assert place.tried == []
    place.bundle.unlink()
    with pytest.raises(InputError, match="There is no bundle"):
        place.deploy()


def test_two_at_once(place: Place) -> None:
    with hold_fleet(place.home, "shop", "other.edgeship"), pytest.raises(FleetError, match="being deployed to by"):
        place.deploy()
    assert place.tried == []


def test_two_at_once_from_two_threads(place: Place) -> None:
    inside, go = threading.Event(), threading.Event()

    def wait(name: str) -> None:
        inside.set()
        go.wait(20)

    place.then = wait
    reports: list[dict[str, Any]] = []
    thread = threading.Thread(target=lambda: reports.append(place.deploy()))
    thread.start()
    assert inside.wait(20)
    other = Place(place.directory, place.bundle)
    with pytest.raises(FleetError, match=r"being deployed to by .*net\.edgeship"):
        other.deploy()
    go.set()
    thread.join(20)
    assert reports[0]["text"] == "done."


def test_failures_are_grouped_by_what_is_the_same_in_them(place: Place) -> None:
    for number in range(4):
        reason = f"a value of pi@10.0.0.{number} differs by 0.{number}1, b{number} says"
        place.verdicts[f"b{number}"] = Verdict("refused", "self-test", reason)
    place.verdicts["b7"] = OFF
    report = place.deploy(plan=Plan(retry_off_s=0.0, max_failures=Share(9, percent=False)))
    assert report["text"] == "done, 4 failed (9 may), 1 off."
    assert [(each["outcome"], len(each["boards"])) for each in report["failures"]] == [("refused", 4), ("off", 1)]
    assert report["failures"][0]["boards"] == ["b0", "b1", "b2", "b3"]
    rows = fleet_text.failure_rows(report)
    assert rows[0][:3] == ("4", "refused", "self-test")
    page = (place.found / PAGE).read_text()
    assert "| 4 | refused | self-test | a value of pi@10.0.0.0 differs" in page
    assert "**off** (1): b7" in page


def test_lines_for_a_pipe(place: Place) -> None:
    place.verdicts = {"b3": OFF, "b4": Verdict("refused", "budget", "too slow")}
    lines: list[str] = []
    with fleet_text.PlainFleet(lines.append) as shown:
        place.deploy(plan=Plan(retry_off_s=0.01, attempts=2, max_failures=Share(1, percent=False)), tell=shown.show)
    text = "\n".join(lines)
    assert lines[0] == f"net {opened(place.bundle).digest} to 10 boards of shop"
    assert lines[1] == "canary of 1 board"
    assert "b3: off: no route" in lines
    assert "b4: refused at budget: too slow" in lines
    assert "retry of 1 board (9 tried, 1 failed, 1 off)" in lines
    assert "b0: updated in " in text


def test_the_line_of_a_pause() -> None:
    line = fleet_text.event_line({"pausing": 2})
    assert line == "pausing: 2 boards under way; a second Ctrl-C leaves them to themselves"


def test_nobody_reads_the_lines(place: Place) -> None:
    def write(line: str) -> None:
        raise BrokenPipeError

    assert place.deploy(tell=fleet_text.PlainFleet(write).show)["text"] == "done."


def test_a_live_table(place: Place) -> None:
    console = Console(width=100, force_terminal=True, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    live = fleet_text.LiveFleet(console)
    rendered: list[str] = []

    def tell(event: Any) -> None:
        live.show(event)
        with console.capture() as captured:
            console.print(live._table())
        rendered.append(captured.get())

    place.verdicts = {"b3": Verdict("refused", "budget", "[red]too slow[/]")}
    with live:
        live.show({"board": "b0", "step": "unpack"})
        place.deploy(plan=Plan(max_failures=Share(1, percent=False)), tell=tell)
    assert "b3: refused at budget: [red]too slow[/]" in console.export_text()
    assert any("unpack" in text for text in rendered)
    assert "updated" in rendered[-1]
    console.file.close()


def test_what_boards_run() -> None:
    release = {"name": "net", "current": "abc", "previous": None, "target": "litert", "precision": "int8"}
    found = [
        BoardStatus(make_board(0), (release,)),
        BoardStatus(make_board(1), (release, {**release, "name": "other", "current": None, "target": None})),
        BoardStatus(make_board(2), ()),
        BoardStatus(make_board(3), None, "no route"),
    ]
    assert [row[:4] for row in fleet_text.status_rows(found)] == [
        ("b0", "all", "net", "litert int8"),
        ("b1", "all", "net", "litert int8"),
        ("b1", "all", "other", "-"),
        ("b2", "all", "nothing", "-"),
        ("b3", "all", "-", "not reached: no route"),
    ]
    assert fleet_text.status_line(found) == "2 boards run net abc; 1 board can't be asked"
    assert [row["reached"] for row in fleet_text.status_values(found)] == [True, True, True, False]


def test_a_plan_of_what_was_said() -> None:
    names = ("canary", "batch", "max_failures", "parallel", "attempts", "retry_off_s", "pause_s")
    said: dict[str, Any] = dict.fromkeys(names)
    assert make_plan(said) == Plan()
    plan = make_plan({**said, "canary": "2", "batch": "20%", "max_failures": "0", "parallel": 4, "pause_s": 1.5})
    assert plan == Plan(Share(2, percent=False), Share(20, percent=True), Share(0, percent=False), 4, pause_s=1.5)
    with pytest.raises(FleetError, match="--max-failures is 'some'"):
        make_plan({**said, "max_failures": "some"})
