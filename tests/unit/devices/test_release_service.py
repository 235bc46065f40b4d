"""What a board is told of its service, and how it looks at one."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from devices.board import program, release_health
from devices.board.release_disk import Disk
from devices.board.release_errors import BadSetting, FailedWatch, Refusal
from devices.board.release_health import CommandProbe, ServerProbe, Unhealthy, read_page, run_command
from devices.board.release_home import hold_home, read_state, status
from devices.board.release_install import STEPS, WATCH_STEPS, Installer
from devices.board.release_service import Service, forget_service, read_services, service_of, set_service
from devices.board.release_watcher import Watcher
from devices.errors import BadInputError
from devices.profile import load_profile
from devices.release import ReleaseStatus
from devices.service import service_lines, service_settings
from devices.service import set_service as set_from_host
from tests.bundles import make_bundle, opened, trust
from tests.faults.services import HereWatcher, fake_server

URL = "http://127.0.0.1:8000"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trust(tmp_path / "root", allow_unsigned=True)


def test_a_service_for_all_and_one_for_a_model(root: Path) -> None:
    assert read_services(str(root)) == {"all": None, "models": {}}
    assert service_of(str(root), "net") is None
    set_service(str(root), None, {"url": URL, "watch_s": 5})
    set_service(str(root), "cats", {"check": ["true", "-v"], "restart": ["sh", "-c", "exit 0"]})
    assert service_of(str(root), "net") == Service(url=URL, watch_s=5)
    cats = service_of(str(root), "cats")
    assert cats is not None
    assert (Path(cats.check[0]).is_absolute(), Path(cats.check[0]).name, cats.check[1:]) == (True, "true", ("-v",))
    assert cats.restart[1:] == ("-c", "exit 0")
    told = set_service(str(root), "cats", {"url": "https://board.local:8443/models", "come_up_s": 9})
    assert told["models"]["cats"] == {
        "url": "https://board.local:8443/models",
        "restart": list(cats.restart),
        "come_up_s": 9,
    }
    forget_service(str(root), "cats")
    assert service_of(str(root), "cats") == Service(url=URL, watch_s=5)
    assert forget_service(str(root), None) == {"all": None, "models": {}}


@dataclass(frozen=True)
class Wrong:
    id: str
    message: str
    changes: dict[str, Any] = field(default_factory=dict)


WRONG = (
    Wrong("nothing to look at", "--url, or a --check", {"restart": ["true"]}),
    Wrong("both", "one of them", {"url": URL, "check": ["true"]}),
    Wrong("no url", "expected such as", {"url": "127.0.0.1:8000"}),
    Wrong("no port", "can't be read", {"url": "http://127.0.0.1:no"}),
    Wrong("another scheme", "expected such as", {"url": "file:///etc/passwd"}),
    Wrong("a line in a url", "expected such as", {"url": f"{URL}/\n"}),
    Wrong("a password in a url", "--token-file", {"url": "https://me:secret@board:1"}),
    Wrong("leaves the board", "without TLS", {"url": "http://192.168.1.7:8000"}),
    Wrong("no program", "no program on this board", {"check": ["no-such-program-here"]}),
    Wrong("a relative program", "absolute path", {"check": ["./check"]}),
    Wrong("no command", "expected a program", {"check": []}),
    Wrong("a command of numbers", "expected a program", {"check": [1]}),
    Wrong("no time", "more than 0", {"url": URL, "watch_s": 0}),
    Wrong("too long", "at most 600", {"url": URL, "come_up_s": 601}),
    Wrong("no number", "more than 0", {"url": URL, "come_up_s": float("nan")}),
    Wrong("a truth", "more than 0", {"url": URL, "come_up_s": True}),
    Wrong("no token", "can't be read", {"url": URL, "token_file": "/no/such/file"}),
    Wrong("a relative file", "absolute", {"url": URL, "ca": "ca.pem"}),
    Wrong("an unknown setting", "nothing else", {"url": URL, "shell": "rm"}),
)


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.id)
def test_services_that_can_not_be(case: Wrong, root: Path) -> None:
    set_service(str(root), "other", {"url": URL})
    before = (root / ".board" / "service.json").read_bytes()
    with pytest.raises(BadSetting, match=case.message):
        set_service(str(root), None, case.changes)
    assert (root / ".board" / "service.json").read_bytes() == before


@pytest.mark.parametrize("name", ["", "..", "a/b", ".board"])
def test_names_that_no_model_has(name: str, root: Path) -> None:
    with pytest.raises(BadSetting, match="no name"):
        set_service(str(root), name, {"url": URL})


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"all": {"url": 1}}', '{"models": []}', '{"every": {}}', '{"all": {"x": 1}}']
)
def test_a_file_that_says_something_else_changes_nothing(text: str, root: Path, tmp_path: Path) -> None:
    (root / ".board" / "service.json").write_text(text)
    with pytest.raises(Refusal, match=r"service\.json"):
        Installer(str(root), who="tester", self_test=lambda *_: {}).install(str(make_bundle(tmp_path / "one")))
    assert status(str(root))[0]["current_digest"] is None


def test_the_host_asks_and_sets(root: Path) -> None:
    local = load_profile("local")
    assert service_lines(service_settings(local, root)) == [
        "no service is set, so releases are not watched after a switch"
    ]
    assert not (root / ".board" / "service.json").exists()
    told = set_from_host(local, root, None, {"url": URL})
    told = set_from_host(local, root, "net", {"check": ["/bin/true", "a b"], "restart": ["/bin/true"], "watch_s": 5})
    assert service_lines(told) == [
        f"every model: up within 60 s and watched for 30 s at {URL}",
        "net: restart by `/bin/true`, up within 60 s and watched for 5 s at `/bin/true 'a b'`",
    ]
    with pytest.raises(BadInputError, match="without TLS"):
        set_from_host(local, root, None, {"url": "http://example.org"})


def test_without_a_service_nothing_is_watched(root: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    told = Installer(
        str(root), who="tester", self_test=lambda *_: {}, on_step=steps.append, start_watcher=_never
    ).install(str(make_bundle(tmp_path / "one")))
    assert tuple(steps) == tuple(step for step in STEPS if step not in WATCH_STEPS)
    assert told["watched_s"] is None


def _never(*_: object) -> Any:
    raise AssertionError


def test_a_watched_installation(root: Path, tmp_path: Path) -> None:
    one, two = (make_bundle(tmp_path / str(seed), seed) for seed in (1, 2))
    steps: list[str] = []
    shown: list[ReleaseStatus] = []

    def on_step(step: str) -> None:
        steps.append(step)
        if step == "previous":
            (row,) = status(str(root))
            shown.append(ReleaseStatus(**row))

    marker = tmp_path / "restarted"
    with fake_server(root) as server:
        server.use(restart=["sh", "-c", f"echo x >> {marker}"])
        installer = Installer(str(root), who="tester", self_test=lambda *_: {}, on_step=on_step)
        told = installer.install(str(one))
        assert tuple(steps) == STEPS
        assert (told["changed"], told["watched_s"]) == (True, 0.1)
        installer.install(str(two))
        assert marker.read_text() == "x\nx\n"
        steps.clear()
        installer.rollback("net")
        assert steps[-5:] == ["switch", "restart", "watch", "previous", "record"]
        assert marker.read_text() == "x\nx\nx\n"
    assert [each.held for each in shown] == [True] * 3
    assert all("being watched" in each.doing for each in shown)
    (row,) = status(str(root))
    assert ReleaseStatus(**row).doing == ""
    assert row["history"][0]["watched_s"] == 0.1
    assert not {"proven", "failed"} & set(row["history"][0])


def test_a_release_that_is_put_there_again_has_no_way_back(root: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "one")
    with fake_server(root) as server:
        server.use()
        Installer(str(root), who="tester", self_test=lambda *_: {}).install(str(bundle))
        (root / "net" / "current" / "model.fake").write_text("damaged")
        server.use(come_up_s=0.1)
        server.bad, server.fault = opened(bundle).digest, "gone"
        with pytest.raises(FailedWatch, match="no whole release to go back to"):
            Installer(str(root), who="tester", self_test=lambda *_: {}).install(str(bundle))
    (row,) = status(str(root))
    assert row["current"]["name"] == "net"
    assert row["history"][-1]["result"] == "unhealthy"


def test_what_was_interrupted_is_told_and_finished(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = (make_bundle(tmp_path / str(seed), seed) for seed in (1, 2))
    set_service(str(root), None, {"check": ["true"], "watch_s": 0.01})
    Installer(str(root), who="tester", self_test=lambda *_: {}, start_watcher=HereWatcher).install(str(one))
    with hold_home(str(root), "net", Disk()) as home:
        task = {"action": "install", "digest": "new", "from": home.current, "watched": True, "switching": True}
        home.begin(task)
        assert program.main(["recover", "--root", str(root)]) == 0
        assert "somebody is at work" in capsys.readouterr().out
    (row,) = status(str(root))
    assert "interrupted" in ReleaseStatus(**row).doing
    assert program.main(["recover", "--root", str(root), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["recovered"]
    assert (told["name"], told["entry"]["result"]) == ("net", "interrupted")
    assert program.main(["recover", "--root", str(root)]) == 0
    assert "nothing was interrupted" in capsys.readouterr().out
    assert status(str(root))[0]["current_digest"] == opened(one).digest
    assert Installer(str(root), who="tester", self_test=lambda *_: {}).install(str(two))["changed"]


def test_a_watcher_that_does_not_start_changes_nothing(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_service(str(root), None, {"check": ["true"], "watch_s": 0.01})
    monkeypatch.setattr(Watcher, "module", "no.such.module")
    with pytest.raises(Refusal, match=r"did not start: .*no\.such"):
        Installer(str(root), who="tester", self_test=lambda *_: {}).install(str(make_bundle(tmp_path / "one")))
    (row,) = status(str(root))
    assert (row["current_digest"], row["running"]) == (None, None)
    assert (row["history"][-1]["result"], row["history"][-1]["step"]) == ("refused", "announce")


PAGE = r"""# HELP edgeship_model_switches_total Changes to another release, by outcome.
edgeship_model_switches_total{model="net",outcome="done"} 3
edgeship_model_switches_total{model="net",outcome="failed"} 2
edgeship_model_switches_total{model="other",outcome="failed"} 9
edgeship_model_errors_total{model="net",release="a",code="500"} 4
edgeship_model_errors_total{model="net",release="a",code="503"} 7
edgeship_model_errors_total{model="net",release="b",code="501"} 1
edgeship_model_errors_total{model="a \"b\" \\ c",release="b",code="500"} 5
edgeship_resident_memory_bytes nan
process_start_time_seconds 1.5
nonsense
"""


def test_a_metrics_page() -> None:
    assert read_page(PAGE, "net") == (1.5, 2.0, {"a": 4.0, "b": 1.0})
    assert read_page(PAGE, 'a "b" \\ c').errors == {"b": 5.0}
    assert read_page("", "net") == (None, 0.0, {})


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run_command(
        ["/bin/sh", "-c", 'test -z "$OMP_NUM_THREADS" && test "$X" = 1 && test "$PWD" = /'], 30, what="it", X="1"
    )
    with pytest.raises(Unhealthy, match="it /bin/sh ended with status 3: a reason"):
        run_command(["/bin/sh", "-c", "echo a reason >&2; exit 3"], 30, what="it")
    with pytest.raises(Unhealthy, match="can't be started: No such file"):
        run_command(["/no/such/program"], 30, what="it")
    with pytest.raises(Unhealthy, match=r"did not end within 0\.2 s"):
        run_command(["/bin/sh", "-c", f"exec 9> {tmp_path}/held; flock 9; sleep 600; true"], 0.2, what="it")
    if (tmp_path / "held").exists():  # whoever held it is dead, or is dying: then this waits for it
        subprocess.run(["flock", tmp_path / "held", "true"], check=True, timeout=60)
    with pytest.raises(Unhealthy, match="ended by signal 9"):
        run_command(["/bin/sh", "-c", "kill -9 $$"], 30, what="it")


def test_a_check_finds_what_it_is_about(tmp_path: Path) -> None:
    words = ("/bin/sh", "-c", 'test "$EDGESHIP_MODEL $EDGESHIP_RELEASE" = "net abc"')
    probe = CommandProbe(Service(check=words), "net")
    probe.check_up("abc")
    probe.check_well("abc")
    with pytest.raises(Unhealthy, match="status 1"):
        probe.check_up("def")


def test_nobody_listens() -> None:
    probe = ServerProbe(Service(url="http://127.0.0.1:9"), "net")
    with pytest.raises(Unhealthy, match=r"http://127\.0\.0\.1:9 can't be asked") as unhealthy:
        probe.check_up("abc")
    assert not unhealthy.value.busy


def test_a_server_that_drips_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_health, "_LOOK_S", 0.3)
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            stream, _ = listener.accept()
            with stream, contextlib.suppress(OSError):
                stream.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
                while not ended.wait(0.02):
                    stream.sendall(b" ")

        service = Service(url=f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread = threading.Thread(target=drip)
        thread.start()
        try:
            probe = ServerProbe(service, "net")  # looks at the metrics, and is content to know nothing
            assert probe._before is None
        finally:
            ended.set()
            thread.join()


def test_a_busy_server_is_asked_again(root: Path, tmp_path: Path) -> None:
    """A 503 or two say nothing of the release; more of them do."""
    one, two = (make_bundle(tmp_path / str(seed), seed) for seed in (1, 2))
    with fake_server(root) as server:
        server.use(watch_s=0.5)
        Installer(str(root), who="tester", self_test=lambda *_: {}, start_watcher=HereWatcher).install(str(one))
        answer, count = server.answer, [0]

        def sometimes(path: str) -> tuple[int, str] | None:
            count[0] += path.endswith("/ready")
            return (503, "busy") if path.endswith("/ready") and count[0] in {2, 3} else answer(path)

        server.answer = sometimes  # type: ignore[method-assign]
        Installer(str(root), who="tester", self_test=lambda *_: {}, start_watcher=HereWatcher).install(str(two))
        assert count[0] > 3
        assert read_state(str(root / "net"))["history"][-1]["result"] == "done"
