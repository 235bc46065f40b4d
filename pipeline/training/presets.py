"""Named training recipes: the numbers of the papers' training, each with its source.

A preset gives values of the `train` section, and of the `model` section what belongs to the training: dropout,
stochastic depth, the momentum of batch norm. What a recipe says beside it holds before it. The papers' batches are for
many accelerators, so batch_size is left as it is and the learning rate is scaled by it. A preset's epochs are the
paper's and may be far too many: give `train.epochs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import models
from models.scaling import networks_of

PresetName = Literal["mobilenet_v2_paper", "efficientnet_paper", "mobilenet_v4_paper", "finetune", "quick"]

PRESETS: dict[PresetName, dict[str, Any]] = {
    # The authors' training in TF-Slim (research/slim/nets/mobilenet, train_image_classifier.py and its flags), which
    # gives 72.0 %; the paper (arXiv:1801.04381, section 6.1) has the same optimizer, and a decay of 0.98 an epoch.
    "mobilenet_v2_paper": {
        "optimizer": "rmsprop",  # paper 6.1, decay and momentum 0.9
        "rho": 0.9,
        "epsilon": 1.0,  # flag opt_epsilon
        "learning_rate": 0.045,  # for each GPU and its batch of 96 (paper 6.1; mobilenet/README)
        "learning_rate_batch": 96,
        "schedule": "exponential",
        "decay_rate": 0.98,  # mobilenet/README
        "decay_epochs": 2.5,
        "warmup_epochs": 0.0,
        "weight_decay": 4e-5,  # paper 6.1
        "label_smoothing": 0.1,  # mobilenet/README
        "epochs": 420,  # 700,000 steps of 8 GPUs * 96 images (mobilenet/README)
        "averaging": {"decay": 0.9999},  # mobilenet/README
        "augmentation": {  # preprocessing/inception_preprocessing.py; its change of hue is left out
            "crop": {"min_area": 0.05, "max_ratio": 1.33},
            "shift": 0.0,
            "flip": True,
            "brightness": 32 / 255,
            "contrast": 0.5,
            "saturation": 0.5,
        },
    },
    # arXiv:1905.11946, section 5, and the defaults of the authors' main.py (tensorflow/tpu, models/official).
    "efficientnet_paper": {
        "optimizer": "rmsprop",  # section 5: decay and momentum 0.9
        "rho": 0.9,
        "epsilon": 1e-3,  # utils.build_optimizer
        "learning_rate": 0.016,  # base_learning_rate, for a batch of 256; theirs is 2048
        "learning_rate_batch": 256,
        "schedule": "exponential",  # section 5: 0.97 every 2.4 epochs, in steps (utils.build_learning_rate)
        "decay_rate": 0.97,
        "decay_epochs": 2.4,
        "warmup_epochs": 5.0,  # utils.build_learning_rate
        "weight_decay": 1e-5,  # section 5
        "label_smoothing": 0.1,  # main.py
        "epochs": 350,  # train_steps 218,949 of 2048
        "averaging": {"decay": 0.9999},  # main.py
        "augmentation": {  # preprocessing.py; section 5 has AutoAugment, for which its authors' successor stands
            "crop": {"min_area": 0.08, "max_ratio": 4 / 3},
            "shift": 0.0,
            "flip": True,
            "rand_augment": {"num_ops": 2, "magnitude": 9.0},
        },
    },
    # arXiv:2404.10518; tensorflow/models, imagenet_mobilenetv4_conv_medium_tpu.yaml at 609c573, 79.9 %. Conv-S, at
    # b7aa802, has learning_rate 0.002, weight_decay 0.01, beta_1 0.6, epsilon 1e-6, averaging 0.9999, RandAugment 9
    # with 0.5, dropout 0.3 and 9623 epochs.
    "mobilenet_v4_paper": {
        "optimizer": "adamw",
        "epsilon": 1e-7,  # the default of TF Model Garden's AdamWeightDecay
        "learning_rate": 0.004,
        "learning_rate_batch": 4096,
        "schedule": "cosine",
        "warmup_epochs": 5.0,  # 1560 steps of 312 an epoch
        "weight_decay": 0.1,
        "label_smoothing": 0.1,
        "epochs": 500,  # 156,000 steps
        "augmentation": {
            "crop": {"min_area": 0.08, "max_ratio": 4 / 3},
            "shift": 0.0,
            "flip": True,
            "rand_augment": {"num_ops": 2, "magnitude": 15.0, "magnitude_std": 0.0, "probability": 0.7},
        },
    },
    # EfficientNetV2's transfer to CIFAR, Flowers and Cars (arXiv:2104.00298, section 5.3; google/automl,
    # efficientnetv2/datasets.py, ImagenetFt and what is derived from it), 10,000 steps of 512.
    "finetune": {
        "optimizer": "rmsprop",
        "rho": 0.9,
        "epsilon": 1e-3,
        "learning_rate": 5e-4,  # lr_base, for a batch of 256; theirs is 512
        "learning_rate_batch": 256,
        "schedule": "constant",
        "warmup_epochs": 1.0,
        "weight_decay": 1e-5,
        "label_smoothing": 0.1,
        "epochs": 15,
        "averaging": {"decay": 0.9996},
        "augmentation": {"crop": {"min_area": 0.08, "max_ratio": 4 / 3}, "shift": 0.0, "flip": True},
    },
    # Small data, from scratch, in minutes: ours.
    "quick": {
        "optimizer": "adamw",
        "learning_rate": 0.003,
        "learning_rate_batch": 64,
        "warmup_epochs": 2.0,
        "weight_decay": 0.05,
        "label_smoothing": 0.1,
        "averaging": {"decay": 0.998},
        "augmentation": {
            "crop": {"min_area": 0.35},
            "shift": 0.0,
            "flip": True,
            "brightness": 0.2,
            "contrast": 0.2,
            "saturation": 0.2,
        },
    },
}

PRESET_MODELS: dict[PresetName, dict[str, float]] = {
    "mobilenet_v2_paper": {"dropout": 0.2, "batch_norm_momentum": 0.997},  # mobilenet.training_scope
    "efficientnet_paper": {"drop_path": 0.2, "batch_norm_momentum": 0.99},  # dropout grows with the network
    "mobilenet_v4_paper": {"dropout": 0.2, "drop_path": 0.075, "batch_norm_momentum": 0.997},
    "finetune": {"dropout": 0.0, "drop_path": 0.2, "batch_norm_momentum": 0.9},
    # Averages over 10 steps, for trainings of hundreds.
    "quick": {"batch_norm_momentum": 0.9},
}
"""Values of the model section that belong to a preset, for the networks that have them."""

_OF_ONE_OPTIMIZER = ("epsilon", "rho")
"""What means another thing to another optimizer."""


def with_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a train section in which the preset's values stand where none are given.

    Sections are merged key by key; a section given as null stays null. An unknown preset is left for the validation.
    """
    name = _known(values.get("preset"))
    if name is None:
        return dict(values)
    defaults = dict(PRESETS[name])
    if values.get("optimizer", defaults["optimizer"]) != defaults["optimizer"]:
        defaults = {key: value for key, value in defaults.items() if key not in _OF_ONE_OPTIMIZER}
    return _merged(defaults, values)


def with_model_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a recipe in whose model section the preset's values stand where none are given.

    A key given as null takes the network's own value. Own models, and what the validation will refuse, are left alone.
    """
    train, model = values.get("train"), values.get("model")
    name = _known(train.get("preset")) if isinstance(train, Mapping) else None
    if name is None or not isinstance(model, Mapping) or "path" in model:
        return dict(values)
    try:
        specs = list(networks_of(model["family"])) if "family" in model else [models.find(model["name"])]
    except (KeyError, TypeError, ValueError):
        return dict(values)
    has_depth = all(spec.drop_path is not None for spec in specs)
    defaults = {key: value for key, value in PRESET_MODELS[name].items() if key != "drop_path" or has_depth}
    return {**values, "model": {**defaults, **model}}


def _known(name: Any) -> PresetName | None:
    return next((known for known in get_args(PresetName) if known == name), None)


def _merged(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(defaults)
    for key, value in given.items():
        known = result.get(key)
        result[key] = _merged(known, value) if isinstance(known, dict) and isinstance(value, Mapping) else value
    return result
