"""The network of a recipe: its config, and weights on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.errors import StageError
from pipeline.network import (
    PREDICTION_BATCH,
    WEIGHTS_FILE,
    ModelConfig,
    build_network,
    load_network,
    predict_logits,
    save_network,
)

SMALL = ModelConfig(name="mobilenet_v2", width=0.1, early_stride=True)


def test_unknown_network() -> None:
    with pytest.raises(ValidationError, match=r"'mobilnet_v2'.*Did you mean 'mobilenet_v2'\?"):
        ModelConfig(name="mobilnet_v2")


def test_width_only_where_there_is_one() -> None:
    assert ModelConfig(name="efficientnet_lite0", width=1.0).width == 1.0
    with pytest.raises(ValidationError, match="no width multiplier: leave it out"):
        ModelConfig(name="efficientnet_lite0", width=0.5)


@pytest.mark.parametrize("option", ["width", "dropout", "batch_norm_momentum"])
def test_the_fake_network_has_no_options(option: str) -> None:
    with pytest.raises(ValidationError, match=f"{option} belongs to a real network"):
        ModelConfig.model_validate({"name": "fake", option: 0.5})


def test_options_are_those_that_were_given() -> None:
    assert ModelConfig(name="mobilenet_v2").options() == {}
    assert SMALL.options() == {"width": 0.1, "early_stride": True}
    assert ModelConfig(name="mobilenet_v2", dropout=0.0, early_stride=False).options() == {
        "dropout": 0.0,
        "early_stride": False,
    }


slow = pytest.mark.slow


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """A saved network, images, and its logits."""
    folder = tmp_path_factory.mktemp("network")
    network = build_network(SMALL, (32, 40, 3), 3)
    rng = np.random.default_rng(0)
    for weight in network.weights:
        if weight.name == "moving_mean":
            weight.assign(rng.normal(0, 0.1, weight.shape))
    images = rng.integers(0, 256, (PREDICTION_BATCH + 3, 32, 40, 3), dtype=np.uint8)
    save_network(network, folder, config=SMALL, classes=("a", "b", "c"))
    return folder, images, predict_logits(network, images)


@slow
def test_a_saved_network_loads_with_the_same_logits(stored: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, images, logits = stored
    network = load_network(folder)
    assert logits.shape == (len(images), 3)
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(predict_logits(network, images), logits)
    np.testing.assert_allclose(predict_logits(network, images[-2:]), logits[-2:], atol=1e-5)


@slow
def test_the_optimizer_is_not_saved(stored: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    import keras

    network = load_network(stored[0])
    network.compile(optimizer=keras.optimizers.Adam(), loss="mse")
    network.optimizer.build(network.trainable_variables)
    save_network(network, tmp_path, config=SMALL, classes=("a", "b", "c"))
    assert (tmp_path / WEIGHTS_FILE).stat().st_size == (stored[0] / WEIGHTS_FILE).stat().st_size


@slow
def test_saving_replaces_a_read_only_file(stored: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    network = load_network(stored[0])
    for _ in range(2):
        save_network(network, tmp_path, config=SMALL, classes=("a", "b", "c"))
        for path in tmp_path.iterdir():
            path.chmod(0o444)
    again = load_network(tmp_path)
    for first, second in zip(network.get_weights(), again.get_weights(), strict=True):
        assert np.array_equal(first, second)


@slow
@pytest.mark.filterwarnings("ignore:Skipping nested container")
@pytest.mark.parametrize("damage", ["truncated", "rubbish", "another network"])
def test_weights_that_do_not_fit(stored: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, damage: str) -> None:
    for path in stored[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    path = tmp_path / WEIGHTS_FILE
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "rubbish":
        path.write_bytes(b"x" * 5000)
    else:
        other = build_network(SMALL, (32, 40, 3), 4)
        path.unlink()
        other.save_weights(path)
    with pytest.raises(StageError, match="don't fit mobilenet_v2"):
        load_network(tmp_path)
