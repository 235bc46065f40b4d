"""The accelerator's augmentation gives what Pillow's gives, on TensorFlow and on JAX."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.executor import child_environment
from pipeline.training.augmentation import operations, pillow
from pipeline.training.augmentation.draws import Draws, Mixing, draw_images

pytestmark = pytest.mark.slow

CHILD = Path(__file__).with_name("accelerator_child.py")
ROOT = Path(__file__).resolve().parents[4]
HEIGHT, WIDTH = 40, 48
LEVELS = (0.0, 1.0, 5.3, 9.0, 10.0, 17.0)

# Where places between pixels are computed in 32 bits here and in 64 there, and where a stretch is, a result that
# lies on a whole number may be cut off to the one below. All else is whole numbers, the same in both.
TOLERANCE = {"auto_contrast": 1, "color": 1, "contrast": 1, "brightness": 1, "sharpness": 1} | dict.fromkeys(
    operations.WARPS, 1
)


def pictures() -> np.ndarray:
    """Smooth ones with edges, noise, one color, one of two levels, a dark one and a bright one."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    smooth = [
        np.stack([128 + 120 * np.sin(x / a + c) * np.cos(y / b) for c in (0, 1, 2)], axis=-1)
        for a, b in ((5, 9), (11, 4), (30, 25))
    ]
    smooth[1][10:30, 12:20] = (250, 30, 90)
    noise = rng.integers(0, 256, (HEIGHT, WIDTH, 3))
    flat = np.full((HEIGHT, WIDTH, 3), (100, 0, 255))
    two = np.where((x + y)[..., None] % 2 == 0, 40, 41) + np.zeros(3, int)
    return np.stack([*smooth, noise, flat, two, smooth[0] // 4, 255 - smooth[2] // 5]).astype(np.uint8)


def operation_inputs(name: str) -> dict[str, np.ndarray]:
    """Every picture under an operation at all levels and both signs."""
    images = pictures()
    levels = np.repeat([level for level in LEVELS for _ in (1, -1)], len(images))[:, None]
    signs = np.tile(np.repeat([1.0, -1.0], len(images)), len(LEVELS))[:, None]
    numbers = np.full(levels.shape, operations.NUMBERS[name], np.int32)
    values = operations.arguments(numbers, levels, signs)
    return {
        "image": np.tile(images, (2 * len(LEVELS), 1, 1, 1)),
        "numbers": numbers,
        "arguments": values,
        "matrices": operations.matrices(numbers, values, (HEIGHT, WIDTH)),
    }


def operation_by_pillow(inputs: dict[str, np.ndarray]) -> np.ndarray:
    draws = Draws(numbers=inputs["numbers"], arguments=inputs["arguments"], matrices=inputs["matrices"])
    return by_pillow(inputs["image"], draws)


def by_pillow(images: np.ndarray, draws: Draws, mixing: Mixing | None = None) -> np.ndarray:
    result = images.copy()
    for index, image in enumerate(images):
        result[index] = np.asarray(pillow.change_pixels(Image.fromarray(image), draws, index))
        if draws.erase is not None and draws.noise is not None:
            pillow.erase(result[index], draws.erase[index], int(draws.noise[index]))
    if mixing is not None:
        pillow.mix(result, mixing)
    return result


def everything(config_changes: dict[str, object], strength: float = 1.0) -> tuple[np.ndarray, Draws]:
    from pipeline.training.config import AugmentationConfig

    images = np.tile(pictures(), (4, 1, 1, 1))
    config = AugmentationConfig.model_validate({"shift": 0, **config_changes})
    rng = np.random.default_rng(5)
    return images, draw_images(config, len(images), (HEIGHT, WIDTH), strength=strength, rng=rng)


JITTER = {"brightness": 0.3, "contrast": 0.4, "saturation": 0.5}
MIXINGS = {
    "mixup": Mixing(weight=0.3, share=0.3),
    "cutmix": Mixing(box=(5, 0, 20, 31), share=0.7),
    "unmixed": Mixing(),
}


def cases() -> dict[str, dict[str, np.ndarray]]:
    found = {name: operation_inputs(name) for name in operations.OPERATIONS}
    for name, changes in {"jitter": JITTER, "erase": {"erase": 0.7}}.items():
        images, draws = everything(changes)
        found[name] = {"image": images, **draws.accelerator_inputs()}
    images, draws = everything({"rand_augment": {"num_ops": 3, "probability": 0.9}, "erase": 0.5, **JITTER})
    found["together"] = {"image": images, **draws.accelerator_inputs()}
    for name, mixing in MIXINGS.items():
        found[name] = {"image": images, **mixing.accelerator_inputs(len(images))}
    found["nothing"] = {"image": images}
    return found


@pytest.fixture(scope="module", params=["tensorflow", "jax"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    directory = tmp_path_factory.mktemp("accelerator")
    given = {f"{case}/{key}": value for case, inputs in cases().items() for key, value in inputs.items()}
    np.savez(directory / "given.npz", **given)
    done = subprocess.run(
        [sys.executable, CHILD, directory / "given.npz", directory / "taken.npz"],
        env=child_environment(request.param) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(directory / "taken.npz") as arrays:
        return dict(arrays)


def differences(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    assert got.dtype == np.uint8
    assert got.shape == expected.shape
    return np.abs(got.astype(int) - expected.astype(int))


@pytest.mark.parametrize("name", operations.OPERATIONS)
def test_operation_is_pillows(name: str, results: dict[str, np.ndarray]) -> None:
    inputs = operation_inputs(name)
    expected = operation_by_pillow(inputs)
    found = differences(results[name], expected)
    assert found.max() <= TOLERANCE.get(name, 0)
    assert (found > 0).mean() < 0.02
    if name != "identity":
        assert (expected != inputs["image"]).any(), "the operation changes nothing, so this test shows nothing"


def test_jitter_of_colors_is_pillows(results: dict[str, np.ndarray]) -> None:
    images, draws = everything(JITTER)
    found = differences(results["jitter"], by_pillow(images, draws))
    assert found.max() <= 1
    assert (found > 0).mean() < 0.001


def test_erasing_is_the_loaders_to_the_bit(results: dict[str, np.ndarray]) -> None:
    images, draws = everything({"erase": 0.7})
    expected = by_pillow(images, draws)
    np.testing.assert_array_equal(results["erase"], expected)
    assert (expected != images).any(axis=(1, 2, 3)).sum() > len(images) // 2


@pytest.mark.parametrize("name", MIXINGS)
def test_mixing_is_the_loaders(name: str, results: dict[str, np.ndarray]) -> None:
    images, _ = everything({})
    found = differences(results[name], by_pillow(images, Draws(), MIXINGS[name]))
    assert found.max() <= (1 if name == "mixup" else 0)


def test_all_together_is_the_loaders(results: dict[str, np.ndarray]) -> None:
    """A level more or less before an operation may become many after it: solarize turns 127 and 128 apart."""
    images, draws = everything({"rand_augment": {"num_ops": 3, "probability": 0.9}, "erase": 0.5, **JITTER})
    found = differences(results["together"], by_pillow(images, draws))
    assert (found > 1).mean() < 0.002
    assert found.mean() < 0.05


def test_without_draws_the_images_stay(results: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(results["nothing"], everything({})[0])
