from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest

from devices.board_checks import CHECKS
from devices.doctor import ask_facts, diagnose, examine, on_board
from devices.errors import (
    ConnectionFailedError,
    DeviceError,
    HostKeyError,
    LoginRefusedError,
    StorageFullError,
)
from devices.measurement import Case, benchmark
from devices.profile import DeviceProfile, load_profile
from devices.transports import open_transport, ssh, virtual
from devices.virtual import plan
from devices.virtual.control import RunningBoard

sys.path.insert(0, str(Path(__file__).parent))

from boards import WELL, profile_of


class Board:
    """A device that answers `facts`, or can't be reached."""

    def __init__(self, answer: dict[str, Any] | DeviceError) -> None:
        self.answer = answer

    def __call__(self, profile: DeviceProfile) -> Any:
        assert profile.name
        return self

    def start_agent(self) -> Self:
        if isinstance(self.answer, DeviceError):
            raise self.answer
        return self

    def request(self, method: str, **options: Any) -> Any:
        assert method == "facts"
        assert options["timeout_s"] > 0
        return self.answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_a_board_that_is_well() -> None:
    diagnosis = diagnose(load_profile("raspberry-pi-4"), open_device=Board(WELL))
    assert diagnosis.usable
    assert [finding.check for finding in diagnosis.findings] == ["connection", *CHECKS]
    assert {finding.state for finding in diagnosis.findings} == {"ok"}


def test_a_problem_makes_it_unusable_and_a_warning_does_not() -> None:
    warned = diagnose(profile_of(), open_device=Board({**WELL, "governor": "ondemand"}))
    broken = diagnose(profile_of(), open_device=Board({**WELL, "free_storage_mb": 1}))
    assert warned.usable
    assert not broken.usable
    assert broken.to_dict()["usable"] is False
    assert broken.to_dict()["findings"][0] == {
        "check": "connection",
        "state": "ok",
        "message": "the agent answers by ssh",
        "mend": None,
    }


def test_commands_for_the_board_are_run_from_here() -> None:
    transport = {
        "kind": "ssh",
        "host": "b",
        "user": "me",
        "port": 2222,
        "identity_file": "/a key",
        "known_hosts": "/keys",
        "jump": ["x", "y"],
    }
    (finding,) = examine(profile_of(transport=transport), {**WELL, "governor": "powersave"}, ("governor",))
    assert finding.mend == (
        "ssh -t -p 2222 -i '/a key' -o 'UserKnownHostsFile=\"/keys\"' -o ProxyJump=x,y me@b "
        "'echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor'"
    )
    assert on_board(load_profile("local"), "top") == "top"


class LostLink:
    """The connection to a board that can't be reached, or not any more."""

    def __init__(self, error: DeviceError, *, reached: bool = False) -> None:
        self.error, self.reached = error, reached

    def hold(self) -> Any:
        raise self.error


@pytest.fixture
def lose(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes every connection fail."""

    def lose(error: DeviceError, *, reached: bool = False) -> None:
        monkeypatch.setattr(ssh, "shared_link", lambda *_: LostLink(error, reached=reached))

    return lose


def test_a_new_host_key_comes_with_all_ways_to_say_where_the_board_is(lose: Callable[..., None]) -> None:
    lose(HostKeyError("the key of rock-5b is unknown", details="the end of standard error"))
    diagnosis = diagnose(load_profile("rock-5b", environment={}))
    (finding,) = diagnosis.findings
    assert (finding.check, finding.state, finding.mend) == ("connection", "problem", "ssh rock-5b")
    assert finding.message.startswith("the key of rock-5b is unknown. 'rock-5b' is where rock-5b was looked for.")
    assert "EDGESHIP_HOST_ROCK_5B=" in finding.message
    assert diagnosis.details == "the end of standard error"
    assert not diagnosis.usable


def test_who_looks_for_a_board_where_nobody_said_it_is_learns_how_to_say_it(
    lose: Callable[..., None], tmp_path: Path
) -> None:
    """The same for facts, measurements, transfers."""
    lose(ConnectionFailedError("Name or service not known"))
    rock = load_profile("rock-5b", environment={})
    uses: list[Callable[[], object]] = [
        lambda: ask_facts(rock),
        lambda: benchmark(rock, [Case(id="a", runtime="litert", path="a.tflite")]),
        lambda: open_transport(rock).put("a.tflite"),
        lambda: open_transport(rock).get("a", str(tmp_path / "a")),
    ]
    for use in uses:
        with pytest.raises(ConnectionFailedError, match=r"not known\. 'rock-5b' is where .* EDGESHIP_HOST_ROCK_5B="):
            use()


class Silent(NamedTuple):
    id: str
    error: DeviceError
    host: str | None = None
    reached: bool = False


@pytest.mark.parametrize(
    "case",
    [
        Silent("a host of one's own", ConnectionFailedError("gone"), host="me@10.0.0.9"),
        Silent("a board that was there", ConnectionFailedError("gone"), reached=True),
        Silent("a board that refuses", LoginRefusedError("gone")),
    ],
    ids=lambda case: case.id,
)
def test_a_board_whose_place_is_known_comes_without_that_hint(case: Silent, lose: Callable[..., None]) -> None:
    lose(case.error, reached=case.reached)
    with pytest.raises(type(case.error), match=r"^gone$"):
        ask_facts(load_profile("rock-5b", host=case.host, environment={}))


def test_commands_for_a_virtual_board_are_run_on_it_and_never_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESHIP_CACHE", str(tmp_path))
    board = load_profile("virtual-arm64")
    assert on_board(board, "rm -rf x") is None
    files = plan.board_files(plan.find_board("arm64"), tmp_path)
    monkeypatch.setattr(virtual, "find_running", lambda files: RunningBoard(files, 1, 2222, None))
    assert on_board(board, "rm -rf x") == (
        f"ssh -t -p 2222 -i {files.identity} -o 'UserKnownHostsFile=\"{files.known_hosts}\"' board@127.0.0.1 'rm -rf x'"
    )


def test_a_refused_login_and_a_full_board() -> None:
    refused = diagnose(profile_of(), open_device=Board(LoginRefusedError("no key fits")))
    assert refused.findings[0].mend == "ssh-copy-id pi@10.0.0.7"
    full = diagnose(profile_of(), open_device=Board(StorageFullError("full")))
    assert full.findings[0].mend == "ssh -t pi@10.0.0.7 'rm -rf .edgeship/files .edgeship/envs'"


def test_what_the_profile_knows_is_said_of_a_board_that_does_not_answer() -> None:
    profile = load_profile("jetson-nano", host="nv@10.0.0.3")
    diagnosis = diagnose(profile, open_device=Board(DeviceError("no Python that the agent can run on")))
    assert [(finding.check, finding.state) for finding in diagnosis.findings] == [
        ("connection", "problem"),
        ("python", "problem"),
        ("runtimes", "problem"),
    ]
    assert diagnosis.findings[1].mend == "ssh -t nv@10.0.0.3 'uv python install 3.11'"


@pytest.mark.parametrize("name", ["local", "fake"])
def test_devices_of_this_machine_can_be_used(name: str) -> None:
    assert diagnose(load_profile(name)).usable


@pytest.mark.parametrize("fault", ["die_on", "hang_on"])
def test_an_agent_that_fails_is_a_problem_of_the_connection(fault: str, tmp_path: Path) -> None:
    text = f"extends: fake\nname: ill\ntransport: {{{fault}: facts}}\n"
    (tmp_path / "ill.yaml").write_text(text)
    diagnosis = diagnose(load_profile(tmp_path / "ill.yaml"))
    assert not diagnosis.usable
    assert "'facts'" in diagnosis.findings[0].message
