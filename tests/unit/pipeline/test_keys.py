from __future__ import annotations

import functools
import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pipeline.keys
from pipeline.keys import artifact_key, canonical_json, code_digest, modules_of, tool_versions
from pipeline.stages.benchmark import BenchmarkStage
from pipeline.stages.verify import VerifyStage

ROOT = Path(__file__).resolve().parents[3]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
STAGE_MODULES = tuple(
    f"pipeline.stages.{path.stem}"
    for path in sorted((ROOT / "pipeline" / "stages").glob("*.py"))
    if path.stem not in {"__init__", "base"}
)


def turned_around(value: Any) -> Any:
    """The same value whose mappings were filled in the opposite order."""
    if isinstance(value, dict):
        return {key: turned_around(inner) for key, inner in reversed(value.items())}
    return [turned_around(inner) for inner in value] if isinstance(value, list) else value


@settings(deadline=None)
@given(JSON_VALUES)
def test_canonical_json_is_one_ascii_text_of_the_value_whatever_the_order_of_its_keys(value: Any) -> None:
    text = canonical_json(value)

    assert text.isascii()
    assert json.loads(text) == value
    assert canonical_json(turned_around(value)) == text
    assert canonical_json(json.loads(text)) == text


@settings(deadline=None)
@given(JSON_VALUES, JSON_VALUES)
def test_different_values_have_different_texts(first: Any, second: Any) -> None:
    same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)

    assert (canonical_json(first) == canonical_json(second)) == same


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_canonical_json_refuses_what_is_no_number(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"deep": [value]})


def test_canonical_json_refuses_what_json_has_no_word_for() -> None:
    with pytest.raises(TypeError):
        canonical_json({"path": Path("here")})


BASE: dict[str, Any] = {
    "stage": "train",
    "config": {"seed": 0, "epochs": 3, "size": [32, 32]},
    "inputs": {"data": "a" * 32, "extra": "b" * 32},
    "code": "c" * 64,
    "tools": {"numpy": "2.3.1"},
    "fingerprint": "d" * 64,
}


def key_of(**changes: Any) -> str:
    parts = {**BASE, **changes}
    return artifact_key(parts.pop("stage"), parts.pop("config"), **parts)


@dataclass(frozen=True)
class Change:
    id: str
    changes: dict[str, Any]


CHANGES = (
    Change("stage", {"stage": "calibrate"}),
    Change("seed", {"config": {**BASE["config"], "seed": 1}}),
    Change("order-in-a-list", {"config": {**BASE["config"], "size": [32, 33]}}),
    Change("further-config-key", {"config": {**BASE["config"], "more": None}}),
    Change("missing-config-key", {"config": {"seed": 0, "epochs": 3}}),
    Change("input", {"inputs": {"data": "a" * 32, "extra": "c" * 32}}),
    Change("swapped-inputs", {"inputs": {"data": "b" * 32, "extra": "a" * 32}}),
    Change("missing-input", {"inputs": {"data": "a" * 32}}),
    Change("code", {"code": "e" * 64}),
    Change("tool-version", {"tools": {"numpy": "2.3.2"}}),
    Change("further-tool", {"tools": {"numpy": "2.3.1", "scipy": "1"}}),
    Change("fingerprint", {"fingerprint": ""}),
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.id)
def test_any_change_gives_another_key(change: Change) -> None:
    assert key_of(**change.changes) != key_of()


def test_all_changes_give_keys_of_their_own() -> None:
    keys = {key_of(**change.changes) for change in CHANGES}

    assert len(keys) == len(CHANGES)
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in keys)


def test_keys_do_not_depend_on_the_process_or_its_hash_seed() -> None:
    code = (
        "import json; from pipeline.keys import *\n"
        "names = {'a', 'b', 'c', 'numpy'}\n"
        "print(artifact_key('s', {n: 1 for n in names}, inputs={n: n for n in names}, code='', "
        "tools=tool_versions(names)), code_digest('pipeline.stages.verify', 'devices.board.*'))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4242")
    }

    assert len(found) == 1


def test_tool_versions_are_those_installed_and_absent_ones_are_named() -> None:
    import numpy as np

    assert tool_versions(["numpy", "no-such-distribution", "numpy"]) == {
        "no-such-distribution": "absent",
        "numpy": np.__version__,
    }


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Writes modules of a package `ours`, none of which may be imported: each one raises."""

    def clear() -> None:
        for function in (pipeline.keys._source, pipeline.keys._own_imports):
            assert isinstance(function, functools._lru_cache_wrapper)
            function.cache_clear()

    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\nraise RuntimeError('imported')\n")
        clear()

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(pipeline.keys, "OWN_PACKAGES", ("ours",))
    write("ours/__init__.py", "")
    write("ours/stage.py", "import json\nfrom ours.direct import name")
    write("ours/direct.py", "def later():\n    from .deep import function")
    write("ours/deep/__init__.py", "from .function import function\nif False:\n    import ours.rare.module")
    write("ours/deep/function.py", "from ..sibling import (\n    name as other,\n)")
    write("ours/sibling.py", "from . import submodule")
    write("ours/submodule.py", "")
    write("ours/rare/__init__.py", "")
    write("ours/rare/module.py", "")
    write("ours/stranger.py", "import ours.stage")
    yield write
    clear()


CLOSURE = (
    "ours",
    "ours.deep",
    "ours.deep.function",
    "ours.direct",
    "ours.rare",
    "ours.rare.module",
    "ours.sibling",
    "ours.stage",
    "ours.submodule",
)


def test_the_closure_follows_every_form_of_import_without_importing(package: Callable[[str, str], None]) -> None:
    assert modules_of("ours.stage") == set(CLOSURE)
    assert modules_of("ours.deep.*") == set(CLOSURE) - {"ours.stage", "ours.direct"}
    assert not [name for name in sys.modules if name.split(".")[0] == "ours"]


@pytest.mark.parametrize("name", CLOSURE)
def test_a_change_in_any_module_of_the_closure_changes_the_digest(
    package: Callable[[str, str], None], name: str, tmp_path: Path
) -> None:
    before = code_digest("ours.stage")
    path = tmp_path.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    package(str(path.relative_to(tmp_path)), path.read_text() + "# changed")

    assert code_digest("ours.stage") != before


def test_a_change_elsewhere_leaves_the_digest(package: Callable[[str, str], None]) -> None:
    before = code_digest("ours.stage")
    package("ours/stranger.py", "changed = 1")

    assert code_digest("ours.stage") == before


def test_an_unknown_package_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no package devices\.bord"):
        code_digest("devices.bord.*")


def test_the_closure_of_each_stage_holds_what_importing_it_loads() -> None:
    code = (
        "import importlib, json, os, sys\n"
        "for name in sys.argv[1:]:\n"
        "    if os.fork() == 0:\n"
        "        importlib.import_module(name)\n"
        "        own = [m for m in sys.modules if m.split('.')[0] in ('pipeline', 'models', 'devices')]\n"
        "        print(json.dumps([name, own]), flush=True)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *STAGE_MODULES], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = dict(json.loads(line) for line in done.stdout.splitlines())

    assert sorted(loaded) == sorted(STAGE_MODULES)
    for name, modules in loaded.items():
        assert set(modules) <= modules_of(name), name


def test_stages_that_measure_cover_all_that_runs_on_the_board() -> None:
    board = {
        ".".join(("devices", "board", *(part for part in path.with_suffix("").parts if part != "__init__")))
        for path in (found.relative_to(ROOT / "devices/board") for found in (ROOT / "devices/board").rglob("*.py"))
    }
    for stage in (VerifyStage, BenchmarkStage):
        assert board <= modules_of(stage.__module__, *stage.other_code)
    assert "devices.board.runners.litert" in board
    assert "devices.board" in board


def test_the_training_stage_covers_networks_and_training_but_no_target() -> None:
    covered = modules_of("pipeline.stages.train")

    assert {"models.mobilenet_v2", "models.blocks", "pipeline.training.loader"} <= covered
    assert not {name for name in covered if name.startswith(("pipeline.targets", "devices.transports"))}


def test_the_closure_of_the_stages_imports_nothing_heavy() -> None:
    heavy = [name for name in ("tensorflow", "keras", "openvino") if importlib.util.find_spec(name)]
    code = (
        "import sys; from pipeline.keys import code_digest\n"
        "code_digest(*sys.argv[1:], 'devices.board.*')\n"
        "print(sorted({m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *STAGE_MODULES], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert heavy
    assert not [name for name in (*heavy, "models", "devices", "numpy") if f"'{name}'" in done.stdout]
