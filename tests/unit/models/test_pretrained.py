"""Weights from files, artifacts and, with the download replaced, from `keras.applications`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from models.pretrained import UnreachableWeightsError, imagenet_resolution, load_pretrained
from models.reference import build_reference

NAME = "mobilenet_v1"
WIDTH = 0.25
CLASSES = ["cat", "dog", "owl"]


def build(**changes: Any) -> Any:
    """A small network; the same arguments give other random weights each time."""
    arguments: dict[str, Any] = {"input_shape": (32, 32, 3), "num_classes": len(CLASSES), "width": WIDTH}
    return models.build(changes.pop("name", NAME), **(arguments | changes))


def values(network: Any, *, but: str = "") -> dict[str, np.ndarray]:
    return {weight.path: np.array(weight) for weight in network.weights if not but or but not in weight.path}


def assert_same(network: Any, other: Any, *, but: str = "") -> None:
    left, right = values(network, but=but), values(other, but=but)
    assert left.keys() == right.keys()
    for path, value in left.items():
        np.testing.assert_array_equal(value, right[path], err_msg=path)


@dataclass(frozen=True)
class Files:
    """The same weights in each form."""

    network: Any
    reference: Any
    folder: Path

    def path(self, form: str) -> Path:
        return self.folder / form


FORMS = ["ours.keras", "ours.weights.h5", "artifact"]
REFERENCE_FORMS = ["theirs.keras", "theirs.weights.h5", "theirs.h5"]


def write_legacy(model: Any, path: Path) -> None:
    """Weights as the files of `keras.applications` hold them."""
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


def write_artifact(network: Any, folder: Path, *, name: str = NAME, classes: list[str] = CLASSES) -> Path:
    folder.mkdir()
    content = {"model": {"name": name}, "input_shape": [32, 32, 3], "classes": classes}
    (folder / "network.json").write_text(json.dumps(content))
    network.save_weights(folder / "network.weights.h5")
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("weights")
    network = build()
    network.save(folder / "ours.keras")
    network.save_weights(folder / "ours.weights.h5")
    write_artifact(network, folder / "artifact")
    reference = build_reference(NAME, input_shape=(32, 32, 3), num_classes=len(CLASSES), width=WIDTH)
    reference.save(folder / "theirs.keras")
    reference.save_weights(folder / "theirs.weights.h5")
    write_legacy(reference, folder / "theirs.h5")
    return Files(network, reference, folder)


@pytest.mark.parametrize("form", FORMS)
def test_every_weight_is_loaded(form: str, files: Files) -> None:
    network = build(dropout=0.5, activation="hard_swish")
    loaded = load_pretrained(network, name=NAME, weights=files.path(form), width=WIDTH)
    assert (loaded.num_tensors, loaded.fresh_head) == (len(network.weights), False)
    assert str(files.path(form)) in loaded.source
    assert_same(network, files.network)


@pytest.mark.parametrize("form", FORMS)
def test_another_number_of_classes_leaves_the_head_fresh(form: str, files: Files) -> None:
    network = build(num_classes=5)
    head = [np.array(weight) for weight in network.get_layer("logits").weights]
    loaded = load_pretrained(network, name=NAME, weights=str(files.path(form)), width=WIDTH)
    assert (loaded.num_tensors, loaded.fresh_head) == (len(network.weights) - 2, True)
    assert_same(network, files.network, but="logits")
    np.testing.assert_array_equal(network.get_layer("logits").kernel, head[0])


def test_other_names_of_classes_leave_the_head_fresh(files: Files) -> None:
    same = load_pretrained(build(), name=NAME, weights=files.path("artifact"), width=WIDTH, classes=CLASSES)
    assert not same.fresh_head
    other = load_pretrained(
        build(), name=NAME, weights=files.path("artifact"), width=WIDTH, classes=["dog", "cat", "owl"]
    )
    assert other.fresh_head


@pytest.mark.parametrize("form", REFERENCE_FORMS)
def test_networks_of_keras_applications(form: str, files: Files) -> None:
    network = build()
    loaded = load_pretrained(network, name=NAME, weights=files.path(form), width=WIDTH)
    assert (loaded.num_tensors, loaded.fresh_head) == (len(network.weights), False)
    kernel = files.reference.get_layer("conv_preds").kernel
    np.testing.assert_array_equal(network.get_layer("logits").kernel, np.asarray(kernel)[0, 0])
    np.testing.assert_array_equal(
        network.get_layer("block_12_depthwise").kernel, files.reference.get_layer("conv_dw_13").kernel
    )

    network = build(num_classes=4)
    loaded = load_pretrained(network, name=NAME, weights=files.path(form), width=WIDTH)
    assert (loaded.num_tensors, loaded.fresh_head) == (len(network.weights) - 2, True)


def test_drop_path_of_the_file_does_not_matter(tmp_path: Path) -> None:
    source = build(name="efficientnet_lite0", width=1.0, drop_path=0.0)
    source.save_weights(tmp_path / "lite.weights.h5")
    network = build(name="efficientnet_lite0", width=1.0)
    load_pretrained(network, name="efficientnet_lite0", weights=tmp_path / "lite.weights.h5")
    assert_same(network, source)


@pytest.mark.parametrize("form", ["theirs.weights.h5", "theirs.h5"])
@pytest.mark.parametrize("statistics", ["variance", "deviation"])
def test_normalization_of_pixels_in_files_of_weights(form: str, statistics: str, tmp_path: Path) -> None:
    """Published files hold the deviation as the variance, others the variance."""
    name = "efficientnet_b0"
    theirs = build_reference(name, input_shape=(32, 32, 3), num_classes=len(CLASSES))
    [pixels] = [layer for layer in theirs.layers if layer.name.startswith("normalization")]
    if statistics == "deviation":
        mean, variance, count = pixels.get_weights()
        pixels.set_weights([mean, np.sqrt(variance), count])
    if form == "theirs.h5":
        write_legacy(theirs, tmp_path / form)
    else:
        theirs.save_weights(tmp_path / form)
    network = build(name=name, width=1.0)
    assert load_pretrained(network, name=name, weights=tmp_path / form).num_tensors == len(network.weights)
    np.testing.assert_array_equal(network.get_layer("head_conv").kernel, theirs.get_layer("top_conv").kernel)


@dataclass(frozen=True)
class MisfitCase:
    """Arguments that don't fit the file, and the error."""

    id: str
    message: str
    form: str
    changes: dict[str, Any] = field(default_factory=dict)


MISFITS = [
    MisfitCase(
        "width",
        r"ours\.keras don't fit 'mobilenet_v1': layer 'stem_conv' has the shapes \(3, 3, 3, 8\) in the file, but "
        r"\(3, 3, 3, 16\) in the network\. Take weights of the same network",
        "ours.keras",
        {"width": 0.5},
    ),
    MisfitCase("gates", "they have no layer 'block_00_squeeze_reduce'", "ours.weights.h5", {"squeeze_excite": True}),
    MisfitCase(
        "another family", "layer '.*' has the shapes|they have no layer", "ours.keras", {"name": "mobilenet_v2"}
    ),
    MisfitCase(
        "another family's artifact",
        "artifact holds weights of 'mobilenet_v1', but the network is 'mobilenet_v2'",
        "artifact",
        {"name": "mobilenet_v2"},
    ),
    MisfitCase(
        "their width", r"theirs\.keras don't fit 'mobilenet_v1': Layer 'conv1' ", "theirs.keras", {"width": 0.5}
    ),
    MisfitCase("their architecture", "Layer 'conv1' .* is left over", "theirs.keras", {"name": "mobilenet_v2"}),
    MisfitCase(
        "no counterpart",
        r"theirs\.keras does not hold 'efficientnet_lite0' .*keras.applications has no counterpart",
        "theirs.keras",
        {"name": "efficientnet_lite0", "width": 1.0},
    ),
]


@pytest.mark.parametrize("case", MISFITS, ids=lambda case: case.id)
def test_misfits_are_named_and_change_nothing(case: MisfitCase, files: Files) -> None:
    changes = dict(case.changes)
    network = build(**changes)
    before = values(network)
    with pytest.raises(ValueError, match=case.message):
        load_pretrained(
            network,
            name=changes.get("name", NAME),
            weights=files.path(case.form),
            width=changes.get("width", WIDTH),
        )
    for path, value in values(network).items():
        np.testing.assert_array_equal(value, before[path])


def cut(path: Path, target: Path) -> None:
    target.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def write_text(_: Path, target: Path) -> None:
    target.write_text("no weights")


@dataclass(frozen=True)
class BadFileCase:
    """A file that is not what its name says, made from a good one."""

    id: str
    form: str
    spoil: Callable[[Path, Path], Any]
    name: str


BAD_FILES = [
    BadFileCase("truncated keras", "ours.keras", cut, "bad.keras"),
    BadFileCase("truncated weights", "ours.weights.h5", cut, "bad.weights.h5"),
    BadFileCase("truncated old weights", "theirs.h5", cut, "bad.h5"),
    BadFileCase("text as keras", "ours.keras", write_text, "bad.keras"),
    BadFileCase("text as weights", "ours.keras", write_text, "bad.weights.h5"),
    BadFileCase("weights as keras", "ours.weights.h5", shutil.copy, "bad.keras"),
    BadFileCase("keras as weights", "ours.keras", shutil.copy, "bad.weights.h5"),
]


@pytest.mark.parametrize("case", BAD_FILES, ids=lambda case: case.id)
def test_files_that_are_not_what_their_name_says(case: BadFileCase, files: Files, tmp_path: Path) -> None:
    target = tmp_path / case.name
    case.spoil(files.path(case.form), target)
    with pytest.raises(ValueError, match=f"{case.name} can't be read as what its name says"):
        load_pretrained(build(), name=NAME, weights=target, width=WIDTH)


def test_other_paths(tmp_path: Path, files: Files) -> None:
    with pytest.raises(ValueError, match="expected 'imagenet' or an existing path"):
        load_pretrained(build(), name=NAME, weights=tmp_path / "missing.keras")
    (tmp_path / "weights.npz").touch()
    with pytest.raises(ValueError, match=r"weights\.npz is no file of weights, expected the ending \.keras"):
        load_pretrained(build(), name=NAME, weights=tmp_path / "weights.npz")
    with pytest.raises(ValueError, match=r"is no artifact with a network, expected network\.json"):
        load_pretrained(build(), name=NAME, weights=tmp_path)
    spoilt = tmp_path / "spoilt"
    shutil.copytree(files.path("artifact"), spoilt)
    (spoilt / "network.json").write_text('{"model": {}}')
    with pytest.raises(ValueError, match=r"network\.json does not describe a network: KeyError"):
        load_pretrained(build(), name=NAME, weights=spoilt)


def test_a_model_of_nobody_is_refused(tmp_path: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Conv2D(4, 3, name="mine"), keras.layers.Flatten()])
    model.save(tmp_path / "own.keras")
    with pytest.raises(ValueError, match=r"own\.keras don't fit 'mobilenet_v1': Layer 'mine' .* is left over"):
        load_pretrained(build(), name=NAME, weights=tmp_path / "own.keras", width=WIDTH)


def test_the_nearest_published_resolution() -> None:
    assert imagenet_resolution("mobilenet_v1", resolution=32) == 128
    assert imagenet_resolution("mobilenet_v1", resolution=176) == 192
    assert imagenet_resolution("mobilenet_v2", width=1.4, resolution=96) == 96
    assert imagenet_resolution("efficientnet_b7", resolution=64) == 600


@pytest.mark.parametrize(
    ("name", "width", "message"),
    [
        (
            "mobilenet_v1",
            0.3,
            r"no ImageNet weights of 'mobilenet_v1' for the width 0\.3; .* widths 0\.25, 0\.5, 0\.75, 1\.",
        ),
        ("mobilenet_v3_small_minimalistic", 0.75, r"for the width 0\.75; .* for the widths 1\."),
        ("efficientnet_lite0", 1.0, "no ImageNet weights of 'efficientnet_lite0'. .*only of mobilenet_v1, "),
    ],
)
def test_what_keras_does_not_publish(name: str, width: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_pretrained(build(), name=name, weights="imagenet", width=width)


def replace_download(monkeypatch: pytest.MonkeyPatch, result: Callable[[str], str]) -> list[str]:
    """Lets Keras find its files through `result`; the names that it asks for are collected."""
    from keras.src.utils import file_utils

    asked: list[str] = []

    def get_file(fname: str, origin: str, **_: Any) -> str:
        asked.append(fname)
        print("Downloading data from", origin)  # noqa: T201
        return result(fname)

    monkeypatch.setattr(file_utils, "get_file", get_file)
    return asked


def test_imagenet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    published = build_reference(NAME, input_shape=(128, 128, 3), width=WIDTH)
    write_legacy(published, tmp_path / "published.h5")
    asked = replace_download(monkeypatch, lambda _: str(tmp_path / "published.h5"))

    network = build()
    loaded = load_pretrained(network, name=NAME, weights="imagenet", width=WIDTH)
    assert asked == ["mobilenet_2_5_128_tf.h5"]
    assert loaded.source == "imagenet (keras.applications.MobileNet, width 0.25, 128x128 pixels)"
    assert (loaded.num_tensors, loaded.fresh_head) == (len(network.weights) - 2, True)
    np.testing.assert_array_equal(
        network.get_layer("block_12_pointwise").kernel, published.get_layer("conv_pw_13").kernel
    )
    assert not capsys.readouterr().out, "standard output belongs to the command line"

    assert not load_pretrained(build(num_classes=1000), name=NAME, weights="imagenet", width=WIDTH).fresh_head


def test_imagenet_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With Keras' own download, an empty cache and no network."""
    from urllib.error import URLError

    from keras.src.backend import config
    from keras.src.utils import file_utils

    def refuse(*_: Any) -> None:
        raise URLError(ConnectionRefusedError(111, "Connection refused"))

    monkeypatch.setattr(config, "_KERAS_DIR", str(tmp_path))
    monkeypatch.setattr(file_utils, "urlretrieve", refuse)
    network = build()
    before = values(network)
    message = r"'mobilenet_v1' can't be fetched: URL fetch failure .*mobilenet_2_5_128_tf\.h5.*\. Give a path instead"
    with pytest.raises(UnreachableWeightsError, match=message):
        load_pretrained(network, name=NAME, weights="imagenet", width=WIDTH)
    for path, value in values(network).items():
        np.testing.assert_array_equal(value, before[path])
