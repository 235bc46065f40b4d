"""What the command line says where something is wrong."""

from __future__ import annotations

from typing import Any


def assert_one_message(outcome: Any, code: int, *words: str) -> None:
    assert outcome.code == code, outcome.stderr
    assert "Traceback" not in outcome.stderr + outcome.stdout
    assert outcome.stderr.count("Error:") == 1, outcome.stderr
    assert "Unexpected" not in outcome.stderr
    for word in words:
        assert word in outcome.stderr, outcome.stderr
