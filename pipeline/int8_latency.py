"""How fast int8 is beside float32 and beside the converters' defaults, of networks with random weights.

Latency does not depend on what a network has learned, so that nothing is trained. All files of a network, in all
runtimes, are measured side by side in one interleaved run.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import models
from devices.measurement import BenchmarkSettings, Case, benchmark
from devices.profile import DeviceProfile
from pipeline.artifacts import write_durably
from pipeline.errors import InputError, StageError
from pipeline.model_source import Calibration, ModelSource, Sample
from pipeline.quantization.quantizer import Quantizer
from pipeline.quantization.random_network import enliven, random_images
from pipeline.saved_model import write_saved_model
from pipeline.signature import Signature, image_signature
from pipeline.targets import QUANTIZERS, TARGETS
from pipeline.targets.base import TargetName
from pipeline.targets.by_hand import BY_HAND
from pipeline.targets.execution import Execution, execution

NETWORKS = (
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "mobilenet_v4_conv_small",
    "efficientnet_b0",
    "efficientnet_lite0",
)
SIZE = 224
IMAGES = 16
CONVERTER = "converter"
"""The scheme that gives what the converters give: no candidate."""

Tell = Callable[[str], None]


@dataclass(frozen=True)
class LatencyRow:
    """One network in one runtime.

    Attributes:
        network: A name of `models.MODELS`.
        target: A name of `QUANTIZERS`.
        float32_p50_ms: Of the float file.
        default_int8_p50_ms: Of the converter's defaults.
        int8_p50_ms: Of our fastest scheme.
        ratio: Our int8 to float32.
        default_ratio: Our int8 to the converter's.
        scheme: The fastest.
        scheme_p50_ms: Of all that were tried.
        executions: Where operations run, of `float32`, `default` and `int8`.
    """

    network: str
    target: str
    float32_p50_ms: float
    default_int8_p50_ms: float
    int8_p50_ms: float
    ratio: float
    default_ratio: float
    scheme: str
    scheme_p50_ms: Mapping[str, float]
    executions: Mapping[str, Execution]


def measure_networks(
    networks: Sequence[str],
    profile: DeviceProfile,
    *,
    targets: Sequence[TargetName] = tuple(QUANTIZERS),
    settings: BenchmarkSettings | None = None,
    size: int = SIZE,
    tell: Tell = lambda _: None,
) -> list[LatencyRow]:
    """Exports and measures each network in each runtime with one thread; Keras must run on TensorFlow.

    Args:
        networks: Names of `models.MODELS`.
        profile: The device.
        targets: Names of `QUANTIZERS`.
        settings: Of the measurement.
        size: Height and width of the images.
        tell: Takes a sentence for each step.

    Raises:
        InputError: There is no network of a name.
        StageError: A file can't be measured; the message says which and why.
    """
    unknown = [network for network in networks if network not in models.MODELS]
    if unknown:
        raise InputError(f"There is no network {', '.join(unknown)}: `edgeship models list` shows them all.")
    rows = []
    for network in networks:
        with tempfile.TemporaryDirectory(prefix="edgeship-int8-") as scratch:
            directory = Path(scratch)
            tell(f"exporting {network}")
            source, samples = random_network(network, size, directory)
            files = {target: make_files(target, source, samples, directory / target) for target in targets}
            tell(f"measuring {network}")
            latencies = _measure(profile, files, settings)
            rows += [_row(network, target, files[target], latencies[target]) for target in targets]
    return rows


def random_network(name: str, size: int, directory: Path) -> tuple[ModelSource, Calibration]:
    """Writes the SavedModel of a network with random weights, and draws images."""
    import keras

    keras.utils.set_random_seed(0)
    network = models.build(name, input_shape=(size, size, 3), num_classes=1000, dropout=0.0, drop_path=0.0)
    images = random_images(IMAGES, (size, size))
    enliven(network, images)
    write_saved_model(network, directory)
    signature: Signature = image_signature((size, size, 3), 1000, source="saved_model", model="saved_model")
    return ModelSource(directory, signature), Calibration(signature, {signature.inputs[0].name: images})


def make_files(target: TargetName, source: ModelSource, calibration: Calibration, directory: Path) -> dict[str, Path]:
    """Writes the network in float32, by the converter's defaults, and in each of our schemes.

    Returns:
        `float32`, `default`, and each scheme but the converter's, by name.
    """
    directory.mkdir(parents=True)
    quantizer, suffix, samples = QUANTIZERS[target], TARGETS[target].suffix, list(calibration)
    files = {"float32": TARGETS[target].export(source, "float32", calibration, directory)}
    files["default"] = directory / f"default{suffix}"
    BY_HAND[target](source, files["float32"], samples, files["default"])
    for scheme in quantizer.SCHEMES:
        if scheme != CONVERTER:
            lowered, files[scheme] = directory / f"lowered-{scheme}{suffix}", directory / f"{scheme}{suffix}"
            quantizer.lower(files["float32"], scheme, lowered)
            ranges = _ranges(quantizer, lowered, samples)
            quantizer.quantize(lowered, scheme, ranges, (), files[scheme])
    return files


def _ranges(quantizer: Quantizer, path: Path, samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    """Returns the lowest and highest value of each tensor, which is all that latency needs."""
    ranges: dict[str, tuple[float, float]] = {}
    for tensors in quantizer.activations(path, samples, quantizer.observed(path)):
        for name, values in tensors.items():
            low, high = ranges.get(name, (0.0, 0.0))
            ranges[name] = min(low, float(values.min())), max(high, float(values.max()))
    # A tensor of nothing but zeros gets any range that has a width.
    return {name: (low, high) if high > low else (0.0, 1.0) for name, (low, high) in ranges.items()}


def _measure(
    profile: DeviceProfile, files: Mapping[TargetName, Mapping[str, Path]], settings: BenchmarkSettings | None
) -> dict[TargetName, dict[str, float]]:
    """Returns the median latency of each file in milliseconds."""
    cases = {
        (target, name): Case(id=f"{target}/{name}", runtime=target, path=str(path), num_threads=1)
        for target, paths in files.items()
        for name, path in paths.items()
    }
    result = benchmark(profile, list(cases.values()), settings)
    found = {case.id: case for case in result.cases}
    latencies: dict[TargetName, dict[str, float]] = {target: {} for target in files}
    for (target, name), case in cases.items():
        measured = found[case.id]
        if measured.latency_ms is None:
            reason = measured.error.message if measured.error else "no latencies"
            raise StageError(f"{case.id} can't be measured on {profile.name}: {reason}.")
        latencies[target][name] = measured.latency_ms.p50
    return latencies


def _row(network: str, target: TargetName, files: Mapping[str, Path], latencies: Mapping[str, float]) -> LatencyRow:
    schemes = {name: latency for name, latency in latencies.items() if name not in {"float32", "default"}}
    scheme = min(schemes, key=lambda name: schemes[name])
    chosen = {"float32": files["float32"], "default": files["default"], "int8": files[scheme]}
    return LatencyRow(
        network=network,
        target=target,
        float32_p50_ms=latencies["float32"],
        default_int8_p50_ms=latencies["default"],
        int8_p50_ms=schemes[scheme],
        ratio=schemes[scheme] / latencies["float32"],
        default_ratio=schemes[scheme] / latencies["default"],
        scheme=scheme,
        scheme_p50_ms=schemes,
        executions={name: execution(target, path) for name, path in chosen.items()},
    )


def gain_over_default(rows: Sequence[LatencyRow]) -> float:
    """Returns how many times faster than the converters' defaults our int8 is, in the geometric mean."""
    return math.exp(-sum(math.log(row.default_ratio) for row in rows) / len(rows))


def table(rows: Sequence[LatencyRow]) -> list[str]:
    """Returns the rows as lines of text, a line of headings first."""
    headings = ("float32", "default", "int8")
    lines = [
        f"{'network':24} {'target':12} " + " ".join(f"{each:>8}" for each in headings) + "  ratio to default  scheme"
    ]
    lines += [
        f"{row.network:24} {row.target:12} {row.float32_p50_ms:8.3f} {row.default_int8_p50_ms:8.3f} "
        f"{row.int8_p50_ms:8.3f} {row.ratio:6.2f} {row.default_ratio:10.2f}  {row.scheme}: {row.executions['int8']} "
        f"(default: {row.executions['default']})"
        for row in rows
    ]
    return lines


def write_rows(rows: Sequence[LatencyRow], path: Path, *, device: str) -> None:
    """Writes the rows as JSON; the file has its old content or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "schema_version": 1,
        "device": device,
        "num_threads": 1,
        "gain_over_default": gain_over_default(rows),
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    write_durably(path, json.dumps(content, indent=1) + "\n")
