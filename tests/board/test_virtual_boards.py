"""Everything that is done with a board, on emulated ones, through SSH. `make test-board` builds them and runs this.

The boards are slow: few cases, few images, few inferences.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from devices.compiled import Form
from devices.compiling import compile_on, compiled_case
from devices.decoding import with_decoder
from devices.errors import WheelMissingError
from devices.measurement import BenchmarkSettings, Case, ImageInput, SampleFile, benchmark, predict, profile_case
from devices.profile import DeviceProfile, load_profile
from devices.transports import open_transport
from devices.transports.ssh_link import close_links
from devices.virtual import plan
from devices.virtual.control import find_running, start_board, stop_board
from pipeline.compilation import compile_file
from tests.board.conftest import CACHE, FILES, on_board
from tests.conftest import ROOT

FEW = BenchmarkSettings(
    warm_up_count=1, warm_up_time_s=0.0, min_count=10, min_time_s=0.0, settle_count=0, settle_time_s=0.0
)

# Starting Python, importing a runtime and loading a model take ten times as long as on hardware.
pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("boards")]


class Running(NamedTuple):
    id: str
    device: str
    runtime: str
    package: str
    precision: str


RUNNING = [
    Running(f"{architecture}-{runtime}-{precision}", f"virtual-{architecture}", runtime, package, precision)
    for architecture, runtime, package in (
        ("arm64", "litert", "ai-edge-litert"),
        ("arm64", "onnxruntime", "onnxruntime"),
        ("arm64", "openvino", "openvino"),
        ("armhf", "litert", "tflite-runtime"),
    )
    for precision in ("float32", "int8")
]


@pytest.mark.parametrize("board", plan.BOARDS.values(), ids=lambda board: board.architecture)
def test_what_answers_is_a_program_for_arm(board: plan.VirtualBoard) -> None:
    assert on_board(board, "uname -m; hostname").split() == [board.machine, board.host_name]
    shell, server = on_board(
        board, "head -c 20 /bin/bash | od -An -tx1; head -c 20 /usr/sbin/sshd | od -An -tx1"
    ).split("7f 45 4c 46")[1:]
    elf_machine = {"arm64": "b7 00", "armhf": "28 00"}[board.architecture]
    assert shell.strip().endswith(elf_machine)
    assert server.strip().endswith(elf_machine)


@pytest.mark.parametrize("board", plan.BOARDS.values(), ids=lambda board: board.architecture)
def test_the_processor_it_shows_is_the_one_that_is_emulated(board: plan.VirtualBoard) -> None:
    """AT_HWCAP is what the emulator tells each program; the bits are those of Linux's hwcap.h in their order."""
    names = {
        "arm64": "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc "
        "dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm",
        "armhf": "swp half thumb 26bit fastmult fpa vfp edsp java iwmmxt crunch thumbee neon vfpv3 vfpv3d16 tls vfpv4 "
        "idiva idivt vfpd32 lpae evtstrm",
    }[board.architecture].split()
    ask = "import ctypes; c = ctypes.CDLL(None); c.getauxval.restype = ctypes.c_ulong; print(c.getauxval(16))"
    bits = int(on_board(board, f"python3 -c '{ask}'"))
    assert [name for index, name in enumerate(names) if bits >> index & 1] == board.cpu_features.split()
    assert f"Features\t: {board.cpu_features}\n" in on_board(board, "cat /proc/cpuinfo")


@pytest.mark.parametrize("name", [f"virtual-{architecture}" for architecture in plan.BOARDS])
def test_runtimes_arrive_and_facts_match_the_profile(name: str, profiles: dict[str, DeviceProfile]) -> None:
    profile = profiles[name]
    with open_transport(profile).start_agent() as agent:
        facts = agent.request("facts", timeout_s=120.0)
    assert {found["runtime"] for found in facts["runtimes"].values()} == set(profile.runtimes)
    assert facts["architecture"] == profile.architecture
    assert set(profile.cpu_features or ()) <= set(facts["cpu_features"])
    assert {"virtual-arm64": "Cortex-A76", "virtual-armhf": "Cortex-A7"}[name] in facts["cpu_model"]
    assert facts["os"] == profile.os
    assert facts["python"].startswith("3.11.")
    assert facts["libc"] == "glibc 2.36"
    assert facts["governor"] is None


@pytest.mark.parametrize("running", RUNNING, ids=lambda running: running.id)
def test_it_answers_as_this_machine_does(
    running: Running, profiles: dict[str, DeviceProfile], network: Path, tmp_path: Path
) -> None:
    file = network / "mobilenet_v2" / running.runtime / running.precision / FILES[running.runtime]
    case = Case(id=running.id, runtime=running.runtime, path=str(file))
    images, labels = [SampleFile(path=str(network / "images.npy"))], str(network / "labels.npy")
    outputs = {}
    for place, profile in {"here": load_profile("local"), "there": profiles[running.device]}.items():
        prediction = predict(profile, case, images, labels, str(tmp_path / place))
        outputs[place] = np.load(prediction.outputs[0].path)
    assert running.package.replace("-", "_") in str(prediction.model["package"]).replace("-", "_")
    assert prediction.correct == np.sum(outputs["there"].argmax(1) == np.load(labels))
    reach = np.ptp(outputs["here"])
    assert np.ptp(outputs["here"], axis=0).max() > 0.1 * reach > 0
    # ONNX Runtime and OpenVINO calculate int8 by other instructions on ARM, tflite-runtime by its own rounding.
    limit = {"float32": 1e-4, "int8": 0.1}[running.precision]
    assert np.sqrt(np.mean((outputs["there"] - outputs["here"]) ** 2)) <= limit * reach


class Compiling(NamedTuple):
    id: str
    form: Form
    runtime: str
    precision: str
    level: str = "all"


COMPILING = [
    Compiling("xnnpack_cache-float32", "xnnpack_cache", "litert", "float32"),
    Compiling("xnnpack_cache-int8", "xnnpack_cache", "litert", "int8"),
    Compiling("ort-float32-all", "ort", "onnxruntime", "float32"),
    Compiling("ort-int8-all", "ort", "onnxruntime", "int8"),
    Compiling("ort-float32-extended", "ort", "onnxruntime", "float32", "extended"),
    Compiling("openvino_blob-int8", "openvino_blob", "openvino", "int8"),
]


@pytest.mark.parametrize("compiling", COMPILING, ids=lambda compiling: compiling.id)
def test_it_compiles_and_runs_what_it_compiled(
    compiling: Compiling, profiles: dict[str, DeviceProfile], network: Path, tmp_path: Path
) -> None:
    board, file = profiles["virtual-arm64"], network / "mobilenet_v2" / compiling.runtime / compiling.precision
    plain = Case(id="plain", runtime=compiling.runtime, path=str(file / FILES[compiling.runtime]))
    manifest = compile_on(board, plain, compiling.form, tmp_path, level=compiling.level)
    case = compiled_case(tmp_path / manifest.files[0].name, manifest, label="compiled")
    outputs = {each.id: answers(board, each, network, tmp_path / each.id) for each in (plain, case)}
    if compiling.level == "all":
        assert np.array_equal(outputs["compiled"], outputs["plain"])
        assert manifest.processor.architecture == "aarch64"
        assert manifest.processor.cpu_features
    else:
        assert manifest.processor.architecture is None
        np.testing.assert_allclose(outputs["compiled"], outputs["plain"], atol=0.05 * np.ptp(outputs["plain"]))
    refused = benchmark(load_profile("local"), [case], FEW).cases[0].error
    same_version = manifest.version == version(manifest.package)
    assert (refused is None) == (compiling.level != "all" and same_version)
    if refused is not None:
        assert (refused.kind, refused.exit_code) == ("CompiledMisfitError", 2)
        by_processor = "it was made for aarch64, and the device is x86_64" in refused.message
        assert by_processor == (compiling.level == "all")
    measured = benchmark(board, [case], FEW)
    assert measured.latency_label == "simulated"
    assert (measured.cases[0].error, measured.cases[0].compiled) == (None, compiling.form)


def test_what_this_machine_compiled_is_not_sent_there(
    profiles: dict[str, DeviceProfile], network: Path, fresh_directory: str, tmp_path: Path
) -> None:
    plain = Case(id="plain", runtime="litert", path=str(network / "mobilenet_v2/litert/int8/model.tflite"))
    manifest = compile_on(load_profile("local"), plain, "xnnpack_cache", tmp_path)
    case = compiled_case(tmp_path / manifest.files[0].name, manifest, label="compiled")
    board = plan.BOARDS["arm64"]
    listing = f"ls -1R {fresh_directory}/files {fresh_directory}/incoming | sort"
    before = on_board(board, listing)
    error = benchmark(profiles["virtual-arm64"], [case], FEW).cases[0].error
    assert error is not None
    assert (error.kind, error.exit_code) == ("CompiledMisfitError", 2)
    assert "it was made for x86_64, and the device is aarch64" in error.message
    assert on_board(board, listing) == before


def test_what_suits_every_processor_is_made_here_and_runs_there(
    profiles: dict[str, DeviceProfile], network: Path, tmp_path: Path
) -> None:
    board, path = profiles["virtual-arm64"], network / "mobilenet_v2/onnxruntime/float32/model.onnx"
    same = {"onnxruntime": f"onnxruntime=={version('onnxruntime')}"}
    board = board.model_copy(update={"runtimes": same, "preference": ("onnxruntime",)})
    (tmp_path / "out").mkdir()
    manifest = compile_file(path, board, tmp_path / "out", form="ort", here=True, tell=lambda _: None)
    assert (manifest.made_on, manifest.device, manifest.level) == ("host", "virtual-arm64", "extended")
    case = compiled_case(tmp_path / "out" / manifest.files[0].name, manifest, label="compiled")
    found = answers(board, case, network, tmp_path / "there")
    wanted = answers(board, Case(id="plain", runtime="onnxruntime", path=str(path)), network, tmp_path / "plain")
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.ptp(wanted))


def answers(profile: DeviceProfile, case: Case, network: Path, out: Path) -> Any:
    images = [SampleFile(path=str(network / "images.npy"))]
    return np.load(predict(profile, case, images, None, str(out)).outputs[0].path)


def test_the_time_of_each_layer_that_litert_runs(profiles: dict[str, DeviceProfile], network: Path) -> None:
    case = Case(id="int8", runtime="litert", path=str(network / "mobilenet_v2/litert/int8/model.tflite"))
    found = profile_case(profiles["virtual-arm64"], case, count=2)
    assert found["reason"] is None
    assert {kernel["where"] for kernel in found["kernels"]} >= {"XNNPACK"}
    assert 0 < sum(kernel["ms"] for kernel in found["kernels"]) <= found["inference_ms"]
    found = profile_case(profiles["virtual-armhf"], case, count=2)
    assert found["kernels"] is None
    assert "tflite-runtime 2.14.0 has no profiler" in found["reason"]


def test_a_jpeg_is_decoded_there_as_here(
    profiles: dict[str, DeviceProfile], network: Path, fresh_directory: str, tmp_path: Path
) -> None:
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8).repeat(9, 0).repeat(9, 1)
    Image.fromarray(picture).save(tmp_path / "image.jpg", quality=70)
    record = {"size": [64, 64], "resize": "stretch", "crop": "none", "interpolation": "bilinear"}
    way = ImageInput(path=str(tmp_path / "image.jpg"), preprocess=record, transform={"dtype": "uint8"})
    path = str(network / "mobilenet_v2/litert/int8/model.tflite")
    case = Case(id="int8", runtime="litert", path=path, image=way)
    board = with_decoder(profiles["virtual-arm64"], Path("image.jpg"))
    measured = benchmark(board, [case], FEW).cases[0]
    assert measured.error is None
    assert measured.end_to_end is not None
    assert measured.end_to_end.decoder == f"Pillow {version('pillow')}"
    there = open_transport(board).put(str(tmp_path / "image.jpg"))
    program = (
        "import glob, hashlib, sys; "
        f"sys.path[:0] = glob.glob('{fresh_directory}/envs/*/site-packages'); from PIL import Image; "
        f"print(hashlib.sha256(Image.open('{there}').convert('RGB').tobytes()).hexdigest())"
    )
    here = hashlib.sha256(Image.open(tmp_path / "image.jpg").convert("RGB").tobytes()).hexdigest()
    assert on_board(plan.BOARDS["arm64"], f'python3 -c "{program}"').strip() == here


def test_where_pillow_has_no_wheel_the_command_is_named(profiles: dict[str, DeviceProfile]) -> None:
    board = with_decoder(profiles["virtual-armhf"], Path("image.jpg"))
    with pytest.raises(WheelMissingError, match=r"pillow has no wheel for armv7l .* sudo apt install python3-pil"):
        open_transport(board).start_agent()


@pytest.mark.parametrize("name", [f"virtual-{architecture}" for architecture in plan.BOARDS])
def test_its_latencies_are_simulated(name: str, profiles: dict[str, DeviceProfile], network: Path) -> None:
    case = Case(id="int8", runtime="litert", path=str(network / "mobilenet_v2/litert/int8/model.tflite"))
    result = benchmark(profiles[name], [case], FEW)
    (measured,) = result.cases
    assert measured.error is None
    assert measured.latency_ms is not None
    assert measured.latency_ms.count >= FEW.min_count
    assert result.latency_label == "simulated"


def test_the_command_line_starts_the_board_it_needs(network: Path) -> None:
    files = plan.board_files(plan.BOARDS["armhf"], CACHE)
    close_links()
    stop_board(files)
    done = edgeship("bench", str(network / "mobilenet_v2/litert/float32/model.tflite"), "--device", "virtual-armhf",
                    "--min-count", "10", "--min-time", "0", "--precision", "0", "--json",
                    "--results", str(network / "results.jsonl"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["latency_label"] == "simulated"
    running = find_running(files)
    assert running is not None
    assert running.idle_s is not None


def test_a_stopped_board_leaves_nothing() -> None:
    board = plan.BOARDS["arm64"]
    stop_board(plan.board_files(board, CACHE))
    running = start_board(board, CACHE)
    sleeper = subprocess.Popen(
        [*plan.login_command(running.files, running.port), "setsid sleep 4321 & sleep 4321"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: sum("4321" in command for command in processes_below(running.files.root)) >= 2)
    assert str(running.files.root) not in Path("/proc/self/mounts").read_text()
    assert stop_board(running.files)
    sleeper.wait(timeout=30)
    assert processes_below(running.files.root) == []
    assert find_running(running.files) is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", running.port), timeout=5)
    assert not stop_board(running.files)


def test_a_board_that_nobody_uses_ends() -> None:
    board = plan.BOARDS["armhf"]
    stop_board(plan.board_files(board, CACHE))
    running = start_board(board, CACHE, idle_s=3.0)
    assert start_board(board, CACHE, idle_s=3.0).pid == running.pid
    wait_until(lambda: find_running(running.files) is None)
    wait_until(lambda: not processes_below(running.files.root))  # the first has gone, and the kernel ends the others


def edgeship(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip


def processes_below(root: Path) -> list[str]:
    """The command lines of processes whose root directory is a board's."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if (process / "root").readlink() == root:
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # it has just ended
    return found


def wait_until(condition: Any, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
