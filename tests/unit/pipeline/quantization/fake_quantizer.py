"""A quantizer of little networks that numpy runs: matrices with ReLU between them, in an .npz file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.model_source import Sample
from pipeline.quantization.ranges import Range, quantized

SCHEMES: Mapping[str, str] = {"plain": "Each layer's weights are rounded to 8 bits.", "converter": "The same."}


def write(path: Path, weights: Mapping[str, Any], bits: Mapping[str, int] | None = None) -> None:
    """Writes a network; a layer without bits is computed in float."""
    np.savez(path, **{**weights, **{f"bits:{name}": count for name, count in (bits or {}).items()}})


def lower(float_path: Path, scheme: str, out_path: Path) -> None:
    assert scheme in SCHEMES
    out_path.write_bytes(float_path.read_bytes())


def operations(path: Path) -> tuple[str, ...]:
    return tuple(layers(path))


def layers(path: Path) -> Mapping[str, str]:
    with np.load(path) as archive:
        return {name: f"{name}:out" for name in archive.files if ":" not in name}


def observed(path: Path) -> tuple[str, ...]:
    return tuple(layers(path).values())


def activations(path: Path, samples: Iterable[Sample], names: Collection[str]) -> Iterator[dict[str, Any]]:
    with np.load(path) as archive:
        weights = {name: archive[name] for name in archive.files}
    last = list(layers(path))[-1]
    for sample in samples:
        values, found = sample["x"].astype(np.float64), {}
        for name, tensor in layers(path).items():
            values = values @ weights[name]
            if name != last:
                values = np.maximum(values, 0)
            if f"low:{name}" in weights:
                values = quantized(values, (float(weights[f"low:{name}"]), float(weights[f"high:{name}"])))
            found[tensor] = values.astype(np.float32)
        yield {name: found[name] for name in names if name in found}


def quantize(
    path: Path,
    scheme: str,
    ranges: Mapping[str, Range],
    float_layers: Collection[str],
    out_path: Path,
    *,
    reduce_range: bool = False,
) -> None:
    assert scheme in SCHEMES
    assert set(float_layers) <= set(operations(path))
    steps = 63 if reduce_range else 127
    with np.load(path) as archive:
        weights: dict[str, Any] = {name: archive[name] for name in archive.files}
    for name, tensor in layers(path).items():
        if name not in float_layers:
            scale = np.abs(weights[name]).max(axis=0) / steps
            weights[name] = np.rint(weights[name] / scale) * scale
            weights[f"low:{name}"], weights[f"high:{name}"] = ranges[tensor]
    np.savez(out_path, **weights)


def scale_output(path: Path, factor: float, out_path: Path, *, output: str | None = None) -> None:
    last = list(layers(path))[-1]
    assert output in (None, f"{last}:out")
    with np.load(path) as archive:
        weights: dict[str, Any] = {name: archive[name] for name in archive.files}
    for name in (last, f"low:{last}", f"high:{last}"):
        if name in weights:
            weights[name] = weights[name] * factor
    np.savez(out_path, **weights)
