"""A board behind a real SSH server: the system's client, a board's home, and bad days."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import numpy as np
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
    StorageFullError,
    TransferFailedError,
)
from devices.measurement import BenchmarkSettings, Case, SampleFile, benchmark, predict
from devices.profile import DeviceProfile
from devices.transport_config import SshTransport
from devices.transports import open_transport, ssh_agent, ssh_files
from devices.transports.ssh_link import SshLink, close_links, courier_sources, shared_link
from tests.ssh_server import SshServer, serve
from tests.wheels import write_wheel

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client on this machine")

SETTINGS = BenchmarkSettings(min_count=10, min_time_s=0.01, warm_up_count=1, warm_up_time_s=0.0)
BIG = 5 * ssh_files._BLOCK_BYTES + 1000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    """A server; after the test nothing of ours is left on either side."""
    with serve(tmp_path / "board") as running:
        yield running
        close_links()
        assert not wait_for(lambda: not running.living()), "processes are left on the board"
        assert not running.root.exists() or list((running.root / "run").iterdir()) == []
    assert own_directories() == []


def own_directories() -> list[Path]:
    return list(Path("/tmp").glob(f"edgeship-ssh-{os.getpid()}-*"))  # noqa: S108


def wait_for(condition: Callable[[], Any], seconds: float = 20.0) -> bool:
    """Whether the condition still fails after so long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return True
        time.sleep(0.02)
    return False


def profile(server: SshServer, *, python: str = sys.executable, **transport: Any) -> DeviceProfile:
    return DeviceProfile(
        name="board",
        description="A board of the test.",
        python=python,
        runtimes={"fake": "", "onnxruntime": "onnxruntime>=1"},
        preference=("fake", "onnxruntime"),
        transport=SshTransport(**server.transport(**transport)),
        latency_label="simulated",
    )


def link_of(board: DeviceProfile) -> SshLink:
    assert isinstance(board.transport, SshTransport)
    return shared_link(board.transport, str(board.python))


def client_pid(board: DeviceProfile) -> int:
    session = link_of(board)._session
    assert session is not None
    return session.process.pid


def write_model(path: Path, behaviour: str = "ok") -> Path:
    weights = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
    with path.open("wb") as stream:
        np.savez(stream, weights=weights, bias=np.zeros(3, np.float32), behaviour=behaviour)
    return path


def write_big(path: Path, seed: int = 0) -> bytes:
    data = np.random.default_rng(seed).bytes(BIG)
    path.write_bytes(data)
    return data


def test_benchmark(server: SshServer, tmp_path: Path) -> None:
    board = profile(server)
    good, crash = write_model(tmp_path / "m.fake"), write_model(tmp_path / "crash.fake", "crash")
    cases = [Case(id=path.stem, runtime="fake", path=str(path)) for path in (good, crash)]
    result = benchmark(board, cases, SETTINGS)
    assert result.cases[0].error is None
    assert result.cases[0].latency_ms is not None
    assert result.facts["python"] == ".".join(map(str, sys.version_info[:3]))
    error = result.cases[1].error
    assert error is not None
    assert error.kind == "AgentCrashedError"
    assert "was ended by SIGSEGV while it worked on 'load'" in error.message
    assert "tester@127.0.0.1" in error.message
    assert "command: " in error.details
    agents = list((server.root / "agents").glob("[0-9a-f]*"))
    assert len(agents) == 1
    benchmark(board, cases[:1], SETTINGS)
    assert list((server.root / "agents").glob("[0-9a-f]*")) == agents


def test_predictions_of_a_real_runtime_come_back(server: SshServer, tmp_path: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper, save

    weights = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    samples = np.random.default_rng(1).standard_normal((20, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", samples)
    case = Case(id="m", runtime="onnxruntime", path=str(tmp_path / "m.onnx"))
    sample = SampleFile(name="x", path=str(tmp_path / "x.npy"))
    found = predict(profile(server), case, [sample], None, str(tmp_path / "out"))
    outputs = np.load(found.outputs[0].path)
    np.testing.assert_allclose(outputs.reshape(20, 3), samples @ weights, rtol=1e-5, atol=1e-6)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["output_0.npy"]


def test_a_model_and_its_weights_lie_side_by_side(server: SshServer, tmp_path: Path) -> None:
    (tmp_path / "m.xml").write_text("<net/>")
    (tmp_path / "m.bin").write_bytes(b"weights")
    device = open_transport(profile(server))
    path = Path(device.put(str(tmp_path / "m.xml")))
    assert path.with_suffix(".bin").read_bytes() == b"weights"
    assert device.put(str(tmp_path / "m.bin")) == str(path.with_suffix(".bin"))
    for name in ("m.bin", "m.xml"):
        (tmp_path / name).write_bytes(b"others")
        other = Path(device.put(str(tmp_path / "m.xml")))
        assert other.parent != path.parent
        assert other.with_suffix(".bin").read_bytes() == b"others"
        path = other


def cut_at(monkeypatch: pytest.MonkeyPatch, method: str, *numbers: int) -> list[int]:
    """Kills the client just before requests of these numbers; returns the offsets of all that were sent."""
    offsets: list[int] = []
    original = SshLink.request

    def request(self: SshLink, name: str, params: Any = None, **options: Any) -> Any:
        if name == method:
            offsets.append(params["offset"])
            if len(offsets) in numbers:
                os.kill(self._connected().process.pid, signal.SIGKILL)
        return original(self, name, params, **options)

    monkeypatch.setattr(SshLink, "request", request)
    return offsets


def test_a_cut_transfer_goes_on_where_it_stopped(
    server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_big(tmp_path / "big.bin")
    offsets = cut_at(monkeypatch, "write", 3, 5)
    path = open_transport(profile(server)).put(str(tmp_path / "big.bin"))
    assert Path(path).read_bytes() == data
    assert offsets == [block * ssh_files._BLOCK_BYTES for block in (0, 1, 2, 2, 3, 3, 4, 5)]
    assert list((server.root / "incoming").iterdir()) == []


def test_a_transfer_that_is_cut_for_good_is_resumed_by_the_next(
    server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_big(tmp_path / "big.bin")
    device = open_transport(profile(server))
    with monkeypatch.context() as patch:
        cut_at(patch, "write", 3, 4, 5)
        with pytest.raises(ConnectionFailedError, match=r"broke during 'write'") as caught:
            device.put(str(tmp_path / "big.bin"))
    assert caught.value.exit_code == 3
    assert list((server.root / "files").iterdir()) == []
    (part,) = (server.root / "incoming").iterdir()
    assert part.stat().st_size == 2 * ssh_files._BLOCK_BYTES
    offsets = cut_at(monkeypatch, "write")
    assert Path(device.put(str(tmp_path / "big.bin"))).read_bytes() == data
    assert offsets[0] == 2 * ssh_files._BLOCK_BYTES


def test_what_a_power_cut_damaged_is_sent_again(server: SshServer, tmp_path: Path) -> None:
    data = write_big(tmp_path / "big.bin")
    sha256 = ssh_files.file_digest(tmp_path / "big.bin")[1]
    (server.root / "incoming").mkdir(parents=True)
    (server.root / "incoming" / sha256).write_bytes(bytes(1_000_000))
    assert Path(open_transport(profile(server)).put(str(tmp_path / "big.bin"))).read_bytes() == data


def test_a_file_that_changes_while_it_is_sent_is_not_accepted(
    server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_big(tmp_path / "big.bin")
    monkeypatch.setattr(ssh_files, "file_digest", lambda _: (BIG, "0" * 64))
    with pytest.raises(TransferFailedError, match=r"big\.bin did not arrive whole"):
        open_transport(profile(server)).put(str(tmp_path / "big.bin"))
    assert list((server.root / "incoming").iterdir()) == []
    assert list((server.root / "files").iterdir()) == []


def test_a_file_comes_back_over_a_cut(server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_big(server.home / "result.npy")
    device = open_transport(profile(server))
    with monkeypatch.context() as patch:
        cut_at(patch, "read", 2, 3, 4)
        with pytest.raises(ConnectionFailedError):
            device.get(str(server.home / "result.npy"), str(tmp_path / "here.npy"))
    assert not (tmp_path / "here.npy").exists()
    offsets = cut_at(monkeypatch, "read", 2)
    device.get(str(server.home / "result.npy"), str(tmp_path / "here.npy"))
    assert (tmp_path / "here.npy").read_bytes() == data
    assert offsets[:3] == [ssh_files._BLOCK_BYTES * block for block in (1, 2, 2)]
    assert {path.name for path in tmp_path.iterdir()} == {"board", "here.npy"}
    with pytest.raises(DeviceError, match="No such file"):
        device.get(str(server.home / "absent"), str(tmp_path / "there"))


def test_a_full_board_keeps_nothing(server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_big(tmp_path / "big.bin")
    device = open_transport(profile(server))
    with monkeypatch.context() as patch:
        patch.setattr(ssh_files, "RESERVE_BYTES", 1 << 60)
        with pytest.raises(StorageFullError, match="MiB must stay free"):
            device.put(str(tmp_path / "big.bin"))
    assert list((server.root / "incoming").iterdir()) == []


def test_a_board_that_fills_up_meanwhile_keeps_nothing(server: SshServer, tmp_path: Path) -> None:
    write_big(tmp_path / "big.bin")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nulimit -f 2048\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with pytest.raises(StorageFullError, match="they have been removed"):
        open_transport(profile(server, python=str(python))).put(str(tmp_path / "big.bin"))
    assert list((server.root / "incoming").iterdir()) == []


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


def test_two_users_take_turns(server: SshServer, caplog: pytest.LogCaptureFixture) -> None:
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
            assert not wait_for(lambda: "waiting for tester@127.0.0.1" in caplog.text)
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


def test_runtimes_are_sent_once_into_an_environment_of_their_own(
    server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = {"ai_edge_litert/__init__.py": "", "space/one.py": "", "tool-1.data/scripts/tool": "#!python\n"}
    write_wheel(tmp_path / "house", "ai-edge-litert", "99.0", requires=["tool"], files=files)
    write_wheel(tmp_path / "house", "tool", "1", files={"space/two.py": "", "tool-1.data/scripts/tool": "#!python\n"})
    (server.root / "envs" / ".making-999").mkdir(parents=True)
    board = profile(server, wheelhouse=str(tmp_path / "house"))
    board = board.model_copy(update={"runtimes": {"litert": "ai-edge-litert>=99"}, "preference": ("litert",)})
    with open_transport(board).start_agent() as agent:
        assert agent.request("facts")["runtimes"]["ai-edge-litert"]["version"] == "99.0"
    (environment,) = (path for path in (server.root / "envs").iterdir() if path.name != ".lock")
    assert {path.name for path in (environment / "site-packages" / "space").iterdir()} == {"one.py", "two.py"}
    assert os.access(environment / "bin" / "tool", os.X_OK)
    assert list((server.root / "files").iterdir()) == []
    close_links()
    offsets = cut_at(monkeypatch, "write")
    with open_transport(board).start_agent() as agent:
        assert agent.request("facts")["runtimes"]["ai-edge-litert"]["version"] == "99.0"
    assert offsets == []


def test_a_board_without_room_for_the_runtimes(
    server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_wheel(tmp_path / "house", "tiny-rt", "1")
    board = profile(server, wheelhouse=str(tmp_path / "house")).model_copy(update={"runtimes": {"fake": "tiny-rt"}})
    monkeypatch.setattr(ssh_agent, "RESERVE_BYTES", 1 << 60)
    with pytest.raises(StorageFullError):
        open_transport(board).start_agent()
    assert list((server.root / "envs").iterdir()) == []


def test_packages_of_the_user_do_not_mix_with_ours(server: SshServer) -> None:
    """The board's Python runs isolated."""
    packages = server.home / "odd"
    packages.mkdir()
    (packages / "numpy.py").write_text("raise RuntimeError('another numpy')")
    server.environment["PYTHONPATH"] = str(packages)
    with open_transport(profile(server)).start_agent() as agent:
        assert agent.request("hello")["protocol"]
