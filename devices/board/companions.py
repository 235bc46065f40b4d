"""Files that belong to a model file and lie beside it."""

from __future__ import annotations

import os
from typing import Optional

_SUFFIXES = {".xml": ".bin", ".xnnpack": ".tflite"}
"""By the suffix of the file that is named, that of the one beside it: weights of an OpenVINO model; the model that a
cache of XNNPACK's packed weights was made of."""


def companion_of(path: str) -> Optional[str]:
    """The path of the file that must lie beside a model file; None where it stands alone."""
    stem, suffix = os.path.splitext(path)
    return stem + _SUFFIXES[suffix] if suffix in _SUFFIXES else None
