"""Which layers int8 hurts: each by itself, and each in the whole int8 model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.model_source import Sample
from pipeline.pictures import drawing
from pipeline.quantization.quantizer import Quantizer, signal_to_noise
from pipeline.quantization.ranges import Range, RangeMethod
from pipeline.quantization.static import Observed

SENSITIVITY_FILE = "sensitivity.json"
SENSITIVITY_PICTURE = "sensitivity.svg"
SENSITIVITY_SAMPLES = 16
_LINEAR = {"Conv", "Conv2D", "convolution", "depthwise", "DepthwiseConv2D", "Gemm", "MatMul"}
_BESIDE = {"BiasAdd", "Add", "WithoutBiases"}
_MOST_NAMED = 5
"""Layers that the manifest names; the file has all."""


Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LayerSensitivity:
    """One convolution or matrix product.

    Attributes:
        layer: Its name in the file.
        alone_db: Signal-to-noise ratio of the model's first output where this layer alone is int8.
        output_db: Signal-to-noise ratio of what this layer gives in the model that is int8 as a whole. None, as
            `alone_db`, where the int8 file does not hold the tensor.
    """

    layer: str
    alone_db: float | None
    output_db: float | None


def measure_sensitivity(
    quantizer: Quantizer,
    path: Path,
    *,
    scheme: str,
    ranges: Mapping[str, Range],
    samples: Sequence[Sample],
    output: str,
    scratch: Path,
    progress: Progress | None = None,
) -> tuple[LayerSensitivity, ...]:
    """Quantizes each layer alone, then all of them, and compares with float on the same samples.

    Args:
        quantizer: Of the runtime.
        path: A float file, lowered for the scheme.
        scheme: Of the quantizer.
        ranges: Of the tensors.
        samples: A few; noise is averaged over all values, so 16 images do.
        output: Name of the output that is compared.
        scratch: An empty directory for the files in between.
        progress: Takes how many layers are done, and of how many.

    Returns:
        All layers, in the order in which they run.
    """
    layers, operations = quantizer.layers(path), quantizer.operations(path)
    whole, alone = scratch / f"whole{path.suffix}", scratch / f"alone{path.suffix}"
    quantizer.quantize(path, scheme, ranges, (), whole)
    own = signal_to_noise(quantizer, path, whole, samples, list(layers.values()))
    found = []
    for number, (layer, tensor) in enumerate(layers.items(), 1):
        quantizer.quantize(path, scheme, ranges, [name for name in operations if name != layer], alone)
        found.append(
            LayerSensitivity(layer, signal_to_noise(quantizer, path, alone, samples, [output])[output], own[tensor])
        )
        if progress is not None:
            progress(number, len(layers))
    return tuple(found)


def sensitivity_of(
    observed: Observed, method: RangeMethod, scratch: Path, *, progress: Progress | None = None
) -> tuple[LayerSensitivity, ...]:
    """Measures the sensitivity of a lowered file whose ranges are chosen by one method, on a few of its samples.

    Args:
        observed: The model in one scheme.
        method: How its ranges are chosen.
        scratch: A directory for the files in between.
        progress: Takes how many layers are done, and of how many.
    """
    with tempfile.TemporaryDirectory(prefix="sensitivity-", dir=scratch) as directory:
        return measure_sensitivity(
            observed.quantizer,
            observed.path,
            scheme=observed.scheme,
            ranges=observed.ranges(method),
            samples=observed.samples[:SENSITIVITY_SAMPLES],
            output=observed.output,
            scratch=Path(directory),
            progress=progress,
        )


def most_sensitive_first(layers: Sequence[LayerSensitivity]) -> list[LayerSensitivity]:
    """Returns the layers by what each alone in int8 leaves of the output; those that nothing is known of come last."""
    return sorted(layers, key=lambda layer: float("inf") if layer.alone_db is None else layer.alone_db)


def sensitivity_summary(layers: Sequence[LayerSensitivity]) -> dict[str, Any]:
    """Returns for the manifest how many layers there are, and the most sensitive ones with both ratios."""
    named = most_sensitive_first(layers)[:_MOST_NAMED]
    return {"layers": len(layers), "most_sensitive": [asdict(layer) for layer in named]}


def read_sensitivity(directory: Path) -> tuple[LayerSensitivity, ...]:
    """Returns what `write_sensitivity` wrote; nothing where it did not."""
    path = directory / SENSITIVITY_FILE
    if not path.is_file():
        return ()
    return tuple(LayerSensitivity(**row) for row in json.loads(path.read_text(encoding="utf-8"))["layers"])


def write_sensitivity(layers: Sequence[LayerSensitivity], directory: Path, *, title: str) -> None:
    """Writes `sensitivity.json` and `sensitivity.svg`, the same bytes for the same numbers."""
    rows = [asdict(layer) for layer in layers]
    text = json.dumps({"schema_version": 1, "layers": rows}, indent=1) + "\n"
    (directory / SENSITIVITY_FILE).write_text(text, encoding="utf-8")
    draw_sensitivity(layers, directory / SENSITIVITY_PICTURE, title=title)


def draw_sensitivity(layers: Sequence[LayerSensitivity], path: Path, *, title: str) -> None:
    """Draws both ratios of each layer, in the order in which they run.

    Args:
        layers: At least one.
        path: Of the file, whose suffix says the format: `.svg` or `.png`.
        title: Above the picture.
    """
    with drawing(path, size=(7.5, 1.4 + 0.16 * len(layers)), font_size=8.0) as figure:
        axes = figure.subplots()
        places = np.arange(len(layers))
        axes.barh(
            places, [layer.alone_db or 0.0 for layer in layers], color="#0072B2", height=0.7, label="it alone in int8"
        )
        known = [(place, layer.output_db) for place, layer in enumerate(layers) if layer.output_db is not None]
        if known:
            axes.plot(
                [value for _, value in known], [place for place, _ in known], "D", color="#D55E00", markersize=3.5,
                label="its own output, all in int8",
            )  # fmt: skip
        axes.set_yticks(places, [short_name(layer.layer) for layer in layers])
        axes.set_ylim(len(layers) - 0.4, -0.6)
        axes.set(xlabel="signal-to-noise ratio, dB (less is more sensitive)", title=title)
        axes.grid(axis="x", linewidth=0.4)
        axes.set_axisbelow(True)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)


def short_name(name: str) -> str:
    """Returns the telling part of a name: converters put paths in front of it, and names of operations behind.

    LiteRT names an operation after all that was fused into it; of these the convolution or product tells most.
    """
    parts = [part.rstrip("/").split("/") for part in name.split(";")]
    linear = next((words for words in parts if not _LINEAR.isdisjoint(words)), parts[0])
    told = [word for word in linear if word not in _LINEAR and word not in _BESIDE]
    text = told[-1] if told else name
    return text if len(text) <= 40 else f"…{text[-39:]}"
