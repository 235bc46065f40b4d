from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from devices.board.serving.access import AccessRefused, make_access
from devices.board.serving.wire import HttpError

TOKEN = "0123456789abcdef"  # noqa: S105


def token_file(tmp_path: Path, text: str = TOKEN + "\n", mode: int = 0o600) -> str:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_nothing(host: str) -> None:
    make_access(host).check({})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", ""])
def test_elsewhere_needs_a_token_or_a_certificate(host: str, tmp_path: Path) -> None:
    with pytest.raises(AccessRefused, match="--token-file"):
        make_access(host or "0.0.0.0")
    make_access(host or "0.0.0.0", token_file=token_file(tmp_path))


@dataclass(frozen=True)
class Asked:
    id: str
    header: str | None
    welcome: bool = False


@pytest.mark.parametrize(
    "case",
    [
        Asked("the token", f"Bearer {TOKEN}", welcome=True),
        Asked("another case of the scheme", f"bearer  {TOKEN}", welcome=True),
        Asked("nothing", None),
        Asked("another token", "Bearer 0123456789abcdeF"),
        Asked("a part of it", "Bearer 0123456789abcde"),
        Asked("more than it", f"Bearer {TOKEN}0"),
        Asked("without the scheme", TOKEN),
        Asked("another scheme", f"Basic {TOKEN}"),
        Asked("not ASCII", "Bearer \xff\xfe"),
    ],
    ids=lambda case: case.id,
)
def test_tokens(case: Asked, tmp_path: Path) -> None:
    access = make_access("127.0.0.1", token_file=token_file(tmp_path))
    headers = {} if case.header is None else {"authorization": case.header}
    if case.welcome:
        access.check(headers)
        return
    with pytest.raises(HttpError) as refused:
        access.check(headers)
    assert refused.value.status == 401
    assert refused.value.headers == {"WWW-Authenticate": "Bearer"}


@dataclass(frozen=True)
class BadFile:
    id: str
    text: str
    message: str
    mode: int = 0o600


@pytest.mark.parametrize(
    "case",
    [
        BadFile("short", "secret", "holds no token"),
        BadFile("empty", "", "holds no token"),
        BadFile("two lines", f"{TOKEN}\n{TOKEN}", "holds no token"),
        BadFile("readable for all", TOKEN, "chmod", 0o644),
    ],
    ids=lambda case: case.id,
)
def test_token_files_that_are_refused(case: BadFile, tmp_path: Path) -> None:
    with pytest.raises(AccessRefused, match=case.message):
        make_access("127.0.0.1", token_file=token_file(tmp_path, case.text, case.mode))


def test_certificates_that_can_not_be_used(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    with pytest.raises(AccessRefused, match="can't be used"):
        make_access("127.0.0.1", certificate=str(broken))
    with pytest.raises(AccessRefused, match="give --certificate"):
        make_access("0.0.0.0", client_ca=str(broken))
