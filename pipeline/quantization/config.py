"""The options of the remedies that change a Keras network's weights. Loads no Keras."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.stages.base import FrozenConfig
from pipeline.training.config import AugmentationConfig, TeacherConfig, TrainConfig


class IntegerArithmetic(FrozenConfig):
    """What the integer arithmetic of a target can tell apart.

    Attributes:
        weight_bits: Weights are whole multiples of a channel's step, symmetric: -127..127 of them for 8 bits.
        activation_bits: Activations have 2 ** bits levels, of which one is exactly 0.
        round_gates: Whether the factor inside hard-swish and swish, `relu6(x + 3)` or `sigmoid(x)`, is rounded too, in
            its natural range. LiteRT and ONNX Runtime compute a product of two 8-bit tensors; OpenVINO does not.
        float_layers: Convolutions and dense layers whose weights stay float; what they give is rounded where the table
            of ranges says so.
    """

    weight_bits: int = Field(default=8, ge=2, le=16)
    activation_bits: int = Field(default=8, ge=2, le=16)
    round_gates: bool = True
    float_layers: tuple[str, ...] = ()


class EqualizationConfig(FrozenConfig):
    """Cross-layer equalization.

    Attributes:
        measure: What is made equal between channels. `weights`: the largest weights on both sides of a tensor (Nagel
            et al. 2019, equation 11), for weights with one step a layer. `activations`: the tensor's own largest
            values against the weights that read it, for weights with one step a channel, which scaling leaves alone.
        relu6: Whether channels behind a ReLU6 take part. `leave`: none does, so the function stays exactly the same.
            `unclipped`: those do that stay below 6 by `margin` on the calibration images, before and after; there the
            function is the same for every image that keeps below 6 in them.
        margin: How often the largest value seen must fit below 6.
        passes: How often all pairs are gone over; chains of three and more layers come to rest after a few.
        largest_factor: No channel is scaled by more than this, or by less than its inverse, in all.
    """

    measure: Literal["weights", "activations"] = "activations"
    relu6: Literal["leave", "unclipped"] = "leave"
    margin: float = Field(default=1.5, ge=1)
    passes: int = Field(default=8, ge=1, le=100)
    largest_factor: float = Field(default=64.0, gt=1)


class RoundingConfig(FrozenConfig):
    """AdaRound (Nagel et al. 2020).

    Attributes:
        steps: Steps of Adam a layer.
        learning_rate: Of Adam.
        regularization: Weight of the term that drives every weight to one side, relative to the error that rounding
            at random would make.
        first_exponent: Of the regularizer, which falls linearly to `last_exponent`.
        last_exponent: See `first_exponent`.
        warmup: Share of the steps without the regularizer.
    """

    steps: int = Field(default=1000, ge=1)
    learning_rate: float = Field(default=0.02, gt=0)
    regularization: float = Field(default=1.0, ge=0)
    first_exponent: float = Field(default=20.0, ge=2)
    last_exponent: float = Field(default=2.0, gt=0)
    warmup: float = Field(default=0.2, ge=0, lt=1)


class FineTuneConfig(FrozenConfig):
    """Quantization-aware training: a short fine-tune of the rounded network.

    The loss is (1 - `teacher_weight`) * cross-entropy with the labels + `teacher_weight` * temperature^2 *
    KL(float network || rounded network).

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images a step.
        optimizer: See `pipeline.training.config.TrainConfig`.
        learning_rate: Its peak, then a cosine to zero. Parameters are relative to where they start: a weight to the
            largest of its channel, the ends of a range to its width.
        warmup_epochs: Length of the linear warm-up.
        learned_ranges: Whether the ranges of activations are learned too (learned step size, Esser et al. 2020, with
            the offset of Bhalgat et al. 2020); else those given are kept.
        temperature: Softens both networks' probabilities.
        teacher_weight: Share of the float network's part in the loss; 0 leaves it out.
        label_smoothing: Share of the label's weight that is spread over all classes.
        clip_norm: Largest global norm of the gradients; None clips nothing.
        augmentation: Random changes to the training images.
        workers: Processes that load images, as in training.
        seed: Of the order of the images and of augmentation.
    """

    epochs: int = Field(default=5, ge=1)
    batch_size: int = Field(default=64, ge=2)
    optimizer: Literal["adamw", "sgd", "rmsprop"] = "adamw"
    learning_rate: float = Field(default=3e-4, gt=0)
    warmup_epochs: float = Field(default=0.2, ge=0)
    learned_ranges: bool = True
    temperature: float = Field(default=2.0, gt=0, le=100)
    teacher_weight: float = Field(default=0.9, ge=0, le=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    clip_norm: float | None = Field(default=1.0, gt=0)
    augmentation: AugmentationConfig = AugmentationConfig()
    workers: Literal["auto"] | int = "auto"
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs:g}, but quantization-aware training has {self.epochs} epochs: "
                f"make warmup_epochs smaller than epochs."
            )
        return self

    def train_config(self) -> TrainConfig:
        """Returns the same as the config of a training, without decay of the weights."""
        teacher = None
        if self.teacher_weight:
            teacher = TeacherConfig(path="float network", temperature=self.temperature, weight=self.teacher_weight)
        return TrainConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            schedule="cosine",
            warmup_epochs=self.warmup_epochs,
            weight_decay=0.0,
            clip_norm=self.clip_norm,
            label_smoothing=self.label_smoothing,
            teacher=teacher,
            augmentation=self.augmentation,
            workers=self.workers,
            seed=self.seed,
        )
