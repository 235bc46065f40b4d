from __future__ import annotations

import weakref
from pathlib import Path

import pytest

from devices.board.errors import ModelRejected
from devices.board.model import InstalledModel
from devices.board.serving.models import Copies, ServedModel, load_copies
from devices.board.serving.wire import HttpError
from tests.releases import NAME, fake_model, go_back, image_manifest, put, put_fake


def open_one(root: str, name: str) -> list[InstalledModel]:
    return load_copies(root, name, workers=1, num_threads=1)


def served(tmp_path: Path, told: list[str]) -> ServedModel:
    return ServedModel(str(tmp_path / "root"), NAME, open_copies=open_one, max_requests=2, tell=told.append)


def test_the_switch(tmp_path: Path) -> None:
    root, told = tmp_path / "root", list[str]()
    first = put_fake(root, tmp_path, seed=0)
    model = served(tmp_path, told)
    assert model.refresh() is None
    before = weakref.ref(model.copies)
    with model.copies.lease(1) as at_work:
        second = put_fake(root, tmp_path, seed=1)
        assert model.refresh() is True
        assert model.copies.model.release.digest == second
        assert at_work.release.digest == first
        assert model.refresh() is None
        assert before() is not None
        at_work.warm_up()
    assert model.refresh() is None
    assert before() is None, "the old release is still in memory"
    go_back(root)
    assert model.refresh() is True
    assert model.copies.model.release.digest == first
    assert len(told) == 2


def test_a_release_that_can_not_be_served_is_tried_once(tmp_path: Path) -> None:
    root, told = tmp_path / "root", list[str]()
    first = put_fake(root, tmp_path)
    model = served(tmp_path, told)
    put_fake(root, tmp_path, seed=1, behaviour="reject")
    assert model.refresh() is False
    assert model.refresh() is None
    assert model.refresh(again=True) is False
    assert model.copies.model.release.digest == first
    assert all("is served on" in line for line in told)
    (root / NAME / "current").unlink()
    assert model.refresh() is None


def test_a_refused_release_is_tried_again_once_it_was_taken_back(tmp_path: Path) -> None:
    """Whoever deploys it a second time wants to know whether it can be served now."""
    root, told = tmp_path / "root", list[str]()
    put_fake(root, tmp_path)
    model = served(tmp_path, told)
    put_fake(root, tmp_path, seed=1, behaviour="reject")
    assert model.refresh() is False
    go_back(root)
    assert model.refresh() is None
    put_fake(root, tmp_path, seed=1, behaviour="reject")
    assert model.refresh() is False


def test_labels_that_do_not_fit_are_found_before_the_switch(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "model.fake")
    put(tmp_path / "root", {**image_manifest(model), "classes": ["one"]}, model)
    with pytest.raises(ModelRejected, match="1 labels"):
        open_one(str(tmp_path / "root"), NAME)


def test_copies_are_used_by_one_at_a_time(tmp_path: Path) -> None:
    put_fake(tmp_path / "root", tmp_path)
    copies = Copies(load_copies(str(tmp_path / "root"), NAME, workers=2, num_threads=1))
    with copies.lease(0.01) as first, copies.lease(0.01) as second:
        assert first is not second
        with pytest.raises(HttpError, match="busy") as refused, copies.lease(0.01):
            pass
        assert refused.value.status == 503
    with copies.lease(0.01):
        pass


def test_places_are_bounded(tmp_path: Path) -> None:
    put_fake(tmp_path / "root", tmp_path)
    model = served(tmp_path, [])
    with model.place(), model.place():
        with pytest.raises(HttpError) as refused, model.place():
            pass
        assert refused.value.status == 503
        assert refused.value.headers["Retry-After"] == "1"
    with model.place():
        pass


def test_a_hanging_inference_is_noticed(tmp_path: Path) -> None:
    put_fake(tmp_path / "root", tmp_path)
    now = [0.0]
    copies = Copies(open_one(str(tmp_path / "root"), NAME), clock=lambda: now[0])
    assert copies.longest_busy_s() == 0
    with copies.lease(1):
        now[0] = 31.0
        assert copies.longest_busy_s() == 31
