"""The four networks of MLPerf Tiny (Banbury et al., NeurIPS 2021 Datasets and Benchmarks, arXiv:2106.07597, table 1).

Microcontrollers and boards are compared by these networks, so they are layer for layer those of the reference training
code (mlcommons/tiny, benchmark/training): its convolutions keep a bias in front of each batch normalization, and its
keyword spotting network averages over all but the last row of an odd map. What differs is the contract's two ends:
scaling is inside the network, and the last softmax is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.blocks import (
    Rescaling,
    SqueezeExcite,
    Style,
    activate,
    batch_norm,
    classifier,
    early_strides,
    image_input,
    pool,
    residual,
    squeeze_excite,
)
from models.spec import NetworkConfig, NetworkSpec, PublishedResult

if TYPE_CHECKING:
    import keras

_SQUEEZE_RATIO = 0.25
_NO_WIDTH = "the benchmark has one width"


def _conv(
    x: keras.KerasTensor,
    filters: int | None,
    style: Style,
    *,
    name: str,
    kernel_size: int | tuple[int, int] = 1,
    stride: int = 1,
    linear: bool = False,
) -> keras.KerasTensor:
    """Convolution with a bias, batch normalization, activation; without `filters` the convolution is depthwise."""
    import keras

    if filters is None:
        x = keras.layers.DepthwiseConv2D(
            kernel_size, strides=stride, padding="same", data_format="channels_last", name=name
        )(x)
    else:
        x = keras.layers.Conv2D(
            filters, kernel_size, strides=stride, padding="same", data_format="channels_last", name=name
        )(x)
    return batch_norm(x, style, name=name, activation=None if linear else style.activation)


def _separable(
    x: keras.KerasTensor, filters: int, style: Style, *, name: str, squeezed: bool, stride: int = 1
) -> keras.KerasTensor:
    """A depthwise 3x3 and a 1x1 convolution, each normalized and activated, with a gate between them if asked for."""
    x = _conv(x, None, style, kernel_size=3, stride=stride, name=f"{name}_depthwise")
    x = squeeze_excite(x, _gate(x, style) if squeezed else None, name=name)
    return _conv(x, filters, style, name=f"{name}_pointwise")


def _gate(x: keras.KerasTensor, style: Style) -> SqueezeExcite:
    return SqueezeExcite(filters=max(1, int(x.shape[-1] * _SQUEEZE_RATIO)), activation=style.activation)


def _style(config: NetworkConfig) -> Style:
    return Style(activation=config.activation, momentum=config.batch_norm_momentum)


def _features(config: NetworkConfig, rank: int, example: str) -> keras.KerasTensor:
    """The input `features`, float32.

    Raises:
        ValueError: If the shape has another rank than the network takes, or a length below 1.
    """
    import keras

    shape = config.input_shape
    if len(shape) != rank or not all(isinstance(length, int) and length >= 1 for length in shape):
        raise ValueError(f"input_shape is {shape!r}, expected {example}.")
    return keras.Input(shape, dtype="float32", name="features")


def _build_resnet8(config: NetworkConfig) -> keras.Model:
    """Three stacks of one basic block each, with 16, 32 and 64 channels; pixels are taken as 0..255."""
    import keras

    style = _style(config)
    image, x = image_input(config, Rescaling(scale=1.0, offset=0.0))
    x = _conv(x, 16, style, kernel_size=3, name="stem_conv")
    for index, (filters, stride) in enumerate(((16, 1), (32, 2), (64, 2))):
        name = f"block_{index:02d}"
        y = _conv(x, filters, style, kernel_size=3, stride=stride, name=f"{name}_first")
        y = _conv(y, filters, style, kernel_size=3, linear=True, name=f"{name}_second")
        y = squeeze_excite(y, _gate(y, style) if config.squeeze_excite else None, name=name)
        if stride > 1:
            x = keras.layers.Conv2D(
                filters, 1, strides=stride, padding="same", data_format="channels_last", name=f"{name}_shortcut"
            )(x)
        x = activate(residual(y, x, name=name), style.activation, name=f"{name}_add")
    return keras.Model(image, classifier(pool(x), config), name="resnet8")


def _build_ds_cnn(config: NetworkConfig) -> keras.Model:
    """A 10x4 convolution and four depthwise separable ones, 64 channels each (Zhang et al., arXiv:1711.07128).

    Half of the dropout before the classifier follows the first convolution: 0.2 and 0.4 in the reference.
    """
    import keras

    style = _style(config)
    features = _features(config, 3, "(frames, coefficients, 1), such as (49, 10, 1)")
    x = _conv(features, 64, style, kernel_size=(10, 4), stride=2, name="stem_conv")
    x = keras.layers.Dropout(config.dropout / 2, name="stem_dropout")(x)
    for index in range(4):
        x = _separable(x, 64, style, squeezed=config.squeeze_excite, name=f"block_{index:02d}")
    x = keras.layers.Dropout(config.dropout, name="head_dropout")(x)
    window = tuple(max(1, length // 2) for length in config.input_shape[:2])
    x = keras.layers.AveragePooling2D(window, data_format="channels_last", name="head_pool")(x)
    x = keras.layers.Flatten(data_format="channels_last", name="head_flatten")(x)
    logits = keras.layers.Dense(config.num_classes, dtype="float32", name="logits")(x)
    return keras.Model(features, logits, name="ds_cnn")


def _build_mobilenet(config: NetworkConfig) -> keras.Model:
    """MobileNetV1 with a quarter of its channels, ReLU for ReLU6, biases; pixels are taken as 0..1."""
    import keras

    style = _style(config)
    stem_stride, first_stride = early_strides(*config.image_size, early_stride=config.early_stride)
    image, x = image_input(config, Rescaling(scale=1 / 255, offset=0.0))
    x = _conv(x, 8, style, kernel_size=3, stride=stem_stride, name="stem_conv")
    # Channels and stride of MobileNetV1's table at width 0.25.
    table = ((16, 1), (32, first_stride), (32, 1), (64, 2), (64, 1), (128, 2), *((128, 1),) * 5, (256, 2), (256, 1))
    for index, (filters, stride) in enumerate(table):
        name = f"block_{index:02d}"
        x = _separable(x, filters, style, stride=stride, squeezed=config.squeeze_excite, name=name)
    return keras.Model(image, classifier(pool(x), config), name="mobilenet_v1_025_96")


def _build_autoencoder(config: NetworkConfig) -> keras.Model:
    """Four dense layers of 128, a bottleneck of 8, four of 128, and a linear layer as long as the input."""
    import keras

    style = _style(config)
    features = x = _features(config, 1, "(length,), such as (640,)")
    for index, units in enumerate((128, 128, 128, 128, 8, 128, 128, 128, 128)):
        name = f"dense_{index:02d}"
        x = batch_norm(
            keras.layers.Dense(units, name=name)(x), style, name=name, activation=style.activation
        )  # fmt: skip
    x = keras.layers.Dense(config.input_shape[0], dtype="float32", name="reconstruction")(x)
    return keras.Model(features, x, name="dense_autoencoder")


_PAPER = "MLPerf Tiny Benchmark, NeurIPS 2021 Datasets and Benchmarks, arXiv:2106.07597, table 1"
_SOURCE = "mlcommons/tiny, benchmark/README.md at 0aa15b2, quality target of the closed division"

RESNET8 = NetworkSpec(
    name="resnet8",
    family="mlperf_tiny",
    build=_build_resnet8,
    input_shape=(32, 32, 3),
    num_classes=10,
    dataset="CIFAR-10",
    dropout=0.0,
    batch_norm_momentum=0.99,
    activation="relu",
    has_early_stride=False,
    fixed={"width": _NO_WIDTH},
    paper=_PAPER,
    published=(PublishedResult(width=1.0, resolution=32, top1=85.0),),
    source=_SOURCE,
)
DS_CNN = NetworkSpec(
    name="ds_cnn",
    family="mlperf_tiny",
    build=_build_ds_cnn,
    input_kind="features",
    input_shape=(49, 10, 1),
    num_classes=12,
    dataset="Speech Commands v2",
    dropout=0.4,
    batch_norm_momentum=0.99,
    activation="relu",
    has_early_stride=False,
    fixed={"width": _NO_WIDTH},
    paper=_PAPER,
    published=(PublishedResult(width=1.0, resolution=49, top1=90.0),),
    source=_SOURCE,
)
MOBILENET_V1_025_96 = NetworkSpec(
    name="mobilenet_v1_025_96",
    family="mlperf_tiny",
    build=_build_mobilenet,
    input_shape=(96, 96, 3),
    num_classes=2,
    dataset="Visual Wake Words",
    dropout=0.0,
    batch_norm_momentum=0.99,
    activation="relu",
    fixed={"width": "the benchmark has 0.25; mobilenet_v1 takes any"},
    paper=_PAPER,
    published=(PublishedResult(width=1.0, resolution=96, top1=80.0),),
    source=_SOURCE,
)
DENSE_AUTOENCODER = NetworkSpec(
    name="dense_autoencoder",
    family="mlperf_tiny",
    build=_build_autoencoder,
    input_kind="features",
    input_shape=(640,),
    num_classes=640,
    dataset="ToyADMOS ToyCar",
    dropout=0.0,
    batch_norm_momentum=0.99,
    activation="relu",
    has_early_stride=False,
    fixed={
        "width": _NO_WIDTH,
        "squeeze_excite": "it has no convolutions whose channels could be gated",
        "dropout": "it has no classifier",
        "num_classes": "it reconstructs its input, and has as many outputs as inputs",
    },
    paper=_PAPER,
    published=(),
    source=f"{_SOURCE}: area under the curve 0.85, and no top-1",
)
