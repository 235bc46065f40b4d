from __future__ import annotations

import dataclasses
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.artifacts import ArtifactStore
from pipeline.errors import CorruptArtifactError, StoreError
from pipeline.manifest import MANIFEST, Artifact, FileRecord, Manifest
from pipeline.remote_store import SharedArtifactStore, open_store

KEY = "0123456789abcdef0123456789abcdef"
PLAN = Manifest(
    stage="train", key=KEY, config={}, inputs={}, code="", tools={}, fingerprint="", metrics={"a": 1}, wall_time_s=1.0
)
FILES = {"weights.bin": b"\0" * 1000, "deep/er/notes.txt": b"some words"}


@pytest.fixture(params=["file", "memory"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield (tmp_path / "shared" / "store").as_uri()
        return
    name = f"memory://edgeship-{uuid.uuid4().hex}"
    yield name
    fsspec.filesystem("memory").rm(name, recursive=True)


def machine(tmp_path: Path, name: str, address: str) -> ArtifactStore:
    return open_store(tmp_path / name, address)


def publish(store: ArtifactStore, content: bytes = FILES["weights.bin"]) -> Artifact:
    work = store.workspace(KEY, resumable=False)
    for name, data in {**FILES, "weights.bin": content}.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(data)
    return store.publish(work, PLAN)


def remote(address: str) -> tuple[Any, str]:
    filesystem, root = fsspec.core.url_to_fs(address)
    return filesystem, f"{root}/train/{KEY}"


def change_manifest(address: str, **fields: Any) -> None:
    filesystem, directory = remote(address)
    old = json.loads(filesystem.cat_file(f"{directory}/{MANIFEST}"))
    files = [FileRecord(**record) for record in fields.pop("files", old["files"])]
    manifest = Manifest(**{**old, **fields, "files": files})
    manifest = dataclasses.replace(manifest, digest=manifest.computed_digest())
    filesystem.pipe_file(f"{directory}/{MANIFEST}", manifest.to_json().encode())


def test_without_an_address_the_store_is_local(tmp_path: Path) -> None:
    assert type(open_store(tmp_path)) is ArtifactStore
    assert type(open_store(tmp_path, "")) is ArtifactStore


def test_another_machine_gets_what_one_made(tmp_path: Path, address: str) -> None:
    first = publish(machine(tmp_path, "one", address))

    second = machine(tmp_path, "two", address).get("train", KEY)

    assert second is not None
    assert second.directory.is_relative_to(tmp_path / "two")
    assert second.manifest.files == first.manifest.files
    assert second.manifest.metrics == {"a": 1}
    assert {name: second.file(name).read_bytes() for name in FILES} == FILES
    assert list((tmp_path / "two" / "work").iterdir()) == []


def test_what_was_brought_once_needs_the_address_no_more(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(machine(tmp_path, "one", address))
    machine(tmp_path, "two", address).get("train", KEY)
    store = machine(tmp_path, "two", address)
    monkeypatch.setattr(store, "_filesystem", None)

    assert store.get("train", KEY) is not None


def test_what_is_nowhere_is_nothing(tmp_path: Path, address: str) -> None:
    assert machine(tmp_path, "one", address).get("train", KEY) is None


def test_half_an_upload_is_ignored_and_completed(tmp_path: Path, address: str) -> None:
    publish(machine(tmp_path, "one", address))
    filesystem, directory = remote(address)
    filesystem.rm_file(f"{directory}/{MANIFEST}")

    two = machine(tmp_path, "two", address)
    assert two.get("train", KEY) is None
    publish(two)

    assert machine(tmp_path, "three", address).get("train", KEY) is not None


def test_files_go_first_and_the_manifest_last(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = machine(tmp_path, "one", address)
    assert isinstance(store, SharedArtifactStore)
    filesystem, directory = remote(address)
    written: list[str] = []
    put_file, pipe_file = store._filesystem.put_file, store._filesystem.pipe_file
    monkeypatch.setattr(store._filesystem, "put_file", lambda a, b: (written.append(b), put_file(a, b)))
    monkeypatch.setattr(store._filesystem, "pipe_file", lambda a, b: (written.append(a), pipe_file(a, b)))

    published = publish(store)

    assert [Path(name).name for name in written] == [*(each.sha256 for each in published.manifest.files), MANIFEST]
    assert filesystem.exists(f"{directory}/{MANIFEST}")


def test_an_upload_that_failed_is_done_by_the_next_run(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machine(tmp_path, "one", address)
    assert isinstance(store, SharedArtifactStore)

    def unreachable(*_: Any) -> None:
        raise ConnectionError("no route to host")

    with monkeypatch.context() as context:
        context.setattr(store._filesystem, "put_file", unreachable)
        with pytest.raises(StoreError, match=r"failed: ConnectionError: no route to host.*run again"):
            publish(store)

    assert machine(tmp_path, "one", address).get("train", KEY) is not None
    assert machine(tmp_path, "two", address).get("train", KEY) is not None


def test_two_machines_that_made_it_at_once_leave_one_whole_artifact(tmp_path: Path, address: str) -> None:
    """The second upload ends after the first one's, with other bytes."""
    one, two = machine(tmp_path, "one", address), machine(tmp_path, "two", address)
    filesystem, directory = remote(address)
    publish(one)
    text = filesystem.cat_file(f"{directory}/{MANIFEST}")
    filesystem.rm_file(f"{directory}/{MANIFEST}")
    publish(two, b"other bytes of the same artifact")
    filesystem.pipe_file(f"{directory}/{MANIFEST}", text)

    found = machine(tmp_path, "three", address).get("train", KEY)

    assert found is not None
    assert found.file("weights.bin").read_bytes() == FILES["weights.bin"]


def test_what_is_there_already_is_not_sent_again(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(machine(tmp_path, "one", address))
    two = machine(tmp_path, "two", address)
    assert isinstance(two, SharedArtifactStore)
    monkeypatch.setattr(two._filesystem, "put_file", None)

    publish(two)


def refused(tmp_path: Path, address: str) -> str:
    with pytest.raises(CorruptArtifactError) as caught:
        machine(tmp_path, "two", address).get("train", KEY)
    assert caught.value.exit_code == 2
    assert address in caught.value.message
    assert "Remove " in caught.value.message
    assert list((tmp_path / "two" / "artifacts").glob("*/*")) == []
    assert list((tmp_path / "two" / "work").iterdir()) == []
    return caught.value.message


def test_a_damaged_file_is_refused(tmp_path: Path, address: str) -> None:
    record = publish(machine(tmp_path, "one", address)).manifest.files[1]
    filesystem, directory = remote(address)
    filesystem.pipe_file(f"{directory}/{record.sha256}", b"\1" * 1000)

    assert "weights.bin of train/" in refused(tmp_path, address)


def test_a_missing_file_is_refused(tmp_path: Path, address: str) -> None:
    record = publish(machine(tmp_path, "one", address)).manifest.files[1]
    filesystem, directory = remote(address)
    filesystem.rm_file(f"{directory}/{record.sha256}")

    assert record.sha256 in refused(tmp_path, address)


def test_a_damaged_manifest_is_refused(tmp_path: Path, address: str) -> None:
    publish(machine(tmp_path, "one", address))
    filesystem, directory = remote(address)
    filesystem.pipe_file(f"{directory}/{MANIFEST}", b'{"stage"')

    assert "is no manifest" in refused(tmp_path, address)


@pytest.mark.parametrize("name", ["../x", "/etc/edgeship-x", "deep/../../x", ".", MANIFEST])
def test_a_manifest_that_names_a_file_elsewhere_is_refused(tmp_path: Path, address: str, name: str) -> None:
    records = publish(machine(tmp_path, "one", address)).manifest.files
    files = [{"path": name, "sha256": records[0].sha256, "size_bytes": records[0].size_bytes}]
    change_manifest(address, files=files)

    assert f"names the file {name}" in refused(tmp_path, address)
    assert not Path("/etc/edgeship-x").exists()
    assert not list((tmp_path / "two").rglob("x"))


@pytest.mark.parametrize("fields", [{"stage": "../../elsewhere"}, {"key": "../../../elsewhere"}, {"key": "f" * 32}])
def test_a_manifest_of_another_artifact_is_refused(tmp_path: Path, address: str, fields: dict[str, str]) -> None:
    publish(machine(tmp_path, "one", address))
    change_manifest(address, **fields)

    assert "names" in refused(tmp_path, address)
    assert not list(tmp_path.rglob("elsewhere"))


@pytest.mark.parametrize(
    "address",
    ["no-such-protocol://bucket/path", "file:///proc/no/such/place", "s3://bucket/path", "file:///etc/hostname/below"],
)
def test_an_address_that_cannot_be_used_is_named(tmp_path: Path, address: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(tmp_path, address)

    assert caught.value.exit_code == 2
    assert f"The shared store {address} can't be used" in caught.value.message
    assert "Expected an address that fsspec knows" in caught.value.message


def test_an_address_that_went_away_is_named(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    store = open_store(tmp_path / "one", shared.as_uri())
    shutil.rmtree(shared)
    shared.write_text("a file now")

    with pytest.raises(StoreError, match=r"The shared store .* failed: "):
        publish(store)
    assert ArtifactStore(tmp_path / "one").get("train", KEY) is not None
