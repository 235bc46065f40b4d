"""How fast a training reads, how fast it computes, and which of the two waits for the other."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.training.loader import Batch, Loader

Step = Callable[[Batch], Any]


def measure_loader(loader: Loader, step: Step, *, seconds: float = 5.0, epoch: int = 0) -> dict[str, float]:
    """Measures the loader alone, the step alone on one repeated batch, and both as in a training.

    Each of the three is first run until nothing of what was done before it counts: worker processes are up, batches
    that lay ready are used up, and the step is compiled.

    Args:
        loader: Is read from, and left open.
        step: Takes a batch and returns tensors, a structure of them, or None if it has waited for its end itself.
            A step may only depend on the one before (as by the weights); the last one is waited for.
        seconds: How long each of the three is measured, to the end of its last step.
        epoch: Where reading begins.

    Returns:
        loader_images_per_second, step_images_per_second, both_images_per_second, and loader_share: how much of the
        time of a training step goes to waiting for the loader (or, on a CPU, to sharing cores with it), from 0 to 1.
    """
    batches = _endless(loader, epoch)
    batch = next(batches)
    alone = _images_per_second(batches, None, seconds, skipped=loader.read_ahead)
    computing = _images_per_second(itertools.repeat(batch), step, seconds, skipped=2)
    both = _images_per_second(batches, step, seconds, skipped=loader.read_ahead)
    return {
        "loader_images_per_second": alone,
        "step_images_per_second": computing,
        "both_images_per_second": both,
        "loader_share": min(1.0, max(0.0, 1 - both / computing)),
    }


def _endless(loader: Loader, epoch: int) -> Iterator[Batch]:
    for number in itertools.count(epoch):
        yield from loader.epoch(number)


def _images_per_second(batches: Iterator[Batch], step: Step | None, seconds: float, *, skipped: int) -> float:
    result: Any = None
    for batch in itertools.islice(batches, skipped):
        result = step(batch) if step else None
    _wait_for(result)
    images, started, ended = 0, time.perf_counter(), 0.0
    while images == 0 or ended - started < seconds:
        batch = next(batches)
        result = step(batch) if step else None
        images += len(batch.rows)
        ended = time.perf_counter()
    _wait_for(result)
    return images / (time.perf_counter() - started)


def _wait_for(result: Any) -> None:
    """Returns when the tensors hold their values: accelerators work behind the program."""
    if result is not None:
        import keras

        keras.tree.map_structure(keras.ops.convert_to_numpy, result)
