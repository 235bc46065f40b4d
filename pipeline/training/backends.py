"""The Keras backend of a training, and what it runs on: this module alone knows JAX, PyTorch and TensorFlow apart.

`resolve_backend` and `gpu_backends` look for files and installed distributions and load nothing, because they run in
cached runs too. All else belongs into the process that trains, after Keras has loaded its backend.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from devices.board.memory import peak_memory, resident_memory_mb
from pipeline.errors import InputError, StageError
from pipeline.training.config import Backend

BackendChoice = Literal["auto", "tensorflow", "jax", "torch"]
Precision = Literal["float32", "bfloat16", "float16"]

_MIB = 2**20
_DEVICES = Path("/dev")
_DEVICE_FILES = ("nvidia[0-9]*", "dxg")
"""In /dev, of the NVIDIA driver on Linux; the last one under Windows' subsystem for Linux."""

_JAX_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")

_BANDWIDTH_GB_PER_S = {
    "B200": 8000.0,
    "H200": 4800.0,
    "H100 NVL": 3900.0,
    "H100 PCIe": 2000.0,
    "H100": 3350.0,
    "A100-SXM4-80GB": 2039.0,
    "A100 80GB PCIe": 1935.0,
    "A100": 1555.0,
    "L40S": 864.0,
    "L4": 300.0,
    "A10G": 600.0,
    "A10": 600.0,
    "V100": 900.0,
    "T4": 320.0,
    "RTX 5090": 1792.0,
    "RTX 4090": 1008.0,
    "RTX 3090": 936.0,
}
"""Memory bandwidth in GB/s by NVIDIA's data sheets; the first name that a card's own contains holds."""

_ALWAYS_MEMORY = re.compile(
    r"\bCUDA_ERROR_OUT_OF_MEMORY\b|\bCUDNN_STATUS_ALLOC_FAILED\b|\bCUBLAS_STATUS_ALLOC_FAILED\b|"
    r"CUDA out of memory|CUDA error: out of memory|HIP out of memory|MPS backend out of memory|"
    r"DefaultCPUAllocator: (?:can't|not enough memory)|\bOOM when allocating\b|"
    r"[Oo]ut of memory (?:while trying|allocating)|"
    r"Unable to allocate [\d.]+ [KMGT]iB|Failed to allocate (?:memory|request for)|std::bad_alloc"
)
_EXHAUSTED = re.compile(r"RESOURCE_EXHAUSTED|ResourceExhausted")
_ABOUT_MEMORY = re.compile(r"out of memory|\bOOM\b|alloc", re.IGNORECASE)


def resolve_backend(choice: BackendChoice) -> Backend:
    """Returns the backend that a choice stands for, without loading any.

    `auto` takes JAX, then PyTorch, where this machine has a GPU and the installed build can use it; else TensorFlow,
    or what there is where TensorFlow is not installed.
    """
    if choice != "auto":
        return choice
    for backend in gpu_backends():
        return backend
    order: tuple[Backend, ...] = ("tensorflow", "jax", "torch")
    return next((backend for backend in order if importlib.util.find_spec(backend) is not None), "tensorflow")


def gpu_backends() -> tuple[Backend, ...]:
    """Returns the backends that should find a GPU here, best first; none where there is no GPU they may use."""
    if not has_gpu():
        return ()
    found: list[Backend] = []
    platforms = os.environ.get("JAX_PLATFORMS", "")
    wanted = {name.strip().lower() for name in platforms.split(",") if name.strip()}
    if (not wanted or wanted & {"cuda", "gpu"}) and _is_installed("jax") and any(map(_is_installed, _JAX_PLUGINS)):
        found.append("jax")
    if _torch_has_cuda():
        found.append("torch")
    return tuple(found)


def expects_gpu(backend: Backend) -> bool:
    """Whether a training on a backend counts as one on a GPU in the key of its artifact, without loading any.

    Whether TensorFlow can use a GPU is known only once it is loaded, so there it counts where the machine has one.
    """
    return has_gpu() if backend == "tensorflow" else backend in gpu_backends()


def has_gpu() -> bool:
    """Whether the driver of an NVIDIA GPU is loaded and the environment hides none of its GPUs."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and (not visible.strip() or visible.split(",")[0].strip().startswith(("-", "NoDev"))):
        return False
    return any(True for pattern in _DEVICE_FILES for _ in _DEVICES.glob(pattern))


def overlooked_gpu(backend: Backend) -> str | None:
    """Returns a warning where this machine has a GPU that the backend can't use; None where nothing is wasted."""
    if backend == "tensorflow" and accelerator() is not None:
        return None
    if not has_gpu() or backend in gpu_backends():
        return None
    return (
        f"This machine has an NVIDIA GPU, but {backend} is installed without CUDA and trains on the CPU. Install the "
        f"extra gpu (JAX with CUDA), or hide the GPU with CUDA_VISIBLE_DEVICES=-1."
    )


@contextlib.contextmanager
def loads_keras(backend: Backend) -> Iterator[None]:
    """Says what to do where Keras, or the backend that it is to run on, is not installed.

    Raises:
        StageError: An import within failed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise StageError(
            f"train.backend is {backend}, but {error.name} is not installed. Install it, or set train.backend to "
            f"tensorflow."
        ) from error


def check_backend(backend: Backend, choice: BackendChoice) -> None:
    """Checks, in the process that trains, that the backend is loaded and sees the GPU that it was chosen for.

    Args:
        backend: That `resolve_backend` gave.
        choice: What the recipe says.

    Raises:
        StageError: Keras runs on another backend, or it fell back to the CPU.
    """
    import keras

    running = keras.backend.backend()
    if running != backend:
        raise StageError(
            f"Keras runs on {running}, but the training was planned for {backend}. Set KERAS_BACKEND={backend}, or "
            f"leave it out: Edgeship sets it for the processes it starts."
        )
    if backend in gpu_backends() and accelerator() is None:
        asked = "train.backend is auto and" if choice == "auto" else f"train.backend is {choice} and"
        raise StageError(
            f"{asked} this machine has an NVIDIA GPU with {backend} built for CUDA, but {backend} found none and would "
            f"train on the CPU{_reason(backend)}. Check the driver with nvidia-smi and that its version fits the "
            f"installed CUDA; to train on the CPU, hide the GPU with CUDA_VISIBLE_DEVICES=-1."
        )


def resolve_precision(choice: Literal["auto"] | Precision, backend: Backend) -> Precision:
    """Returns the precision of the arithmetic.

    `auto` takes bfloat16 on a GPU that computes in it (NVIDIA's compute capability 8.0), float16 on one with tensor
    cores for that alone (7.0), else float32.

    Raises:
        InputError: The GPU has no arithmetic of this precision, and would emulate it slowly.
    """
    facts = _accelerator_of(backend)
    capability = facts.get("compute_capability") if facts else None
    if choice == "auto":
        if facts is None:
            return "float32"
        if capability is None or capability >= 8.0:
            return "bfloat16"
        return "float16" if capability >= 7.0 else "float32"
    needed = {"float32": 0.0, "float16": 5.3, "bfloat16": 8.0}[choice]
    if facts is not None and capability is not None and capability < needed:
        raise InputError(
            f"train.precision is {choice}, but {facts['name']} has compute capability {capability:g} and {choice} "
            f"needs {needed:g}. Set train.precision to auto."
        )
    return choice


def jit_compile(choice: Literal["auto"] | bool, backend: Backend) -> bool | Literal["auto"]:
    """Returns Keras' `jit_compile`.

    `auto` compiles with XLA on JAX, and on TensorFlow where it has a GPU. On the CPU, XLA makes TensorFlow slower
    (docs/decisions/0010). On PyTorch it leaves the step as it is: Keras compiles there with `torch.compile`, which
    needs a C++ compiler on the machine.
    """
    if choice != "auto":
        return choice
    if backend == "jax":
        return True
    return backend == "tensorflow" and _accelerator_of(backend) is not None


def accelerator() -> dict[str, Any] | None:
    """Returns facts of the accelerator that the loaded backend computes on; None on a CPU.

    Returns:
        `name`, `count` (of this process), `memory_bytes` (that the backend may use of one, None where it does not
        tell), `compute_capability` (of NVIDIA, such as 9.0, else None) and `bandwidth_gb_per_s` (by its data sheet,
        None where it is not known).
    """
    import keras

    return _accelerator_of(keras.backend.backend())


def device_memory() -> dict[str, int]:
    """Returns what this process has of its device's memory: `in_use_bytes`, `peak_bytes`, `limit_bytes`.

    On a CPU these are the process's resident memory and the machine's. What the backend does not tell is missing.
    """
    import keras

    backend = keras.backend.backend()
    if _accelerator_of(backend) is None:
        return _host_memory()
    if backend == "jax":
        import jax

        return _renamed(
            jax.local_devices()[0].memory_stats() or {},
            in_use_bytes="bytes_in_use",
            peak_bytes="peak_bytes_in_use",
            limit_bytes="bytes_limit",
        )
    if backend == "torch":
        import torch

        if not torch.cuda.is_available():
            return {}
        return {
            "in_use_bytes": int(torch.cuda.memory_allocated()),
            "peak_bytes": int(torch.cuda.max_memory_allocated()),
            "limit_bytes": int(torch.cuda.mem_get_info()[1]),
        }
    import tensorflow as tf

    return _renamed(tf.config.experimental.get_memory_info("GPU:0"), in_use_bytes="current", peak_bytes="peak")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one it came from, says that memory was too small: of any backend, device or host."""
    return any(isinstance(cause, MemoryError) or _says_out_of_memory(cause) for cause in _causes(error))


def _says_out_of_memory(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    if "OutOfMemoryError" in names:  # torch's, of all its accelerators
        return True
    text = str(error)
    if _ALWAYS_MEMORY.search(text):
        return True
    # RESOURCE_EXHAUSTED is also what gRPC says of a message that is too long.
    exhausted = "ResourceExhaustedError" in names or _EXHAUSTED.search(text) is not None
    return exhausted and _ABOUT_MEMORY.search(text) is not None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        found = waiting.pop()
        if found is not None and id(found) not in seen:
            seen.add(id(found))
            yield found
            waiting += [found.__cause__, found.__context__]


def _accelerator_of(backend: str) -> dict[str, Any] | None:
    found = {"jax": _jax_accelerator, "torch": _torch_accelerator, "tensorflow": _tensorflow_accelerator}[backend]()
    if found is None:
        return None
    name = str(found["name"])
    known = next((value for part, value in _BANDWIDTH_GB_PER_S.items() if _names(name, part)), None)
    return {**found, "bandwidth_gb_per_s": known}


def _names(name: str, part: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(part)}(?![0-9])", name, re.IGNORECASE) is not None


def _jax_accelerator() -> dict[str, Any] | None:
    import jax

    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return None
    memory = devices[0].memory_stats() or {}
    return {
        "name": str(devices[0].device_kind),
        "count": len(devices),
        "memory_bytes": memory.get("bytes_limit"),
        "compute_capability": _number(getattr(devices[0], "compute_capability", None)),
    }


def _torch_accelerator() -> dict[str, Any] | None:
    import torch

    if not torch.cuda.is_available():
        if getattr(torch.backends, "mps", None) is not None and torch.backends.mps.is_available():
            return {"name": "Apple GPU", "count": 1, "memory_bytes": None, "compute_capability": None}
        return None
    major, minor = torch.cuda.get_device_capability(0)
    return {
        "name": str(torch.cuda.get_device_name(0)),
        "count": int(torch.cuda.device_count()),
        "memory_bytes": int(torch.cuda.mem_get_info(0)[1]),
        "compute_capability": float(f"{major}.{minor}"),
    }


def _tensorflow_accelerator() -> dict[str, Any] | None:
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    if not devices:
        return None
    details = tf.config.experimental.get_device_details(devices[0])
    capability = details.get("compute_capability")
    return {
        "name": str(details.get("device_name", "GPU")),
        "count": len(devices),
        "memory_bytes": None,
        "compute_capability": float(f"{capability[0]}.{capability[1]}") if capability else None,
    }


def _host_memory() -> dict[str, int]:
    found = {"in_use_bytes": resident_memory_mb(), "peak_bytes": peak_memory()["peak_memory_mb"]}
    memory = {name: int(value * _MIB) for name, value in found.items() if value is not None}
    try:
        memory["limit_bytes"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return memory
    return memory


def _renamed(values: Mapping[str, Any], **names: str) -> dict[str, int]:
    return {name: int(values[theirs]) for name, theirs in names.items() if values.get(theirs) is not None}


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _reason(backend: Backend) -> str:
    """Returns what the backend says of why it has no GPU, where it says anything."""
    try:
        if backend == "jax":
            import jax

            jax.devices("cuda")
        elif backend == "torch":
            import torch

            torch.cuda.init()
    except Exception as error:  # noqa: BLE001 (whatever it is, it is the reason)
        return f" ({' '.join(str(error).split())[:300]})"
    return ""


@functools.cache
def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _torch_has_cuda() -> bool:
    """Whether the installed PyTorch was built for CUDA: by its version, else by what it requires or brings along."""
    try:
        torch = importlib.metadata.distribution("torch")
    except importlib.metadata.PackageNotFoundError:
        return False
    local = torch.version.partition("+")[2]
    if local:
        return local.startswith("cu")
    libraries = Path(str(torch.locate_file("torch"))) / "lib"
    return any(libraries.glob("libtorch_cuda*")) or any(libraries.glob("torch_cuda*.dll"))
