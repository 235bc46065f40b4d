from __future__ import annotations

import pytest

from devices.wording import counted


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("session",), "0 sessions"),
        (1, ("session",), "1 session"),
        (2, ("session",), "2 sessions"),
        (1, ("line is", "lines are"), "1 line is"),
        (3, ("directory", "directories"), "3 directories"),
        (1797, ("image",), "1,797 images"),
    ],
)
def test_numbers_agree_with_their_nouns(number: int, words: tuple[str, ...], text: str) -> None:
    assert counted(number, *words) == text
