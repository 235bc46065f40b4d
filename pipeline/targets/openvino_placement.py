"""Where NNCF quantizes a model for OpenVINO's CPU plugin.

It takes NNCF seconds to find out. It depends on the graph alone, so that it is kept for each .xml in a process.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

LINEAR: dict[str, tuple[int, ...]] = {
    "Convolution": (0,),
    "GroupConvolution": (0, 1),
    "ConvolutionBackpropData": (1,),
    "GroupConvolutionBackpropData": (0, 2),
    "MatMul": (),
}
"""Operations with weights, second among their inputs, and the axes of the output channels (a MatMul's depend)."""

_CARRIERS = {"Reshape", "Transpose", "Squeeze", "Unsqueeze"}
"""Operations that only arrange values."""


@dataclass(frozen=True)
class Site:
    """A tensor that is quantized.

    Attributes:
        tensor: Its name, see `tensor_name`.
        node: The operation that gives it.
        output: Which of its outputs it is.
        consumers: Operations that take it quantized, each with which of its inputs it is.
        channels: How many there are where only depthwise convolutions take it, else 0.
    """

    tensor: str
    node: str
    output: int
    consumers: tuple[tuple[str, int], ...]
    channels: int


@dataclass(frozen=True)
class StoredWeights:
    """Weights that are quantized.

    Attributes:
        consumer: The operation that takes them.
        port: Which of its inputs they are.
        axes: Along which each position has a scale of its own.
    """

    consumer: str
    port: int
    axes: tuple[int, ...]


@dataclass(frozen=True)
class Placement:
    """Everything that is quantized, in the order it is computed.

    Attributes:
        sites: Activations.
        weights: Weights.
        joined: Names of activations that one operation joins, which therefore need one range.
    """

    sites: tuple[Site, ...]
    weights: tuple[StoredWeights, ...]
    joined: tuple[tuple[str, ...], ...]


def tensor_name(port: Any) -> str:
    """Returns the name of an operation, with the number of the output from the second one on."""
    name: str = port.get_node().get_friendly_name()
    return name if not port.get_index() else f"{name}:{port.get_index()}"


def linear_operations(model: Any) -> list[Any]:
    """Returns the operations with stored weights, in the order they are computed."""
    return [node for node in model.get_ordered_ops() if node.get_type_name() in LINEAR and _is_stored(node, 1)]


def taker_of(node: Any, port: int) -> Any:
    """Returns the operation that computes with an input, behind those that only arrange it for this one operation."""
    while node.get_type_name() in _CARRIERS and port == 0:
        users = list(node.output(0).get_target_inputs())
        if len(users) != 1:
            break
        node, port = users[0].get_node(), users[0].get_index()
    return node


def placement(path: Path) -> Placement:
    """Returns where NNCF quantizes a float model."""
    return _placement(str(path), hashlib.sha256(path.read_bytes()).hexdigest())


@functools.lru_cache(maxsize=16)
def _placement(path: str, digest: str) -> Placement:
    import nncf
    import openvino as ov

    del digest
    model = ov.Core().read_model(path)
    zeros = {
        sorted(port.get_names())[0]: np.zeros(list(port.shape), port.get_element_type().to_dtype())
        for port in model.inputs
    }
    nncf.set_log_level(logging.ERROR)
    smoothing = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    marked = nncf.quantize(
        model,
        nncf.Dataset([zeros]),
        subset_size=1,
        target_device=nncf.TargetDevice.CPU,
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            disable_bias_correction=True,
            smooth_quant_alphas=smoothing,
            overflow_fix=nncf.OverflowFix.DISABLE,
            # Weights stay float behind a FakeQuantize, whose bounds have the shape of the scales.
            backend_params={"compress_weights": False},
        ),
    )
    found = [node for node in marked.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]
    sites = _united(_site(node) for node in found if not _is_stored(node, 0))
    return Placement(
        sites=sites,
        weights=tuple(each for node in found if _is_stored(node, 0) for each in _stored_weights(node)),
        joined=_joined(marked, sites),
    )


def _site(quantizer: Any) -> Site:
    source = quantizer.input_value(0)
    takers = [(user.get_node(), user.get_index()) for user in _users(quantizer)]
    depthwise = all(node.get_type_name() == "GroupConvolution" for node, _ in takers)
    return Site(
        tensor=tensor_name(source),
        node=source.get_node().get_friendly_name(),
        output=source.get_index(),
        consumers=tuple(sorted((node.get_friendly_name(), port) for node, port in takers)),
        channels=int(source.get_partial_shape()[1].get_length()) if depthwise else 0,
    )


def _united(sites: Iterator[Site]) -> tuple[Site, ...]:
    """Returns one site a tensor, where NNCF has several quantizers on one."""
    united: dict[str, Site] = {}
    for site in sites:
        other = united.get(site.tensor)
        if other is not None:
            consumers = tuple(sorted({*other.consumers, *site.consumers}))
            site = Site(site.tensor, site.node, site.output, consumers, min(site.channels, other.channels))  # noqa: PLW2901
        united[site.tensor] = site
    return tuple(united.values())


def _stored_weights(quantizer: Any) -> list[StoredWeights]:
    # The bounds have one value for each scale, in the shape of the weights.
    bounds = quantizer.input_value(1).get_partial_shape().to_shape()
    axes = tuple(axis for axis, size in enumerate(bounds) if size != 1)
    return [StoredWeights(user.get_node().get_friendly_name(), user.get_index(), axes) for user in _users(quantizer)]


def _joined(model: Any, sites: tuple[Site, ...]) -> tuple[tuple[str, ...], ...]:
    names = {node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() == "Concat"}
    groups = [
        tuple(site.tensor for site in sites if any(taker == name for taker, _ in site.consumers))
        for name in sorted(names)
    ]
    return tuple(group for group in groups if len(group) > 1)


def _users(node: Any) -> list[Any]:
    return list(node.output(0).get_target_inputs())


def _is_stored(node: Any, port: int) -> bool:
    """Whether an input comes from a constant."""
    source = node.input_value(port).get_node()
    while source.get_type_name() in {"Convert", "FakeQuantize"}:
        source = source.input_value(0).get_node()
    return bool(source.get_type_name() == "Constant")
