"""What a network costs, counted from its graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from models.accounting import count_multiply_adds, count_parameters
from models.memory import file_size_bytes, peak_step

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, kw_only=True)
class NetworkCost:
    """What a network costs for one image.

    Args:
        parameters: Trainable ones, as frameworks count them.
        parameters_folded: What a file for a board holds, after batch normalization is folded.
        multiply_adds: See `models.accounting`.
        peak_activation_bytes: Of a float32 file; see `models.memory`.
        peak_activation_layer: At which layer a float32 file needs them.
        peak_activation_bytes_int8: Of an int8 file.
        size_bytes_float32: Weights of a float32 file.
        size_bytes_int8: Weights of an int8 file.
    """

    parameters: int
    parameters_folded: int
    multiply_adds: int
    peak_activation_bytes: int
    peak_activation_layer: str
    peak_activation_bytes_int8: int
    size_bytes_float32: int
    size_bytes_int8: int


def count_cost(model: keras.Model) -> NetworkCost:
    """Counts everything at once; errors as in `models.accounting.layer_table` and `models.memory.memory_steps`."""
    peak = peak_step(model)
    return NetworkCost(
        parameters=count_parameters(model, batch_norm="trainable"),
        parameters_folded=count_parameters(model, batch_norm="folded"),
        multiply_adds=count_multiply_adds(model),
        peak_activation_bytes=peak.alive_bytes,
        peak_activation_layer=peak.layer,
        peak_activation_bytes_int8=peak_step(model, precision="int8").alive_bytes,
        size_bytes_float32=file_size_bytes(model, precision="float32"),
        size_bytes_int8=file_size_bytes(model, precision="int8"),
    )
