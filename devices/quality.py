"""How well a model did its task on a device, and how far its answers are from a reference's."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

Interval = tuple[float, float]

_LESS_IS_BETTER = frozenset({"mse"})


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Parity(_Frozen):
    """The answers of the device beside those of a reference to the same samples.

    Attributes:
        logit_range: The largest value of the reference minus its smallest.
        max_logit_difference: As a share of that range.
        mean_logit_difference: The same of the average.
        snr_db: Power of the reference over that of the difference; None where they are equal to the bit.
        top1_agreement: The share of samples with the same class; None without classes.
    """

    logit_range: float
    max_logit_difference: float
    mean_logit_difference: float
    snr_db: float | None
    top1_agreement: float | None


class Reference(_Frozen):
    """What the answers were compared with; it ran on this machine.

    Attributes:
        path: The file.
        sha256: Its digest.
        precision: As read from the file.
        cpu_model: Of this machine.
        accuracy: Its own, by the same metric; None where nothing judges.
    """

    path: str
    sha256: str
    precision: str
    cpu_model: str | None = None
    accuracy: float | None = None


class Quality(_Frozen):
    """One model on one set of samples.

    Attributes:
        data: Where the samples come from, as it was asked for.
        split: train, validation or test.
        subset: The digest of the samples and of what they are judged by.
        count: Samples.
        precision: Of the model, as read from the file.
        metric: What accuracy means.
        accuracy: Its value.
        accuracy_interval: At 95 %.
        correct: Samples whose class was right; None without classes.
        ece: Expected calibration error, 0..1; None without classes.
        ece_interval: At 95 %.
        seconds: For all samples on the device, one by one.
        reference: None where nothing was compared.
        parity: With the reference.
        parity_reason: Why it is None.
    """

    data: str
    split: str
    subset: str
    count: int = Field(ge=1)
    precision: str
    metric: str
    accuracy: float
    accuracy_interval: Interval
    correct: int | None = None
    ece: float | None = None
    ece_interval: Interval | None = None
    seconds: float
    reference: Reference | None = None
    parity: Parity | None = None
    parity_reason: str | None = None

    @property
    def accuracy_share(self) -> float | None:
        """The accuracy to the reference's; None where that is not known."""
        accuracy = None if self.reference is None else self.reference.accuracy
        return self.accuracy / accuracy if accuracy and self.metric not in _LESS_IS_BETTER else None


def subset_digest(files: Sequence[Path]) -> str:
    """The digest that names a set of samples: that of its files' digests, in their order."""
    digests = []
    for file in files:
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


class AccuracyChange(_Frozen):
    """An accuracy beside an older one on the same samples.

    Attributes:
        difference: The newer minus the older.
        interval: At 95 %, by Newcombe's hybrid of the two score intervals ("Interval estimation for the difference
            between independent proportions", 1998, method 10). The samples are the same, which makes it wider than it
            need be.
        verdict: "better" or "worse" where the interval excludes 0; "the same" where both are equal.
    """

    difference: float
    interval: Interval
    verdict: str


def accuracy_change(newest: Quality, base: Quality) -> AccuracyChange:
    """The verdict on two measurements of the same samples by the same metric."""
    difference = newest.accuracy - base.accuracy
    (low, high), (base_low, base_high) = newest.accuracy_interval, base.accuracy_interval
    interval = (
        difference - math.hypot(newest.accuracy - low, base_high - base.accuracy),
        difference + math.hypot(high - newest.accuracy, base.accuracy - base_low),
    )
    words = ("worse", "better") if newest.metric in _LESS_IS_BETTER else ("better", "worse")
    verdict = words[0] if interval[0] > 0 else words[1] if interval[1] < 0 else "can't tell"
    return AccuracyChange(difference=difference, interval=interval, verdict="the same" if difference == 0 else verdict)
