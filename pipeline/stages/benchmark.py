"""Measures all exported models of a run on one device, interleaved, through the device's agent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from devices.board.confidence import ConfidenceMap, read_confidence_map
from devices.errors import DeviceError
from devices.measurement import Case, benchmark, profile_case
from devices.profile import DeviceProfile
from pipeline.answers import answers_on
from pipeline.benchmark_config import BenchmarkConfig
from pipeline.errors import InputError
from pipeline.judgement import UNJUDGED, judge
from pipeline.manifest import read_manifest
from pipeline.metrics import parity
from pipeline.samples import SampleSet, output_file, split_samples
from pipeline.signature import read_signature
from pipeline.stages.base import Stage, Tell
from pipeline.targets import TARGETS

RESULT_FILE = "benchmark.json"


class BenchmarkStage(Stage):
    """Reads `calibrate`, `data` where there is any, and one `export/<target>/<precision>` a model.

    For a device that is not this machine also `verify/<target>/<precision>`, what this machine answered: the same int8
    file can answer differently on another processor. Writes `benchmark.json`.

    Attributes:
        benchmark: How long.
        profile: The device.
        host: Facts that tell one machine from another, for a device that is this machine.
        placed: Whether each model also runs with its runtime's profiler, which says where its operations run.
    """

    stage: ClassVar[str] = "benchmark"
    runs_in_child: ClassVar[bool] = False
    other_code: ClassVar[tuple[str, ...]] = ("devices.board.*",)

    benchmark: BenchmarkConfig
    profile: DeviceProfile
    host: dict[str, Any]
    placed: bool = False

    def tool_names(self) -> tuple[str, ...]:
        """All runtimes."""
        return ("numpy", *(target.runtime for target in TARGETS.values()))

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Measures latency and memory of all models side by side, then accuracy of each.

        A model that fails on the device loses only its own numbers.

        Raises:
            DeviceError: The device itself can't be used.
        """
        cases = [
            _case(role.removeprefix("export/"), directory, self.benchmark.num_threads)
            for role, directory in inputs.items()
            if role.startswith("export/")
        ]
        signature = read_signature(inputs["calibrate"])
        judged = signature.metric is not None and "data" in inputs
        samples = split_samples(inputs["data"], "test", signature) if judged else None
        confidence_map = read_confidence_map(str(inputs["calibrate"]))
        settings = self.benchmark.settings().model_copy(update={"runtime_memory": True})
        result = benchmark(self.profile, cases, settings, tell=tell).model_dump(mode="json")
        for case, measured in zip(cases, result["cases"], strict=True):
            if measured["error"] is None and samples is not None:
                here = inputs.get(f"verify/{case.id}")
                measured.update(self._accuracy(case, samples, confidence_map, out_dir, tell, here=here))
            if measured["error"] is None and self.placed:
                measured.update(self._placement(case, tell))
        (out_dir / RESULT_FILE).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        return {
            "device": self.profile.name,
            "mode": self.profile.latency_label,
            "facts": result["facts"],
            "load_average_before": result["load_average_before"],
            "load_average_after": result["load_average_after"],
            "warnings": result["warnings"],
            "cases": result["cases"],
        }

    def _placement(self, case: Case, tell: Tell) -> dict[str, Any]:
        tell({"message": f"placement of {case.id}"})
        try:
            found = profile_case(self.profile, case, count=1)
        except DeviceError as error:
            return {"delegated_share": None, "partitions": None, "placement_reason": error.message}
        return {"delegated_share": found["delegated_share"], "partitions": found["partitions"]}

    def _accuracy(
        self,
        case: Case,
        samples: SampleSet,
        confidence_map: ConfidenceMap | None,
        out_dir: Path,
        tell: Tell,
        *,
        here: Path | None,
    ) -> dict[str, Any]:
        signature = samples.signature
        tell({"message": f"accuracy of {case.id} on {len(samples)} test samples"})
        try:
            answers = answers_on(self.profile, case, samples.for_device(), signature, scratch=out_dir, tell=tell)
            output = answers[signature.outputs[0].name]
            found = judge(signature, output, samples, confidence_map)
        except (DeviceError, InputError) as error:
            return {**UNJUDGED, "accuracy_reason": error.message}
        known = {name: found[name] for name in UNJUDGED}
        if here is None:
            return known
        # The samples of the comparison begin with the test split and may go on with others.
        reference = np.load(here / output_file(0), mmap_mode="r")[: len(output)]
        return {**known, "divergence": parity(reference, output, classes=signature.is_classifier)}


def _case(label: str, directory: Path, num_threads: int | None) -> Case:
    exported = read_manifest(directory).metrics
    return Case(
        id=label,
        runtime=exported["target"],
        path=str(directory / exported["model"]),
        sha256=exported["graph"]["sha256"],
        weights_sha256=exported["graph"]["weights_sha256"],
        num_threads=num_threads,
    )
