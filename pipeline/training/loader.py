"""Batches of augmented training images: what one holds depends on the seed, the epoch and the step alone.

grain reads ahead, in threads or in worker processes; a worker makes whole batches. One reading goes on over the
epochs as long as size and strength stay, so that workers are started once and the first batch of an epoch is there
when the last one ends.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from devices.board.preprocess import Preprocess, preprocess
from pipeline.errors import DataError, InputError
from pipeline.training.augmentation import pillow
from pipeline.training.augmentation.draws import Draws, Mixing, crop_box, draw_images, draw_mixing
from pipeline.training.config import TrainConfig

Pixels = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.int64]

_ORDER, _IMAGES, _MIXING = range(3)
"""Streams of random numbers of an epoch."""

_BATCHES_A_WORKER = 2
_CORES_FOR_WORKERS, _MAX_WORKERS = 4, 16


class Images(Protocol):
    """What the loader needs of `pipeline.training.images.TrainingImages`."""

    classes: tuple[str, ...]
    labels: Rows
    size: tuple[int, int]
    preprocess: Preprocess
    encoded: bool

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Pixels: ...


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


def epoch_order(labels: npt.ArrayLike, seed: int, epoch: int, sampling: str) -> Rows:
    """Returns the rows of an epoch in the order in which they are learned from.

    Args:
        labels: (images,) classes.
        seed: Of the training.
        epoch: From 0.
        sampling: `natural`: every image once. `balanced`: as many images, every class that there is equally often
            (to one), and within a class every image equally often (to one).

    Returns:
        (images,) int64.
    """
    rng = np.random.default_rng([seed, epoch, _ORDER, 0])
    labels = np.asarray(labels)
    if sampling == "natural":
        return rng.permutation(len(labels)).astype(np.int64)
    classes = rng.permutation(np.unique(labels))
    drawn = []
    for place, label in enumerate(classes.tolist()):
        rows = np.flatnonzero(labels == label)
        wanted = len(labels) // len(classes) + (place < len(labels) % len(classes))
        passes = [rng.permutation(rows) for _ in range(math.ceil(wanted / len(rows)))]
        drawn.append(np.concatenate([*passes, rows[:0]])[:wanted])
    return rng.permutation(np.concatenate(drawn)).astype(np.int64)


def class_weights(
    given: str | Mapping[str, float], labels: npt.ArrayLike, classes: Sequence[str]
) -> npt.NDArray[np.float32] | None:
    """Returns (classes,) float32 weights of the loss, on average one over the training images; None for `none`.

    Args:
        given: `none`, `balanced` (images / (classes * images of the class)), or a weight for each class.
        labels: (images,) classes.
        classes: Their names.

    Raises:
        InputError: A name is no class, or a class has no weight.
    """
    if given == "none":
        return None
    counts = np.bincount(np.asarray(labels), minlength=len(classes)).astype(np.float64)
    if isinstance(given, str):
        weights = 1 / np.maximum(counts, 1)
    else:
        unknown = [name for name in given if name not in classes]
        missing = [name for name in classes if name not in given]
        if unknown or missing:
            problems = [f"unknown: {', '.join(unknown)}"] * bool(unknown)
            problems += [f"missing: {', '.join(missing)}"] * bool(missing)
            raise InputError(
                f"train.class_weights doesn't name each class once ({'; '.join(problems)}). Give a weight for each "
                f"of: {', '.join(classes)}."
            )
        weights = np.array([given[name] for name in classes], np.float64)
    return (weights * counts.sum() / (weights * counts).sum()).astype(np.float32)


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
        batches = _Batches(
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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if cores < _CORES_FOR_WORKERS else min(cores - 2, _MAX_WORKERS)


class _Reading:
    """Batches one after another, from one step of the whole training on."""

    def __init__(self, batches: _Batches, workers: int) -> None:
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
            self._iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))

    def goes_on(self, first: int, last: int, size: tuple[int, int], strength: float) -> bool:
        """Returns whether the next batch is the one of step `first`, at this size and strength."""
        made = self._batches
        return (self.next_step, made.size, made.strength) == (first, size, strength) and last <= made.end_step

    def next_batch(self) -> Batch:
        made = next(self._iterator)
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
    """Ties a worker process to its parent, also where that is killed; Ctrl-C is left to the parent."""
    import multiprocessing

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


@dataclass(frozen=True)
class _Batches:
    """Random access to the batches of a training, for grain; sent to the worker processes."""

    images: Images
    config: TrainConfig
    weights: npt.NDArray[np.float32] | None
    block: slice
    on_accelerator: bool
    size: tuple[int, int]
    strength: float
    first_step: int
    end_step: int
    orders: dict[int, Rows] = field(default_factory=dict)

    def size_bytes(self) -> int:
        """Returns about how large a batch is."""
        return 3 * self.size[0] * self.size[1] * (self.block.stop - self.block.start)

    def __len__(self) -> int:
        return self.end_step - self.first_step

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, step = divmod(self.first_step + index, len(self.images) // self.config.batch_size)
        rows = self._order(epoch)[step * self.config.batch_size :][self.block]
        draws = draw_images(
            self.config.augmentation,
            self.config.batch_size,
            self.size,
            strength=self.strength,
            rng=self._random(epoch, _IMAGES, step),
        ).of(self.block)
        mixing = self._mixing(epoch, step)
        pixels = self._pixels(rows, draws)
        inputs: dict[str, npt.NDArray[Any]] = {"image": pixels}
        if self.on_accelerator:
            inputs |= draws.accelerator_inputs()
            if self.config.augmentation.mixup or self.config.augmentation.cutmix:
                inputs |= mixing.accelerator_inputs(len(rows))
        else:
            pillow.mix(pixels, mixing)
        labels = self.images.labels[rows]
        batch = {"inputs": inputs, "targets": self._targets(labels, mixing), "rows": rows}
        return batch if self.weights is None else {**batch, "weights": self.weights[labels]}

    def _random(self, epoch: int, stream: int, step: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, epoch, stream, step])

    def _order(self, epoch: int) -> Rows:
        order = self.orders.get(epoch)
        if order is None:
            order = epoch_order(self.images.labels, self.config.seed, epoch, self.config.sampling)
            self.orders[epoch] = order
            self.orders.pop(epoch - 2, None)  # the one before may still be read by another thread
        return order

    def _mixing(self, epoch: int, step: int) -> Mixing:
        if epoch >= self.config.epochs - self.config.augmentation.stop_mixing_epochs and self.config.epochs:
            return Mixing()
        rng = self._random(epoch, _MIXING, step)
        return draw_mixing(self.config.augmentation, self.size, strength=self.strength, rng=rng)

    def _targets(self, labels: Rows, mixing: Mixing) -> npt.NDArray[np.float32]:
        targets = np.zeros((len(labels), len(self.images.classes)), np.float32)
        targets[np.arange(len(labels)), labels] = 1
        if mixing.share == 1:
            return targets
        neighbors = targets.reshape(-1, 2, targets.shape[1])[:, ::-1].reshape(targets.shape)
        share = np.float32(mixing.share)
        mixed: npt.NDArray[np.float32] = share * targets + (1 - share) * neighbors
        return mixed

    def _pixels(self, rows: Rows, draws: Draws) -> Pixels:
        pixels = np.empty((len(rows), *self.size, 3), np.uint8)
        in_loader = not self.on_accelerator
        for index, row in enumerate(rows.tolist()):
            pixels[index] = self._image(self.images[row], draws, index, in_loader=in_loader)
            if in_loader and draws.erase is not None and draws.noise is not None:
                pillow.erase(pixels[index], draws.erase[index], int(draws.noise[index]))
        return pixels

    def _image(self, image: Pixels, draws: Draws, index: int, *, in_loader: bool) -> Pixels:
        """Returns one image after all that is done to it by itself."""
        picture: Image.Image | None = None
        crop = self.config.augmentation.crop
        if crop is not None and draws.crop is not None:
            box = crop_box(draws.crop[index], image.shape[:2], min_area=crop.min_area, max_ratio=crop.max_ratio)
            picture = Image.fromarray(image).resize(self.size[::-1], Image.Resampling.BILINEAR, box=box)
        elif image.shape[:2] != self.size:
            image = preprocess(image, self._record())
        if draws.shift is not None:
            image = _shifted(image if picture is None else np.asarray(picture), draws.shift[index])
            picture = None
        if draws.flip is not None and draws.flip[index]:
            image = image[:, ::-1]
            picture = None if picture is None else picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if in_loader and (draws.color is not None or draws.numbers is not None):
            picture = Image.fromarray(image) if picture is None else picture
            picture = pillow.change_pixels(picture, draws, index)
        return image if picture is None else np.asarray(picture)

    def _record(self) -> Preprocess:
        """Returns how an image of another size becomes one of this; a decoded one has been cropped already."""
        record = self.images.preprocess
        if self.images.encoded:
            return dataclasses.replace(record, size=self.size)
        return Preprocess(self.size, interpolation=record.interpolation)


def _shifted(image: Pixels, shift: npt.NDArray[np.int32]) -> Pixels:
    """Returns the image moved up and left; the border is repeated."""
    height, width = image.shape[:2]
    down, right = shift.tolist()
    rows = np.clip(np.arange(height) + down, 0, height - 1)
    columns = np.clip(np.arange(width) + right, 0, width - 1)
    return image.take(rows, axis=0).take(columns, axis=1)
