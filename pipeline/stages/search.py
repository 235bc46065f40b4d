"""Measures on a device which way to int8 is the fastest for a network in one runtime.

How fast a network runs goes by its structure and not by its weights. So a network of ours is searched with weights
drawn at random, and the result serves all trainings of it, on all data with images of that size: its key is made of the
structure, the versions of the tools and the runtime, and the device.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from devices.measurement import Case, benchmark
from devices.profile import DeviceProfile
from pipeline.benchmark_config import BenchmarkConfig
from pipeline.errors import UnsupportedModelError
from pipeline.model_source import Calibration, ModelSource
from pipeline.network import ModelConfig, build_network
from pipeline.quantization.int8 import Int8Export
from pipeline.quantization.random_network import enliven, random_images
from pipeline.samples import reference_samples
from pipeline.saved_model import write_saved_model
from pipeline.signature import read_signature
from pipeline.stages.base import Stage, Tell
from pipeline.targets import QUANTIZERS, TARGETS
from pipeline.targets.base import TargetName

SAME_SPEED = 1.02
"""Ways whose medians differ by less count as equally fast; of these the first one of the quantizer is taken."""

_SAMPLES = 8


class SearchStage(Stage):
    """Reads nothing, or for a model of one's own `model` and `calibrate`; writes only metrics.

    Attributes:
        target: Key of `QUANTIZERS`.
        model: Of the network; None for a model of one's own.
        image_size: Height and width; (0, 0) for a model of one's own.
        num_classes: 0 for a model of one's own.
        benchmark: How long is measured.
        profile: The device.
        host: Facts that tell one machine from another, for a device that is this machine.
        reduce_range: Whether weights keep to 7 bits.
    """

    stage: ClassVar[str] = "search"
    other_code: ClassVar[tuple[str, ...]] = ("devices.board.*",)

    target: TargetName
    model: ModelConfig | None
    image_size: tuple[int, int]
    num_classes: int
    benchmark: BenchmarkConfig
    profile: DeviceProfile
    host: dict[str, Any]
    reduce_range: bool = False
    backend: Literal["tensorflow"] = "tensorflow"

    def tool_names(self) -> tuple[str, ...]:
        """Those of the target, and its runtime."""
        return tuple(dict.fromkeys((*TARGETS[self.target].tools, TARGETS[self.target].runtime)))

    def key_config(self) -> dict[str, Any]:
        """Leaves out what says nothing about the structure: where weights come from."""
        config = super().key_config()
        if config["model"] is not None:
            config["model"]["weights"] = None
        return config

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Exports the network in every way and measures all files side by side, float32 among them.

        Raises:
            DeviceError: The device can't be used.
            UnsupportedModelError: The target refuses the network in float32.
        """
        with tempfile.TemporaryDirectory(prefix=".search-", dir=out_dir) as scratch:
            directory = Path(scratch)
            files, refused = self._exported(inputs, directory, tell)
            cases = [
                Case(id=name, runtime=self.target, path=str(path), num_threads=self.benchmark.num_threads)
                for name, path in files.items()
            ]
            measured = benchmark(self.profile, cases, self.benchmark.settings(), tell=tell).model_dump(mode="json")
        by_name = {case["id"]: case for case in measured["cases"]}
        rows = [
            {
                "scheme": scheme,
                "what": what,
                "latency_ms": by_name[scheme]["latency_ms"] if scheme in by_name else None,
                "error": refused.get(scheme) or _message(by_name.get(scheme)),
            }
            for scheme, what in QUANTIZERS[self.target].SCHEMES.items()
        ]
        floats = by_name["float32"]["latency_ms"]
        return {
            "target": self.target,
            "device": self.profile.name,
            "mode": self.profile.latency_label,
            "float32_latency_ms": floats,
            "candidates": rows,
            "schemes": list(schemes_by_speed(rows)),
            "warnings": measured["warnings"],
        }

    def _exported(
        self, inputs: Mapping[str, Path], directory: Path, tell: Tell
    ) -> tuple[dict[str, Path], dict[str, str]]:
        """Returns the files by the names of their cases, and why there is none of a scheme."""
        target, quantizer = TARGETS[self.target], QUANTIZERS[self.target]
        tell({"message": f"exporting to {self.target} in {len(quantizer.SCHEMES)} ways"})
        source, calibration = self._source(inputs, directory)
        files = {"float32": target.export(source, "float32", calibration, _made(directory / "float32"))}
        refused = {}
        for scheme in quantizer.SCHEMES:
            export = Int8Export(
                quantizer=quantizer,
                float_path=files["float32"],
                calibration=calibration,
                schemes=(scheme,),
                methods=("min_max",),
            )
            try:
                path, _ = export.make(_made(directory / scheme))
            except UnsupportedModelError as error:
                refused[scheme] = error.message
                continue
            held = target.inspect(path).precision
            if held == "int8":
                files[scheme] = path
            else:
                refused[scheme] = f"the file is {held} and not int8."
        return files, refused

    def _source(self, inputs: Mapping[str, Path], directory: Path) -> tuple[ModelSource, Calibration]:
        if self.model is None:
            signature = read_signature(inputs["calibrate"])
            rows = reference_samples(inputs["calibrate"], signature)
            samples = {
                tensor.name: np.array(np.load(file, mmap_mode="r")[:_SAMPLES])
                for tensor, file in zip(signature.inputs, rows.files, strict=True)
            }
            return ModelSource(inputs["model"], signature), Calibration(signature, samples, self.reduce_range)
        import keras

        keras.utils.set_random_seed(0)
        # Dropout would make statistics of what is never computed.
        fresh = self.model.model_copy(update={"weights": None, "dropout": 0.0, "drop_path": 0.0})
        network = build_network(fresh, (*self.image_size, 3), self.num_classes)
        images = random_images(_SAMPLES, self.image_size)
        enliven(network, images)
        write_saved_model(network, directory)
        signature = read_signature(directory)
        return ModelSource(directory, signature), Calibration(signature, {"image": images}, self.reduce_range)


def schemes_by_speed(candidates: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Returns the schemes that could be measured, the fastest first.

    Of ways that are as fast as the fastest within 2 %, the one that the quantizer names first comes first.

    Args:
        candidates: In the quantizer's order, each with `scheme` and `latency_ms`.
    """
    known = {row["scheme"]: row["latency_ms"]["p50"] for row in candidates if row["latency_ms"]}
    if not known:
        return ()
    fastest = min(known.values())
    return tuple(sorted(known, key=lambda scheme: known[scheme] if known[scheme] > SAME_SPEED * fastest else fastest))


def image_size_and_classes(data: Path) -> tuple[tuple[int, int], int]:
    """Returns the size of the network's images and the number of classes of a `data` artifact."""
    dataset = json.loads((data / "dataset.json").read_text(encoding="utf-8"))
    height, width = dataset["preprocess"]["size"]
    return (height, width), len(dataset["classes"])


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def _message(case: Mapping[str, Any] | None) -> str | None:
    return case["error"]["message"] if case is not None and case["error"] else None
