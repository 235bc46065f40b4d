"""Networks: one family a file, shared blocks, an explicit table.

Every network takes `image`, uint8 `(batch, height, width, 3)`, RGB 0..255, and gives `logits`, float32
`(batch, classes)`; scaling to the network's own range is its first layer. Importing this package loads
neither Keras nor a backend.

Adding a family: one file that ends in a `NetworkSpec`, one line in `MODELS`, one test case.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from models import efficientnet_lite, mobilenet_v2
from models.accounting import LayerRow, count_multiply_adds, count_parameters, layer_table
from models.blocks import default_early_stride
from models.spec import NetworkConfig, NetworkSpec, PublishedResult, check_input_shape

if TYPE_CHECKING:
    import keras

__all__ = [
    "MODELS",
    "LayerRow",
    "NetworkConfig",
    "NetworkSpec",
    "PublishedResult",
    "build",
    "count_multiply_adds",
    "count_parameters",
    "default_early_stride",
    "describe",
    "find",
    "layer_table",
]

MODELS: dict[str, NetworkSpec] = {
    "mobilenet_v2": mobilenet_v2.SPEC,
    "efficientnet_lite0": efficientnet_lite.LITE0,
}
"""Every network that can be built by name."""


def find(name: str) -> NetworkSpec:
    """The network of this name.

    Raises:
        ValueError: If there is none; the message names the closest one.
    """
    if name in MODELS:
        return MODELS[name]
    close = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"Unknown network {name!r}, expected one of {', '.join(sorted(MODELS))}.{hint}")


def build(
    name: str,
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    width: float = 1.0,
    dropout: float | None = None,
    early_stride: bool | None = None,
    batch_norm_momentum: float | None = None,
) -> keras.Model:
    """Builds a network with random weights.

    Args:
        name: A key of `MODELS`.
        input_shape: `(height, width, 3)` in pixels, from 32.
        num_classes: Number of logits, from 2.
        width: Multiplier on the number of channels, where the family has one.
        dropout: Dropout before the classifier; None takes the authors' value.
        early_stride: True for the paper's first strides, False for the small-image variant (see
            `models.blocks.early_strides`); None takes the variant under 96 pixels (`default_early_stride`).
        batch_norm_momentum: None takes the reference implementation's value, which suits 100,000 steps and
            more. A few thousand images need 0.9 to 0.99, or the moving statistics never arrive.

    Returns:
        A model from `image`, uint8 `(batch, height, width, 3)`, to `logits`, float32 `(batch, num_classes)`.

    Raises:
        ValueError: If the name is unknown or an argument is outside its range.
    """
    spec = find(name)
    return spec.build(
        _config(
            spec,
            input_shape=input_shape,
            num_classes=num_classes,
            width=width,
            dropout=dropout,
            early_stride=early_stride,
            batch_norm_momentum=batch_norm_momentum,
        )
    )


def describe(
    name: str,
    *,
    input_shape: tuple[int, int, int] | None = None,
    num_classes: int = 1000,
    width: float = 1.0,
    early_stride: bool | None = None,
) -> dict[str, Any]:
    """Facts on one network, ready for JSON; arguments and errors as in `build`.

    Args:
        name: A key of `MODELS`.
        input_shape: None takes the network's own resolution.
        num_classes: Number of logits.
        width: Multiplier on the number of channels.
        early_stride: As in `build`.

    Returns:
        `name`, `family`, `paper`, `width`, `resolution` (`[height, width]` in pixels), `num_classes`;
        `parameters` (trainable, as frameworks count them), `parameters_folded` (what a file for a board
        holds), `multiply_adds` (for one image), all three counted from the graph; `top1` (published for
        exactly this network on ImageNet, percent; None where nothing was published) and `source` (where it
        was published, or why there is none).
    """
    spec = find(name)
    config = _config(
        spec,
        input_shape=input_shape or (spec.resolution, spec.resolution, 3),
        num_classes=num_classes,
        width=width,
        early_stride=early_stride,
    )
    model = spec.build(config)
    top1 = _published_top1(spec, config)
    return {
        "name": spec.name,
        "family": spec.family,
        "paper": spec.paper,
        "width": config.width,
        "resolution": list(config.input_shape[:2]),
        "num_classes": config.num_classes,
        "parameters": count_parameters(model, batch_norm="trainable"),
        "parameters_folded": count_parameters(model, batch_norm="folded"),
        "multiply_adds": count_multiply_adds(model),
        "top1": top1,
        "source": spec.source
        if top1 is not None
        else f"not published for this width, resolution and number of classes in {spec.source}",
    }


def _config(
    spec: NetworkSpec,
    *,
    input_shape: tuple[int, int, int],
    num_classes: int,
    width: float,
    dropout: float | None = None,
    early_stride: bool | None = None,
    batch_norm_momentum: float | None = None,
) -> NetworkConfig:
    """What the family builds from: defaults filled in, ranges checked."""
    check_input_shape(input_shape)
    config = NetworkConfig(
        input_shape=input_shape,
        num_classes=num_classes,
        width=width,
        dropout=spec.dropout if dropout is None else dropout,
        early_stride=default_early_stride(*input_shape[:2]) if early_stride is None else early_stride,
        batch_norm_momentum=spec.batch_norm_momentum if batch_norm_momentum is None else batch_norm_momentum,
    )
    if not spec.has_width and width != 1.0:
        with_width = ", ".join(name for name, other in MODELS.items() if other.has_width)
        raise ValueError(
            f"width is {width!r}, but {spec.name!r} has no width multiplier: leave it at 1.0, or take a "
            f"network that has one ({with_width})."
        )
    return config


def _published_top1(spec: NetworkSpec, config: NetworkConfig) -> float | None:
    """The published accuracy, if it belongs to exactly this network."""
    height, width, _ = config.input_shape
    if height != width or config.num_classes != 1000 or not config.early_stride:
        return None
    return spec.published_top1(config.width, height)
