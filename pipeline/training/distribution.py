"""Data parallel training: each batch is spread over the devices of one process, of several, or of several hosts.

Every process runs the same program on its share of each batch. Weights are the same everywhere; JAX adds up gradients
and batch statistics over all devices, in another order than one device would. So a training computes the same on
however many, to rounding, which a deep network in float32 amplifies from step to step (docs/decisions/0010).

Every process must put values into Keras variables in the same order: that is a step of all processes together.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import socket
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import InputError, StageError
from pipeline.training.config import RUNTIME_FIELDS, Backend, TrainConfig

COORDINATOR = "EDGESHIP_COORDINATOR"
PROCESSES = "EDGESHIP_PROCESSES"
PROCESS = "EDGESHIP_PROCESS"
TIMEOUT = "EDGESHIP_START_TIMEOUT"

DEFAULT_TIMEOUT_S = 300
"""How long processes wait for each other at the start: preparing data may take one longer than another."""

HEARTBEAT_TIMEOUT_S = 30
"""After so long without a sign of life a process counts as dead, and the others end."""

_LOST = re.compile(
    r"JAX distributed service detected fatal errors|\bGloo [\w-]+ failed\b|\bncclRemoteError\b|"
    r"NCCL (?:operation|error).*remote process exited"
)
_START_CALLS = ("CoordinationService/RegisterTask", "CoordinationServiceAgent::Connect()")


@dataclass(frozen=True)
class Cluster:
    """The processes that train together, as the environment has them.

    Attributes:
        coordinator: host:port of process 0, where the others find it; empty for one process.
        process_count: How many there are.
        process_index: Which one this is.
        timeout_s: How long to wait for the others at the start.
    """

    coordinator: str = ""
    process_count: int = 1
    process_index: int = 0
    timeout_s: int = DEFAULT_TIMEOUT_S

    @property
    def is_primary(self) -> bool:
        """Whether this process writes checkpoints and the artifact."""
        return self.process_index == 0


@dataclass(frozen=True)
class Distribution:
    """What a training runs on.

    Attributes:
        process_index: Of this process.
        process_count: How many train together.
        devices: Over how many devices a batch is spread, those of all processes together.
    """

    process_index: int = 0
    process_count: int = 1
    devices: int = 1

    @property
    def is_primary(self) -> bool:
        """Whether this process writes checkpoints and the artifact."""
        return self.process_index == 0


def read_cluster(environment: Mapping[str, str] | None = None) -> Cluster:
    """Returns the processes that train together, from EDGESHIP_COORDINATOR, EDGESHIP_PROCESSES, EDGESHIP_PROCESS.

    It loads nothing heavy.

    Raises:
        InputError: One of them is missing or no such number or address.
    """
    values = os.environ if environment is None else environment
    names = (COORDINATOR, PROCESSES, PROCESS)
    given = {name: values[name].strip() for name in names if values.get(name, "").strip()}
    if not given:
        return Cluster()
    processes = _integer(PROCESSES, given.get(PROCESSES), least=1)
    if processes == 1 and given.get(PROCESS, "0") == "0":
        return Cluster()
    missing = [name for name in names if name not in given]
    if missing:
        raise InputError(
            f"{', '.join(given)} {'is' if len(given) == 1 else 'are'} set, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not. Several processes need all three: {COORDINATOR}=host:port of "
            f"process 0, {PROCESSES}=how many, {PROCESS}=which one this is, from 0."
        )
    index = _integer(PROCESS, given[PROCESS], least=0)
    if index >= processes:
        raise InputError(
            f"{PROCESS} is {index}, but {PROCESSES} is {processes}: number the processes from 0 to {processes - 1}."
        )
    timeout = values.get(TIMEOUT, "").strip()
    return Cluster(
        coordinator=_address(given[COORDINATOR]),
        process_count=processes,
        process_index=index,
        timeout_s=_integer(TIMEOUT, timeout, least=1) if timeout else DEFAULT_TIMEOUT_S,
    )


def set_up(config: TrainConfig, backend: Backend) -> Distribution:
    """Brings the processes together and spreads what Keras builds from now on over the devices.

    Call it before anything is computed, and before the network is built.

    Args:
        config: How to train; `devices` counts those of one process.
        backend: On which Keras runs.

    Raises:
        InputError: The batch can't be divided, there are fewer devices than asked for, or the backend trains on one.
        StageError: The processes don't find each other.
    """
    cluster = read_cluster()
    if backend != "jax":
        _refuse_other_backend(config, backend, cluster)
        return Distribution()
    import jax
    import keras

    if cluster.process_count > 1:
        _start(cluster)
    local = _local_devices(config)
    devices = [device for device in jax.devices() if device.process_index == cluster.process_index][: len(local)]
    total = len(local) * cluster.process_count
    if config.batch_size % total:
        raise InputError(
            f"train.batch_size is {config.batch_size}, which can't be divided by {total} devices"
            f"{_by_processes(cluster, len(local))}. Set it to a multiple of {total}, such as "
            f"{max(total, round(config.batch_size / total) * total)}, or use fewer devices."
        )
    distribution = Distribution(cluster.process_index, cluster.process_count, total)
    keras.distribution.set_distribution(None)
    if total > 1:
        if cluster.process_count > 1:
            _agree(distribution, "train.devices or the number of GPUs", str(len(local)))
            by_process: dict[int, list[Any]] = {}
            for device in jax.devices():
                by_process.setdefault(device.process_index, []).append(device)
            devices = [device for index in sorted(by_process) for device in by_process[index][: len(local)]]
        names = [f"{device.platform}:{device.id}" for device in devices]
        spread = keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)
        keras.distribution.set_distribution(spread)
    settings = config.model_dump(mode="json", exclude=set(RUNTIME_FIELDS))
    _agree(distribution, "the section train of the recipe", json.dumps(settings, sort_keys=True))
    return distribution


def share_directory(distribution: Distribution, directory: Path) -> None:
    """Makes a directory in every process what it is in process 0; a step of all processes together.

    So all of them resume from the checkpoint of process 0, whether they share a disk or not.
    """
    if distribution.process_count == 1:
        return
    packed = io.BytesIO()
    if distribution.is_primary and directory.exists():
        with tarfile.open(fileobj=packed, mode="w") as archive:
            archive.add(directory, arcname=".")
    received = broadcast(distribution, packed.getvalue())
    if distribution.is_primary:
        return
    shutil.rmtree(directory, ignore_errors=True)
    if received:
        directory.mkdir(parents=True)
        with tarfile.open(fileobj=io.BytesIO(received)) as archive:
            archive.extractall(directory, filter="data")


def broadcast(distribution: Distribution, content: bytes) -> bytes:
    """Returns what process 0 gives, in every process; a step of all processes together."""
    if distribution.process_count == 1:
        return content
    from jax.experimental import multihost_utils

    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    if not length:
        return b""
    buffer = np.zeros(length, np.uint8)
    if distribution.is_primary:
        buffer[:] = np.frombuffer(content, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(buffer), np.uint8))


def check_same_data(distribution: Distribution, identity: str) -> None:
    """Checks that all processes train the same network on the same data; a step of all processes together.

    Args:
        distribution: Of the training.
        identity: What must be the same, such as the text of `dataset.json`.

    Raises:
        StageError: A process has another.
    """
    _agree(distribution, "the training data or the network", identity)


def shut_down(distribution: Distribution) -> None:
    """Ends what `set_up` began, after a training that went well; a step of all processes together.

    They wait for each other, so that none takes the end of another for a crash. After an error they must not: the
    others may not have it.
    """
    import keras

    if distribution.devices > 1:
        keras.distribution.set_distribution(None)
    if distribution.process_count > 1:
        import jax

        jax.distributed.shutdown()


def cluster_error(words: str) -> StageError | None:
    """Returns what it means that a training failed because of another process; None where it is not because of one.

    A process that is gone makes the next sum over all devices fail, or JAX aborts the processes that wait for it.

    Args:
        words: The message of an error, or the end of what the process wrote to standard error.
    """
    cluster = read_cluster()
    if cluster.process_count == 1 or _LOST.search(words) is None:
        return None
    who = f"Process {cluster.process_index} of {cluster.process_count}"
    if any(call in words for call in _START_CALLS):
        return StageError(
            f"{who} waited {cluster.timeout_s} s at {cluster.coordinator} for the others, which did not all come. "
            f"Start all {cluster.process_count} with the same recipe, {COORDINATOR} and {PROCESSES}, each with its "
            f"own {PROCESS}; {TIMEOUT} sets how many seconds they wait.",
            details=words,
        )
    return StageError(
        f"{who} ended because another one that trains with it ended or can't be reached. See its last words; start "
        f"all {cluster.process_count} again, and they go on from the last checkpoint of process 0.",
        details=words,
    )


def _start(cluster: Cluster) -> None:
    import jax

    started = time.monotonic()
    if not cluster.is_primary:
        _await_coordinator(cluster)
    left = max(1, round(cluster.timeout_s - (time.monotonic() - started)))
    try:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            coordinator_address=cluster.coordinator,
            num_processes=cluster.process_count,
            process_id=cluster.process_index,
            initialization_timeout=left,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            shutdown_timeout_seconds=HEARTBEAT_TIMEOUT_S,
        )
        jax.devices()
    except (RuntimeError, ValueError) as error:
        raise StageError(
            f"Process {cluster.process_index} of {cluster.process_count} and the others did not find each other at "
            f"{cluster.coordinator} within {cluster.timeout_s} s: {' '.join(str(error).split())[:300]}. Start all "
            f"{cluster.process_count} with the same recipe, {COORDINATOR} and {PROCESSES}, each with its own "
            f"{PROCESS}; {TIMEOUT} sets how many seconds they wait."
        ) from error


def _await_coordinator(cluster: Cluster) -> None:
    """Waits until process 0 listens.

    Raises:
        StageError: It does not in time.
    """
    host, _, port = cluster.coordinator.rpartition(":")
    deadline = time.monotonic() + cluster.timeout_s
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        except OSError as error:
            if time.monotonic() >= deadline:
                raise StageError(
                    f"Process {cluster.process_index} waited {cluster.timeout_s} s for process 0 at "
                    f"{cluster.coordinator}, which did not answer ({error}). Start process 0 too, or check the address "
                    f"and the firewall. If it has finished, its store holds the trained network and there is nothing "
                    f"left to do. {TIMEOUT} sets how many seconds to wait."
                ) from error
            time.sleep(0.2)
        else:
            return


def _local_devices(config: TrainConfig) -> list[Any]:
    import jax

    available: list[Any] = jax.local_devices()
    kind = "GPUs" if available[0].platform != "cpu" else "CPU devices"
    if config.devices == "auto":
        return available if available[0].platform != "cpu" else available[:1]
    if config.devices > len(available):
        raise InputError(
            f"train.devices is {config.devices}, but this process has {len(available)} {kind}. Set it to at most "
            f"{len(available)}, or to auto."
        )
    return available[: config.devices]


def _refuse_other_backend(config: TrainConfig, backend: Backend, cluster: Cluster) -> None:
    if cluster.process_count > 1:
        raise InputError(
            f"{PROCESSES} is {cluster.process_count}, but train.backend is {backend}, which trains in one process. "
            f"Set train.backend to jax."
        )
    if config.devices not in {"auto", 1}:
        raise InputError(
            f"train.devices is {config.devices}, but train.backend is {backend}, which trains on one device. Set "
            f"train.backend to jax, or train.devices to 1."
        )


def _agree(distribution: Distribution, what: str, value: str) -> None:
    if distribution.process_count == 1:
        return
    digest = hashlib.sha256(value.encode()).digest()
    if broadcast(distribution, digest) != digest:
        raise StageError(
            f"Process {distribution.process_index} and process 0 differ in {what}. Start all processes with the same "
            f"recipe, the same data and the same version of Edgeship."
        )


def _by_processes(cluster: Cluster, local: int) -> str:
    return f" ({cluster.process_count} processes of {local})" if cluster.process_count > 1 else ""


def _integer(name: str, text: str | None, *, least: int) -> int:
    if text is None or not text.isdecimal() or int(text) < least:
        raise InputError(f"{name} is {text!r}: expected a whole number from {least}.")
    return int(text)


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(f"{COORDINATOR} is {text!r}: expected host:port of process 0, such as 10.0.0.1:1234.")
    return text
