"""`edgeship devices`: profiles, facts beside them, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from devices.profile import list_profiles
from pipeline.cli import main


def edgeship(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["devices", *arguments])


def test_list() -> None:
    outcome = edgeship("list")
    assert outcome.exit_code == 0
    for name in list_profiles():
        assert f" {name} " in outcome.stdout
    listed = json.loads(edgeship("list", "--json").stdout)["devices"]
    assert [profile["name"] for profile in listed] == list(list_profiles())


def test_show_has_the_sources() -> None:
    outcome = edgeship("show", "jetson-nano")
    assert outcome.exit_code == 0
    assert "4 x Cortex-A57 (0-3, 1479 MHz)" in outcome.stdout
    assert "DA-09366" in outcome.stdout
    assert "The stock system cannot run anything of Edgeship" in outcome.stdout
    shown = json.loads(edgeship("show", "jetson-nano", "--json").stdout)
    assert shown["sources"]["libc"][1] == "Ubuntu 18.04, package libc6"


def test_facts_stand_beside_the_profile(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: local\nname: mine\narchitecture: pdp11\ncores: 4096\n")
    outcome = edgeship("facts", str(tmp_path / "mine.yaml"))
    assert outcome.exit_code == 0
    assert "mine differs from its profile in: architecture, cores." in outcome.stdout
    assert outcome.stdout.count("differs") == 3
    told = json.loads(edgeship("facts", str(tmp_path / "mine.yaml"), "--json").stdout)
    assert set(told) == {"device", "facts", "comparison"}
    assert told["facts"]["architecture"] != "pdp11"
    row = next(row for row in told["comparison"] if row["fact"] == "architecture")
    assert row == {"fact": "architecture", "profile": "pdp11", "board": told["facts"]["architecture"], "differs": True}


@pytest.mark.parametrize("name", ["local", "fake"])
def test_doctor_of_what_is_well(name: str) -> None:
    outcome = edgeship("doctor", name)
    assert outcome.exit_code == 0, outcome.stdout
    assert outcome.stdout.startswith(f"ok       connection    the agent answers by {name}")
    diagnosis = json.loads(edgeship("doctor", name, "--json").stdout)
    assert (diagnosis["device"], diagnosis["usable"]) == (name, True)
    assert {"check", "state", "message", "mend"} == set(diagnosis["findings"][0])


def test_doctor_of_what_cannot_be_used(tmp_path: Path) -> None:
    text = "extends: local\nname: ill\narchitecture: pdp11\nruntimes: {litert: 'ai-edge-litert>=99'}\n"
    (tmp_path / "ill.yaml").write_text(text)
    outcome = edgeship("doctor", str(tmp_path / "ill.yaml"))
    assert outcome.exit_code == 3
    assert "problem  architecture" in outcome.stdout
    assert "mend: " in outcome.stdout
    assert "pip install 'ai-edge-litert>=99'" in outcome.stdout
    assert edgeship("doctor", str(tmp_path / "ill.yaml"), "--json").exit_code == 3


def test_a_device_that_dies_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "dying.yaml").write_text("extends: fake\nname: dying\ntransport: {die_on: facts}\n")
    for verb in ("facts", "doctor"):
        outcome = edgeship(verb, str(tmp_path / "dying.yaml"))
        assert outcome.exit_code == 3
        assert "SIGSEGV" in outcome.output
        assert "Traceback" not in outcome.output


def test_a_host_is_for_boards_only() -> None:
    outcome = edgeship("doctor", "local", "--host", "pi@10.0.0.7")
    assert outcome.exit_code == 2
    assert "--host says where 'local' is, but it is reached by local" in outcome.output
    outcome = edgeship("facts", "raspberry-pi-4", "--host", "pi@")
    assert outcome.exit_code == 2
    assert "expected [user@]host[:port]" in outcome.output


def test_an_unknown_device() -> None:
    for verb in ("show", "facts", "doctor"):
        outcome = edgeship(verb, "raspbery-pi-4")
        assert outcome.exit_code == 2
        assert "did you mean 'raspberry-pi-4'?" in outcome.output
