"""A train section in words, for a dry run."""

from __future__ import annotations

from pipeline.training.config import AugmentationConfig, TrainConfig


def augmentation_words(config: AugmentationConfig) -> list[str]:
    """Returns what is changed in the images, in the order in which it is."""
    words = []
    if config.crop is not None:
        words.append(f"crop from {100 * config.crop.min_area:.0f} % of the area")
    if config.shift:
        words.append(f"shift by {100 * config.shift:g} %")
    words += ["flip"] * config.flip
    words += [f"{name} {getattr(config, name):g}" for name in ("brightness", "contrast", "saturation")
              if getattr(config, name)]  # fmt: skip
    if config.rand_augment is not None:
        words.append(f"RandAugment {config.rand_augment.num_ops} x {config.rand_augment.magnitude:g}")
    words += [f"{name} {getattr(config, name):g}" for name in ("erase", "mixup", "cutmix") if getattr(config, name)]
    return words


def extra_words(config: TrainConfig) -> list[str]:
    """Returns what else there is to a training."""
    words = []
    if config.averaging is not None:
        words.append(f"averaged weights (decay {config.averaging.decay:g})")
    if config.clip_norm is not None:
        words.append(f"gradients clipped at {config.clip_norm:g}")
    if config.class_weights != "none":
        words.append("class weights")
    if config.sampling != "natural":
        words.append(f"{config.sampling} sampling")
    if config.freeze is not None:
        length = "to the end" if config.freeze.epochs is None else f"for {config.freeze.epochs} epochs"
        words.append(f"layers up to {config.freeze.until} frozen {length}")
    if config.progressive is not None:
        words.append(f"{config.progressive.stages} stages of growing images")
    if config.teacher is not None:
        words.append(f"distilled from {config.teacher.path} (temperature {config.teacher.temperature:g})")
    if config.early_stopping is not None:
        words.append(f"ends after {config.early_stopping.patience_epochs} epochs without a better result")
    return words
