"""Files that the real converters write, read back."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ModelFileError
from pipeline.targets import TARGETS, inspect_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TARGET_NAMES = ("litert", "onnxruntime", "openvino")
PRECISION_NAMES = ("float32", "float16", "int8")
every_export = pytest.mark.parametrize(
    ("target", "precision"), [(target, precision) for target in TARGET_NAMES for precision in PRECISION_NAMES]
)


@every_export
def test_contract(exports: Any, target: str, precision: str) -> None:
    metrics = exports.metrics(target, precision)
    graph = metrics["graph"]
    assert graph["inputs"] == [{"name": "image", "dtype": "uint8", "shape": [1, 32, 32, 3]}]
    assert graph["outputs"] == [{"name": "logits", "dtype": "float32", "shape": [1, 4]}]
    assert graph["precision"] == metrics["precision"] == precision
    assert graph["float_operations"] == []
    assert (metrics["note"] is not None) == (precision == "float16")


@every_export
def test_nothing_but_the_model_is_left(exports: Any, target: str, precision: str) -> None:
    folder, graph = exports.folder(target, precision), exports.metrics(target, precision)["graph"]
    names = sorted(path.name for path in folder.iterdir())
    assert names == (["model.bin", "model.xml"] if target == "openvino" else [f"model{TARGETS[target].suffix}"])
    assert graph["size_bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    model = folder / f"model{TARGETS[target].suffix}"
    assert graph["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    if target == "openvino":
        assert graph["weights_sha256"] == hashlib.sha256((folder / "model.bin").read_bytes()).hexdigest()


def test_scratch_goes_to_the_workspace_and_is_removed(exports: Any) -> None:
    left = {path.name for path in exports.directory.rglob("*") if "scratch" in path.name}
    assert not left


@every_export
def test_no_path_of_this_machine_inside(exports: Any, target: str, precision: str) -> None:
    for path in exports.folder(target, precision).iterdir():
        content = path.read_bytes()
        for text in (
            str(exports.directory),
            "scratch-",
            "saved_model",
            "site-packages",
            str(Path(__file__).parents[2]),
        ):
            assert text.encode() not in content, text


@every_export
def test_exporting_twice_gives_the_same_bytes(exports: Any, exports_again: Any, target: str, precision: str) -> None:
    for path in exports.folder(target, precision).iterdir():
        assert path.read_bytes() == (exports_again.folder(target, precision) / path.name).read_bytes(), path.name


def test_only_builtin_operations_in_litert(exports: Any) -> None:
    for precision in PRECISION_NAMES:
        operations = exports.metrics("litert", precision)["graph"]["operations"]
        assert not [name for name in operations if name.startswith(("CUSTOM", "FLEX", "OPERATOR_"))]
        assert "TRANSPOSE" not in operations


@pytest.mark.parametrize("precision", PRECISION_NAMES)
def test_no_more_left_over_operations_than_the_layout_needs(exports: Any, precision: str) -> None:
    """The image comes as (1, height, width, 3) and both runtimes compute channels first: one transpose each.

    The first layer of ONNX Runtime's int8 takes its image in blocks of 2x2 pixels, which are put side by side by two
    more.
    """
    for target in ("onnxruntime", "openvino"):
        operations = exports.metrics(target, precision)["graph"]["operations"]
        assert operations["Transpose"] == (3 if (target, precision) == ("onnxruntime", "int8") else 1)
        assert "BatchNormalization" not in operations
        assert "Pad" not in operations


@pytest.mark.parametrize("target", TARGET_NAMES)
def test_lower_precisions_are_smaller(exports: Any, target: str) -> None:
    sizes = [exports.metrics(target, precision)["graph"]["size_bytes"] for precision in PRECISION_NAMES]
    assert sizes[0] > 1.5 * sizes[1]
    assert sizes[1] > sizes[2]


@every_export
def test_the_calibration_set_is_recorded_for_int8_alone(exports: Any, target: str, precision: str) -> None:
    metrics = exports.metrics(target, precision)
    images = np.load(exports.directory / "calibrate" / "calibration_input_0.npy")
    if precision == "int8":
        assert metrics["calibration_set_sha256"] == hashlib.sha256(images.tobytes()).hexdigest()
        assert metrics["calibration_images"] == 64
    else:
        assert "calibration_set_sha256" not in metrics


@dataclasses.dataclass(frozen=True)
class Partly:
    """A file that some tools would call int8, and what it is; LiteRT's converter leaves small weights in float."""

    name: str
    label: str
    num_float: range


@pytest.mark.parametrize(
    "case",
    [
        Partly("dynamic.tflite", "mixed", range(1, 20)),
        Partly("dynamic.onnx", "mixed", range(52, 53)),
        Partly("weights.xml", "int8_weights", range(53, 54)),
    ],
    ids=lambda case: case.name,
)
def test_what_is_only_partly_int8_is_not_called_int8(exports: Any, case: Partly) -> None:
    summary = inspect_model(exports.directory / case.name)
    assert summary.precision == case.label
    assert len(summary.float_operations) in case.num_float
    assert {"int8", "uint8"} & set(summary.weight_bytes)


@pytest.mark.parametrize("target", TARGET_NAMES)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_files(exports: Any, tmp_path: Path, target: str, share: float) -> None:
    for path in exports.folder(target, "int8").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / f"model{TARGETS[target].suffix}"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ModelFileError) as caught:
        inspect_model(path)
    assert str(path) in caught.value.message


def test_no_telemetry(exports: Any) -> None:
    """The telemetry of OpenVINO and NNCF writes into the home directory before it calls out."""
    assert [path.name for path in exports.home.rglob("*") if "intel" in str(path).lower()] == []
