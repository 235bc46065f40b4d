"""Compiling on a board behind a real SSH server: files there and back, cut and resumed, then measured there."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from devices.compiled import CompiledManifest, Form, digest_of, find_compiled
from devices.compiling import compile_on, compiled_case
from devices.errors import CompiledMisfitError, ConnectionFailedError, ModelRejectedError
from devices.measurement import BenchmarkSettings, Case, SampleFile, benchmark, predict
from devices.profile import DeviceProfile, load_profile
from devices.transports import open_transport, ssh_files
from devices.transports.ssh_link import close_links
from pipeline.compilation import compile_file
from tests.conftest import Exports
from tests.ssh_board import clean_server, cut_at, profile
from tests.ssh_server import SshServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client on this machine"),
]

SETTINGS = BenchmarkSettings(warm_up_count=3, warm_up_time_s=0, min_count=20, min_time_s=0)


class File(NamedTuple):
    """An export, what it becomes, and the names of the files that come back."""

    form: Form
    target: str
    suffix: str
    names: tuple[str, ...]

    def path(self, exports: Exports) -> Path:
        return exports.folder(self.target, "float32") / f"model{self.suffix}"


FILES = [
    File("xnnpack_cache", "litert", ".tflite", ("model.xnnpack", "model.tflite")),
    File("ort", "onnxruntime", ".onnx", ("model.ort",)),
    File("openvino_blob", "openvino", ".xml", ("model.blob",)),
]
by_form = pytest.mark.parametrize("file", FILES, ids=lambda file: file.form)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    """A server; after the test nothing of ours is left on either side."""
    with clean_server(tmp_path) as running:
        yield running


def board_of(server: SshServer) -> DeviceProfile:
    """A board with the runtimes of this machine."""
    local = load_profile("local")
    runtimes = {name: local.runtimes[name] for name in ("litert", "onnxruntime", "openvino")}
    return profile(server).model_copy(update={"runtimes": runtimes, "preference": tuple(runtimes)})


def compiled(path: Path, board: DeviceProfile, out: Path, form: Form, *, pairs: int = 0) -> Case:
    out.mkdir(parents=True)
    compile_file(path, board, out, form=form, pairs=pairs, tell=lambda _: None)
    found = find_compiled(out)
    assert found is not None
    return compiled_case(*found, label=form)


def manifest_of(case: Case) -> CompiledManifest:
    assert case.compiled is not None
    return case.compiled


@by_form
def test_the_board_compiles_and_runs_what_it_compiled(
    file: File, server: SshServer, exports: Exports, tmp_path: Path
) -> None:
    board = board_of(server)
    case = compiled(file.path(exports), board, tmp_path / "out", file.form, pairs=2)
    manifest = manifest_of(case)
    assert (manifest.device, manifest.made_on) == ("board", "device")
    assert manifest.parity is not None
    assert manifest.parity["bit_equal"]
    assert manifest.measured is not None
    assert (manifest.measured.label, manifest.measured.starts) == ("simulated", 2)
    assert tuple(record.name for record in manifest.files) == file.names
    assert all(digest_of(tmp_path / "out" / record.name) == record.sha256 for record in manifest.files)

    plain = Case(id="plain", runtime=file.target, path=str(file.path(exports)))
    result = benchmark(board, [plain, case], SETTINGS)

    assert [each.error for each in result.cases] == [None, None]
    assert [each.compiled for each in result.cases] == [None, file.form]
    assert result.latency_label == "simulated"
    there = [path for path in (server.root / "files").rglob("*") if path.name in file.names and is_of(path, manifest)]
    assert {path.name for path in there} == set(file.names)
    assert len({path.parent for path in there if path.name == file.names[0]}) == 1
    folder = next(path.parent for path in there if path.name == file.names[0])
    assert {path.name for path in folder.iterdir()} == set(file.names), "what belongs together lies together"


def is_of(path: Path, manifest: CompiledManifest) -> bool:
    return digest_of(path) in {record.sha256 for record in manifest.files}


def answer(board: DeviceProfile, case: Case, tmp_path: Path, name: str) -> Any:
    images = tmp_path / "images.npy"
    np.save(images, np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8))
    found = predict(board, case, [SampleFile(path=str(images))], None, str(tmp_path / name))
    return np.load(found.outputs[0].path)


@by_form
def test_files_whose_transfer_was_cut_arrive_whole(
    file: File, server: SshServer, exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes here goes on where it was cut; what goes there does so the next time, for its agent has ended."""
    monkeypatch.setattr(ssh_files, "_BLOCK_BYTES", 64 * 1024)
    board = board_of(server)
    with monkeypatch.context() as patch:
        offsets = cut_at(patch, "read", 2)
        case = compiled(file.path(exports), board, tmp_path / "out", file.form)
    assert offsets[1] == offsets[2] > 0, "it went on where it was cut"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted((*file.names, "compiled.json"))
    wanted = answer(load_profile("local"), case, tmp_path, "here")

    shutil.rmtree(server.root / "files")
    with monkeypatch.context() as patch:
        cut_at(patch, "write", 2)
        with pytest.raises(ConnectionFailedError, match="the connection to tester@127"):
            answer(board, case, tmp_path, "cut")
    with monkeypatch.context() as patch:
        offsets = cut_at(patch, "write")
        found = answer(board, case, tmp_path, "there")
    assert np.array_equal(found, wanted)
    assert list((server.root / "incoming").iterdir()) == []


def test_what_an_agent_that_was_cut_left_is_removed_the_day_after(
    server: SshServer, exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_files, "_BLOCK_BYTES", 64 * 1024)
    board = board_of(server)
    with monkeypatch.context() as patch:
        cut_at(patch, "read", 2)
        compiled(FILES[1].path(exports), board, tmp_path / "out", "ort")
    (left,) = (server.root / "scratch").glob("edgeship-*")
    assert [path.name for path in left.iterdir()] == ["model.ort"]
    yesterday = time.time() - 25 * 3600
    os.utime(left, (yesterday, yesterday))
    close_links()
    open_transport(board).put(str(FILES[1].path(exports)))
    assert list((server.root / "scratch").glob("edgeship-*")) == []


def test_a_board_of_another_version_is_not_sent_anything(server: SshServer, exports: Exports, tmp_path: Path) -> None:
    board = board_of(server)
    case = compiled(FILES[0].path(exports), board, tmp_path / "out", "xnnpack_cache")
    shutil.rmtree(server.root / "files")
    processor = manifest_of(case).processor.model_copy(update={"architecture": "aarch64"})
    other = case.model_copy(update={"compiled": manifest_of(case).model_copy(update={"processor": processor})})
    error = benchmark(board, [other], SETTINGS).cases[0].error
    assert error is not None
    assert (error.kind, error.exit_code) == (CompiledMisfitError.__name__, 2)
    assert "made for aarch64" in error.message
    assert not (server.root / "files").exists() or list((server.root / "files").iterdir()) == []


def test_a_cache_whose_model_was_changed_on_the_board_is_sent_again(
    server: SshServer, exports: Exports, tmp_path: Path
) -> None:
    """A cache of one model beside another would answer for the wrong one."""
    board = board_of(server)
    case = compiled(FILES[0].path(exports), board, tmp_path / "out", "xnnpack_cache")
    wanted = answer(board, case, tmp_path, "first")
    (model,) = (
        path for path in (server.root / "files").rglob("model.tflite") if (path.with_suffix(".xnnpack")).is_file()
    )
    model.chmod(0o600)
    model.write_bytes(model.read_bytes()[:-4] + b"\0\1\2\3")
    assert np.array_equal(answer(board, case, tmp_path, "second"), wanted)
    assert digest_of(model) == case.weights_sha256


def test_a_model_that_the_board_refuses_leaves_nothing(server: SshServer, tmp_path: Path, exports: Exports) -> None:
    content = FILES[1].path(exports).read_bytes()
    (tmp_path / "model.onnx").write_bytes(
        content.replace(b"GlobalAveragePool", b"GlobalAveragePxxl").replace(b"Conv", b"Cxnv")
    )
    case = Case(id="x", runtime="onnxruntime", path=str(tmp_path / "model.onnx"))
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelRejectedError, match="can't be compiled to ort"):
        compile_on(board_of(server), case, "ort", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
