from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from devices.board.preprocess import Preprocess
from pipeline.sources import SOURCES, DataConfig, DigitsConfig, ImageFolderConfig, NpzConfig

ADAPTER: TypeAdapter[Any] = TypeAdapter(DataConfig)
FOLDER: dict[str, Any] = {"source": "image_folder", "path": "pets", "size": [64, 32]}


def parse(section: dict[str, Any]) -> Any:
    return ADAPTER.validate_json(json.dumps(section), strict=True)


def test_a_recipe_names_every_source() -> None:
    everything = FOLDER | {
        "resize": "shorter_side",
        "crop": "center",
        "interpolation": "nearest",
        "crop_fraction": 0.875,
        "seed": 1,
        "validation_fraction": 0.1,
        "test_fraction": 0.3,
        "on_unreadable": "skip",
        "min_images_per_class": 5,
        "cache": "encoded",
    }

    assert isinstance(parse({"source": "digits", "size": [8, 8]}), DigitsConfig)
    assert isinstance(parse({"source": "npz", "path": "a.npz", "size": [8, 8]}), NpzConfig)
    config = parse(everything)
    assert isinstance(config, ImageFolderConfig)
    assert config.size == (64, 32)
    assert json.loads(config.model_dump_json()) == everything
    assert config.preprocess() == Preprocess((64, 32), "shorter_side", "center", "nearest", 0.875)


def test_the_table_agrees_with_the_configs() -> None:
    for name, config in SOURCES.items():
        assert config.model_json_schema()["properties"]["source"]["const"] == name


@dataclass(frozen=True)
class Invalid:
    id: str
    section: dict[str, Any]
    message: str


INVALID = [
    Invalid("unknown_source", FOLDER | {"source": "folder"}, "expected tags"),
    Invalid("unknown_key", FOLDER | {"shuffle": True}, "shuffle"),
    Invalid("no_path", {"source": "npz", "size": [8, 8]}, "path"),
    Invalid("no_size", {"source": "digits"}, "size"),
    Invalid("empty_image", FOLDER | {"size": [0, 8]}, "greater than or equal to 1"),
    Invalid("crop_of_a_stretched_image", FOLDER | {"crop": "center"}, "does not give an image of the size"),
    Invalid("crop_fraction", FOLDER | {"crop_fraction": 0}, "expected a number from 0.1 to 1"),
    Invalid("text_as_size", FOLDER | {"size": ["8", "8"]}, "valid integer"),
    Invalid("no_validation", FOLDER | {"validation_fraction": 0}, "greater than 0"),
    Invalid("all_of_it", FOLDER | {"test_fraction": 1}, "less than 1"),
    Invalid(
        "nothing_left",
        FOLDER | {"validation_fraction": 0.5, "test_fraction": 0.5},
        "leave no images for training",
    ),
    Invalid("one_image", FOLDER | {"min_images_per_class": 1}, "greater than or equal to 2"),
    Invalid("other_policy", FOLDER | {"on_unreadable": "ignore"}, "'error' or 'skip'"),
]


@pytest.mark.parametrize("case", INVALID, ids=lambda case: case.id)
def test_values_out_of_range_are_refused(case: Invalid) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(case.section)

    assert case.message in str(caught.value)
