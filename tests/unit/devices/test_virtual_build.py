"""Building with programs that only pretend, and what is left when they fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from devices.errors import VirtualBoardError
from devices.transport_config import VirtualTransport
from devices.transports.virtual import ssh_transport
from devices.virtual import build, control, plan, requirements

ARM64 = plan.BOARDS["arm64"]

PROGRAMS = {
    "setpriv": 'shift 2; exec "$@"',
    "unshare": 'shift 4; exec "$@"',
    "mmdebstrap": """
        for target; do case "$target" in */root) break;; esac; done
        mkdir -p "$target/etc/ssh"; echo 'ssh-ed25519 HOST root@x' > "$target/etc/ssh/ssh_host_ed25519_key.pub"
        echo built >> "$BUILDS"; [ -z "$FAIL" ] || { echo 'E: no mirror'; exit 25; }""",
    "ssh-keygen": """
        for path; do :; done
        echo private > "$path"; echo 'ssh-ed25519 USER' > "$path.pub" """,
    "chroot": "exit 0",
}


@pytest.fixture
def builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with one line for each run of mmdebstrap."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, script in PROGRAMS.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setenv("BUILDS", str(tmp_path / "builds"))
    monkeypatch.setenv("FAIL", "")
    monkeypatch.setattr(build, "prepare_emulation", do_nothing)
    monkeypatch.setattr(
        build,
        "look_at_host",
        lambda: requirements.Host(
            "Linux",
            True,
            frozenset({*requirements.BUILD_PROGRAMS, *requirements.RUN_PROGRAMS}),
            frozenset({"aarch64"}),
            True,
            False,
        ),
    )
    (tmp_path / "builds").touch()
    return tmp_path / "builds"


def say_nothing(line: str) -> None:
    """Takes a line of progress."""


def do_nothing(board: plan.VirtualBoard, *, tell: build.Tell) -> None:
    """Leaves the kernel as it is."""


def num_builds(builds: Path) -> int:
    return len(builds.read_text().splitlines())


def test_a_board_is_built_once_and_is_whole(builds: Path, tmp_path: Path) -> None:
    told: list[str] = []
    files = build.build_board(ARM64, tmp_path / "cache", tell=told.append)
    assert files.root.is_dir()
    assert files.identity.read_text() == "private\n"
    assert files.host_key.read_text() == "ssh-ed25519 HOST root@x\n"
    assert (files.root / "etc/ssh/edgeship_authorized_keys").read_text() == "ssh-ed25519 USER\n"
    assert (files.root / "etc/hostname").read_text() == "virtual-arm64\n"
    assert build.build_board(ARM64, tmp_path / "cache", tell=told.append) == files
    assert num_builds(builds) == 1
    assert len(told) == 1


def test_a_failed_build_says_why_and_leaves_nothing(
    builds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "yes")
    with pytest.raises(VirtualBoardError, match="status 25:\nE: no mirror"):
        build.build_board(ARM64, tmp_path / "cache", tell=say_nothing)
    assert [path.suffix for path in (tmp_path / "cache/boards").iterdir()] == [".lock"]


def test_what_a_killed_build_left_is_not_taken_for_a_board(builds: Path, tmp_path: Path) -> None:
    files = plan.board_files(ARM64, tmp_path)
    partial = files.directory.with_name(f"{files.directory.name}.partial")
    (partial / "root" / "half").mkdir(parents=True)
    assert control.list_built(tmp_path) == []
    with pytest.raises(VirtualBoardError, match="has not been built; run: make board"):
        control.start_board(ARM64, tmp_path)
    build.build_board(ARM64, tmp_path, tell=say_nothing)
    assert not (files.root / "half").exists()
    assert not partial.exists()
    assert control.list_built(tmp_path) == [files]


def test_states_of_boards(builds: Path, tmp_path: Path) -> None:
    files = build.build_board(ARM64, tmp_path, tell=say_nothing)
    assert [state["state"] for state in control.board_states(tmp_path)] == ["built", "not built"]
    # A process of the same number that is something else is no board.
    files.state.write_text(json.dumps({"pid": os.getpid(), "port": 22, "idle_s": None}))
    assert control.find_running(files) is None
    assert not control.stop_board(files)
    assert not files.state.exists()


def test_a_running_board_is_known_by_its_first_process_and_ends_with_it(builds: Path, tmp_path: Path) -> None:
    files = build.build_board(ARM64, tmp_path, tell=say_nothing)
    settings = json.dumps({"directory": str(files.directory)})
    first = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import time; print(1, flush=True); time.sleep(60)",
            "devices.virtual.supervise",
            settings,
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert first.stdout is not None
        assert first.stdout.read(1) == b"1"  # its arguments can be read from /proc a little after its start
        files.state.write_text(json.dumps({"pid": first.pid, "port": 2200, "idle_s": 600.0}))
        running = control.find_running(files)
        assert running == control.RunningBoard(files, first.pid, 2200, 600.0)
        assert control.start_board(ARM64, tmp_path, idle_s=5.0) == running
        state = control.board_states(tmp_path)[0]
        assert (state["state"], state["port"]) == ("running", 2200)
        transport = ssh_transport(VirtualTransport(architecture="arm64", wheelhouse="w"), running)
        assert (transport.host, transport.port, transport.user) == ("127.0.0.1", 2200, "board")
        assert transport.identity_file == str(files.identity)
        assert transport.known_hosts == str(files.known_hosts)
        assert transport.wheelhouse == "w"
        assert control.stop_board(files)
        assert first.wait(timeout=10) != 0
    finally:
        first.kill()
        first.communicate()


def test_a_board_that_is_built_needs_nothing_of_the_machine(
    builds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.build_board(ARM64, tmp_path, tell=say_nothing)
    monkeypatch.setattr(
        build, "look_at_host", lambda: requirements.Host("Linux", False, frozenset(), frozenset(), False, True)
    )
    build.build_board(ARM64, tmp_path, tell=say_nothing)
    with pytest.raises(VirtualBoardError, match="this machine can't have virtual boards yet"):
        build.build_board(plan.BOARDS["armhf"], tmp_path, tell=say_nothing)


def test_root_gets_what_is_missing_installed(builds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """apt-get pretends too: it notes what it was asked for."""
    apt = tmp_path / "programs" / "apt-get"
    apt.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    apt.chmod(0o755)
    everything = frozenset({*requirements.BUILD_PROGRAMS, *requirements.RUN_PROGRAMS})
    bare = requirements.Host("Linux", True, everything - {"mmdebstrap"}, frozenset(), True, True)
    monkeypatch.setattr(build, "look_at_host", lambda: bare)
    told: list[str] = []
    with pytest.raises(VirtualBoardError, match="missing packages"):
        build.build_board(ARM64, tmp_path / "cache", tell=told.append)
    assert told == ["installing on this machine what virtual boards need: mmdebstrap, qemu-user-static"]
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["update", "install --yes --no-install-recommends mmdebstrap qemu-user-static"]
