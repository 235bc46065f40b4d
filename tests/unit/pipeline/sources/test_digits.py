from __future__ import annotations

import subprocess
import sys

import numpy as np

from pipeline.sources import DigitsConfig, Sample
from pipeline.sources.digits import scale_to_bytes


def test_the_digits_are_read() -> None:
    reading = DigitsConfig(source="digits", size=(8, 8)).read()
    found = [item for item in reading.items if isinstance(item, Sample)]

    assert reading.classes == tuple("0123456789")
    assert len(found) == reading.num_images == 1797
    assert {sample.split for sample in found} == {None}
    assert [sample.label for sample in found[:3]] == ["0", "1", "2"]
    first = found[0].decode()
    assert first.pixels.shape == (8, 8, 3)
    assert first.mode == "L"
    assert len({sample.name for sample in found}) == 1797


def test_values_are_scaled_and_halves_are_rounded_up() -> None:
    scaled = scale_to_bytes(np.arange(17, dtype=np.float64))

    assert scaled.dtype == np.uint8
    assert scaled.tolist() == [int(value * 255 / 16 + 0.5) for value in range(17)]
    assert (scaled[0], scaled[8], scaled[16]) == (0, 128, 255)


def test_the_fingerprint_imports_no_scikit_learn() -> None:
    code = (
        "import sys\n"
        "from pipeline.sources import DigitsConfig\n"
        "assert 'scikit-learn' in DigitsConfig(source='digits', size=(8, 8)).fingerprint()\n"
        "assert 'sklearn' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
