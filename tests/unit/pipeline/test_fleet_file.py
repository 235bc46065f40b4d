"""`fleet.yaml`: what it may say, and what is told of mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from devices.fleet import Fleet
from devices.transport_config import SshTransport
from pipeline.errors import InputError
from pipeline.fleet_file import LOCK_TIMEOUT_S, load_fleet

FLEET = """\
schema_version: 1
name: shops
groups:
  tills:
    profile: raspberry-pi-4
    root: /srv/models
    transport: {user: pi, identity_file: keys/fleet, connect_timeout_s: 5}
    labels: {country: de}
    boards:
      - till-1: 10.0.0.11
      - till-2: root@[fe80::1]:2222
      - till-3
      - {name: till-4, host: 10.0.0.14, port: 22, user: me, labels: {floor: "2"}}
  here:
    profile: local
    boards:
      - {name: one, root: boards/one}
      - {name: two, root: ~/two}
"""


def load(directory: Path, text: str) -> Fleet:
    path = directory / "fleet.yaml"
    path.write_text(text)
    return load_fleet(path, Path("~/default"))


def test_how_each_board_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("EDGESHIP_HOST_RASPBERRY_PI_4", "root@elsewhere:99")
    fleet = load(tmp_path, FLEET)
    assert fleet.name == "shops"
    found = {}
    for board in fleet.boards:
        transport = board.profile.transport
        if isinstance(transport, SshTransport):
            found[board.name] = (transport.user, transport.host, transport.port)
            assert transport.identity_file == str(tmp_path / "keys" / "fleet")
            assert transport.connect_timeout_s == 5
            assert transport.lock_timeout_s == LOCK_TIMEOUT_S
            assert (board.root, board.group) == (Path("/srv/models"), "tills")
            assert board.profile.architecture == "aarch64"
    assert found == {
        "till-1": ("pi", "10.0.0.11", None),
        "till-2": ("root", "fe80::1", 2222),
        "till-3": ("pi", "till-3", None),
        "till-4": ("me", "10.0.0.14", 22),
    }
    one, two = fleet.boards[-2:]
    assert (one.root, two.root) == (tmp_path / "boards" / "one", Path("/home/ann/two"))
    assert fleet.boards[3].labels == {"country": "de", "floor": "2"}


def test_what_is_not_said_comes_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    (tmp_path / "own.yaml").write_text("extends: raspberry-pi-4\nname: own\ntransport: {lock_timeout_s: 7}\n")
    fleet = load(
        tmp_path,
        "schema_version: 1\nname: x\ngroups:\n  a: {profile: ./own.yaml, boards: [b]}\n"
        "  c: {profile: local, boards: [d]}\n",
    )
    far, near = fleet.boards
    assert (far.root, near.root) == (Path("~/default"), Path("/home/ann/default"))
    assert isinstance(far.profile.transport, SshTransport)
    assert far.profile.transport.lock_timeout_s == 7


def with_line(old: str, new: str) -> str:
    assert old in FLEET
    return FLEET.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "fleet.yaml holds nothing; expected a mapping with keys such as schema_version, name and groups"),
        ("[1]", "holds a list"),
        (FLEET + FLEET, "line 19: found duplicate key"),
        (FLEET.replace("schema_version: 1\n", ""), "schema_version is missing"),
        (with_line("schema_version: 1", "schema_version: 2"), "line 1: schema_version is 2: expected 1"),
        (with_line("name: shops", "name: My Shops"), "line 2: name is"),
        (with_line("    labels:", "    lables:"), "line 8: unknown key groups.tills.lables; did you mean 'labels'?"),
        (with_line("user: me", "usr: me"), "line 13: unknown key groups.tills.boards.3.usr; did you mean 'user'?"),
        (with_line("user: pi", "usr: pi"), "line 7: unknown key groups.tills.transport.usr; did you mean 'user'?"),
        (with_line("user: pi", "host: pi"), "line 7: each board has a host of its own"),
        (with_line("port: 22,", "port: 99999,"), "line 13: groups.tills.boards.3.port is 99999"),
        (with_line("connect_timeout_s: 5", "connect_timeout_s: -5"), "line 7: groups.tills.transport.connect_"),
        (with_line("- till-3", "- till-1"), "the name 'till-1' is taken already, by"),
        (with_line("- till-3", "- till-9: pi@10.0.0.11"), "line 12: the place of 'till-9' (pi@10.0.0.11) is taken"),
        (with_line("root: ~/two", "root: boards/one"), "line 18: the place of 'two' (local, "),
        (with_line("10.0.0.11", "a b c"), "line 10: groups.tills.boards.0 is"),
        (with_line("- till-3", "- Till"), "line 12: groups.tills.boards.2.name is \"Till\""),
        (with_line("- till-3", "- {host: 10.0.0.1}"), "line 12: groups.tills.boards.2.name is missing"),
        (with_line("- till-3", "- 3"), "line 12: groups.tills.boards.2 is 3"),
        (with_line('floor: "2"', "floor: 2"), 'labels.floor is 2: expected a valid string. Write it in quotes.'),
        (with_line("raspberry-pi-4", "raspberry-pi-44"), "line 5: there is no device 'raspberry-pi-44'; did you mean"),
        (with_line("raspberry-pi-4", "./none.yaml"), "line 5: there is no device profile"),
        (with_line("raspberry-pi-4", "fake"), "line 5: fake is reached by fake; releases are kept on"),
        (with_line("raspberry-pi-4", "android-phone"), "belong to boards that are reached over SSH, but android-phone"),
        (with_line("root: boards/one", "root: boards/one, user: me"), "line 17: user belong to boards that"),
        (FLEET[: FLEET.index("      - {name: one")] + "      []\n", "groups.here.boards is []"),
        (FLEET[: FLEET.index("  tills:")] + "  {}\n", "groups is {}"),
    ],
    ids=range(27),
)  # fmt: skip
def test_mistakes(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as found:
        load(tmp_path, text)
    assert said in found.value.message
    assert found.value.exit_code == 2


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as found:
        load(tmp_path, with_line("    labels:", "    lables:").replace("name: shops", "name: 7"))
    assert len(found.value.message.splitlines()) == 2


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no fleet"):
        load_fleet(tmp_path / "none.yaml", tmp_path)
