"""Which form of a model a board runs, and that no trouble with a compiled one stands in its way."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.board import release_form
from devices.board.model import open_model
from devices.board.release_home import is_whole, linked
from devices.board.release_install import Installer
from tests.bundles import PARTS, SHAPE, compiled_files, make_bundle, opened, release_files, trust

COMPILED = {"compiled": PARTS["compiled"]}
SIGNATURE = {
    "signature": {
        "inputs": [{"name": "image", "dtype": "uint8", "shape": [1, *SHAPE], "transform": None}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [1, 3], "kind": "logits"}],
    },
    "preprocess": {"size": [4, 4], "resize": "stretch"},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trust(tmp_path / "root", allow_unsigned=True)


def install(root: Path, files: dict[str, bytes]) -> dict[str, Any]:
    bundle = make_bundle(root.parent / "bundle", files=files, **COMPILED, **SIGNATURE)
    told: dict[str, Any] = Installer(str(root), who="tester").install(str(bundle))["measured"]
    return told


def model(behaviour: str = "ok", **arrays: Any) -> bytes:
    stream = io.BytesIO()
    with np.load(io.BytesIO(release_files(1)["model.fake"])) as archive:
        np.savez(stream, **{**archive, **arrays}, behaviour=np.array(behaviour))
    return stream.getvalue()


MODEL = release_files(1)["model.fake"]


def test_the_form_that_fits_is_tested_and_run(root: Path) -> None:
    measured = install(root, compiled_files(MODEL))
    assert (measured["form"], measured["form_reason"]) == ("fake", "")
    opened_model = open_model("net", root=str(root))
    assert opened_model.form.name == "fake"
    assert opened_model.form.path.endswith("compiled.fake")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": "2"}, "it was made by fake 2, and the device has fake 1"),
        ({"package": "nonesuch"}, "nonesuch 1, which the device does not have"),
        ({"processor": {"architecture": "riscv64", "cpu_features": []}}, "it was made for riscv64"),
        ({"processor": {"architecture": None, "cpu_features": ["sve2", "avx_nonesuch"]}}, "which the device's lacks"),
    ],
    ids=["version", "package", "architecture", "instructions"],
)
def test_one_that_does_not_fit_is_left_alone(changes: dict[str, Any], reason: str, root: Path) -> None:
    measured = install(root, compiled_files(MODEL, **changes))
    assert measured["form"] == "plain"
    assert reason in measured["form_reason"]
    assert "form_failed" not in measured
    found = open_model("net", root=str(root)).form
    assert found.path.endswith("model.fake")
    assert found.reason == measured["form_reason"]


@pytest.mark.parametrize("behaviour", ["reject", "crash", "crash_on_infer"])
def test_one_that_fails_its_test_is_never_loaded_again(behaviour: str, root: Path) -> None:
    measured = install(root, compiled_files(MODEL, model(behaviour)))
    assert measured["form"] == "plain"
    assert "the form fake failed its test on this board" in measured["form_failed"]
    assert measured["worst"] < 1e-5
    found = open_model("net", root=str(root)).form
    assert found.name == "plain"
    assert "failed its test" in found.reason
    assert is_whole(str(root / "net" / "releases" / str(linked(str(root / "net" / "current")))))


def test_one_that_answers_otherwise_is_not_run(root: Path) -> None:
    other = model(weights=np.zeros((48, 3), np.float32))
    assert "differs by" in install(root, compiled_files(MODEL, other))["form_failed"]


def test_a_release_whose_model_is_wrong_is_refused_all_the_same(root: Path) -> None:
    files = {"model.fake": model("crash"), **compiled_files(model("crash"))}
    with pytest.raises(Exception, match="ended by SIGSEGV"):
        install(root, files)


@pytest.mark.parametrize("damage", ["changed", "removed", "record removed", "record no JSON", "record of another form"])
def test_damage_to_it_after_the_installation(damage: str, root: Path) -> None:
    install(root, compiled_files(MODEL))
    release = root / "net" / "current"
    if damage == "changed":
        (release / "compiled.fake").write_bytes(b"another")
    elif damage == "removed":
        (release / "compiled.fake").unlink()
    assert damage.startswith("record") or is_whole(str(release.resolve())), "the model itself is whole"
    manifest = opened(root.parent / "bundle").manifest
    texts = {"record removed": None, "record no JSON": "{", "record of another form": json.dumps({"form": "fake"})}
    if damage in texts:
        text = texts[damage]
        (release / "compiled.json").unlink()
        if text is not None:
            (release / "compiled.json").write_text(text)
    found = release_form.choose_form(str(release.resolve()), manifest)
    assert found.name == "plain"
    assert found.reason
    if not damage.startswith("record"):
        assert open_model("net", root=str(root)).form.name == "plain"


def test_a_runtime_that_refuses_it_at_a_later_start(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(root, compiled_files(MODEL))
    from devices.board.errors import ModelRejected
    from devices.board.runners.fake import FakeRunner

    genuine = FakeRunner.load

    def load(self: FakeRunner, path: str, **options: Any) -> None:
        if path.endswith("compiled.fake"):
            raise ModelRejected("not today")
        genuine(self, path, **options)

    monkeypatch.setattr(FakeRunner, "load", load)
    found = open_model("net", root=str(root))
    assert found.form.name == "plain"
    assert "not today" in found.form.reason
    assert found.classify(np.zeros(SHAPE, np.uint8))


def test_a_cache_of_weights_needs_both_digests(tmp_path: Path) -> None:
    manifest = {
        "model": "model.tflite",
        "files": {"model.tflite": "a" * 64, "model.xnnpack": "b" * 64, "compiled.json": "c" * 64},
        "compiled": {"form": "xnnpack_cache", "model": "model.xnnpack", "record": "compiled.json"},
    }
    form = release_form._form("xnnpack_cache", str(tmp_path), manifest, "model.xnnpack")
    assert (form.sha256, form.companion_sha256) == ("b" * 64, "a" * 64)
