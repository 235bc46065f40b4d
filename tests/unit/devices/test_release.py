from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from devices import release
from devices.errors import DeviceError
from devices.release import install, release_digest, rollback, status


class Killed(BaseException):
    """Stands in for a process that ends at once."""


def passes(directory: Path, manifest: Mapping[str, Any]) -> None:
    assert (directory / manifest["model"]).read_bytes()


def fails(directory: Path, manifest: Mapping[str, Any]) -> None:
    raise DeviceError("the answer is another one")


def make(tmp_path: Path, content: str) -> tuple[dict[str, Any], dict[str, Path]]:
    source = tmp_path / f"source-{content}"
    source.write_text(content)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return {"name": "net", "model": "model.fake", "files": {"model.fake": digest}}, {"model.fake": source}


def in_use(root: Path) -> str:
    return (root / "net" / "current" / "model.fake").read_text()


def test_a_release_is_installed_once(tmp_path: Path) -> None:
    manifest, files = make(tmp_path, "one")
    root = tmp_path / "root"
    assert install(root, manifest, files, self_test=passes)
    assert in_use(root) == "one"
    before = sorted(path.stat().st_mtime_ns for path in root.rglob("*"))
    assert not install(root, manifest, files, self_test=fails)
    assert sorted(path.stat().st_mtime_ns for path in root.rglob("*")) == before


def test_rollback_goes_there_and_back(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for content in ("one", "two"):
        install(root, *make(tmp_path, content), self_test=passes)
    assert in_use(root) == "two"
    rollback(root, "net", self_test=passes)
    assert in_use(root) == "one"
    rollback(root, "net", self_test=passes)
    assert in_use(root) == "two"
    (row,) = status(root)
    assert len(row.releases) == 2
    assert row.current_digest == release_digest(make(tmp_path, "two")[0])


def test_rollback_without_a_previous_release(tmp_path: Path) -> None:
    root = tmp_path / "root"
    install(root, *make(tmp_path, "one"), self_test=passes)
    with pytest.raises(DeviceError, match="no previous release"):
        rollback(root, "net", self_test=passes)
    assert in_use(root) == "one"


def test_rollback_of_what_was_never_deployed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    install(root, *make(tmp_path, "one"), self_test=passes)
    with pytest.raises(DeviceError, match=r"other was never deployed .* there is: net"):
        rollback(root, "other", self_test=passes)
    assert not (root / "other").exists()


def test_a_failed_self_test_changes_nothing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    install(root, *make(tmp_path, "one"), self_test=passes)
    with pytest.raises(DeviceError, match="another one"):
        install(root, *make(tmp_path, "two"), self_test=fails)
    assert in_use(root) == "one"
    install(root, *make(tmp_path, "two"), self_test=passes)
    with pytest.raises(DeviceError, match="another one"):
        rollback(root, "net", self_test=fails)
    assert in_use(root) == "two"


def test_a_file_that_is_not_what_the_manifest_says(tmp_path: Path) -> None:
    root = tmp_path / "root"
    manifest, files = make(tmp_path, "one")
    files["model.fake"].write_text("changed")
    with pytest.raises(DeviceError, match="SHA-256"):
        install(root, manifest, files, self_test=passes)
    assert not (root / "net" / "current").exists()


def test_a_damaged_release_is_installed_again(tmp_path: Path) -> None:
    root = tmp_path / "root"
    manifest, files = make(tmp_path, "one")
    install(root, manifest, files, self_test=passes)
    (root / "net" / "current" / "model.fake").write_text("damaged")
    assert status(root)[0].current is None
    assert install(root, manifest, files, self_test=passes)
    assert in_use(root) == "one"


def test_rollback_refuses_a_damaged_release(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for content in ("one", "two"):
        install(root, *make(tmp_path, content), self_test=passes)
    (root / "net" / "previous" / "model.fake").write_text("damaged")
    with pytest.raises(DeviceError, match="no previous release"):
        rollback(root, "net", self_test=passes)
    assert in_use(root) == "two"


STEPS = ("_copy_durably", "_write_durably", "_check_digests", "_switch", "_sync")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_the_old_or_the_new_release_is_in_use(
    step: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    install(root, *make(tmp_path, "one"), self_test=passes)
    genuine = getattr(release, step)
    calls = 0
    for survived in range(12):
        calls = 0

        def dying(*arguments: Any, survived: int = survived, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > survived and when == "before":
                raise Killed
            result = genuine(*arguments, **options)
            if calls > survived:
                raise Killed
            return result

        with monkeypatch.context() as patch:
            patch.setattr(release, step, dying)
            try:
                install(root, *make(tmp_path, f"two-{survived}"), self_test=passes)
            except Killed:
                interrupted = True
            else:
                interrupted = False
        content = in_use(root)
        manifest = json.loads((root / "net" / "current" / "release.json").read_text())
        assert hashlib.sha256(content.encode()).hexdigest() == manifest["files"]["model.fake"]
        install(root, *make(tmp_path, f"two-{survived}"), self_test=passes)
        assert in_use(root) == f"two-{survived}"
        if not interrupted:
            break
    assert calls, f"{step} was never called"
    assert not interrupted


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.write_text("")
    with pytest.raises(DeviceError, match="can't be written"):
        install(root, *make(tmp_path, "one"), self_test=passes)
