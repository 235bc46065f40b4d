"""Whom a board takes releases from: real keys, the system's ssh-keygen."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from devices.board.bundle_signature import check_signature, read_settings
from devices.board.release_errors import BadSignature, Refusal
from devices.bundle_signing import check, sign
from devices.errors import BundleError
from tests.bundles import make_key, signer_line, trust

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen on this machine")

TEXT = b'{"name": "net"}'


@dataclass(frozen=True)
class Keys:
    trusted: Path
    other: Path
    directory: Path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    directory = tmp_path_factory.mktemp("keys")
    return Keys(make_key(directory / "trusted"), make_key(directory / "other"), directory)


def test_a_signature_of_somebody_in_the_list(keys: Keys, tmp_path: Path) -> None:
    root = trust(tmp_path, signers="# ours\n" + signer_line(keys.other, "b@x") + signer_line(keys.trusted, "a@x"))
    assert check_signature(str(root), TEXT, sign(TEXT, keys.trusted)) == "a@x"


@dataclass(frozen=True)
class Refused:
    id: str
    set_up: Callable[[Keys, Path], object]
    sign: Callable[[Keys], bytes | None] = lambda keys: sign(TEXT, keys.trusted)
    match: str = "not accepted|unknown"


def revocation_list(keys: Keys) -> Path:
    path = keys.directory / "krl"
    subprocess.run(["ssh-keygen", "-q", "-k", "-f", str(path), f"{keys.trusted}.pub"], check=True)
    return path


def other_namespace(keys: Keys) -> bytes:
    done = subprocess.run(
        ["ssh-keygen", "-Y", "sign", "-f", str(keys.trusted), "-n", "file"], input=TEXT, capture_output=True, check=True
    )
    return done.stdout


REFUSED = (
    Refused("unsigned", lambda k, r: trust(r, signers=signer_line(k.trusted)), lambda _: None, "not signed"),
    Refused("nobody is trusted", lambda _, r: trust(r), match="trusts nobody"),
    Refused("no settings", lambda *_: None, match="trusts nobody"),
    Refused("unsigned without settings", lambda *_: None, lambda _: None, "not signed"),
    Refused("unknown key", lambda k, r: trust(r, signers=signer_line(k.other))),
    Refused("expired", lambda k, r: trust(r, signers=signer_line(k.trusted, options='valid-before="20200101"'))),
    Refused("not valid yet", lambda k, r: trust(r, signers=signer_line(k.trusted, options='valid-after="29990101"'))),
    Refused("for something else", lambda k, r: trust(r, signers=signer_line(k.trusted, options='namespaces="git"'))),
    Refused("revoked", lambda k, r: trust(r, signers=signer_line(k.trusted), revoked=revocation_list(k))),
    Refused("revoked by key", lambda k, r: trust(r, signers=signer_line(k.trusted), revoked=Path(f"{k.trusted}.pub"))),
    Refused("unreadable revocations", lambda k, r: (trust(r, signers=signer_line(k.trusted)) / ".board" /
                                                    "revoked_keys").mkdir()),
    Refused("other text", lambda k, r: trust(r, signers=signer_line(k.trusted)), lambda k: sign(b"x", k.trusted)),
    Refused("other namespace", lambda k, r: trust(r, signers=signer_line(k.trusted)), other_namespace),
    Refused("garbage", lambda k, r: trust(r, signers=signer_line(k.trusted)), lambda _: b"\0" * 100),
    Refused("empty list", lambda _, r: trust(r, signers="")),
    Refused("free to all, but signed by a stranger",
            lambda k, r: trust(r, signers=signer_line(k.other), allow_unsigned=True)),
)  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.id)
def test_what_a_board_does_not_take(case: Refused, keys: Keys, tmp_path: Path) -> None:
    case.set_up(keys, tmp_path)
    with pytest.raises(BadSignature, match=case.match):
        check_signature(str(tmp_path), TEXT, case.sign(keys))


def test_a_board_that_takes_everything_says_so(keys: Keys, tmp_path: Path) -> None:
    trust(tmp_path, allow_unsigned=True)
    assert check_signature(str(tmp_path), TEXT, None) is None
    assert check_signature(str(tmp_path), TEXT, sign(TEXT, keys.trusted)) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"allow_unsigned": 1}', '{"keep": "all"}', '{"allow_unsinged": true}']
)
def test_settings_that_can_not_be_read_allow_nothing(text: str, tmp_path: Path) -> None:
    trust(tmp_path)
    (tmp_path / ".board" / "settings.json").write_text(text)
    with pytest.raises(Refusal):
        check_signature(str(tmp_path), TEXT, None)


def test_defaults(tmp_path: Path) -> None:
    assert read_settings(str(tmp_path)) == {"allow_unsigned": False, "keep": 5}


def test_no_ssh_keygen_on_the_board(keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, signature = trust(tmp_path, signers=signer_line(keys.trusted)), sign(TEXT, keys.trusted)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadSignature, match="no ssh-keygen"):
        check_signature(str(root), TEXT, signature)


def test_the_host_checks_as_the_board_does(keys: Keys, tmp_path: Path) -> None:
    signers = tmp_path / "signers"
    signers.write_text(signer_line(keys.trusted, "a@x"))
    signature = sign(TEXT, keys.trusted)
    assert check(TEXT, signature, signers, identity="a@x") == "a@x"
    for changes in (
        {"identity": "b@x"},
        {"revoked_keys": Path(f"{keys.trusted}.pub")},
        {"revoked_keys": tmp_path / "-"},
    ):
        with pytest.raises(BundleError):
            check(TEXT, signature, signers, **changes)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="not signed"):
        check(TEXT, None, signers)


def test_keys_that_can_not_sign(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no key"):
        sign(TEXT, tmp_path / "none")
    (tmp_path / "none").write_text("no key")
    with pytest.raises(BundleError, match="can't be used to sign"):
        sign(TEXT, tmp_path / "none")
