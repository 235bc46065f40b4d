"""Compiled forms of real runtimes in releases: installed, tested, loaded, and passed over once they do not fit."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.board.model import open_model
from devices.board.release_home import is_whole
from devices.board.release_install import Installer
from devices.board.runners import RUNNERS
from devices.compiled import MANIFEST, Form
from devices.profile import load_profile
from pipeline.compilation import compile_file
from tests.bundles import make_bundle, trust
from tests.conftest import Exports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Case:
    """A runtime, its model's file, what that becomes, and what lies beside the model."""

    form: Form
    target: str
    model: str
    beside: tuple[str, ...] = ()


CASES = [
    Case("xnnpack_cache", "litert", "model.tflite"),
    Case("ort", "onnxruntime", "model.onnx"),
    Case("openvino_blob", "openvino", "model.xml", ("model.bin",)),
]


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def bundle_of(case: Case, exports: Exports, scratch: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A bundle of the exported model and of what it was compiled to, whose record was changed."""
    folder, made = exports.folder(case.target, "float32"), scratch / "compiled"
    made.mkdir()
    compile_file(folder / case.model, load_profile("local"), made, form=case.form, pairs=0, tell=lambda _: None)
    record = json.loads((made / MANIFEST).read_text())
    change(record)
    runner = RUNNERS[case.target]()
    runner.load(str(folder / case.model), num_threads=1)
    (taken,), (given,) = runner.describe()["inputs"], runner.describe()["outputs"]
    random = np.random.default_rng(0)
    shape = [int(size or 1) for size in taken["shape"]]
    samples = random.integers(0, 256, (4, *shape[1:]), np.uint8).astype(taken["dtype"])
    answers = np.concatenate([np.array(runner.infer([sample[np.newaxis]])[0]) for sample in samples])
    contents = {name: (folder / name).read_bytes() for name in (case.model, *case.beside)}
    contents[record["files"][0]["name"]] = (made / record["files"][0]["name"]).read_bytes()
    contents |= {MANIFEST: json.dumps(record).encode(), "in.npy": npy(samples), "out.npy": npy(answers)}
    signature = {
        "inputs": [{"name": taken["name"], "dtype": taken["dtype"], "shape": shape, "transform": None}],
        "outputs": [{"name": given["name"], "dtype": "float32", "shape": list(answers[:1].shape), "kind": "logits"}],
    }
    return make_bundle(
        scratch / "bundle",
        files=contents,
        target=case.target,
        model=case.model,
        classes=None,
        inputs=[{"name": taken["name"], "file": "in.npy", "transform": None}],
        outputs=[{"name": given["name"], "file": "out.npy"}],
        signature=signature,
        compiled={"form": case.form, "model": record["files"][0]["name"], "record": MANIFEST},
    )


def unchanged(record: dict[str, Any]) -> None:
    del record


def of_another_version(record: dict[str, Any]) -> None:
    record["version"] = "0.0.1"


def of_another_processor(record: dict[str, Any]) -> None:
    record["processor"] |= {"architecture": "x86_64", "cpu_features": ["sse4_1", "nonesuch"]}


def install(root: Path, bundle: Path) -> dict[str, Any]:
    told: dict[str, Any] = Installer(str(root), who="tester").install(str(bundle))["measured"]
    return told


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.form)
def test_the_compiled_form_is_tested_and_run(case: Case, exports: Exports, tmp_path: Path) -> None:
    root = trust(tmp_path / "root", allow_unsigned=True)
    measured = install(root, bundle_of(case, exports, tmp_path, unchanged))
    assert (measured["form"], measured["form_reason"]) == (case.form, "")
    assert measured["worst"] < 1e-5
    release = (root / "net" / "current").resolve()
    before = {path.name: path.read_bytes() for path in release.iterdir()}
    model = open_model("net", root=str(root), num_threads=1)
    assert model.form.name == case.form
    samples, answers = (np.load(release / name) for name in ("in.npy", "out.npy"))
    np.testing.assert_allclose(model.run([samples[:1]])[0], answers[:1], atol=1e-4)
    assert {path.name: path.read_bytes() for path in release.iterdir()} == before, "a runtime wrote into the release"
    assert is_whole(str(release))


@pytest.mark.parametrize("change", [of_another_version, of_another_processor])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.form)
def test_one_that_does_not_fit_is_passed_over(
    case: Case, change: Callable[[dict[str, Any]], None], exports: Exports, tmp_path: Path
) -> None:
    root = trust(tmp_path / "root", allow_unsigned=True)
    measured = install(root, bundle_of(case, exports, tmp_path, change))
    assert measured["form"] == "plain"
    assert measured["form_reason"]
    model = open_model("net", root=str(root))
    assert model.form.name == "plain"
    assert model.form.path.endswith(case.model)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.form)
def test_a_compiled_file_that_is_damaged_does_not_break_the_release(
    case: Case, exports: Exports, tmp_path: Path
) -> None:
    root = trust(tmp_path / "root", allow_unsigned=True)
    bundle = bundle_of(case, exports, tmp_path, unchanged)
    install(root, bundle)
    release = (root / "net" / "current").resolve()
    name = json.loads((release / "release.json").read_text())["compiled"]["model"]
    with (release / name).open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"damage")
    model = open_model("net", root=str(root))
    assert model.form.name == "plain"
    assert f"{name} was changed after it was installed" in model.form.reason
    assert is_whole(str(release))
