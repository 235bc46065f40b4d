"""A phone, through the real adb client: its daemon is in `tests/adb_server.py`. `make test-phone` installs adb first.

What the phone runs are processes of this machine, so nothing here says anything about Android's own rules.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.board.courier import LOCK_DIRECTORY_VARIABLE
from devices.doctor import diagnose
from devices.errors import (
    AgentCrashedError,
    AgentTimeoutError,
    ConnectionFailedError,
    DeviceBusyError,
    DeviceError,
    HostKeyError,
    LoginRefusedError,
    PythonMissingError,
    WheelMissingError,
)
from devices.measurement import BenchmarkSettings, Case, benchmark
from devices.profile import DeviceProfile
from devices.transport_config import AdbTransport
from devices.transports import open_transport, ssh_files
from devices.transports.ssh_link import SshLink, close_links, shared_link
from tests.adb_server import Phone, kill_adb_server, own_adb_server, run_phone
from tests.ssh_board import wait_for
from tests.ssh_server import SshServer, serve
from tests.wheels import write_wheel

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = BenchmarkSettings(min_count=10, min_time_s=0.01, warm_up_count=1, warm_up_time_s=0.0)
BIG = 5 * ssh_files._BLOCK_BYTES + 1000
RUN_AS = """#!/bin/sh
[ "$1" = com.termux ] || { echo "run-as: package not debuggable: $1" >&2; exit 1; }
shift
exec "$@"
"""
ANDROID = """#!/bin/sh
exec {python} -c '
import runpy, sys
sys.getandroidapilevel = lambda: 24
arguments = sys.argv[2:]
if arguments[0] == "-c":
    exec(arguments[1])
else:
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
' "$@"
"""


@dataclass
class Place:
    """A phone, what runs on it, and adb's own server on this machine.

    Attributes:
        root: Directory of Edgeship on the phone.
        way: How it is reached.
    """

    directory: Path
    phone: Phone
    server: SshServer
    adb: dict[str, str]
    way: str

    @property
    def root(self) -> Path:
        return self.directory / "root" if self.way == "shell" else self.server.root

    def transport(self, **changes: Any) -> AdbTransport:
        ways: dict[str, dict[str, Any]] = {
            "ssh": {
                "user": "tester",
                "identity_file": str(self.server.directory / "client_key"),
                "known_hosts": str(self.directory / "known_hosts"),
            },
            "shell": {"directory": str(self.directory / "root")},
        }
        values = {"way": self.way, "serial": self.phone.serial, **ways[self.way], **changes}
        return AdbTransport.model_validate(values)

    def profile(self, *, python: str = sys.executable, **transport: Any) -> DeviceProfile:
        return DeviceProfile(
            name="phone",
            description="A phone of the test.",
            python=python,
            runtimes={"fake": "", "onnxruntime": "onnxruntime>=1"},
            preference=("fake", "onnxruntime"),
            transport=self.transport(**transport),
            latency_label="simulated",
        )

    def living(self) -> list[int]:
        return [*self.phone.living(), *self.server.living()]


@pytest.fixture(params=["ssh", "shell"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """After the test nothing of ours is left on either side."""
    if shutil.which("adb") is None:
        pytest.fail("there is no adb on this machine. Run `make test-phone`, which installs it first")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (
        run_phone(tmp_path / "phone") as phone,
        serve(tmp_path / "board") as server,
        own_adb_server(tmp_path / "adb", port) as adb,
    ):
        for name, value in adb.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("ANDROID_SERIAL", raising=False)
        phone.ports[8022] = server.port
        phone.environment[LOCK_DIRECTORY_VARIABLE] = server.environment[LOCK_DIRECTORY_VARIABLE]
        key = (server.directory / "known_hosts").read_text().partition(" ")[2]
        (tmp_path / "known_hosts").write_text(f"phone-{phone.serial} {key}")
        place = Place(tmp_path, phone, server, adb, request.param)
        yield place
        close_links()
        assert not wait_for(lambda: not place.living()), "processes are left on the phone"
        assert not place.root.exists() or list((place.root / "run").iterdir()) == []
        assert not wait_for(lambda: clients(phone) == []), "clients of adb are left"


OVER_SSH = pytest.mark.parametrize("place", ["ssh"], indirect=True)
BY_SHELL = pytest.mark.parametrize("place", ["shell"], indirect=True)


def clients(phone: Phone) -> list[str]:
    """The command lines of processes on this machine that lead to the phone; adb's server is none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if phone.serial.encode() in b" ".join(words) and b"fork-server" not in words and b"pytest" not in words[0]:
            found.append(b" ".join(words).decode(errors="replace"))
    return found


def link_of(profile: DeviceProfile) -> SshLink:
    assert isinstance(profile.transport, AdbTransport)
    return shared_link(profile.transport, str(profile.python))


def write_model(path: Path) -> Path:
    weights = np.random.default_rng(0).standard_normal((12, 3)).astype(np.float32)
    with path.open("wb") as stream:
        np.savez(stream, weights=weights, bias=np.zeros(3, np.float32), behaviour="ok")
    return path


def write_onnx(path: Path) -> Path:
    from onnx import TensorProto, helper, numpy_helper, save

    weights = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def write_big(path: Path) -> bytes:
    data = np.random.default_rng(0).bytes(BIG)
    path.write_bytes(data)
    return data


def wrapper(path: Path, text: str) -> str:
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_a_benchmark(place: Place, tmp_path: Path) -> None:
    case = Case(id="m", runtime="fake", path=str(write_model(tmp_path / "m.fake")))
    result = benchmark(place.profile(), [case], SETTINGS)
    assert result.cases[0].error is None
    assert result.cases[0].latency_ms is not None
    agents = list((place.root / "agents").glob("[0-9a-f]*"))
    assert len(agents) == 1
    benchmark(place.profile(), [case], SETTINGS)
    assert list((place.root / "agents").glob("[0-9a-f]*")) == agents


def test_odd_names_arrive_as_they_are(place: Place, tmp_path: Path) -> None:
    odd = "a b 'c' \"d\" $HOME `id` ~. \\ *\n;e"
    (tmp_path / odd).mkdir()
    python = wrapper(tmp_path / odd / "python", f'#!/bin/sh\nexec {sys.executable} "$@"')
    file = tmp_path / f"{odd}.bin"
    file.write_bytes(b"\n~.\n\0\r\n")
    device = open_transport(place.profile(python=python))
    there = device.put(str(file))
    assert Path(there).name == file.name
    assert Path(there).read_bytes() == file.read_bytes()
    device.get(there, str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == file.read_bytes()


def cut_at(
    place: Place, monkeypatch: pytest.MonkeyPatch, method: str, number: int, cut: Callable[[], None]
) -> list[int]:
    """Cuts just before the request of this number; returns the offsets of all that were sent."""
    offsets: list[int] = []
    original = SshLink.request

    def request(self: SshLink, name: str, params: Any = None, **options: Any) -> Any:
        if name == method:
            offsets.append(params["offset"])
            if len(offsets) == number:
                pid = self._connected().process.pid
                cut()
                assert not wait_for(lambda: " Z " in Path(f"/proc/{pid}/stat").read_text())
        return original(self, name, params, **options)

    monkeypatch.setattr(SshLink, "request", request)
    return offsets


@pytest.mark.parametrize("fault", ["cable", "server"])
def test_a_transfer_goes_on_where_it_was_cut(
    place: Place, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_big(tmp_path / "big.bin")
    cuts = {"cable": place.phone.cut, "server": lambda: kill_adb_server(place.adb)}
    offsets = cut_at(place, monkeypatch, "write", 3, cuts[fault])
    path = open_transport(place.profile()).put(str(tmp_path / "big.bin"))
    assert Path(path).read_bytes() == data
    assert offsets == [block * ssh_files._BLOCK_BYTES for block in (0, 1, 2, 2, 3, 4, 5)]
    assert list((place.root / "incoming").iterdir()) == []
    monkeypatch.undo()
    for name, value in place.adb.items():
        monkeypatch.setenv(name, value)
    offsets = cut_at(place, monkeypatch, "read", 3, cuts[fault])
    open_transport(place.profile()).get(path, str(tmp_path / "back.bin"))
    assert (tmp_path / "back.bin").read_bytes() == data
    assert offsets == [block * ssh_files._BLOCK_BYTES for block in (0, 1, 2, 2, 3, 4, 5)]


@pytest.mark.parametrize("fault", ["cable", "server"])
def test_a_cut_while_an_agent_works(place: Place, fault: str) -> None:
    device = open_transport(place.profile())
    with device.start_agent() as agent:
        pid = agent.request("hello")["pid"]
        if fault == "cable":
            place.phone.cut()
        else:
            kill_adb_server(place.adb)
        with pytest.raises(
            ConnectionFailedError, match=f"the connection to phone {place.phone.serial} broke"
        ) as caught:
            agent.request("facts")
        assert caught.value.exit_code == 3
        assert "command: " in caught.value.details
        assert "exit status: " in caught.value.details
        assert not wait_for(lambda: not Path(f"/proc/{pid}").exists())
    with device.start_agent() as agent:
        assert agent.request("hello")["pid"] != pid


def test_a_phone_that_is_gone(place: Place, tmp_path: Path) -> None:
    device = open_transport(place.profile())
    device.put(str(write_model(tmp_path / "m.fake")))
    place.phone.silent = True
    place.phone.cut()
    (tmp_path / "other").write_text("other")
    with pytest.raises(ConnectionFailedError, match=r"is offline: plug its cable in again") as caught:
        device.put(str(tmp_path / "other"))
    assert caught.value.exit_code == 3
    assert "adb devices" in caught.value.details
    place.phone.silent = False
    place.phone.cut()
    assert Path(device.put(str(tmp_path / "other"))).read_text() == "other"


def test_an_agent_that_is_killed(place: Place) -> None:
    with open_transport(place.profile()).start_agent() as agent:
        os.kill(agent.request("hello")["pid"], signal.SIGKILL)
        with pytest.raises(AgentCrashedError, match=r"SIGKILL \(the kernel does this when memory runs out\)") as caught:
            agent.request("facts")
        assert f"on phone {place.phone.serial}" in caught.value.message


def test_an_agent_that_hangs_in_native_code_is_ended(place: Place) -> None:
    with open_transport(place.profile()).start_agent() as agent:
        pid = agent.request("hello")["pid"]
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(AgentTimeoutError):
            agent.request("facts", timeout_s=0.5)
        assert not wait_for(lambda: not Path(f"/proc/{pid}").exists(), 12)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_a_program_that_is_ended_leaves_nothing(number: int, place: Place, tmp_path: Path) -> None:
    (tmp_path / "phone.json").write_text(place.profile().model_dump_json())
    code = """
import sys, time
from pathlib import Path
from devices.profile import DeviceProfile
from devices.transports import open_transport
agent = open_transport(DeviceProfile.model_validate_json(Path(sys.argv[1]).read_text())).start_agent()
sys.stdout.write("ready\\n"); sys.stdout.flush()
time.sleep(1000)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "phone.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert len(place.living()) == 2
        child.send_signal(number)
    assert not wait_for(lambda: not place.living())
    assert not wait_for(lambda: clients(place.phone) == [])
    listed = subprocess.run(["adb", "forward", "--list"], capture_output=True, text=True, check=True).stdout
    assert listed.strip() == ""


def test_two_users_take_turns(place: Place) -> None:
    transport = place.transport(lock_timeout_s=1)
    other = SshLink(transport, sys.executable)
    try:
        with (
            open_transport(place.profile()).start_agent(),
            pytest.raises(DeviceBusyError, match="in use by"),
            other.hold(),
        ):
            pass
        with other.hold():
            pass
    finally:
        other.close()


def test_a_phone_that_nobody_accepted_the_key_on(place: Place) -> None:
    place.phone.authorized = False
    with pytest.raises(LoginRefusedError, match="accept the key that its dialog shows") as caught:
        open_transport(place.profile())
    assert caught.value.exit_code == 3
    diagnosis = diagnose(place.profile())
    assert not diagnosis.usable
    assert diagnosis.findings[0].mend == "adb reconnect offline"


def test_an_address_where_no_phone_is(place: Place) -> None:
    with pytest.raises(ConnectionFailedError, match=r"adb sees no phone 127.0.0.1:1 \(.*refused\); there are: none"):
        open_transport(place.profile(serial="127.0.0.1:1"))


def test_several_phones(place: Place, tmp_path: Path) -> None:
    with run_phone(tmp_path / "second") as second:
        for serial in (place.phone.serial, second.serial):
            subprocess.run(["adb", "connect", serial], check=True, stdout=subprocess.DEVNULL)
        with pytest.raises(ConnectionFailedError, match="there are several phones: ") as caught:
            open_transport(place.profile(serial=None))
        assert place.phone.serial in caught.value.message
        assert open_transport(place.profile()).put(__file__)
        assert second.services == []


def test_the_only_phone_needs_no_name_and_stays_the_one(place: Place, tmp_path: Path) -> None:
    subprocess.run(["adb", "connect", place.phone.serial], check=True, stdout=subprocess.DEVNULL)
    device = open_transport(place.profile(serial=None))
    device.put(__file__)
    with run_phone(tmp_path / "second") as second:
        subprocess.run(["adb", "connect", second.serial], check=True, stdout=subprocess.DEVNULL)
        place.phone.cut()
        write_model(tmp_path / "m.fake")
        device.put(str(tmp_path / "m.fake"))
        assert second.services == []


def test_no_python(place: Place) -> None:
    with pytest.raises(PythonMissingError, match=r"/nonexistent/python3 does not exist on phone .* pkg install python"):
        open_transport(place.profile(python="/nonexistent/python3")).start_agent()


def test_a_python_that_is_too_old(place: Place, tmp_path: Path) -> None:
    old = "import sys; sys.version_info = (3, 5, 3, 'final', 0); exec(sys.argv[3])"
    python = wrapper(tmp_path / "python3", f'#!/bin/sh\nexec {sys.executable} -c "{old}" "$@"\n')
    with pytest.raises(PythonMissingError, match=r"is Python 3\.5, expected 3\.9 or later"):
        open_transport(place.profile(python=python)).start_agent()
    mend = str(diagnose(place.profile(python=python)).findings[0].mend)
    assert "pkg install -y python" in mend if place.way == "ssh" else mend == "None"


def test_a_runtime_without_a_wheel_is_refused_before_anything_is_sent(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_wheel(tmp_path / "house", "something", "1")
    python = wrapper(tmp_path / "python3", ANDROID.format(python=sys.executable))
    profile = place.profile(python=python, wheelhouse=str(tmp_path / "house")).model_copy(
        update={"runtimes": {"litert": "tflite-runtime>=99"}, "preference": ("litert",)}
    )
    with pytest.raises(WheelMissingError, match=r"bionic.*in Termux on the phone: pkg install python-tflite-runtime"):
        open_transport(profile).start_agent()
    for folder in ("files", "incoming", "agents", "envs"):
        assert list((place.root / folder).iterdir()) == []
    with open_transport(place.profile(python=python)).start_agent() as agent:
        facts = agent.request("facts")
    assert facts["libc"] == "bionic"


def test_the_command_line(place: Place, tmp_path: Path) -> None:
    (tmp_path / "phone.yaml").write_text(place.profile().model_dump_json(exclude_none=True))
    file, model = str(tmp_path / "phone.yaml"), str(write_onnx(tmp_path / "m.onnx"))
    facts = edgeship("devices", "facts", file, "--json")
    assert facts.returncode == 0, facts.stderr
    bench = edgeship(
        "bench", model, "--device", file, "--min-count", "10", "--min-time", "0", "--precision", "0", "--json",
        "--results", str(tmp_path / "results.jsonl"),
    )  # fmt: skip
    assert bench.returncode == 0, bench.stderr
    assert json.loads(bench.stdout)["latency_label"] == "simulated"
    doctor = edgeship("devices", "doctor", file, "--json")
    assert json.loads(doctor.stdout)["findings"][0]["message"] == "the agent answers by adb"
    place.phone.authorized = False
    place.phone.cut()
    refused = edgeship("bench", model, "--device", file, "--results", str(tmp_path / "results.jsonl"))
    assert refused.returncode == 3
    assert "accept the key" in refused.stderr
    assert "Traceback" not in refused.stderr


@OVER_SSH
def test_termux_that_does_not_serve(place: Place) -> None:
    place.phone.ports.clear()
    with pytest.raises(ConnectionFailedError, match=r"nothing answers on port 8022 of the phone.*then sshd") as caught:
        open_transport(place.profile()).start_agent()
    assert "edgeship: adb: " in caught.value.details
    mend = diagnose(place.profile()).findings[0].mend
    assert mend == f"adb -s {place.phone.serial} shell am start -n com.termux/com.termux.app.TermuxActivity"


@OVER_SSH
def test_a_phone_whose_host_key_is_unknown(place: Place) -> None:
    (place.directory / "known_hosts").write_text("")
    with pytest.raises(HostKeyError, match=f"the host key of phone {place.phone.serial} is not among the known"):
        open_transport(place.profile()).start_agent()
    mend = str(diagnose(place.profile()).findings[0].mend)
    assert mend.startswith(f"adb -s {place.phone.serial} forward tcp:8022 tcp:8022 && ssh -p 8022 -o HostKeyAlias=")


@OVER_SSH
def test_a_silent_server_is_given_up(place: Place) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        place.phone.ports[8022] = silent.getsockname()[1]
        start = time.monotonic()
        with pytest.raises(ConnectionFailedError):
            open_transport(place.profile(connect_timeout_s=2)).start_agent()
        assert time.monotonic() - start < 60


@BY_SHELL
def test_an_app_is_entered(place: Place, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    wrapper(tmp_path / "bin" / "run-as", RUN_AS)
    place.phone.environment["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    with open_transport(place.profile(run_as="com.termux")).start_agent() as agent:
        assert agent.request("hello")["protocol"]
    assert any("HOME=/data/data/com.termux/files/home" in service for service in place.phone.services)
    with pytest.raises(
        LoginRefusedError, match=r"package not debuggable: org.other\. run-as needs .* `way: ssh` works"
    ):
        open_transport(place.profile(run_as="org.other")).start_agent()


@BY_SHELL
def test_an_android_without_the_shell_protocol(place: Place) -> None:
    place.phone.features = "cmd"
    with pytest.raises(ConnectionFailedError, match="Android 7 or later is needed"):
        open_transport(place.profile()).start_agent()


@BY_SHELL
def test_the_shell_changes_no_byte(place: Place) -> None:
    """A terminal would turn line ends, and end at `~.` on a line of its own."""
    link = link_of(place.profile())
    link.request("ping")
    data = b"first\n~.\nlast\n" + bytes(range(256))
    done = subprocess.run(link.command(["cat"]), input=data, capture_output=True, check=True, timeout=30)
    assert done.stdout == data


def test_threads_share_one_connection(place: Place, tmp_path: Path) -> None:
    device = open_transport(place.profile())
    files = [tmp_path / f"file {number}" for number in range(6)]
    for file in files:
        file.write_bytes(file.name.encode() * 50_000)
    found: dict[str, str] = {}
    threads = [threading.Thread(target=lambda f=file: found.update({f.name: device.put(str(f))})) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {name: Path(path).read_bytes() for name, path in found.items()} == {
        file.name: file.read_bytes() for file in files
    }


def test_a_client_that_hangs_is_ended(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fake").mkdir()
    wrapper(tmp_path / "fake" / "adb", "#!/bin/sh\nexec sleep 1000\n")
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path / 'fake'}:{os.environ['PATH']}")
        patch.setattr("devices.transports.adb._TIMEOUT_S", 0.5)
        with pytest.raises(DeviceError, match=r"did not end within 0\.5 s and was ended"):
            open_transport(place.profile())


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def edgeship(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        check=False, env=environment(), capture_output=True, text=True, timeout=200,
    )  # fmt: skip
