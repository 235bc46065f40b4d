"""What the targets share where they multiply an output by a number: only constants change, never an operation.

The way back from the output leads through operations that are linear in one of their inputs, to constants that can take
the factor: a scale that integers are expanded by, or float weights and biases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pipeline.errors import InputError, UnsupportedModelError


def check_factor(factor: float) -> None:
    """Refuses what would change which value is the largest.

    Raises:
        InputError: The factor is not a positive number.
    """
    if not (math.isfinite(factor) and factor > 0):
        raise InputError(f"An output can't be multiplied by {factor}; give a finite number above 0.")


def refusal(what: str) -> UnsupportedModelError:
    """Returns the error for a file that has no constants in the right place."""
    return UnsupportedModelError(
        f"The output can't be multiplied by changing constants alone: {what}. Expected a linear last layer whose "
        f"weights are stored. Leave the file as it is."
    )


def chosen_output(output: str | None, known: Sequence[str]) -> int:
    """Returns which output is meant: by name, else the first. A name does not matter where there is only one.

    Raises:
        InputError: There are several, and none has the name.
    """
    if output is None or len(known) == 1:
        return 0
    if output not in known:
        raise InputError(f"The file has no output {output!r}. Choose one of {', '.join(known)}.")
    return list(known).index(output)
