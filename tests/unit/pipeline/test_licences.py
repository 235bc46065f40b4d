"""What a bundle says of licences."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import licences as module
from pipeline.errors import InputError
from pipeline.licences import licence_of, licence_text, licences
from tests.bundles import wheel_bytes

LINEAGE = [{"tools": {"numpy": "2.1", "nonesuch": "1.0"}}]


def test_all_that_is_in_a_bundle_is_named(tmp_path: Path) -> None:
    texts = {"tiny.py": "", "tiny-1.0.dist-info/licenses/LICENSE": "text", "tiny/ThirdPartyNotices.txt": "text"}
    wheel = tmp_path / "tiny-1.0-py3-none-any.whl"
    wheel.write_bytes(wheel_bytes(texts, "tiny"))
    text = licences("onnxruntime", LINEAGE, program="program.pyz", wheels=[wheel])
    assert "`program.pyz` is Edgeship" in text
    inside = "`tiny-1.0.dist-info/licenses/LICENSE`, `tiny/ThirdPartyNotices.txt`"
    assert f"| tiny-1.0-py3-none-any.whl | not stated | {inside} |" in text.splitlines()
    assert "| nonesuch | 1.0 | not stated (the package is not installed here) |" in text
    assert f"| numpy | 2.1 | {licence_of('numpy')} |" in text
    assert any(line.startswith("| onnxruntime | ") for line in text.splitlines())
    assert text == licences("onnxruntime", LINEAGE, program="program.pyz", wheels=[wheel])


def test_without_wheels_nothing_is_said_of_them() -> None:
    assert "The wheels carry" not in licences("litert", LINEAGE, program="program.pyz")


def test_the_text_is_that_of_the_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = licence_text()
    assert b"Apache License" in text
    assert text == (Path(__file__).parents[3] / "LICENSE").read_bytes()
    monkeypatch.setattr(module.devices, "__file__", str(tmp_path / "devices" / "__init__.py"))
    monkeypatch.setattr(module.metadata, "files", lambda _: [])
    with pytest.raises(InputError, match="LICENSE is missing"):
        licence_text()
