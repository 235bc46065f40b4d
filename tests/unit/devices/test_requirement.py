"""What a board asks of itself before it takes a release."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet

from devices.board import requirement
from devices.board.release_errors import Unfit
from devices.board.requirement import LEAST_PYTHON, OPERATORS, check_fit, parse_requirement
from devices.profile import list_profiles, load_profile

NUMBERS = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts)))
ENDINGS = st.sampled_from(["", "", "", "a1", "b2", "rc1", ".post1", ".dev3", "rc1.dev2", "a1.post2", ".post1.dev1"])
VERSIONS = st.builds(str.__add__, NUMBERS, ENDINGS)


@st.composite
def clauses(draw: st.DrawFn) -> str:
    operator, version = draw(st.sampled_from(OPERATORS)), draw(VERSIONS)
    if operator == "~=":
        version = f"{draw(st.integers(0, 3))}.{version}"
    return operator + version


@example(version="0.1a1", local="", wanted="<0.1.post1")
@example(version="0.1a1", local="", wanted="<0.1")
@given(
    version=VERSIONS,
    local=st.sampled_from(["", "", "+cpu", "+build.2"]),
    wanted=st.lists(clauses(), max_size=3).map(",".join),
)
def test_versions_are_judged_as_pip_does(version: str, local: str, wanted: str) -> None:
    expected = SpecifierSet(wanted).contains(version + local, prereleases=True)
    assert parse_requirement(f"some-runtime{wanted}").allows(version + local) == expected


@pytest.mark.parametrize(
    "text",
    ["", "a b", "a>1", "a<=1", "a===1", "a==1.*", "a[x]>=1", "a>=1; python_version < '3'", "a @ file:///x", "a>=",
     ">=1", "a>=x", "a~=1", "a>=1+cpu", "a>=1,,", "-a", "a>=" + "9" * 10],
)  # fmt: skip
def test_what_a_board_can_not_judge_is_no_requirement(text: str) -> None:
    with pytest.raises(ValueError, match="is no requirement that a board can judge"):
        parse_requirement(text)


@pytest.mark.parametrize("name", list_profiles())
def test_all_profiles_have_requirements_that_a_board_can_judge(name: str) -> None:
    for text in filter(None, load_profile(name).runtimes.values()):
        assert parse_requirement(text).clauses


class Board(NamedTuple):
    """A board and what a release wants of it."""

    id: str
    refused: str
    requires: dict[str, Any] = {}  # noqa: RUF012 (it is not changed)
    wheels: tuple[str, ...] = ()
    schema: int = 3


WANTED = "some-runtime>=2.3,<3"
WHEEL = "some_runtime-{}-cp311-cp311-linux_x86_64.whl"

BOARDS = [
    Board("nothing wanted", ""),
    Board("the runtime", "", {"runtime": WANTED}),
    Board("no runtime needed", "", {"runtime": ""}),
    Board("another version", r"has some-runtime 2\.3\.1, and the release wants some-runtime>=2\.4: .* -m pip install",
          {"runtime": "some-runtime>=2.4"}),
    Board("missing", r"has no other-runtime, and the release wants other-runtime>=1: .*pip install 'other-runtime>=1'",
          {"runtime": "other-runtime>=1"}),
    Board("version without order", "has odd-runtime nightly, and the release wants odd-runtime>=1",
          {"runtime": "odd-runtime>=1"}),
    Board("brought along", "", {"runtime": "some-runtime>=2.4"}, (WHEEL.format("2.4.0"),)),
    Board("the wrong one brought along", "has some-runtime 3.0", {"runtime": WANTED}, (WHEEL.format("3.0"),)),
    Board("not to be judged", "can't be judged", {"runtime": "some-runtime[x]>=2"}),
    Board("not judged before", "", {"runtime": "some-runtime[x]>=2"}, schema=2),
    Board("judged although before", "has no other-runtime", {"runtime": "other-runtime>=1"}, schema=2),
    Board("python", "", {"python": LEAST_PYTHON}),
    Board("newer python", "the release wants >=3.99", {"python": ">=3.99"}),
    Board("another ABI", "are for Python's ABI cp21, and this is Python", {"abi": "cp21"}),
    Board("this ABI", "", {"abi": f"cp3{sys.version_info[1]}"}),
    Board("libc", "", {"libc": "glibc"}),
    Board("old enough libc", "", {"libc": "glibc 2.28"}),
    Board("too new a libc", "wants the C library glibc 2.40, and this board has glibc 2.36", {"libc": "glibc 2.40"}),
    Board("another libc", "wants the C library musl 1.2, and this board has glibc 2.36", {"libc": "musl 1.2"}),
    Board("architecture", "the bundle is for riscv64", {"architecture": "riscv64"}),
]  # fmt: skip


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.id)
def test_what_a_board_says_of_a_release(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"some-runtime": "2.3.1", "odd-runtime": "nightly"}
    monkeypatch.setattr(requirement, "installed_version", versions.get)
    monkeypatch.setattr(requirement, "c_library", lambda: ("glibc", [2, 36]))
    manifest = {"schema_version": board.schema, "requires": board.requires, "wheels": list(board.wheels)}
    if not board.refused:
        check_fit(manifest)
        return
    with pytest.raises(Unfit, match=board.refused):
        check_fit(manifest)


def test_a_board_that_does_not_know_its_libc_is_let_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirement, "c_library", lambda: ("unknown", []))
    check_fit({"requires": {"libc": "glibc 9.9"}})


def test_a_phone_is_told_what_termux_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "getandroidapilevel", lambda: 24, raising=False)
    monkeypatch.setattr(requirement, "installed_version", lambda _: None)
    with pytest.raises(Unfit, match="in Termux: pkg install python-onnxruntime"):
        check_fit({"schema_version": 3, "requires": {"runtime": "onnxruntime>=1.23,<2"}})


def test_numpy_is_needed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirement.util, "find_spec", lambda _: None)
    with pytest.raises(Unfit, match=r"has no numpy: .* -m pip install 'numpy'"):
        check_fit({})
    check_fit({"wheels": ["numpy-2.4.6-cp311-cp311-linux_x86_64.whl"]})
