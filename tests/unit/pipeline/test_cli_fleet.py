"""What the command line refuses of a fleet before any board is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from tests.bundles import make_bundle

FLEET = """\
schema_version: 1
name: shop
groups:
  a:
    profile: local
    boards:
      - {name: a0, root: boards/a0}
      - {name: a1, root: boards/a1}
  b:
    profile: local
    boards:
      - {name: b0, root: boards/b0}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("fleet.yaml").write_text(FLEET)
    make_bundle(Path("net.edgeship"))
    return tmp_path


MISTAKES: dict[str, tuple[tuple[str, ...], str]] = {
    "device": (("net.edgeship", "--fleet", "fleet.yaml", "--device", "local"), "exclude each other"),
    "recipe": (("net.yaml", "--fleet", "fleet.yaml"), "Write one with `edgeship package RECIPE"),
    "sign": (("net.edgeship", "--fleet", "fleet.yaml", "--sign", "key"), "--sign and --set belong there"),
    "options": (("net.edgeship", "--canary", "2", "--retry-off", "3", "--resume"),
                "--canary, --retry-off, --resume needs --fleet"),
    "share": (("net.edgeship", "--fleet", "fleet.yaml", "--batch", "0"), "--batch is '0'; expected a number of boards"),
    "group": (("net.edgeship", "--fleet", "fleet.yaml", "--group", "c"), "shop has no group 'c'; there are: a, b"),
    "bundle": (("none.edgeship", "--fleet", "fleet.yaml"), "There is no bundle none.edgeship"),
    "fleet": (("net.edgeship", "--fleet", "none.yaml"), "There is no fleet none.yaml"),
    "resume": (("net.edgeship", "--fleet", "fleet.yaml", "--resume"), "nothing of net.edgeship to go on with"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.usefixtures("place")
def test_mistakes(mistake: str) -> None:
    arguments, said = MISTAKES[mistake]
    outcome = CliRunner().invoke(main, ["deploy", *arguments])
    assert outcome.exit_code == 2, outcome.output
    assert said in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not Path("boards").exists()


def test_a_fleet_is_shown_without_asking_it(place: Path) -> None:
    shown = json.loads(CliRunner().invoke(main, ["fleet", "show", "fleet.yaml", "--json"]).stdout)
    assert [row["board"] for row in shown["boards"]] == ["a0", "a1", "b0"]
    assert shown["boards"][0]["root"] == str(place / "boards" / "a0")
    outcome = CliRunner().invoke(main, ["fleet", "show", "fleet.yaml"])
    assert outcome.exit_code == 0
    assert not Path("boards").exists()
