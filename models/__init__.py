"""Networks: one family a file, shared blocks, an explicit table.

Every network takes `image`, uint8 `(batch, height, width, 3)`, RGB 0..255, and gives `logits`, float32
`(batch, classes)`; scaling to the network's own range is its first layer. Importing this package loads
neither Keras nor a backend.

Adding a family: one file that ends in a `NetworkSpec`, one line in `MODELS`, one test case.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from models import (
    efficientnet,
    efficientnet_lite,
    efficientnet_v2,
    mlperf_tiny,
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3,
    mobilenet_v4,
)
from models.accounting import LayerRow, count_multiply_adds, count_parameters, layer_table
from models.blocks import default_early_stride
from models.cost import NetworkCost, count_cost
from models.memory import MemoryStep, file_size_bytes, memory_steps, peak_activation_bytes, peak_step
from models.skeleton import without_weights
from models.spec import Activation, InputKind, NetworkConfig, NetworkSpec, PublishedResult, check_input_shape

if TYPE_CHECKING:
    import keras

__all__ = [
    "MODELS",
    "Activation",
    "InputKind",
    "LayerRow",
    "MemoryStep",
    "NetworkConfig",
    "NetworkCost",
    "NetworkSpec",
    "PublishedResult",
    "build",
    "check_options",
    "count_cost",
    "count_multiply_adds",
    "count_parameters",
    "default_early_stride",
    "describe",
    "file_size_bytes",
    "find",
    "layer_table",
    "memory_steps",
    "peak_activation_bytes",
    "peak_step",
    "resolve",
    "without_weights",
]

MODELS: dict[str, NetworkSpec] = {
    "mobilenet_v1": mobilenet_v1.SPEC,
    "mobilenet_v2": mobilenet_v2.SPEC,
    "mobilenet_v3_small": mobilenet_v3.SMALL,
    "mobilenet_v3_large": mobilenet_v3.LARGE,
    "mobilenet_v3_small_minimalistic": mobilenet_v3.SMALL_MINIMALISTIC,
    "mobilenet_v3_large_minimalistic": mobilenet_v3.LARGE_MINIMALISTIC,
    "mobilenet_v4_conv_small": mobilenet_v4.CONV_SMALL,
    "mobilenet_v4_conv_medium": mobilenet_v4.CONV_MEDIUM,
    "mobilenet_v4_conv_large": mobilenet_v4.CONV_LARGE,
    "mobilenet_v4_hybrid_medium": mobilenet_v4.HYBRID_MEDIUM,
    "mobilenet_v4_hybrid_large": mobilenet_v4.HYBRID_LARGE,
    "efficientnet_b0": efficientnet.B0,
    "efficientnet_b1": efficientnet.B1,
    "efficientnet_b2": efficientnet.B2,
    "efficientnet_b3": efficientnet.B3,
    "efficientnet_b4": efficientnet.B4,
    "efficientnet_b5": efficientnet.B5,
    "efficientnet_b6": efficientnet.B6,
    "efficientnet_b7": efficientnet.B7,
    "efficientnet_lite0": efficientnet_lite.LITE0,
    "efficientnet_lite1": efficientnet_lite.LITE1,
    "efficientnet_lite2": efficientnet_lite.LITE2,
    "efficientnet_lite3": efficientnet_lite.LITE3,
    "efficientnet_lite4": efficientnet_lite.LITE4,
    "efficientnet_v2_b0": efficientnet_v2.B0,
    "efficientnet_v2_b1": efficientnet_v2.B1,
    "efficientnet_v2_b2": efficientnet_v2.B2,
    "efficientnet_v2_b3": efficientnet_v2.B3,
    "efficientnet_v2_s": efficientnet_v2.S,
    "resnet8": mlperf_tiny.RESNET8,
    "ds_cnn": mlperf_tiny.DS_CNN,
    "mobilenet_v1_025_96": mlperf_tiny.MOBILENET_V1_025_96,
    "dense_autoencoder": mlperf_tiny.DENSE_AUTOENCODER,
}
"""Every network that can be built by name."""


def find(name: str) -> NetworkSpec:
    """The network of this name.

    Raises:
        ValueError: If there is none; the message names the closest ones, or all if none is close.
    """
    if name in MODELS:
        return MODELS[name]
    longer = [other for other in MODELS if name and other.startswith(name)]
    close = longer or difflib.get_close_matches(name, MODELS, n=1, cutoff=0.4)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    families = ", ".join(dict.fromkeys(spec.family for spec in MODELS.values()))
    raise ValueError(
        f"Unknown network {name!r}.{hint} There are {len(MODELS)}, of the families {families}; edgeship models list "
        f"shows them."
    )


def build(
    name: str,
    *,
    input_shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
    width: float = 1.0,
    depth: float = 1.0,
    dropout: float | None = None,
    drop_path: float | None = None,
    activation: Activation | None = None,
    squeeze_excite: bool | None = None,
    early_stride: bool | None = None,
    batch_norm_momentum: float | None = None,
) -> keras.Model:
    """Builds a network with random weights.

    Args:
        name: A key of `MODELS`.
        input_shape: `(height, width, 3)` in pixels, from 32, or the shape of the features; None takes the authors'.
        num_classes: Number of logits, from 2; None takes the authors'.
        width: Multiplier on the number of channels, where the family has one.
        depth: Multiplier on the number of blocks, where the family has one.
        dropout: Dropout before the classifier; None takes the authors' value.
        drop_path: Stochastic depth at the last residual block; None takes the authors' value.
        activation: The principal nonlinearity; None takes the paper's. `relu6` for a network that quantizes well.
        squeeze_excite: Whether blocks gate their channels; None as in the paper.
        early_stride: True for the paper's first strides, False for the small-image variant (see
            `models.blocks.early_strides`); None takes the variant under 96 pixels (`default_early_stride`).
        batch_norm_momentum: None takes the reference implementation's value, which suits 100,000 steps and
            more. A few thousand images need 0.9 to 0.99, or the moving statistics never arrive.

    Returns:
        A model from `image`, uint8 `(batch, height, width, 3)`, to `logits`, float32 `(batch, num_classes)`; of a
        network that takes features, from `features`, float32.

    Raises:
        ValueError: If the name is unknown, an argument is outside its range, or the network leaves no choice in it.
    """
    spec = find(name)
    return spec.build(
        resolve(
            spec,
            input_shape=input_shape,
            num_classes=num_classes,
            width=width,
            depth=depth,
            dropout=dropout,
            drop_path=drop_path,
            activation=activation,
            squeeze_excite=squeeze_excite,
            early_stride=early_stride,
            batch_norm_momentum=batch_norm_momentum,
        )
    )


def describe(
    name: str,
    *,
    input_shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
    width: float = 1.0,
    depth: float = 1.0,
    activation: Activation | None = None,
    squeeze_excite: bool | None = None,
    early_stride: bool | None = None,
    with_layers: bool = False,
) -> dict[str, Any]:
    """Facts on one network, ready for JSON; arguments and errors as in `build`.

    The network is built without weights (`models.skeleton`), so that even the largest takes less than a second.

    Args:
        name: A key of `MODELS`.
        input_shape: None takes the network's own.
        num_classes: None takes the authors'.
        width: Multiplier on the number of channels.
        depth: Multiplier on the number of blocks.
        activation: None takes the paper's.
        squeeze_excite: None as in the paper.
        early_stride: As in `build`.
        with_layers: Whether to list the layers.

    Returns:
        - `name`, `family`, `variant`, `paper`.
        - `input_kind`, `input_shape` (without the batch), `resolution` (`[height, width]` in pixels; None of a network
          that takes features), `num_classes`, `width`, `depth`, `activation`, `squeeze_excite`, `early_stride`.
        - The fields of `models.cost.NetworkCost`.
        - `top1` (published for exactly this network, percent; None where nothing was published), `dataset` (that it
          was measured on) and `source` (where it was published, or why there is none).
        - `options`: for each option of the family, whether it can be chosen or why not.
        - `layers`, if asked for: of each layer `name`, `type`, `output_shape`, `parameters`, `multiply_adds` and
          `alive_bytes` (activation memory while it runs, float32; None where nothing is left of it after loading).
    """
    spec = find(name)
    config = resolve(
        spec,
        input_shape=input_shape,
        num_classes=num_classes,
        width=width,
        depth=depth,
        activation=activation,
        squeeze_excite=squeeze_excite,
        early_stride=early_stride,
    )
    model = without_weights(lambda: spec.build(config))
    top1 = _published_top1(spec, config)
    facts = {
        "name": spec.name,
        "family": spec.family,
        "variant": _variant(spec, config),
        "paper": spec.paper,
        "input_kind": spec.input_kind,
        "input_shape": list(config.input_shape),
        "resolution": list(config.image_size) if spec.input_kind == "image" else None,
        "num_classes": config.num_classes,
        "width": config.width,
        "depth": config.depth,
        "activation": config.activation,
        "squeeze_excite": config.squeeze_excite,
        "early_stride": config.early_stride,
        **asdict(count_cost(model)),
        "top1": top1,
        "dataset": spec.dataset,
        "source": _source(spec, top1),
        "options": {option: _choice(spec, option) for option in _OPTIONS},
    }
    return {**facts, "layers": _layers(model)} if with_layers else facts


def resolve(
    spec: NetworkSpec,
    *,
    input_shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
    width: float = 1.0,
    depth: float = 1.0,
    dropout: float | None = None,
    drop_path: float | None = None,
    activation: Activation | None = None,
    squeeze_excite: bool | None = None,
    early_stride: bool | None = None,
    batch_norm_momentum: float | None = None,
) -> NetworkConfig:
    """What a family builds from: defaults filled in, ranges checked; arguments and errors as in `build`."""
    shape = tuple(spec.input_shape if input_shape is None else input_shape)
    if spec.input_kind == "image":
        check_input_shape(shape)
    config = NetworkConfig(
        input_shape=shape,
        num_classes=spec.num_classes if num_classes is None else num_classes,
        width=width,
        depth=depth,
        dropout=spec.dropout if dropout is None else dropout,
        drop_path=(spec.drop_path or 0.0) if drop_path is None else drop_path,
        activation=spec.activation if activation is None else activation,
        squeeze_excite=spec.squeeze_excite if squeeze_excite is None else squeeze_excite,
        early_stride=_early_stride(spec, shape) if early_stride is None else early_stride,
        batch_norm_momentum=spec.batch_norm_momentum if batch_norm_momentum is None else batch_norm_momentum,
    )
    check_options(
        spec,
        width=None if width == 1.0 else width,
        depth=None if depth == 1.0 else depth,
        num_classes=None if num_classes == spec.num_classes else num_classes,
        dropout=None if dropout == spec.dropout else dropout,
        drop_path=drop_path or None,
        activation=None if activation == spec.activation else activation,
        squeeze_excite=None if squeeze_excite == spec.squeeze_excite else squeeze_excite,
        early_stride=early_stride,
    )
    return config


def check_options(spec: NetworkSpec, **options: object) -> None:
    """Refuses what a network leaves no choice in.

    Args:
        spec: The network.
        **options: As of `build`; None where an option was not given.

    Raises:
        ValueError: If one is given that the network does not have; the message says which do.
    """
    for name, value in options.items():
        if value is None:
            continue
        if name in spec.fixed:
            raise ValueError(f"{name} is {value!r}, but {spec.name!r} leaves no choice: {spec.fixed[name]}.")
        if name in _HAS and not _HAS[name](spec):
            others = ", ".join(dict.fromkeys(other.family for other in MODELS.values() if _HAS[name](other)))
            raise ValueError(
                f"{name} is {value!r}, but {spec.name!r} has no {_WORDS[name]}: leave it out, or take a network "
                f"of a family that has one ({others})."
            )


_HAS: dict[str, Callable[[NetworkSpec], bool]] = {
    "width": lambda spec: spec.has_width,
    "depth": lambda spec: spec.has_depth,
    "drop_path": lambda spec: spec.drop_path is not None,
    "early_stride": lambda spec: spec.has_early_stride,
}
_WORDS = {
    "width": "width multiplier",
    "depth": "depth multiplier",
    "drop_path": "stochastic depth",
    "early_stride": "variant for small images",
}


def _source(spec: NetworkSpec, top1: float | None) -> str:
    """Where the accuracy was read, or why there is none."""
    if top1 is not None or not spec.published:
        return spec.source
    return f"not published for this network as built here, in {spec.source}"


_OPTIONS = ("width", "depth", "activation", "squeeze_excite", "drop_path", "early_stride")


def _choice(spec: NetworkSpec, option: str) -> str | bool:
    """True where a network has this option, else why it has not."""
    if option in spec.fixed:
        return spec.fixed[option]
    return option not in _HAS or _HAS[option](spec) or f"no {_WORDS[option]}"


def _variant(spec: NetworkSpec, config: NetworkConfig) -> str:
    """What tells a network from others of its family, such as `b0` or `large 0.75`."""
    words, family = spec.name.split("_"), spec.family.split("_")
    while words and family and words[0] == family[0]:
        words, family = words[1:], family[1:]
    factors = [] if words and config.width == 1.0 else [str(round(config.width, 4))]
    return " ".join([*words, *factors, *([f"depth {round(config.depth, 4)}"] if config.depth != 1.0 else [])])


def _layers(model: keras.Model) -> list[dict[str, Any]]:
    """The layer table, with the memory that is alive at each layer."""
    alive: dict[str, int] = {}
    for step in memory_steps(model):
        alive[step.layer] = max(step.alive_bytes, alive.get(step.layer, 0))
    return [{**asdict(row), "alive_bytes": alive.get(row.name)} for row in layer_table(model)]


def _early_stride(spec: NetworkSpec, shape: tuple[int, ...]) -> bool:
    return not spec.has_early_stride or default_early_stride(shape[0], shape[1])


def _published_top1(spec: NetworkSpec, config: NetworkConfig) -> float | None:
    """The published accuracy, if it belongs to exactly this network."""
    same = {
        "num_classes": spec.num_classes,
        "depth": 1.0,
        "activation": spec.activation,
        "squeeze_excite": spec.squeeze_excite,
        "early_stride": True,
    }
    if any(getattr(config, name) != value for name, value in same.items()):
        return None
    if config.input_shape != spec.input_shape and len(set(config.input_shape[:2])) != 1:
        return None
    return spec.published_top1(config.width, config.input_shape[0])
