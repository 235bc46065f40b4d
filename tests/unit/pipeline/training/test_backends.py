"""Which backend is taken, what falls back is found out, and which errors are about memory."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import InputError, StageError
from pipeline.executor import child_environment
from pipeline.training import backends
from pipeline.training.backends import (
    check_backend,
    device_memory,
    expects_gpu,
    gpu_backends,
    is_out_of_memory,
    jit_compile,
    overlooked_gpu,
    resolve_backend,
    resolve_precision,
)
from pipeline.training.config import Backend


@dataclass(frozen=True)
class Machine:
    """What a machine has, and what `auto` makes of it."""

    id: str
    backend: str
    has_driver: bool = True
    installed: tuple[str, ...] = ("tensorflow",)
    torch: str | None = None
    env: dict[str, str] = field(default_factory=dict)


MACHINES = [
    Machine("no gpu", "tensorflow", has_driver=False, installed=("tensorflow", "jax", "jax-cuda13-plugin")),
    Machine("jax with cuda 13", "jax", installed=("tensorflow", "jax", "jax-cuda13-plugin"), torch="2.13.0+cu130"),
    Machine("jax with cuda 12", "jax", installed=("jax", "jax-cuda12-plugin")),
    Machine("jax without cuda", "tensorflow", installed=("tensorflow", "jax")),
    Machine("torch with cuda", "torch", installed=("tensorflow", "jax"), torch="2.13.0+cu130"),
    Machine("torch without cuda", "tensorflow", torch="2.13.0+cpu"),
    Machine(
        "hidden", "tensorflow", installed=("tensorflow", "jax", "jax-cuda13-plugin"), env={"CUDA_VISIBLE_DEVICES": ""}
    ),
    Machine("hidden by -1", "tensorflow", torch="2.13.0+cu130", env={"CUDA_VISIBLE_DEVICES": "-1"}),
    Machine("the second one", "jax", installed=("jax", "jax-cuda13-plugin"), env={"CUDA_VISIBLE_DEVICES": "1"}),
    Machine(
        "jax told to take the cpu",
        "torch",
        installed=("jax", "jax-cuda13-plugin"),
        torch="2.13.0+cu130",
        env={"JAX_PLATFORMS": "cpu"},
    ),
    Machine("jax told to take cuda", "jax", installed=("jax", "jax-cuda13-plugin"), env={"JAX_PLATFORMS": "cuda,cpu"}),
    Machine("jax alone", "jax", has_driver=False, installed=("jax",)),
    Machine("nothing", "tensorflow", has_driver=False, installed=()),
]


def pretend(machine: Machine, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "dev").mkdir(exist_ok=True)
    if machine.has_driver:
        (folder / "dev" / "nvidia0").touch()
    monkeypatch.setattr(backends, "_DEVICES", folder / "dev")
    for name in ("CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in machine.env.items():
        monkeypatch.setenv(name, value)

    class Distribution:
        version = machine.torch

        def locate_file(self, path: str) -> Path:
            return folder / path

    def distribution(name: str) -> Any:
        if name == "torch" and machine.torch:
            return Distribution()
        if name in machine.installed:
            return Distribution()
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: distribution(name) and "1.0")
    backends._is_installed.cache_clear()
    known = {*machine.installed, *(["torch"] if machine.torch else [])}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in known else None)


@pytest.fixture(autouse=True)
def forget() -> Any:
    yield
    backends._is_installed.cache_clear()


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.id)
def test_auto_takes_jax_then_torch_where_they_have_a_gpu(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(machine, monkeypatch, tmp_path)
    assert resolve_backend("auto") == machine.backend
    assert resolve_backend("torch") == "torch", "what the recipe names is taken"


@pytest.mark.parametrize(
    ("machine", "on_gpu"),
    [
        ("no gpu", set()),
        ("hidden", set()),
        ("jax with cuda 13", {"jax", "torch", "tensorflow"}),
        ("jax told to take the cpu", {"torch", "tensorflow"}),
        ("jax without cuda", {"tensorflow"}),
    ],
)
def test_what_counts_as_a_training_on_a_gpu(
    machine: str, on_gpu: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(next(known for known in MACHINES if known.id == machine), monkeypatch, tmp_path)
    backends_of_keras: tuple[Backend, ...] = ("jax", "torch", "tensorflow")
    assert {backend for backend in backends_of_keras if expects_gpu(backend)} == on_gpu


def test_torch_of_a_registry_without_local_versions_is_looked_into(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(Machine("", "", installed=(), torch="2.13.0"), monkeypatch, tmp_path)
    assert gpu_backends() == ()
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    (tmp_path / "torch" / "lib" / "libtorch_cuda.so").touch()
    assert gpu_backends() == ("torch",)


def test_nothing_heavy_is_loaded() -> None:
    code = (
        "import sys; from pipeline.training.backends import resolve_backend; resolve_backend('auto'); "
        "from pipeline.training.distribution import read_cluster; read_cluster(); "
        "sys.exit(', '.join({'jax', 'keras', 'tensorflow', 'torch', 'grain'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=child_environment("jax"),
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not done.returncode, done.stderr


def test_a_fall_back_to_the_cpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    backend = keras.backend.backend()
    check_backend(backend, "auto")
    monkeypatch.setattr(backends, "gpu_backends", lambda: (backend,))
    monkeypatch.setattr(backends, "accelerator", lambda: None)
    with pytest.raises(StageError, match=r"train\.backend is auto .* would train on the CPU"):
        check_backend(backend, "auto")
    with pytest.raises(StageError, match=f"train.backend is {backend} .* CUDA_VISIBLE_DEVICES=-1"):
        check_backend(backend, backend)
    monkeypatch.setattr(backends, "accelerator", lambda: {"name": "NVIDIA H200"})
    check_backend(backend, "auto")


def test_another_backend_than_planned_is_an_error() -> None:
    import keras

    other: Any = "jax" if keras.backend.backend() != "jax" else "torch"
    with pytest.raises(StageError, match=f"the training was planned for {other}"):
        check_backend(other, "auto")


def test_a_gpu_that_nobody_uses_is_worth_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "accelerator", lambda: None)
    monkeypatch.setattr(backends, "gpu_backends", lambda: ("jax",))
    monkeypatch.setattr(backends, "has_gpu", lambda: True)
    assert overlooked_gpu("jax") is None
    assert "Install the extra gpu" in str(overlooked_gpu("tensorflow"))
    monkeypatch.setattr(backends, "has_gpu", lambda: False)
    assert overlooked_gpu("tensorflow") is None


@dataclass(frozen=True)
class Card:
    capability: float | None
    auto: str
    refused: tuple[str, ...] = ()


@pytest.mark.parametrize(
    "card",
    [
        Card(9.0, "bfloat16"),
        Card(8.0, "bfloat16"),
        Card(7.5, "float16", ("bfloat16",)),
        Card(6.1, "float32", ("bfloat16",)),
        Card(5.2, "float32", ("bfloat16", "float16")),
        Card(None, "bfloat16"),
    ],
    ids=lambda card: str(card.capability),
)
def test_precision_goes_by_the_card(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"name": "a card", "compute_capability": card.capability}
    monkeypatch.setattr(backends, "_accelerator_of", lambda _: facts)
    assert resolve_precision("auto", "jax") == card.auto
    for precision in ("float32", "float16", "bfloat16"):
        if precision in card.refused:
            with pytest.raises(InputError, match=f"train.precision is {precision}, but a card has compute capability"):
                resolve_precision(precision, "jax")
        else:
            assert resolve_precision(precision, "jax") == precision


def test_a_cpu_computes_in_float32_and_tensorflow_without_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_accelerator_of", lambda _: None)
    assert resolve_precision("auto", "tensorflow") == "float32"
    assert resolve_precision("bfloat16", "tensorflow") == "bfloat16"
    assert jit_compile("auto", "tensorflow") is False
    assert jit_compile("auto", "jax") is True
    assert jit_compile("auto", "torch") is False
    assert jit_compile(True, "tensorflow") is True
    monkeypatch.setattr(backends, "_accelerator_of", lambda _: {"name": "a card"})
    assert jit_compile("auto", "tensorflow") is True


@pytest.mark.parametrize(
    ("name", "bandwidth"),
    [
        ("NVIDIA H200", 4800.0),
        ("NVIDIA H100 80GB HBM3", 3350.0),
        ("NVIDIA H100 PCIe", 2000.0),
        ("NVIDIA A100-SXM4-80GB", 2039.0),
        ("NVIDIA A100-SXM4-40GB", 1555.0),
        ("Tesla V100-SXM2-16GB", 900.0),
        ("Tesla T4", 320.0),
        ("NVIDIA L4", 300.0),
        ("NVIDIA L40S", 864.0),
        ("NVIDIA A10G", 600.0),
        ("NVIDIA GeForce RTX 4090", 1008.0),
        ("NVIDIA L400", None),
        ("NVIDIA T400", None),
        ("Radeon", None),
    ],
)
def test_bandwidth_by_name(name: str, bandwidth: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_jax_accelerator", lambda: {"name": name})
    facts = backends._accelerator_of("jax")
    assert facts is not None
    assert facts["bandwidth_gb_per_s"] == bandwidth


def test_memory_of_a_cpu_is_that_of_the_process() -> None:
    memory = device_memory()
    kept = np.ones(64 * 2**20, np.uint8)
    more = device_memory()
    assert more["in_use_bytes"] - memory["in_use_bytes"] > kept.nbytes // 2
    assert more["peak_bytes"] >= more["in_use_bytes"] > 2**24
    assert more["limit_bytes"] > more["peak_bytes"]


class XlaRuntimeError(RuntimeError):
    pass


class ResourceExhaustedError(Exception):
    pass


class OutOfMemoryError(RuntimeError):
    pass


OUT_OF_MEMORY = [
    XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 35433480192 bytes."),
    XlaRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 107374182400 bytes."),
    XlaRuntimeError(
        "RESOURCE_EXHAUSTED: Failed to allocate request for 16.00GiB (17179869184B) on device ordinal 0: "
        "BufferAssignment OOM Debugging."
    ),
    XlaRuntimeError("INTERNAL: Failed to allocate 2147483648 bytes for new constant: CUDA_ERROR_OUT_OF_MEMORY"),
    ResourceExhaustedError(
        "{{function_node __wrapped__Conv2D_device_/job:localhost/replica:0/task:0/device:GPU:0}} OOM when allocating "
        "tensor with shape[1024,512,112,112] and type float on /job:localhost/replica:0/task:0/device:GPU:0 by "
        "allocator GPU_0_bfc [Op:Conv2D] name:"
    ),
    ResourceExhaustedError("Graph execution error: failed to allocate memory [[{{node StatefulPartitionedCall}}]]"),
    OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 15.89 GiB of which 14.55 GiB "
        "is free."
    ),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,) and data type float64"),
    MemoryError(),
]

OTHERS = [
    XlaRuntimeError("RESOURCE_EXHAUSTED: Received message larger than max (5000000 vs. 4194304)"),
    XlaRuntimeError("INVALID_ARGUMENT: Run-time shape mismatch"),
    XlaRuntimeError("INTERNAL: Failed to execute XLA Runtime executable: run time error: custom call 'xla.gpu' failed"),
    OSError(28, "No space left on device"),
    RuntimeError("CUDA error: device-side assert triggered"),
    ValueError(
        "Input 0 of layer dense is incompatible with the layer: expected axis -1 of input shape to have value 4"
    ),
    KeyError("memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: f"{type(error).__name__} {error}"[:60])
def test_errors_about_memory(error: BaseException) -> None:
    assert is_out_of_memory(error)
    wrapped = StageError("the step failed")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped), "what Keras or we made of it"


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: f"{type(error).__name__} {error}"[:60])
def test_errors_about_something_else(error: BaseException) -> None:
    assert not is_out_of_memory(error)


PROVOKE = """
import sys
import keras
from pipeline.training.backends import is_out_of_memory

row = keras.ops.ones((2**21,))
try:
    made = keras.ops.outer(row, row)  # 16 TiB
    getattr(made, "block_until_ready", lambda: None)()
except BaseException as error:
    print(type(error).__name__, str(error)[:300])
    sys.exit(0 if is_out_of_memory(error) else 3)
sys.exit(4)
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_memory_that_really_runs_out(backend: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROVOKE],
        env=child_environment(backend) | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
        check=False,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
