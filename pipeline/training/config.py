"""How a network is trained: the `train` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pipeline.stages.base import FrozenConfig
from pipeline.training.presets import PresetName, with_preset

Backend = Literal["tensorflow", "jax", "torch"]

Probability = Annotated[float, Field(ge=0, le=1)]

RUNTIME_FIELDS = ("workers", "checkpoint_minutes", "devices")
"""What changes how fast a training runs and not what it ends with (beyond rounding): no part of a key."""


class RandAugmentConfig(FrozenConfig):
    """RandAugment (Cubuk et al. 2020, section 3): so many operations an image, drawn anew for each image.

    Attributes:
        num_ops: Operations an image (N).
        magnitude: Their strength on a scale to 10 (M).
        magnitude_std: Standard deviation of the magnitude from image to image (timm's `mstd`).
        probability: That an operation is applied at all.
    """

    num_ops: int = Field(default=2, ge=1, le=4)
    magnitude: float = Field(default=9.0, ge=0, le=30)
    magnitude_std: float = Field(default=0.5, ge=0, le=10)
    probability: Probability = 0.5


class CropConfig(FrozenConfig):
    """Random resized crop (Szegedy et al. 2015, section 6): a part of the image, resized to the network's size.

    Attributes:
        min_area: Smallest share of the image's area.
        max_ratio: Largest ratio of the sides; the smallest is its inverse.
    """

    min_area: float = Field(default=0.08, gt=0, le=1)
    max_ratio: float = Field(default=4 / 3, ge=1, le=4)


class AugmentationConfig(FrozenConfig):
    """Random changes to training images, drawn anew for each image in each epoch.

    They are applied in this order: crop, shift, flip, brightness and contrast and saturation, RandAugment, erasing,
    then mixup or cutmix of the whole batch.

    Attributes:
        place: Where pixels are changed: by the `loader` (Pillow, in its workers), or on the `accelerator` in batches;
            `auto` takes the accelerator where there is one. Crop, shift and flip are always the loader's.
        crop: Random resized crop; None takes the whole image.
        shift: Largest shift in each direction as a share of the side; the border is repeated.
        flip: Whether half of the images are mirrored left to right.
        brightness: Largest change of brightness as a share of the full range.
        contrast: Largest relative change of contrast.
        saturation: Largest relative change of saturation.
        rand_augment: RandAugment; None leaves it out.
        erase: Probability that a rectangle is filled with noise (Zhong et al. 2020).
        mixup: Alpha of mixup (Zhang et al. 2018); 0 leaves it out.
        cutmix: Alpha of cutmix (Yun et al. 2019); 0 leaves it out. With both, each batch draws one of the two.
        mix_probability: That a batch is mixed at all.
        stop_mixing_epochs: How many last epochs go without mixup and cutmix.
    """

    place: Literal["auto", "loader", "accelerator"] = "auto"
    crop: CropConfig | None = None
    shift: float = Field(default=0.1, ge=0, le=0.5)
    flip: bool = False
    brightness: float = Field(default=0.0, ge=0, le=1)
    contrast: float = Field(default=0.0, ge=0, lt=1)
    saturation: float = Field(default=0.0, ge=0, le=1)
    rand_augment: RandAugmentConfig | None = None
    erase: Probability = 0.0
    mixup: float = Field(default=0.0, ge=0, le=10)
    cutmix: float = Field(default=0.0, ge=0, le=10)
    mix_probability: Probability = 1.0
    stop_mixing_epochs: int = Field(default=0, ge=0)


class AveragingConfig(FrozenConfig):
    """Exponential moving average of all weights, batch-norm statistics included; the averaged ones are exported.

    Attributes:
        decay: Weight of the old average for one step; early on it is less: min(decay, (1 + n) / (10 + n)) after n
            steps, as in TensorFlow's ExponentialMovingAverage with `num_updates`.
        every_steps: How often the average moves; the decay is taken to this power (torchvision's
            `--model-ema-steps`).
    """

    decay: float = Field(default=0.9999, gt=0, lt=1)
    every_steps: int = Field(default=8, ge=1)


class EarlyStoppingConfig(FrozenConfig):
    """Ends a training that no longer gets better on validation.

    Attributes:
        patience_epochs: So many epochs without a better validation result end it.
        monitor: Which result counts.
        min_delta: By how much it must be better.
    """

    patience_epochs: int = Field(default=10, ge=1)
    monitor: Literal["accuracy", "loss"] = "accuracy"
    min_delta: float = Field(default=0.0, ge=0)


class FreezeConfig(FrozenConfig):
    """Keeps the first layers as they are, for transfer learning; frozen batch norm runs on its stored statistics.

    Attributes:
        until: Name of the last frozen layer, or of the block that holds it (a prefix of layer names); `head` freezes
            all but the last layer.
        epochs: So many epochs; then all are trained. None: to the end.
    """

    until: str = Field(default="head", min_length=1)
    epochs: int | None = Field(default=None, ge=1)


class ProgressiveConfig(FrozenConfig):
    """Progressive resizing (Tan and Le 2021, section 4.2): small images and weak regularization first.

    Size, dropout, RandAugment's magnitude and the alphas of mixup and cutmix grow in equal steps from stage to stage.

    Attributes:
        stages: How many, of equal length.
        start_size: Share of `data.size` in the first stage.
        start_strength: Share of the regularization in the first stage.
    """

    stages: int = Field(default=4, ge=2, le=16)
    start_size: float = Field(default=0.5, gt=0, le=1)
    start_strength: float = Field(default=0.3, ge=0, le=1)


class TeacherConfig(FrozenConfig):
    """Distillation (Hinton et al. 2015): the student also learns from a teacher's softened probabilities.

    The loss is (1 - weight) * cross-entropy + weight * temperature^2 * KL(teacher || student), both softened.

    Attributes:
        path: An artifact of `train` or `calibrate`, or a .keras file with as many outputs, in the same order.
        temperature: Softens both; 1 leaves them as they are.
        weight: Share of the teacher's part.
        scale: A .keras teacher's input is pixel * scale + offset; of an artifact, its graph knows.
        offset: See `scale`.
        outputs: What a .keras teacher gives: `auto` looks at the activation of its last layer.
    """

    path: str = Field(min_length=1)
    temperature: float = Field(default=4.0, gt=0, le=100)
    weight: float = Field(default=0.5, gt=0, le=1)
    scale: float = Field(default=1.0, gt=0)
    offset: float = 0.0
    outputs: Literal["auto", "logits", "probabilities"] = "auto"


class TrainConfig(FrozenConfig):
    """How a network is trained.

    Attributes:
        preset: A named recipe of `pipeline.training.presets`, whose values hold where none are given beside it.
        backend: Keras backend; `auto` takes JAX or PyTorch where it has a GPU, else TensorFlow on the CPU.
        precision: Of the arithmetic; weights stay float32. `auto` takes bfloat16 on a GPU and float32 on a CPU;
            float16 scales the loss.
        compile: Whether XLA compiles the step; `auto` where it is faster: everywhere but TensorFlow on a CPU.
        devices: Over how many local devices batches are spread; `auto` takes all GPUs, or one CPU.
        workers: Processes that load images; 0 loads in threads of the training process, `auto` goes by the cores.
        epochs: Passes over the training split; 0 takes the network as `model.weights` has it.
        batch_size: Images a step over all devices; the last, smaller batch of an epoch is left out.
        accumulate_steps: Steps whose gradients are summed up before weights move.
        optimizer: `adamw` (Loshchilov and Hutter 2019), `sgd` with Nesterov momentum, or `rmsprop` as in the
            EfficientNet paper.
        learning_rate: Peak of the schedule.
        learning_rate_batch: The batch that `learning_rate` is for: it is scaled by batch_size * accumulate_steps /
            learning_rate_batch (Goyal et al. 2017). None takes it as it is.
        schedule: After the warm-up: half a `cosine` to zero, `exponential` by decay_rate every decay_epochs in
            steps, or `constant`.
        decay_rate: Of `exponential`.
        decay_epochs: Of `exponential`.
        warmup_epochs: Length of the linear warm-up; part of `epochs`.
        momentum: Of `sgd` and `rmsprop`; None takes 0.9.
        beta_1: Of `adamw`.
        beta_2: Of `adamw`.
        rho: Of `rmsprop`: decay of the squared gradients.
        epsilon: Of `adamw` and `rmsprop`; None takes 1e-7 and 1e-3.
        weight_decay: Decoupled for adamw; for sgd and rmsprop, L2 on the loss. Batch-norm parameters and biases are
            left out.
        clip_norm: Largest global norm of the gradients; None clips nothing.
        label_smoothing: Share of the label's weight that is spread over all classes (Szegedy et al. 2016).
        class_weights: `balanced` weights the loss by the inverse frequency of the class; or one weight a class.
        sampling: `balanced` draws all classes equally often.
        averaging: Exponential moving average of the weights; None exports the trained ones.
        early_stopping: When to end before `epochs`; None never.
        freeze: Layers that are kept; None trains all.
        progressive: Progressive resizing; None trains at one size.
        teacher: Distillation; None learns from the labels alone.
        augmentation: Random changes to the training images.
        checkpoint_minutes: How often a checkpoint is written within an epoch; each epoch ends with one.
        seed: Of the initial weights, the order of the images, augmentation and dropout.
    """

    preset: PresetName | None = None
    backend: Literal["auto", "tensorflow", "jax", "torch"] = "auto"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: Literal["auto"] | bool = "auto"
    devices: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    workers: Literal["auto"] | Annotated[int, Field(ge=0, le=256)] = "auto"
    epochs: int = Field(default=30, ge=0)
    batch_size: int = Field(default=64, ge=2)
    accumulate_steps: int = Field(default=1, ge=1, le=1024)
    optimizer: Literal["adamw", "sgd", "rmsprop"] = "adamw"
    learning_rate: float = Field(default=0.003, gt=0)
    learning_rate_batch: int | None = Field(default=None, ge=1)
    schedule: Literal["cosine", "exponential", "constant"] = "cosine"
    decay_rate: float = Field(default=0.97, gt=0, le=1)
    decay_epochs: float = Field(default=2.4, gt=0)
    warmup_epochs: float = Field(default=2.0, ge=0)
    momentum: float | None = Field(default=None, ge=0, lt=1)
    beta_1: float = Field(default=0.9, ge=0, lt=1)
    beta_2: float = Field(default=0.999, ge=0, lt=1)
    rho: float = Field(default=0.9, ge=0, lt=1)
    epsilon: float | None = Field(default=None, gt=0)
    weight_decay: float = Field(default=0.02, ge=0)
    clip_norm: float | None = Field(default=None, gt=0)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    class_weights: Literal["none", "balanced"] | dict[str, Annotated[float, Field(gt=0)]] = "none"
    sampling: Literal["natural", "balanced"] = "natural"
    averaging: AveragingConfig | None = None
    early_stopping: EarlyStoppingConfig | None = None
    freeze: FreezeConfig | None = None
    progressive: ProgressiveConfig | None = None
    teacher: TeacherConfig | None = None
    augmentation: AugmentationConfig = AugmentationConfig()
    checkpoint_minutes: float = Field(default=5.0, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, values: Any) -> Any:
        return with_preset(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.epochs and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs:g}, but the whole training has {self.epochs} epochs: "
                f"make warmup_epochs smaller than epochs."
            )
        if self.optimizer == "adamw" and self.momentum is not None:
            raise ValueError("momentum belongs to optimizer: sgd or rmsprop, not to adamw: leave it out.")
        if self.freeze is not None and self.freeze.epochs is not None and self.freeze.epochs >= self.epochs:
            raise ValueError(
                f"freeze.epochs is {self.freeze.epochs}, but the whole training has {self.epochs} epochs: make it "
                f"smaller, or leave it out to freeze to the end."
            )
        if self.progressive is not None and self.epochs and self.progressive.stages > self.epochs:
            raise ValueError(
                f"progressive.stages is {self.progressive.stages}, but the whole training has {self.epochs} epochs: "
                f"give at most one stage an epoch."
            )
        return self

    def peak_learning_rate(self) -> float:
        """Returns the learning rate at the end of the warm-up, scaled by the batch."""
        if self.learning_rate_batch is None:
            return self.learning_rate
        return self.learning_rate * self.batch_size * self.accumulate_steps / self.learning_rate_batch
