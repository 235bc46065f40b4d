"""What the server counts, as Prometheus reads it (text format 0.0.4)."""

from __future__ import annotations

import bisect
import threading
from typing import Callable, Dict, List, Mapping, Sequence, Tuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)

Labels = Tuple[Tuple[str, str], ...]
Family = Tuple[str, str, str]
"""Name, type and help of metrics."""

_REQUESTS: Family = ("edgeship_requests_total", "counter", "Requests answered, by endpoint and status code.")
_DURATION: Family = ("edgeship_request_seconds", "histogram", "From a request's head to its answer sent.")
_INFERENCE: Family = ("edgeship_inference_seconds", "histogram", "The model alone.")
_CONFIDENCE: Family = ("edgeship_confidence", "histogram", "Calibrated probability of the top class.")
_ERRORS: Family = ("edgeship_model_errors_total", "counter", "Requests for a model answered with 500 or above.")
_SWITCHES: Family = ("edgeship_model_switches_total", "counter", "Changes to another release, by outcome.")


class _Histogram:
    """Counts of values at or below each bound."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def add(self, value: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._total += value

    def lines(self, name: str, labels: Labels) -> List[str]:
        lines, below = [], 0
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts):
            below += count
            lines.append(f"{name}_bucket{_text((*labels, ('le', bound)))} {below}")
        return [*lines, f"{name}_sum{_text(labels)} {self._total!r}", f"{name}_count{_text(labels)} {below}"]


class Metrics:
    """All that is counted; any thread may add to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: Dict[Family, Dict[Labels, int]] = {}
        self._histograms: Dict[Family, Dict[Labels, _Histogram]] = {}

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """One answer; `endpoint` is one of a fixed set, never text of the client."""
        with self._lock:
            self._count(_REQUESTS, (("endpoint", endpoint), ("code", str(status))))
            self._observe(_DURATION, (("endpoint", endpoint),), SECONDS, seconds)

    def inference(self, model: str, seconds: float) -> None:
        """One run of a model."""
        with self._lock:
            self._observe(_INFERENCE, (("model", model),), SECONDS, seconds)

    def confidence(self, model: str, value: float) -> None:
        """The calibrated probability of a top class."""
        with self._lock:
            self._observe(_CONFIDENCE, (("model", model),), CONFIDENCES, value)

    def model_error(self, model: str, release: str, status: int) -> None:
        """One request for a model that the server could not answer."""
        with self._lock:
            self._count(_ERRORS, (("model", model), ("release", release), ("code", str(status))))

    def switch(self, model: str, *, succeeded: bool) -> None:
        """A try to serve another release."""
        with self._lock:
            self._count(_SWITCHES, (("model", model), ("outcome", "done" if succeeded else "failed")))

    def _count(self, family: Family, labels: Labels) -> None:
        counts = self._counters.setdefault(family, {})
        counts[labels] = counts.get(labels, 0) + 1

    def _observe(self, family: Family, labels: Labels, bounds: Sequence[float], value: float) -> None:
        histograms = self._histograms.setdefault(family, {})
        histogram = histograms.get(labels)
        if histogram is None:
            histogram = histograms[labels] = _Histogram(bounds)
        histogram.add(value)

    def page(self, gauges: Mapping[Family, Callable[[], Sequence[Tuple[Labels, float]]]]) -> bytes:
        """The metrics page.

        Args:
            gauges: What is read only now: by family, values by their labels.
        """
        lines: List[str] = []
        with self._lock:
            for family, counts in self._counters.items():
                lines += _head(family)
                lines += [f"{family[0]}{_text(labels)} {count}" for labels, count in counts.items()]
            for family, histograms in self._histograms.items():
                lines += _head(family)
                for labels, histogram in histograms.items():
                    lines += histogram.lines(family[0], labels)
        for family, read in gauges.items():
            lines += _head(family)
            lines += [f"{family[0]}{_text(labels)} {value!r}" for labels, value in read()]
        return ("\n".join(lines) + "\n").encode()


def _head(family: Family) -> List[str]:
    name, kind, text = family
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _text(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
