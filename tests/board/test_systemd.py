"""The unit that `edgeship-board unit` writes, under a live systemd. `make test-systemd` runs this, as root."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.board.release_disk import Disk
from devices.board.release_home import hold_home, status
from tests.certificates import make_certificates
from tests.conftest import ROOT
from tests.hammer import Hammer
from tests.releases import NAME, image_manifest, put, put_fake
from tests.runtime_models import write_onnx, write_tflite
from tests.ssh_board import wait_for
from tests.systemd_machine import OTHER_ADDRESS, Machine, machine, missing

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"no machine with systemd here: {missing()}"),
    pytest.mark.timeout(300),
]

UNIT = "edgeship-board.service"
PORT = 8123
URL = f"http://127.0.0.1:{PORT}"
TOKEN = "a-token-of-some-length"  # noqa: S105


class Board:
    """A machine with the program, and a unit of its own for each test."""

    def __init__(self, inner: Machine, directory: Path) -> None:
        self.machine, self.directory = inner, directory
        self.root = inner.directory / directory.name
        self._logged = len(inner.journal(UNIT))

    def python(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = ("env", f"PYTHONPATH={ROOT}", "PYTHONDONTWRITEBYTECODE=1")
        return self.machine.run(*environment, sys.executable, *arguments, check=check)

    def write_unit(self, *options: str, root: str | None = None) -> None:
        place = root or str(self.root)
        told = ("--root", place, "--port", str(PORT), "--output", f"/etc/systemd/system/{UNIT}")
        self.python("-m", "devices.board", "unit", *told, *options)
        self.machine.run("systemctl", "daemon-reload")

    def start(self, *options: str, root: str | None = None) -> None:
        self.write_unit(*options, root=root)
        started = self.machine.run("systemctl", "start", UNIT, check=False)
        assert started.returncode == 0, started.stderr + self.log()

    def log(self) -> str:
        """Of this test."""
        return self.machine.journal(UNIT)[self._logged :]

    def properties(self, *names: str) -> dict[str, str]:
        return self.machine.properties(UNIT, *names)

    def get(self, url: str, *options: str) -> str:
        """Status and body."""
        done = self.machine.run("curl", "--silent", "--write-out", " %{http_code}", *options, url, check=False)
        return done.stdout

    @contextlib.contextmanager
    def hammered(self) -> Iterator[Hammer]:
        hammer = Hammer(self.machine.command(sys.executable, "-m", "tests.hammer", URL, NAME))
        try:
            yield hammer
        finally:
            hammer.kill()

    def reset(self) -> None:
        self.machine.run("systemctl", "stop", UNIT, check=False)
        self.machine.run("systemctl", "reset-failed", UNIT, check=False)
        self.machine.run("rm", "-rf", f"/etc/systemd/system/{UNIT}", f"/etc/systemd/system/{UNIT}.d")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    shared = {ROOT, Path(sys.prefix), Path(sys.base_prefix)}
    with machine(tmp_path_factory.mktemp("machine"), sorted(shared)) as inner:
        yield inner


@pytest.fixture
def board(running: Machine, tmp_path: Path) -> Iterator[Board]:
    made = Board(running, tmp_path)
    yield made
    made.reset()


@pytest.mark.parametrize("runtime", ["fake", "litert", "onnxruntime", "openvino"])
def test_it_is_ready_and_serves(board: Board, runtime: str) -> None:
    """systemctl returns when the service says that it is ready; what answers then is the model."""
    if runtime == "fake":
        digest = put_fake(board.root, board.directory)
    else:
        model = board.directory / "model"
        (write_tflite if runtime == "litert" else write_onnx)(model)
        digest = put(board.root, image_manifest(model, target=runtime), model)
    board.start()
    found = board.properties("ActiveState", "SubState", "StatusText", "Type", "DynamicUser", "UID", "NRestarts")
    assert (found["ActiveState"], found["SubState"]) == ("active", "running"), board.log()
    assert found["StatusText"] == f"serves {NAME} ({digest})"
    assert (found["Type"], found["DynamicUser"], found["NRestarts"]) == ("notify", "yes", "0")
    assert 61184 <= int(found["UID"]) <= 65519
    with board.hammered() as hammer:
        hammer.wait_for(digest)
        summary = hammer.end()
    assert (summary["failures"], summary["unlike"], summary["releases"]) == ([], [], [digest])
    board.machine.run("systemctl", "stop", UNIT)
    assert board.properties("ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert "edgeship-board: stopped\n" in board.log()
    assert "telemetry" not in board.log()


def test_no_request_fails_during_switches(board: Board) -> None:
    first = put_fake(board.root, board.directory, seed=1)
    board.start("--workers", "2")
    before = board.properties("MainPID")
    with board.hammered() as hammer:
        hammer.wait_for(first)
        second = put_fake(board.root, board.directory, seed=2)
        hammer.wait_for(second)  # it looks by itself
        third = put_fake(board.root, board.directory, seed=3)
        board.machine.run("systemctl", "reload", UNIT)
        hammer.wait_for(third)
        summary = hammer.end()
    assert summary["failures"] == summary["unlike"] == []
    assert summary["releases"] == [first, second, third]
    assert summary["requests"] > 100
    after = board.properties("MainPID", "NRestarts", "StatusText")
    assert after == {**before, "NRestarts": "0", "StatusText": f"serves {NAME} ({third})"}


def test_a_reload_tries_a_refused_release_again(board: Board) -> None:
    put_fake(board.root, board.directory, seed=1)
    board.start()
    put_fake(board.root, board.directory, seed=2, behaviour="reject")
    refusals = lambda: board.log().count("can't be served")  # noqa: E731
    assert not wait_for(lambda: refusals() == 1)
    board.machine.run("systemctl", "reload", UNIT)
    assert not wait_for(lambda: refusals() == 2)
    assert board.get(f"{URL}/v2/health/ready").endswith(" 200")


def test_the_watchdog_restarts_what_hangs(board: Board) -> None:
    put_fake(board.root, board.directory, behaviour="hang_on_ones")
    board.write_unit()
    board.machine.install(f"{UNIT}.d/soon.conf", "[Service]\nWatchdogSec=3\n")
    board.machine.run("systemctl", "start", UNIT)
    first = board.properties("MainPID")["MainPID"]
    assert board.get(f"{URL}/v2/health/ready").endswith(" 200")
    tensor = {"name": "image", "shape": [1, 8, 8, 3], "datatype": "UINT8", "data": [1] * 192}
    body = json.dumps({"inputs": [tensor]})
    asking = board.machine.run(
        "curl", "--silent", "--max-time", "100", "--data", body, f"{URL}/v2/models/{NAME}/infer", check=False
    )
    assert asking.returncode == 52, "its process was ended, and so the connection without an answer"
    assert not wait_for(lambda: board.properties("NRestarts", "ActiveState") == {
        "NRestarts": "1", "ActiveState": "active"
    }, 60), board.log()  # fmt: skip
    assert board.properties("MainPID")["MainPID"] != first
    assert "Watchdog timeout" in board.log()
    assert board.get(f"{URL}/v2/health/ready").endswith(" 200")


def test_it_is_started_again_after_a_crash(board: Board) -> None:
    put_fake(board.root, board.directory)
    board.start()
    first = board.properties("MainPID")["MainPID"]
    board.machine.run("kill", "-SEGV", first)
    assert not wait_for(lambda: board.properties("NRestarts", "ActiveState") == {
        "NRestarts": "1", "ActiveState": "active"
    }, 60), board.log()  # fmt: skip
    assert board.get(f"{URL}/v2/health/ready").endswith(" 200")


def test_a_token_that_only_root_can_read(board: Board) -> None:
    put_fake(board.root, board.directory)
    script = 'mkdir -p /etc/edgeship && umask 077 && echo "$1" >/etc/edgeship/token'
    board.machine.run("sh", "-c", script, "sh", TOKEN)
    board.start("--host", "0.0.0.0", "--token-file", "/etc/edgeship/token")
    for address in ("127.0.0.1", OTHER_ADDRESS):
        url = f"http://{address}:{PORT}/v2/models/{NAME}"
        assert board.get(url).endswith(" 401")
        assert board.get(url, "--header", f"Authorization: Bearer {TOKEN}x").endswith(" 401")
        assert board.get(url, "--header", f"Authorization: Bearer {TOKEN}").endswith(" 200")
    shown = board.machine.run("systemctl", "show", UNIT).stdout
    command = Path(f"/proc/{board.properties('MainPID')['MainPID']}/cmdline")
    assert TOKEN not in shown + board.log() + board.machine.run("cat", str(command)).stdout


def test_a_client_certificate_whose_keys_only_root_can_read(board: Board) -> None:
    put_fake(board.root, board.directory)
    place = "/etc/edgeship-tls"
    made = make_certificates(board.root.parent, f"IP:{OTHER_ADDRESS}")
    script = 'umask 077; mkdir "$2"; cd "$1"; for name in *.pem *.key; do cat $name >"$2/$name"; done'
    board.machine.run("sh", "-ec", script, "sh", str(made), place)
    files = ("--certificate", f"{place}/server.pem", "--key", f"{place}/server.key", "--client-ca", f"{place}/ca.pem")
    board.start("--host", "0.0.0.0", *files)
    url, trusting = f"https://{OTHER_ADDRESS}:{PORT}/v2/health/ready", ("--cacert", f"{place}/ca.pem")
    client = ("--cert", f"{place}/client.pem", "--key", f"{place}/client.key")
    assert board.get(url, *trusting, *client).endswith(" 200"), board.log()
    assert not board.get(url, *trusting).endswith(" 200")


def test_releases_in_a_home_that_others_can_not_enter(board: Board) -> None:
    digest = put_fake(board.root, board.directory)
    home = "/home/pi"
    script = f"""
        mkdir -p {home}/.local/share; cp -r "$1" {home}/.local/share/edgeship
        chown -R pi:pi {home}; chmod -R o-rwx {home}; chmod 0700 {home}
    """
    board.machine.run("sh", "-ec", script, "sh", str(board.root))
    root = f"{home}/.local/share/edgeship"
    board.write_unit(root=root)
    refused = board.machine.run("systemctl", "start", UNIT, check=False)
    assert refused.returncode == 1
    assert "Permission denied" in board.log()
    board.reset()
    board.start("--group", "pi", root=root)
    assert digest in board.get(f"{URL}/v2/models/{NAME}")


def test_the_program_that_ssh_left_in_a_home(board: Board) -> None:
    """Its directory is as the courier makes it; python, packages and releases lie in homes that others can't enter."""
    digest = put_fake(board.root, board.directory)
    home = "/home/pi"
    board.machine.run("rm", "-rf", home)
    board.python("-m", "tests.board_program", f"{home}/.edgeship")
    script = """
        mkdir "$1/.edgeship/files"; mkdir -p "$1/.local/share"; cp -r "$2" "$1/.local/share/edgeship"
        chmod 0700 "$1" "$1/.edgeship" "$1/.edgeship/files"; chown -R pi:pi "$1"
    """
    board.machine.run("sh", "-ec", script, "sh", home, str(board.root))
    program = (f"{home}/.edgeship/edgeship-board", "unit", "--root", f"{home}/.local/share/edgeship")
    board.machine.run(*program, "--port", str(PORT), "--output", f"/etc/systemd/system/{UNIT}")
    board.machine.run("systemctl", "daemon-reload")
    started = board.machine.run("systemctl", "start", UNIT, check=False)
    assert started.returncode == 0, board.log()
    assert digest in board.get(f"{URL}/v2/models/{NAME}")


PROBE = r"""
import ctypes, errno, json, os, socket, sys
root, other, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
found = {}

def attempt(name, work):
    try:
        found[name] = work()
    except OSError as error:
        found[name] = errno.errorcode.get(error.errno, type(error).__name__)

def write(path):
    with open(path, "w") as stream:
        stream.write("x")
    return "written"

def connect(address):
    with socket.create_connection((address, port), timeout=2) as stream:
        return stream.recv(5).decode()

libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
    return "done"

for path in ("/evil", "/etc/evil", "/var/evil", "/srv/evil", root + "/evil"):
    attempt("write " + path.replace(root, "ROOT"), lambda: write(path))
attempt("write /tmp", lambda: write("/tmp/of-the-probe"))
attempt("homes", lambda: sorted(os.listdir("/home")))
attempt("secret", lambda: open("/etc/secret").read())
attempt("processes", lambda: sorted({int(name) for name in os.listdir("/proc") if name.isdigit()} - {os.getpid()}))
attempt("devices", lambda: sorted(set(os.listdir("/dev")) & {"console", "kmsg", "mem", "null", "vda"}))
attempt("loopback", lambda: connect("127.0.0.1"))
attempt("elsewhere", lambda: connect(other))
attempt("packets", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close())
attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close())
attempt("become root", lambda: os.setuid(0))
attempt("mount", lambda: call("mount", b"tmpfs", b"/srv", b"tmpfs", 0, None))
attempt("trace", lambda: call("ptrace", 0, 0, None, None))
attempt("host name", lambda: call("sethostname", b"evil", 4))
attempt("namespace", lambda: call("unshare", 0x10000000))
print(json.dumps(found))
"""
REFUSED = {"EPERM", "EACCES", "EROFS", "EAFNOSUPPORT"}


PROBED = "/tmp/of-the-probe"  # noqa: S108 (of the machine)
LISTENER_PORT = 8200


def test_what_was_not_proven_is_taken_back_at_boot(board: Board) -> None:
    """The power was cut while a watcher was at work: the unit that runs before the server goes back."""
    first = put_fake(board.root, board.directory, seed=1)
    second = put_fake(board.root, board.directory, seed=2)
    task = {"action": "install", "digest": second, "from": first, "who": "tester", "switching": True, "watched": True}
    with hold_home(str(board.root), NAME, Disk()) as home:
        home.begin(task)
    unit = "edgeship-recover.service"
    told = ("--root", str(board.root), "--output", f"/etc/systemd/system/{unit}")
    board.python("-m", "devices.board", "unit", "--recover", *told)
    board.write_unit()
    # A target, as at boot: only jobs of one transaction are ordered, and `systemctl start A B` makes two.
    target = "like-boot.target"
    both = f"{UNIT} {unit}"
    board.machine.install(target, f"[Unit]\nWants={both}\nAfter={both}\n")
    done = board.machine.run("systemctl", "start", target, check=False)
    assert done.returncode == 0, done.stderr + board.machine.journal(unit) + board.log()
    assert board.properties("ActiveState", "StatusText", "NRestarts") == {
        "ActiveState": "active",
        "StatusText": f"serves {NAME} ({first})",
        "NRestarts": "0",
    }
    (row,) = status(str(board.root))
    assert (row["current_digest"], row["running"]) == (first, None)
    assert (row["history"][-1]["result"], row["history"][-1]["step"]) == ("rolled back", "watch")
    assert f"{NAME}: rolled back: the watch of the service was interrupted" in board.machine.journal(unit)


LISTENER = """
import socket, sys
server = socket.create_server(("0.0.0.0", int(sys.argv[1])))
while True:
    with server.accept()[0] as stream:
        stream.send(b"hello")
"""


def test_what_the_sandbox_forbids(board: Board) -> None:
    """The same unit with another program: what a server that was taken over could do."""
    put_fake(board.root, board.directory)
    probe, listener = (board.machine.directory / name for name in ("probe.py", "listener.py"))
    probe.write_text(PROBE)
    listener.write_text(LISTENER)
    board.machine.run("sh", "-c", "umask 077; echo x >/etc/secret; mkdir -p /home/pi; touch /home/pi/private")
    board.machine.install("listener.service", f"[Service]\nExecStart={sys.executable} {listener} {LISTENER_PORT}\n")
    board.write_unit()
    command = [sys.executable, str(probe), str(board.root), OTHER_ADDRESS, str(LISTENER_PORT)]
    drop_in = (
        "[Service]\nType=oneshot\nRestart=no\nWatchdogSec=0\n"
        f"BindReadOnlyPaths={probe}\n"  # it lies where the unit hides all but what the server reads
        f"ExecStart=\nExecStart={' '.join(command)}\nStandardOutput=truncate:/run/probe.json\n"
    )
    board.machine.install(f"{UNIT}.d/probe.conf", drop_in)
    board.machine.run("systemctl", "start", "listener")
    knock = ("bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{LISTENER_PORT}")
    assert not wait_for(lambda: board.machine.run(*knock, check=False).returncode == 0)
    done = board.machine.run("systemctl", "start", UNIT, check=False)
    said = board.machine.run("cat", "/run/probe.json", check=False).stdout
    assert done.returncode == 0, said + board.log()
    forbidden = json.loads(said)
    assert board.machine.run("ls", PROBED, check=False).returncode != 0, "its /tmp is its own"
    free = json.loads(board.machine.run(*command).stdout)  # what shows that each attempt could succeed
    board.machine.run("systemctl", "stop", "listener")
    possible = {name for name in free if free[name] in ("written", "done", "x\n", None)} - {"write /tmp"}
    assert len(possible) == 13, free
    assert {forbidden.pop(name) for name in sorted(possible)} <= REFUSED
    assert forbidden == {
        "write /tmp": "written",
        "homes": [],
        "processes": [],
        "devices": ["null"],
        "loopback": "hello",
        "elsewhere": "TimeoutError",
    }
    assert free["homes"]
    assert 1 in free["processes"]
    assert free["devices"] != ["null"]
    assert free["elsewhere"] == "hello"


def test_what_systemd_says_of_its_exposure(board: Board) -> None:
    put_fake(board.root, board.directory)
    board.start()
    said = board.machine.run("systemd-analyze", "security", "--no-pager", UNIT, check=False)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", said.stdout)
    assert found is not None, said.stdout + said.stderr
    assert float(found.group(1)) <= 2.0, said.stdout
