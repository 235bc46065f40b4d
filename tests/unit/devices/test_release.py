"""What the board's installer does with good and bad releases; `tests/faults` ends it at every point."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.board import release_install, requirement
from devices.board.bundle import digest_of
from devices.board.release_errors import BadBundle, BadSignature, FailedTest, NoRoom, Refusal, Unfit
from devices.board.release_home import linked, read_state, status
from devices.board.release_install import STEPS, WATCH_STEPS, Installer
from devices.board.release_test import run_self_test
from tests.bundles import make_bundle, make_key, opened, release_files, signer_line, trust

MEASURED = {"worst": 0.0, "latency_p50_ms": 2.0, "latency_p99_ms": 3.0, "num_latencies": 400}


def passes(directory: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    assert (Path(directory) / manifest["model"]).read_bytes()
    return MEASURED


def fails(directory: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    raise FailedTest("the answer is another one")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return trust(tmp_path / "root", allow_unsigned=True)


def install(root: Path, bundle: Path, *, self_test: Any = passes, **options: Any) -> dict[str, Any]:
    return Installer(str(root), who="tester", self_test=self_test).install(str(bundle), **options)


def rollback(root: Path, self_test: Any = passes, name: str = "net") -> dict[str, Any]:
    return Installer(str(root), who="tester", self_test=self_test).rollback(name)


def in_use(root: Path) -> str:
    return str(status(str(root))[0]["current_digest"])


def history(root: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = read_state(str(root / "net"))["history"]
    return entries


def everything(root: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in root.rglob("*"))


def test_a_release_is_installed_once_and_the_same_again_changes_nothing(root: Path, tmp_path: Path) -> None:
    bundle, steps = make_bundle(tmp_path / "one"), []
    told = Installer(str(root), who="tester", self_test=passes, on_step=steps.append).install(str(bundle))
    assert tuple(steps) == tuple(step for step in STEPS if step not in WATCH_STEPS)
    assert told["changed"]
    current = root / "net" / "current"
    assert {path.name for path in current.iterdir()} == {"release.json", *release_files(1)}
    assert (current / "model.fake").read_bytes() == release_files(1)["model.fake"]
    before = everything(root)
    assert not install(root, bundle, self_test=fails)["changed"]
    assert everything(root) == before


def test_the_history_says_who_when_what_and_why(root: Path, tmp_path: Path) -> None:
    one, two = (make_bundle(tmp_path / str(seed), seed) for seed in (1, 2))
    install(root, one)
    with pytest.raises(FailedTest):
        install(root, two, self_test=fails)
    rows = history(root)
    assert [(row["action"], row["who"], row["result"]) for row in rows] == [
        ("install", "tester", "done"),
        ("install", "tester", "refused"),
    ]
    assert rows[1]["digest"] == opened(two).digest
    assert (rows[1]["step"], rows[1]["reason"]) == ("self-test", "the answer is another one")
    assert rows[0]["measured"] == MEASURED
    assert rows[0]["when"].endswith("Z")
    assert in_use(root) == opened(one).digest


def test_rollback_goes_there_and_back(root: Path, tmp_path: Path) -> None:
    one, two = (make_bundle(tmp_path / str(seed), seed) for seed in (1, 2))
    install(root, one)
    install(root, two)
    for bundle in (one, two):
        rollback(root)
        assert in_use(root) == opened(bundle).digest
    (row,) = status(str(root))
    assert len(row["releases"]) == 2
    assert row["previous_digest"] == opened(one).digest
    assert row["history"][-1]["action"] == "rollback"


def test_rollback_without_a_previous_release(root: Path, tmp_path: Path) -> None:
    install(root, make_bundle(tmp_path / "one"))
    with pytest.raises(Refusal, match="no previous release"):
        rollback(root)


@pytest.mark.parametrize("name", ["other", "..", "../root/net", ""])
def test_rollback_of_what_was_never_deployed(name: str, root: Path, tmp_path: Path) -> None:
    install(root, make_bundle(tmp_path / "one"))
    with pytest.raises(Refusal, match=r"was never deployed .* there is: net"):
        rollback(root, name=name)
    assert not (root / "other").exists()


def test_rollback_refuses_what_fails_its_self_test_or_is_damaged(root: Path, tmp_path: Path) -> None:
    one, two = (make_bundle(tmp_path / str(seed), seed) for seed in (1, 2))
    install(root, one)
    install(root, two)
    with pytest.raises(FailedTest):
        rollback(root, fails)
    (root / "net" / "previous" / "model.fake").write_text("damaged")
    with pytest.raises(Refusal, match="no previous release"):
        rollback(root)
    assert in_use(root) == opened(two).digest
    assert history(root)[-1]["result"] == "refused"


def test_a_damaged_release_is_installed_again(root: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "one")
    install(root, bundle)
    (root / "net" / "current" / "model.fake").write_text("damaged")
    assert status(str(root))[0]["current"] is None
    assert install(root, bundle)["changed"]
    assert status(str(root))[0]["current"]["name"] == "net"


def test_a_release_that_is_there_but_not_in_use_is_switched_to(root: Path, tmp_path: Path) -> None:
    bundles = [make_bundle(tmp_path / str(seed), seed) for seed in (1, 2)]
    for bundle in (*bundles, bundles[0]):
        assert install(root, bundle)["changed"]
    (row,) = status(str(root))
    assert (row["current_digest"], row["previous_digest"]) == tuple(opened(bundle).digest for bundle in bundles)


def test_old_releases_go_but_never_the_current_and_the_previous_one(root: Path, tmp_path: Path) -> None:
    trust(root, allow_unsigned=True, keep=3)
    digests = []
    for seed in range(1, 6):
        bundle = make_bundle(tmp_path / str(seed), seed)
        digests.append(opened(bundle).digest)
        install(root, bundle)
    (row,) = status(str(root))
    assert set(row["releases"]) == set(digests[-3:])
    trust(root, allow_unsigned=True, keep=1)
    rollback(root)
    install(root, make_bundle(tmp_path / "6", 6))
    (row,) = status(str(root))
    assert set(row["releases"]) == {row["current_digest"], row["previous_digest"]}
    assert row["previous_digest"] == digests[-2]


def test_a_dry_run_tests_and_leaves_nothing(root: Path, tmp_path: Path) -> None:
    install(root, make_bundle(tmp_path / "one"))
    before, tested = everything(root), []
    told = install(
        root, make_bundle(tmp_path / "two", 2), dry_run=True, self_test=lambda *_: tested.append(1) or MEASURED
    )
    assert told["measured"] == MEASURED
    assert tested
    assert not told["changed"]
    with pytest.raises(FailedTest):
        install(root, make_bundle(tmp_path / "two", 2), dry_run=True, self_test=fails)
    assert [path for path, _ in everything(root)] == [path for path, _ in before]
    assert history(root)[-1]["result"] == "done"


@pytest.mark.parametrize("key", ["latency_p50_ms", "latency_p99_ms"])
def test_the_budget_is_kept_to(key: str, root: Path, tmp_path: Path) -> None:
    install(root, make_bundle(tmp_path / "one", budget={key: MEASURED[key]}))
    with pytest.raises(FailedTest, match=key):
        install(root, make_bundle(tmp_path / "two", 2, budget={key: MEASURED[key] * 0.99}))
    assert history(root)[-1]["step"] == "budget"


def test_another_architecture(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle(tmp_path / "one", requires={"architecture": "armv7l"})
    with pytest.raises(Unfit, match="for armv7l"):
        install(root, bundle)
    monkeypatch.setattr(requirement.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(requirement.sys, "maxsize", 2**31 - 1)
    install(root, bundle)


def test_no_room(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(root, make_bundle(tmp_path / "one"))
    monkeypatch.setattr(release_install, "free_bytes", lambda _: release_install.RESERVE_BYTES)
    with pytest.raises(NoRoom, match="must stay free"):
        install(root, make_bundle(tmp_path / "two", 2))
    assert history(root)[-1]["step"] == "space"


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen on this machine")
def test_the_board_decides_whose_bundles_it_takes(tmp_path: Path) -> None:
    key, stranger = make_key(tmp_path / "key"), make_key(tmp_path / "stranger")
    root = trust(tmp_path / "root", signers=signer_line(key, "a@x"))
    for bundle in (make_bundle(tmp_path / "no", 1), make_bundle(tmp_path / "wrong", 2, key=stranger)):
        with pytest.raises(BadSignature):
            install(root, bundle)
        assert not (root / "net").exists()
    assert install(root, make_bundle(tmp_path / "one", 3, key=key))["signed_by"] == "a@x"
    install(root, make_bundle(tmp_path / "two", 4, key=key))
    with pytest.raises(BadSignature):
        install(root, make_bundle(tmp_path / "no", 1))
    assert [row["result"] for row in history(root)] == ["done", "done", "refused"]
    assert history(root)[0]["signed_by"] == "a@x"
    trust(root, revoked=Path(f"{key}.pub"))
    with pytest.raises(BadSignature):
        rollback(root)


def test_files_that_are_no_bundles(root: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no bundle")
    for path in (tmp_path / "text", tmp_path / "none", tmp_path):
        with pytest.raises((BadBundle, Refusal)):
            install(root, path)


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(Refusal):
        install(tmp_path / "root", make_bundle(tmp_path / "one"))


def test_a_release_from_before_there_were_bundles(root: Path, tmp_path: Path) -> None:
    manifest = opened(make_bundle(tmp_path / "one")).manifest
    compact = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    directory = root / "net" / "releases" / digest_of(compact)
    directory.mkdir(parents=True)
    for name, content in release_files(1).items():
        (directory / name).write_bytes(content)
    (directory / "release.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    (root / "net" / "current").symlink_to(directory)
    assert status(str(root))[0]["current"] == manifest
    install(root, make_bundle(tmp_path / "two", 2))
    rollback(root)
    assert linked(str(root / "net" / "current")) == directory.name


class TestSelfTest:
    """Through a process of its own and the fake runtime."""

    def run(self, tmp_path: Path, **changes: Any) -> dict[str, Any]:
        bundle = opened(make_bundle(tmp_path / "one", **changes))
        return run_self_test(str(tmp_path / ".one.files"), bundle.manifest, timeout_s=60)

    def test_a_good_release(self, tmp_path: Path) -> None:
        told = self.run(tmp_path)
        assert told["worst"] < 1e-5
        assert told["num_latencies"] == 400
        assert 0 < told["latency_p50_ms"] <= told["latency_p99_ms"]

    def test_other_answers(self, tmp_path: Path) -> None:
        other = {"golden_output_0.npy": release_files(2)["golden_output_0.npy"]}
        with pytest.raises(FailedTest, match="differs by"):
            self.run(tmp_path, files=other)

    @pytest.mark.parametrize("behaviour", ["crash", "crash_on_infer"])
    def test_a_runtime_that_crashes_takes_nobody_along(self, behaviour: str, tmp_path: Path) -> None:
        with pytest.raises(FailedTest, match="ended by SIGSEGV"):
            self.run(tmp_path, files={"model.fake": faulty(tmp_path, behaviour)})

    def test_a_model_that_the_runtime_refuses(self, tmp_path: Path) -> None:
        with pytest.raises(FailedTest, match="refuses"):
            self.run(tmp_path, files={"model.fake": faulty(tmp_path, "reject")})

    def test_a_model_that_never_answers(self, tmp_path: Path) -> None:
        bundle = opened(make_bundle(tmp_path / "one", files={"model.fake": faulty(tmp_path, "hang")}))
        with pytest.raises(FailedTest, match="longer than 3 s"):
            run_self_test(str(tmp_path / ".one.files"), bundle.manifest, timeout_s=3)

    def test_a_runtime_that_nobody_knows(self, tmp_path: Path) -> None:
        with pytest.raises(Refusal, match="no runtime 'caffe'"):
            self.run(tmp_path, target="caffe")

    def test_a_runtime_that_is_missing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for package in ("ai_edge_litert", "tflite_runtime"):
            (tmp_path / "path" / package).mkdir(parents=True)
            (tmp_path / "path" / package / "__init__.py").write_text(f"raise ModuleNotFoundError(name='{package}')")
        monkeypatch.syspath_prepend(tmp_path / "path")
        with pytest.raises(Unfit):
            self.run(tmp_path, target="litert")

    def test_golden_files_that_are_no_arrays(self, tmp_path: Path) -> None:
        with pytest.raises(FailedTest):
            self.run(tmp_path, files={"golden_output_0.npy": b"no array"})


def faulty(tmp_path: Path, behaviour: str) -> bytes:
    path = tmp_path / "faulty"
    with path.open("wb") as stream:
        np.savez(stream, weights=np.zeros((48, 3), np.float32), bias=np.zeros(3, np.float32), shape=np.array((4, 4, 3)),
                 behaviour=np.array(behaviour))  # fmt: skip
    return path.read_bytes()
