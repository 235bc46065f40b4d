"""A board behind a real SSH server: the system's client, a board's home, transfers, runtimes."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import packaging.tags
import pytest

from devices.decoding import with_decoder
from devices.errors import (
    ConnectionFailedError,
    DeviceError,
    StorageFullError,
    TransferFailedError,
    WheelMissingError,
)
from devices.measurement import BenchmarkSettings, Case, ImageInput, SampleFile, benchmark, predict
from devices.transports import open_transport, ssh_agent, ssh_files
from devices.transports.ssh_link import close_links
from tests.ssh_board import BIG, clean_server, cut_at, profile, write_big, write_model
from tests.ssh_server import SshServer
from tests.wheels import write_wheel

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="no OpenSSH client on this machine")

SETTINGS = BenchmarkSettings(min_count=10, min_time_s=0.01, warm_up_count=1, warm_up_time_s=0.0)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    """A server; after the test nothing of ours is left on either side."""
    with clean_server(tmp_path) as running:
        yield running


def test_benchmark(server: SshServer, tmp_path: Path) -> None:
    board = profile(server)
    good, crash = write_model(tmp_path / "m.fake"), write_model(tmp_path / "crash.fake", "crash")
    cases = [Case(id=path.stem, runtime="fake", path=str(path)) for path in (good, crash)]
    result = benchmark(board, cases, SETTINGS)
    assert result.cases[0].error is None
    assert result.cases[0].latency_ms is not None
    assert result.facts["python"] == ".".join(map(str, sys.version_info[:3]))
    error = result.cases[1].error
    assert error is not None
    assert error.kind == "AgentCrashedError"
    assert "was ended by SIGSEGV while it worked on 'load'" in error.message
    assert "tester@127.0.0.1" in error.message
    assert "command: " in error.details
    agents = list((server.root / "agents").glob("[0-9a-f]*"))
    assert len(agents) == 1
    benchmark(board, cases[:1], SETTINGS)
    assert list((server.root / "agents").glob("[0-9a-f]*")) == agents


def test_predictions_of_a_real_runtime_come_back(server: SshServer, tmp_path: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper, save

    weights = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    samples = np.random.default_rng(1).standard_normal((20, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", samples)
    case = Case(id="m", runtime="onnxruntime", path=str(tmp_path / "m.onnx"))
    sample = SampleFile(name="x", path=str(tmp_path / "x.npy"))
    found = predict(profile(server), case, [sample], None, str(tmp_path / "out"))
    outputs = np.load(found.outputs[0].path)
    np.testing.assert_allclose(outputs.reshape(20, 3), samples @ weights, rtol=1e-5, atol=1e-6)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["output_0.npy"]


def test_a_model_and_its_weights_lie_side_by_side(server: SshServer, tmp_path: Path) -> None:
    (tmp_path / "m.xml").write_text("<net/>")
    (tmp_path / "m.bin").write_bytes(b"weights")
    device = open_transport(profile(server))
    path = Path(device.put(str(tmp_path / "m.xml")))
    assert path.with_suffix(".bin").read_bytes() == b"weights"
    assert device.put(str(tmp_path / "m.bin")) == str(path.with_suffix(".bin"))
    for name in ("m.bin", "m.xml"):
        (tmp_path / name).write_bytes(b"others")
        other = Path(device.put(str(tmp_path / "m.xml")))
        assert other.parent != path.parent
        assert other.with_suffix(".bin").read_bytes() == b"others"
        path = other


def test_a_cut_transfer_goes_on_where_it_stopped(
    server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_big(tmp_path / "big.bin")
    offsets = cut_at(monkeypatch, "write", 3, 5)
    path = open_transport(profile(server)).put(str(tmp_path / "big.bin"))
    assert Path(path).read_bytes() == data
    assert offsets == [block * ssh_files._BLOCK_BYTES for block in (0, 1, 2, 2, 3, 3, 4, 5)]
    assert list((server.root / "incoming").iterdir()) == []


def test_a_transfer_that_is_cut_for_good_is_resumed_by_the_next(
    server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_big(tmp_path / "big.bin")
    device = open_transport(profile(server))
    with monkeypatch.context() as patch:
        cut_at(patch, "write", 3, 4, 5)
        with pytest.raises(ConnectionFailedError, match=r"broke during 'write'") as caught:
            device.put(str(tmp_path / "big.bin"))
    assert caught.value.exit_code == 3
    assert list((server.root / "files").iterdir()) == []
    (part,) = (server.root / "incoming").iterdir()
    assert part.stat().st_size == 2 * ssh_files._BLOCK_BYTES
    offsets = cut_at(monkeypatch, "write")
    assert Path(device.put(str(tmp_path / "big.bin"))).read_bytes() == data
    assert offsets[0] == 2 * ssh_files._BLOCK_BYTES


def test_what_a_power_cut_damaged_is_sent_again(server: SshServer, tmp_path: Path) -> None:
    data = write_big(tmp_path / "big.bin")
    sha256 = ssh_files.file_digest(tmp_path / "big.bin")[1]
    (server.root / "incoming").mkdir(parents=True)
    (server.root / "incoming" / sha256).write_bytes(bytes(1_000_000))
    assert Path(open_transport(profile(server)).put(str(tmp_path / "big.bin"))).read_bytes() == data


def test_a_file_that_changes_while_it_is_sent_is_not_accepted(
    server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_big(tmp_path / "big.bin")
    monkeypatch.setattr(ssh_files, "file_digest", lambda _: (BIG, "0" * 64))
    with pytest.raises(TransferFailedError, match=r"big\.bin did not arrive whole"):
        open_transport(profile(server)).put(str(tmp_path / "big.bin"))
    assert list((server.root / "incoming").iterdir()) == []
    assert list((server.root / "files").iterdir()) == []


def test_a_file_comes_back_over_a_cut(server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_big(server.home / "result.npy")
    device = open_transport(profile(server))
    with monkeypatch.context() as patch:
        cut_at(patch, "read", 2, 3, 4)
        with pytest.raises(ConnectionFailedError):
            device.get(str(server.home / "result.npy"), str(tmp_path / "here.npy"))
    assert not (tmp_path / "here.npy").exists()
    offsets = cut_at(monkeypatch, "read", 2)
    device.get(str(server.home / "result.npy"), str(tmp_path / "here.npy"))
    assert (tmp_path / "here.npy").read_bytes() == data
    assert offsets[:3] == [ssh_files._BLOCK_BYTES * block for block in (1, 2, 2)]
    assert {path.name for path in tmp_path.iterdir()} == {"board", "here.npy"}
    with pytest.raises(DeviceError, match="No such file"):
        device.get(str(server.home / "absent"), str(tmp_path / "there"))


def test_a_full_board_keeps_nothing(server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_big(tmp_path / "big.bin")
    device = open_transport(profile(server))
    with monkeypatch.context() as patch:
        patch.setattr(ssh_files, "RESERVE_BYTES", 1 << 60)
        with pytest.raises(StorageFullError, match="MiB must stay free"):
            device.put(str(tmp_path / "big.bin"))
    assert list((server.root / "incoming").iterdir()) == []


def test_a_board_that_fills_up_meanwhile_keeps_nothing(server: SshServer, tmp_path: Path) -> None:
    write_big(tmp_path / "big.bin")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nulimit -f 2048\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    with pytest.raises(StorageFullError, match="they have been removed"):
        open_transport(profile(server, python=str(python))).put(str(tmp_path / "big.bin"))
    assert list((server.root / "incoming").iterdir()) == []


def test_runtimes_are_sent_once_into_an_environment_of_their_own(
    server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESHIP_CACHE", str(tmp_path / "cache"))
    files = {"ai_edge_litert/__init__.py": "", "space/one.py": "", "tool-1.data/scripts/tool": "#!python\n"}
    write_wheel(tmp_path / "house", "ai-edge-litert", "99.0", requires=["tool"], files=files)
    write_wheel(tmp_path / "house", "tool", "1", files={"space/two.py": "", "tool-1.data/scripts/tool": "#!python\n"})
    (server.root / "envs" / ".making-999").mkdir(parents=True)
    board = profile(server, wheelhouse=str(tmp_path / "house"))
    board = board.model_copy(update={"runtimes": {"litert": "ai-edge-litert>=99"}, "preference": ("litert",)})
    with open_transport(board).start_agent() as agent:
        assert agent.request("facts")["runtimes"]["ai-edge-litert"]["version"] == "99.0"
    (environment,) = (path for path in (server.root / "envs").iterdir() if path.name != ".lock")
    assert len(list((tmp_path / "cache" / "wheels" / "files").rglob("*.whl"))) == 2
    assert {path.name for path in (environment / "site-packages" / "space").iterdir()} == {"one.py", "two.py"}
    assert os.access(environment / "bin" / "tool", os.X_OK)
    assert list((server.root / "files").iterdir()) == []
    close_links()
    offsets = cut_at(monkeypatch, "write")
    with open_transport(board).start_agent() as agent:
        assert agent.request("facts")["runtimes"]["ai-edge-litert"]["version"] == "99.0"
    assert offsets == []


def test_a_board_without_room_for_the_runtimes(
    server: SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_wheel(tmp_path / "house", "tiny-rt", "1")
    board = profile(server, wheelhouse=str(tmp_path / "house")).model_copy(update={"runtimes": {"fake": "tiny-rt"}})
    monkeypatch.setattr(ssh_agent, "RESERVE_BYTES", 1 << 60)
    with pytest.raises(StorageFullError):
        open_transport(board).start_agent()
    assert list((server.root / "envs").iterdir()) == []


def test_packages_of_the_user_do_not_mix_with_ours(server: SshServer) -> None:
    """The board's Python runs isolated."""
    packages = server.home / "odd"
    packages.mkdir()
    (packages / "numpy.py").write_text("raise RuntimeError('another numpy')")
    server.environment["PYTHONPATH"] = str(packages)
    with open_transport(profile(server)).start_agent() as agent:
        assert agent.request("hello")["protocol"]


def test_an_agent_looks_for_notes_where_edgeship_lies_on_the_board(server: SshServer) -> None:
    """What a killed agent left is in the board's own directory, whoever starts the next."""
    device = open_transport(profile(server))
    device.put(__file__)
    (server.root / "governors.json").write_text("")
    with device.start_agent() as agent:
        assert agent.request("hello")["mended"] == ""
    assert not (server.root / "governors.json").exists()


@pytest.fixture
def bare_python(tmp_path: Path) -> str:
    """A Python of a board that has numpy and nothing else."""
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)
    packages = Path(sysconfig.get_path("purelib"))
    (there,) = (tmp_path / "bare" / "lib").glob("python3*/site-packages")
    for path in packages.glob("numpy*"):
        (there / path.name).symlink_to(path)
    return str(tmp_path / "bare" / "bin" / "python")


def pillow_wheel(house: Path) -> str:
    """This machine's Pillow as a wheel; its version."""
    found = distribution("pillow")
    tag = next(iter(packaging.tags.sys_tags()))
    house.mkdir()
    with zipfile.ZipFile(house / f"pillow-{found.version}-{tag}.whl", "w") as archive:
        for file in found.files or ():
            if ".." not in file.parts and file.suffix != ".pyc":
                archive.write(str(file.locate()), str(file))
    return found.version


def image_case(tmp_path: Path, suffix: str) -> Case:
    from PIL import Image

    image = tmp_path / f"image{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)).save(image)
    record = {"size": [2, 2], "resize": "stretch", "crop": "none", "interpolation": "bilinear"}
    way = ImageInput(path=str(image), preprocess=record, transform={"dtype": "uint8"})
    return Case(id=suffix, runtime="fake", path=str(write_model(tmp_path / f"model{suffix}.fake")), image=way)


def test_pillow_is_sent_for_an_image_that_needs_it_and_only_then(
    server: SshServer, bare_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESHIP_CACHE", str(tmp_path / "cache"))
    version = pillow_wheel(tmp_path / "house")
    board = profile(server, python=bare_python, wheelhouse=str(tmp_path / "house"))
    board = board.model_copy(update={"runtimes": {"fake": ""}, "preference": ("fake",)})
    for suffix, decoder in ((".ppm", "numpy"), (".jpg", f"Pillow {version}"), (".png", f"Pillow {version}")):
        case = image_case(tmp_path, suffix)
        result = benchmark(with_decoder(board, Path(f"image{suffix}")), [case], SETTINGS).cases[0]
        assert result.error is None
        assert result.end_to_end is not None
        assert result.end_to_end.decoder == decoder
        environments = list((server.root / "envs").glob("[0-9a-f]*"))
        assert len(environments) == (suffix != ".ppm")
    close_links()
    offsets = cut_at(monkeypatch, "write")
    with open_transport(with_decoder(board, Path("image.jpg"))).start_agent() as agent:
        assert agent.request("hello")["protocol"]
    assert offsets == []


def test_a_board_without_a_wheel_of_pillow(
    server: SshServer, bare_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGESHIP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "house").mkdir()
    board = profile(server, python=bare_python, wheelhouse=str(tmp_path / "house"))
    board = board.model_copy(update={"runtimes": {"fake": ""}, "preference": ("fake",)})
    case = image_case(tmp_path, ".jpg")
    with pytest.raises(WheelMissingError, match="pillow has no wheel for") as caught:
        benchmark(with_decoder(board, Path("image.jpg")), [case], SETTINGS)
    assert caught.value.exit_code == 3
    assert "on the board: sudo apt install python3-pil. Or give a binary .ppm" in caught.value.message
    unasked = benchmark(board, [case], SETTINGS).cases[0].error
    assert unasked is not None
    assert unasked.exit_code == 2
    assert "sudo apt install python3-pil" in unasked.message
