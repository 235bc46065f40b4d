"""How a network is trained."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pipeline.stages.base import FrozenConfig

Backend = Literal["tensorflow", "jax", "torch"]


class AugmentationConfig(FrozenConfig):
    """Random changes to training images, drawn anew for each image in each epoch.

    Attributes:
        shift: Largest shift in each direction as a share of the side; the border is repeated.
        flip: Whether half of the images are mirrored left to right.
        brightness: Largest change of brightness as a share of the full range.
        contrast: Largest relative change of contrast.
    """

    shift: float = Field(default=0.1, ge=0, le=0.5)
    flip: bool = False
    brightness: float = Field(default=0.0, ge=0, le=1)
    contrast: float = Field(default=0.0, ge=0, lt=1)


class TrainConfig(FrozenConfig):
    """How a network is trained.

    Attributes:
        backend: Keras backend; `auto` takes TensorFlow on a CPU.
        epochs: Passes over the training split; 0 takes the network as `model.weights` has it.
        batch_size: Images a step; the last, smaller batch of an epoch is left out.
        optimizer: `adamw` (Loshchilov and Hutter 2019) or `sgd` with Nesterov momentum.
        learning_rate: Peak of the schedule: linear warm-up, then half a cosine down to zero.
        warmup_epochs: Length of the warm-up; part of `epochs`.
        momentum: Of `sgd`; None takes 0.9.
        weight_decay: Decoupled; batch-norm parameters and biases are left out.
        label_smoothing: Share of the label's weight that is spread over all classes (Szegedy et al. 2016).
        augmentation: Random changes to the training images.
        seed: Of the initial weights, the order of the images, augmentation and dropout.
    """

    backend: Literal["auto", "tensorflow", "jax", "torch"] = "auto"
    epochs: int = Field(default=30, ge=0)
    batch_size: int = Field(default=64, ge=2)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=0.003, gt=0)
    warmup_epochs: float = Field(default=2.0, ge=0)
    momentum: float | None = Field(default=None, ge=0, lt=1)
    weight_decay: float = Field(default=0.02, ge=0)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    augmentation: AugmentationConfig = AugmentationConfig()
    seed: int = Field(default=0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.epochs and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs:g}, but the whole training has {self.epochs} epochs: "
                f"make warmup_epochs smaller than epochs."
            )
        if self.optimizer != "sgd" and self.momentum is not None:
            raise ValueError(f"momentum belongs to optimizer: sgd, not to {self.optimizer}: leave it out.")
        return self

    def resolved_backend(self) -> Backend:
        """Returns the Keras backend that `backend` stands for on this machine."""
        return "tensorflow" if self.backend == "auto" else self.backend
