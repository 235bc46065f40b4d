"""Where wheels and virtual boards are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from devices.cache import cache_directory


def test_the_cache_is_where_it_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_directory({}) == tmp_path / ".cache" / "edgeship"
    assert cache_directory({"XDG_CACHE_HOME": "/x"}) == Path("/x/edgeship")
    assert cache_directory({"XDG_CACHE_HOME": "/x", "EDGESHIP_CACHE": "~/mine"}) == tmp_path / "mine"
