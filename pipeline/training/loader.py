"""Loads batches of augmented training images ahead of the training.

grain reads ahead, in threads or in worker processes; a worker makes whole batches. One reading goes on over the
epochs as long as size and strength stay, so that workers are started once and the first batch of an epoch is there
when the last one ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pipeline.errors import DataError, InputError, StageError
from pipeline.training.batches import Images, Rows, TrainingBatches, class_weights
from pipeline.training.config import TrainConfig

_BATCHES_A_WORKER = 2
_THREADS, _BATCHES_A_THREAD = 2, 2
_CORES_FOR_WORKERS, _MAX_WORKERS = 4, 16


@dataclass(frozen=True)
class Batch:
    """What one step learns from, or this process' part of it.

    Attributes:
        inputs: "image": uint8 (batch, height, width, 3). Where the accelerator augments, also the draws, which
            `augmentation.accelerator.transform` takes: the same keys for a whole training.
        targets: float32 (batch, classes): one-hot, mixed where the images are.
        weights: float32 (batch,) where class weights are given.
        rows: int64 (batch,) of the training images.
    """

    inputs: dict[str, npt.NDArray[Any]]
    targets: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32] | None
    rows: Rows

    def as_keras(self) -> tuple[Any, ...]:
        """Returns inputs, targets and, where there are any, weights, as Keras takes them."""
        given = (self.inputs, self.targets)
        return given if self.weights is None else (*given, self.weights)


class Loader:
    """Batches of one process, read ahead.

    A context manager, which ends the worker processes. They also end by themselves when this process dies.

    Args:
        images: The training split.
        config: Of the training.
        process_index: Which of the processes this is; it gets the i-th block of each global batch.
        process_count: How many share a batch.
        on_accelerator: Whether colors, RandAugment, erasing and mixing are left to
            `augmentation.accelerator.transform`.

    Attributes:
        steps_per_epoch: Global batches an epoch; a smaller rest is left out.
        read_ahead: At most so many batches lie ready.

    Raises:
        DataError: There are fewer images than one batch holds.
        InputError: The batch can't be shared by the processes, or class weights don't fit the classes.
    """

    def __init__(
        self,
        images: Images,
        config: TrainConfig,
        *,
        process_index: int = 0,
        process_count: int = 1,
        on_accelerator: bool,
    ) -> None:
        _check(images, config, process_count)
        self.steps_per_epoch = len(images) // config.batch_size
        self._images, self._config, self._on_accelerator = images, config, on_accelerator
        self._weights = class_weights(config.class_weights, images.labels, images.classes)
        block = config.batch_size // process_count
        self._block = slice(process_index * block, (process_index + 1) * block)
        self._workers = num_workers(config)
        self.read_ahead = (
            self._workers * (_BATCHES_A_WORKER + 2) if self._workers else num_threads(images) * _BATCHES_A_THREAD
        )
        self._reading: _Reading | None = None

    def epoch(
        self, epoch: int, *, first_step: int = 0, size: tuple[int, int] | None = None, strength: float = 1.0
    ) -> Iterator[Batch]:
        """Yields an epoch's batches.

        Args:
            epoch: From 0.
            first_step: The first batch, as where a training is resumed.
            size: (height, width) of the batches; None is that of the data.
            strength: Scales RandAugment's magnitude, changes of color, the probability of erasing and the alphas of
                mixup and cutmix.

        Raises:
            DataError: An image can't be read.
            StageError: A worker process was killed.
            RuntimeError: Another epoch was begun before this one's end, or the loader was closed.
        """
        first, last = epoch * self.steps_per_epoch + first_step, (epoch + 1) * self.steps_per_epoch
        reading = self._read_from(first, last, size or self._images.size, strength)
        while reading.next_step < last:
            if reading is not self._reading:
                raise RuntimeError(f"the batches of epoch {epoch} are at an end: another epoch was begun, or it closed")
            yield reading.next_batch()

    def close(self) -> None:
        """Ends reading ahead and the worker processes."""
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_from(self, first: int, last: int, size: tuple[int, int], strength: float) -> _Reading:
        """Returns the reading that goes on at this step of the whole training, or a new one."""
        reading = self._reading
        if reading is not None and reading.goes_on(first, last, size, strength):
            return reading
        self.close()
        batches = TrainingBatches(
            images=self._images,
            config=self._config,
            weights=self._weights,
            block=self._block,
            on_accelerator=self._on_accelerator,
            size=size,
            strength=strength,
            first_step=first,
            end_step=max(last, self._config.epochs * self.steps_per_epoch),
        )
        self._reading = _Reading(batches, self._workers)
        return self._reading


def _check(images: Images, config: TrainConfig, process_count: int) -> None:
    if len(images) < config.batch_size:
        raise DataError(
            f"train.batch_size is {config.batch_size}, but the training split has {len(images)} images. "
            f"Make the batch smaller or give more images."
        )
    if config.batch_size % process_count:
        raise InputError(
            f"train.batch_size is {config.batch_size}, but {process_count} processes share it: give a multiple of "
            f"{process_count}."
        )
    mixes = config.augmentation.mixup > 0 or config.augmentation.cutmix > 0
    if mixes and config.batch_size // process_count % 2:
        raise InputError(
            f"train.batch_size is {config.batch_size}, {config.batch_size // process_count} a process, but mixup and "
            f"cutmix mix images in pairs: give a multiple of {2 * process_count}."
        )


def num_workers(config: TrainConfig) -> int:
    """Returns how many worker processes load images; 0 loads in threads of this process.

    `auto` leaves two cores to the training. With few cores it takes threads: Pillow lets go of Python's lock, and the
    training takes what cores there are.
    """
    if config.workers != "auto":
        return config.workers
    cores = _num_cores()
    return 0 if cores < _CORES_FOR_WORKERS else min(cores - 2, _MAX_WORKERS)


def num_threads(images: Images) -> int:
    """Returns how many threads of this process load images, where no worker process does.

    None where the training has one core and images are arrays: changing threads would take as long as the images
    (1.6 ms a batch of 64, of 64x64 pixels).
    """
    return 0 if _num_cores() == 1 and not images.encoded else _THREADS


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Reading:
    """Batches one after another, from one step of the whole training on."""

    def __init__(self, batches: TrainingBatches, workers: int) -> None:
        import grain

        self._batches = batches
        self.next_step = batches.first_step
        dataset = grain.MapDataset.source(batches)
        self._copies = workers > 0
        if workers:
            _accept_default_flags()
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=_BATCHES_A_WORKER)
            read = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
            if not _fits_shared_memory(workers * (_BATCHES_A_WORKER + 2) * batches.size_bytes()):
                through_pipes = grain.experimental.DatasetOptions(min_shm_size=2**62)
                read = grain.experimental.WithOptionsIterDataset(read, through_pipes)
            self._iterator = iter(read.mp_prefetch(options, worker_init_fn=_start_worker))
        else:
            threads = num_threads(batches.images)
            self._iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(threads, threads * _BATCHES_A_THREAD)))

    def goes_on(self, first: int, last: int, size: tuple[int, int], strength: float) -> bool:
        """Returns whether the next batch is the one of step `first`, at this size and strength."""
        made = self._batches
        return (self.next_step, made.size, made.strength) == (first, size, strength) and last <= made.end_step

    def next_batch(self) -> Batch:
        try:
            made = next(self._iterator)
        except RuntimeError as error:
            if "Worker process was terminated" not in str(error):
                raise
            raise StageError(
                "A process that loads images was ended from outside, as where memory runs out. Lower train.workers "
                "or train.batch_size.",
                details=str(error),
            ) from error
        self.next_step += 1
        if self._copies:
            made = _copied(made)
        return Batch(inputs=made["inputs"], targets=made["targets"], weights=made.get("weights"), rows=made["rows"])

    def close(self) -> None:
        self._iterator.close()


def _copied(values: Any) -> Any:
    """Returns arrays that outlive the shared memory they came in, which is freed with the last of its arrays."""
    if isinstance(values, dict):
        return {name: _copied(value) for name, value in values.items()}
    return np.array(values)


def _fits_shared_memory(needed_bytes: int) -> bool:
    """Returns whether batches can come through shared memory; containers often have only 64 MB of it."""
    shared = Path("/dev/shm")  # noqa: S108 - where Linux keeps it; other systems don't say how much there is
    return not shared.is_dir() or shutil.disk_usage(shared).free > needed_bytes


def _accept_default_flags() -> None:
    """Lets grain read its absl flags, which it wants parsed before it starts processes."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _start_worker(index: int, count: int) -> None:  # noqa: ARG001
    """Ties a worker process to its parent, also where that is killed; Ctrl-C and GPUs are left to the parent."""
    import multiprocessing

    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)
