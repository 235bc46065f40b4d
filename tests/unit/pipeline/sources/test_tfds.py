from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import DataError
from pipeline.sources import DataConfig, TfdsConfig


def config(data_dir: Path, name: str = "pets", **fields: Any) -> TfdsConfig:
    section = {"source": "tfds", "name": name, "data_dir": str(data_dir), "size": [8, 8]} | fields
    found: TfdsConfig = TypeAdapter(DataConfig).validate_json(json.dumps(section), strict=True)
    return found


def prepared(directory: Path, split: str = "train") -> Path:
    directory.mkdir(parents=True)
    (directory / "dataset_info.json").write_text("{}")
    (directory / f"pets-{split}.array_record-00000-of-00001").write_bytes(b"x")
    return directory


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)


def test_the_newest_prepared_version_is_taken(tmp_path: Path) -> None:
    for version in ("2.9.0", "10.0.0", "2.10.0"):
        prepared(tmp_path / "pets" / version)
    (tmp_path / "pets" / "11.0.0").mkdir()

    assert config(tmp_path).fingerprint().startswith("tfds 10.0.0 listing:")
    assert config(tmp_path, version="2.9.0").fingerprint().startswith("tfds 2.9.0 listing:")


def test_a_config_is_named_or_the_only_one(tmp_path: Path) -> None:
    prepared(tmp_path / "pets" / "small" / "1.0.0")
    only = config(tmp_path).fingerprint()

    assert config(tmp_path, "pets/small").fingerprint() == only
    prepared(tmp_path / "pets" / "large" / "1.0.0", "test")
    assert config(tmp_path, "pets/large").fingerprint() != only
    with pytest.raises(DataError, match=r"pets is prepared in several configs \(large, small\): name one"):
        config(tmp_path).fingerprint()


def test_the_place_of_the_data_is_the_one_of_tensorflow_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(tmp_path / "pets" / "1.0.0")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))

    assert TfdsConfig(source="tfds", name="pets", size=(8, 8)).fingerprint() == config(tmp_path).fingerprint()


@pytest.mark.usefixtures("without_library")
def test_without_the_library_the_error_names_the_extra(tmp_path: Path) -> None:
    message = r"tensorflow_datasets is not installed: install the extra, `pip install 'edgeship\[tfds\]'`"
    with pytest.raises(DataError, match=message):
        config(tmp_path).fingerprint()
    prepared(tmp_path / "pets" / "1.0.0")
    with pytest.raises(DataError, match=message):
        config(tmp_path).read()


def test_a_download_that_fails_says_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, stderr="Traceback\r\nConnectionError: no route\n\n")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(DataError) as caught:
        config(tmp_path, version="3.0.2").fingerprint()

    assert commands[0][-2:] == ["pets:3.0.2", str(tmp_path)]
    assert caught.value.message == (
        f"pets:3.0.2 is not prepared in {tmp_path}, and downloading it failed (ConnectionError: no route): prepare it "
        "where there is a network, with `tfds build pets:3.0.2 --file_format=array_record`, copy its folder to "
        f"{tmp_path / 'pets'}, or say where it lies (`data_dir`)"
    )


def test_what_was_prepared_elsewhere_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, stderr=""))

    with pytest.raises(DataError, match="was prepared, but there is nothing in"):
        config(tmp_path).fingerprint()


def test_a_folder_that_is_no_data_set_is_an_error(tmp_path: Path) -> None:
    prepared(tmp_path / "pets" / "1.0.0")

    with pytest.raises(DataError, match=r"pets/1\.0\.0 is no prepared data set"):
        config(tmp_path).read()


@pytest.mark.parametrize("fields", [{"name": "../pets"}, {"name": "pets:1.0.0"}, {"version": "newest"}])
def test_names_and_versions_are_checked(fields: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        config(tmp_path, **fields)
