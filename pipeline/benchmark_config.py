"""How long latency is measured, wherever it is: in the benchmark, the search and the frontier."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from devices.measurement import BenchmarkSettings
from pipeline.stages.base import FrozenConfig


class BenchmarkConfig(FrozenConfig):
    """How long is measured.

    Attributes:
        num_threads: Of one inference; None takes the device profile's.
        min_count: Timed inferences of each model, at least; fewer than 368 give no 99th percentile.
        min_time_s: Time that they take together, at least.
        max_time_s: Time after which a model is stopped, whatever its count.
        warm_up_count: Untimed inferences before, at least.
        warm_up_time_s: Time that they take, at least.
        precision: Where given, a model that has reached both goes on until half of the interval of its 90th percentile
            is at most this share of it.
        sessions: How often each model's process is started anew; four or more make later runs comparable.
        seed: Of the order in which the models take turns.
    """

    num_threads: int | None = Field(default=None, ge=1, le=256)
    min_count: int = Field(default=400, ge=10)
    min_time_s: float = Field(default=1.0, ge=0)
    max_time_s: float = Field(default=60.0, gt=0)
    warm_up_count: int = Field(default=10, ge=1)
    warm_up_time_s: float = Field(default=0.5, ge=0)
    precision: float | None = Field(default=None, gt=0, lt=1)
    sessions: int = Field(default=1, ge=1, le=40)
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.max_time_s < self.min_time_s:
            raise ValueError(
                f"benchmark.max_time_s ({self.max_time_s:g}) is shorter than min_time_s ({self.min_time_s:g})."
            )
        return self

    def settings(self) -> BenchmarkSettings:
        """Returns these as the measuring code takes them."""
        return BenchmarkSettings(**self.model_dump(exclude={"num_threads"}))
