"""Properties of rounding to integers, in numpy and as tensors."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.quantization.arithmetic import (
    SMALLEST_WEIGHT,
    channel_axes,
    nudged,
    nudged_range,
    round_values,
    round_weights,
    weight_steps,
    whole_weights,
)
from pipeline.quantization.fake_quantization import fake_quantize, fake_quantize_weights

LEVELS = st.sampled_from([16, 256])
FLOATS = st.floats(-100, 100, width=32)
LIMITS = st.tuples(FLOATS, FLOATS).map(sorted).map(tuple)
VALUES = arrays.arrays(np.float32, st.integers(1, 30), elements=FLOATS)
KERNELS = arrays.arrays(np.float32, st.tuples(*[st.integers(1, 3)] * 4), elements=st.floats(-5, 5, width=32))
BITS = st.sampled_from([4, 8])


def as_tensors(values: Any, limits: Any, levels: int) -> Any:
    step, zero = nudged(limits, levels)
    rounded = fake_quantize(keras.ops.convert_to_tensor(values), np.float32(-zero * step), np.float32(step), levels)
    return keras.ops.convert_to_numpy(rounded)


@given(LIMITS, LEVELS)
def test_zero_is_a_level_and_the_range_moves_by_half_a_step_at_most(limits: Any, levels: int) -> None:
    step, zero = nudged(limits, levels)
    low, high = nudged_range(limits, levels)
    assert low <= 0 <= high
    assert round_values(np.zeros(1, np.float32), limits, levels)[0] == 0
    assert abs(low - min(limits[0], 0)) <= 0.500001 * step + 1e-5
    assert abs(high - max(limits[1], 0)) <= 0.500001 * step + 1e-5
    assert 0 <= zero < levels


@given(VALUES, LIMITS, LEVELS)
def test_values_round_to_the_nearest_level(values: Any, limits: Any, levels: int) -> None:
    step, _ = nudged(limits, levels)
    low, high = nudged_range(limits, levels)
    found = round_values(values, limits, levels)
    inside = (values >= low) & (values <= high)
    assert (np.abs(found - values)[inside] <= 0.5001 * step + 1e-6).all()
    np.testing.assert_allclose(found[values > high], high, rtol=1e-6)
    np.testing.assert_allclose(found[values < low], low, rtol=1e-6)
    np.testing.assert_array_equal(round_values(found, limits, levels), found)


@settings(max_examples=50, deadline=None)
@given(VALUES, LIMITS, LEVELS)
def test_tensors_round_as_arrays_do(values: Any, limits: Any, levels: int) -> None:
    step, _ = nudged(limits, levels)
    expected, found = round_values(values, limits, levels), as_tensors(values, limits, levels)
    # Halfway between two levels float32 and float64 may differ.
    ties = np.abs(np.abs(values / step) % 1 - 0.5) < 1e-3
    np.testing.assert_allclose(found[~ties], expected[~ties], rtol=0, atol=1e-4 * step + 1e-5)
    np.testing.assert_allclose(as_tensors(found, limits, levels), found, rtol=0, atol=1e-4 * step + 1e-5)


@given(KERNELS, BITS, st.booleans())
def test_weights_keep_their_largest_and_round_within_half_a_step(kernel: Any, bits: int, depthwise: bool) -> None:
    axes = channel_axes(kernel, depthwise=depthwise)
    steps, wholes = weight_steps(kernel, axes, bits), whole_weights(kernel, axes, bits)
    rounded = round_weights(kernel, axes, bits)
    limit = 2 ** (bits - 1) - 1
    peaks = np.abs(kernel).max(axis=axes)
    assert (np.abs(wholes).max(axis=axes)[peaks > SMALLEST_WEIGHT] == limit).all()
    assert (np.abs(rounded - kernel) <= 0.5001 * steps).all()
    np.testing.assert_allclose(np.abs(rounded).max(axis=axes), peaks, rtol=1e-6, atol=SMALLEST_WEIGHT)
    np.testing.assert_array_equal(whole_weights(rounded, axes, bits), wholes)
    np.testing.assert_allclose(round_weights(rounded, axes, bits), rounded, rtol=1e-6)


@settings(max_examples=50, deadline=None)
@given(KERNELS, BITS)
def test_kernels_round_as_arrays_do(kernel: Any, bits: int) -> None:
    axes = channel_axes(kernel, depthwise=False)
    steps = weight_steps(kernel, axes, bits)
    found = keras.ops.convert_to_numpy(fake_quantize_weights(keras.ops.convert_to_tensor(kernel), axes, bits))
    ties = np.abs(np.abs(kernel / steps) % 1 - 0.5) < 1e-3
    expected = round_weights(kernel, axes, bits)
    np.testing.assert_allclose(found[~ties], expected[~ties], rtol=1e-5, atol=1e-30)


def test_channels_have_steps_of_their_own() -> None:
    kernel = np.ones((3, 3, 2, 2), np.float32) * np.array([[1, 10], [100, 1000]], np.float32)
    assert weight_steps(kernel, channel_axes(kernel, depthwise=False)).ravel() * 127 == pytest.approx([100, 1000])
    found = weight_steps(kernel, channel_axes(kernel, depthwise=True)).ravel() * 127
    assert found == pytest.approx([1, 10, 100, 1000])


@pytest.mark.parametrize("limits", [(1.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_what_is_no_range_is_refused(limits: Any) -> None:
    with pytest.raises(ValueError, match="expected two finite numbers"):
        nudged(limits)
