"""Numbers of things in words."""

from __future__ import annotations


def counted(number: int, one: str, many: str | None = None) -> str:
    """The number with its noun: `1 session`, `2 sessions`.

    Args:
        number: Of things; thousands are set apart.
        one: What a single one is called, with what goes on differently for several.
        many: The same for several; None adds an s.
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"
