"""Boards that can't be reached, are in use, or are lost in the middle, behind a real SSH server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import pytest

from devices.errors import (
    AgentCrashedError,
    AgentTimeoutError,
    ConnectionFailedError,
    DeviceBusyError,
    DeviceError,
    HostKeyError,
    LoginRefusedError,
    PythonMissingError,
)
from devices.transport_config import SshTransport
from devices.transports import open_transport, ssh_link
from devices.transports.ssh_link import SshLink, courier_sources
from tests.ssh_board import clean_server, client_pid, profile, wait_for
from tests.ssh_server import SshServer

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client on this machine")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    """A server; after the test nothing of ours is left on either side."""
    with clean_server(tmp_path) as running:
        yield running


def test_an_unknown_host_is_refused(server: SshServer) -> None:
    (server.directory / "known_hosts").write_text("")
    with pytest.raises(HostKeyError, match="not among the known hosts") as caught:
        open_transport(profile(server)).start_agent()
    assert caught.value.exit_code == 3
    assert "tester@127.0.0.1" in caught.value.message
    assert "exit status: 255" in caught.value.details
    assert server.commands == []


def test_a_changed_host_key_is_refused(server: SshServer) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    (server.directory / "known_hosts").write_text(f"[127.0.0.1]:{server.port} {other}")
    with pytest.raises(HostKeyError, match="somebody may be in between"):
        open_transport(profile(server)).start_agent()
    assert server.commands == []


def test_a_wrong_key_is_refused(server: SshServer) -> None:
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(server.directory / "client_key")
    with pytest.raises(LoginRefusedError, match="accepts none of the keys") as caught:
        open_transport(profile(server)).put(__file__)
    assert "Permission denied" in caught.value.details


def test_a_host_that_does_not_answer_is_named(server: SshServer) -> None:
    with pytest.raises(ConnectionFailedError, match="Connection refused"):
        open_transport(profile(server, port=1)).put(__file__)


def test_a_host_in_between(server: SshServer) -> None:
    device = open_transport(profile(server, jump=(f"tester@localhost:{server.port}",)))
    assert Path(device.put(__file__)).read_bytes() == Path(__file__).read_bytes()


def test_the_command_line_says_what_happened(server: SshServer, tmp_path: Path) -> None:
    (server.directory / "known_hosts").write_text("")
    (tmp_path / "board.yaml").write_text(profile(server).model_dump_json(exclude_none=True))
    command = [sys.executable, "-m", "pipeline.cli", "devices", "facts", str(tmp_path / "board.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "Error: the host key of tester@127.0.0.1" in done.stderr
    assert f"command: {sys.executable} on tester@127.0.0.1" in done.stderr
    assert "Host key verification failed." in done.stderr
    assert "Traceback" not in done.stderr


def test_no_client(server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(DeviceError, match="apt install openssh-client"):
        open_transport(profile(server)).put(__file__)


def test_no_python(server: SshServer) -> None:
    with pytest.raises(PythonMissingError, match="/nonexistent/python3 does not exist on tester@127"):
        open_transport(profile(server, python="/nonexistent/python3")).start_agent()


def test_a_python_that_is_too_old(server: SshServer, tmp_path: Path) -> None:
    python = tmp_path / "python3"
    old = "import sys; sys.version_info = (3, 5, 3, 'final', 0); exec(sys.argv[3])"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{old}" "$@"\n')
    python.chmod(0o755)
    with pytest.raises(PythonMissingError, match=r"is Python 3\.5, expected 3\.9 or later") as caught:
        open_transport(profile(server, python=str(python))).start_agent()
    assert caught.value.exit_code == 3
    assert not server.root.exists()


def test_a_shell_that_talks_is_ignored(server: SshServer, tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\necho welcome\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with open_transport(profile(server, python=str(python))).start_agent() as agent:
        assert agent.request("hello")["protocol"]


def test_two_users_take_turns(server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    # Not by what arrives in a log: converters that ran in this process before have silenced logging.
    monkeypatch.setattr(ssh_link._log, "warning", lambda text, *values: told.append(text % values))
    board = profile(server, lock_timeout_s=1)
    assert isinstance(board.transport, SshTransport)
    other = SshLink(board.transport, sys.executable)
    patient = SshLink(board.transport.model_copy(update={"lock_timeout_s": 60.0}), sys.executable)
    turns: list[str] = []

    def wait_for_turn() -> None:
        with patient.hold():
            turns.append("patient")

    try:
        with open_transport(board).start_agent() as agent, open_transport(board).start_agent():
            with (
                pytest.raises(DeviceBusyError, match=r"in use by .*process \d+.* for 0 min \d+ s; waited 1 s"),
                other.hold(),
            ):
                pass
            thread = threading.Thread(target=wait_for_turn)
            thread.start()
            assert not wait_for(lambda: any("waiting for tester@127.0.0.1" in text for text in told))
            agent.request("hello")
            assert turns == []
        thread.join(20)
        assert turns == ["patient"]
        with other.hold():
            pass
    finally:
        other.close()
        patient.close()


def test_a_dead_user_frees_the_board(server: SshServer) -> None:
    board = profile(server, lock_timeout_s=20)
    assert isinstance(board.transport, SshTransport)
    dead, other = (SshLink(board.transport, sys.executable) for _ in range(2))
    try:
        with dead.hold():
            assert dead._session is not None
            os.kill(dead._session.process.pid, signal.SIGKILL)
            with other.hold():
                pass
    finally:
        dead.close()
        other.close()


def test_an_agent_that_is_killed(server: SshServer) -> None:
    with open_transport(profile(server)).start_agent() as agent:
        os.kill(agent.request("hello")["pid"], signal.SIGKILL)
        with pytest.raises(AgentCrashedError, match=r"SIGKILL \(the kernel does this when memory runs out\)") as caught:
            agent.request("facts")
        assert "tester@127.0.0.1" in caught.value.message


@pytest.mark.slow
def test_an_agent_that_hangs_in_native_code_is_ended(server: SshServer) -> None:
    """A stopped process notices nothing, as one whose native call keeps the interpreter's lock."""
    with open_transport(profile(server)).start_agent() as agent:
        pid = agent.request("hello")["pid"]
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(AgentTimeoutError):
            agent.request("facts", timeout_s=0.5)
        assert not wait_for(lambda: not Path(f"/proc/{pid}").exists(), 12)


def test_a_cable_that_is_pulled(server: SshServer) -> None:
    device = open_transport(profile(server))
    with device.start_agent() as agent:
        pid = agent.request("hello")["pid"]
        server.cut()
        with pytest.raises(ConnectionFailedError, match="the connection to tester@") as caught:
            agent.request("facts")
        assert caught.value.exit_code == 3
        assert not wait_for(lambda: not Path(f"/proc/{pid}").exists())
    with device.start_agent() as agent:
        assert agent.request("hello")["pid"] != pid


def test_a_connection_that_broke_meanwhile_is_made_again(server: SshServer, tmp_path: Path) -> None:
    board = profile(server)
    device = open_transport(board)
    device.put(__file__)
    pid = client_pid(board)
    server.cut()
    assert not wait_for(lambda: " Z " in Path(f"/proc/{pid}/stat").read_text())
    (tmp_path / "other").write_text("other")
    assert Path(device.put(str(tmp_path / "other"))).read_text() == "other"
    assert client_pid(board) != pid


def test_a_host_that_stays_silent_is_given_up(server: SshServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The board's side of a pulled cable: the connection looks whole, but nothing comes any more."""
    monkeypatch.setattr(SshLink, "_keep_alive", lambda *_: None)
    sources = courier_sources()
    shorter = sources["modules"]["courier"].replace('float(start["params"]["silence_s"])', "1.0")
    assert "silence_s = 1.0" in shorter
    sources["modules"]["courier"] = shorter
    monkeypatch.setattr("devices.transports.ssh_link.courier_sources", lambda: sources)
    device = open_transport(profile(server))
    agent = device.start_agent()
    pid = agent.request("hello")["pid"]
    assert not wait_for(lambda: not Path(f"/proc/{pid}").exists(), 30)
    with pytest.raises(DeviceError), agent:
        agent.request("facts")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_a_program_that_is_ended_leaves_nothing(number: int, server: SshServer, tmp_path: Path) -> None:
    board = tmp_path / "board.json"
    board.write_text(profile(server).model_dump_json())
    code = """
import sys, time
from pathlib import Path
from devices.profile import DeviceProfile
from devices.transports import open_transport
agent = open_transport(DeviceProfile.model_validate_json(Path(sys.argv[1]).read_text())).start_agent()
sys.stdout.write("ready\\n"); sys.stdout.flush()
time.sleep(1000)
"""
    with subprocess.Popen([sys.executable, "-c", code, str(board)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert len(server.living()) == 2
        child.send_signal(number)
    assert not wait_for(lambda: not server.living())
    left = list(Path("/tmp").glob(f"edgeship-ssh-{child.pid}-*"))  # noqa: S108
    assert not wait_for(lambda: not any((path / "s").exists() for path in left))
    open_transport(profile(server)).put(__file__)
    assert not any(path.exists() for path in left)
