"""Named training recipes: the numbers of the papers' training, each with its source.

A preset gives values of the `train` section; what a recipe says beside it holds before it. A preset's epochs are the
paper's and may be far too many: give `train.epochs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

PresetName = Literal["mobilenet_v2_paper", "efficientnet_paper", "mobilenet_v4_paper", "finetune", "quick"]

PRESETS: dict[PresetName, dict[str, Any]] = {
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


def with_preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a train section in which the preset's values stand where none are given.

    Sections are merged key by key; a section given as null stays null. An unknown preset is left for the validation.
    """
    name = values.get("preset")
    if name not in get_args(PresetName) or name not in PRESETS:
        return dict(values)
    return _merged(PRESETS[name], values)


def _merged(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(defaults)
    for key, value in given.items():
        known = result.get(key)
        result[key] = _merged(known, value) if isinstance(known, dict) and isinstance(value, Mapping) else value
    return result
