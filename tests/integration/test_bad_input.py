"""Whatever is wrong with the input: one clear message, the right exit code, no traceback, a sound store."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.outcomes import assert_one_message

# The command line as another user: whatever it imports later has been imported while it still could be read.
AS_NOBODY = """
import os, sys
import pipeline.recipe, pipeline.remote_store, pipeline.report, pipeline.run_directory, pipeline.runner
import pipeline.progress, pipeline.store_maintenance, rich.console, rich.table, encodings.idna
from pipeline.cli import main
if os.getuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
main()
"""

# The command line on a disk that is full from the n-th durable write on, where no real one can be had.
FULL_DISK = """
import errno, os
def full(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")
os.fsync = full
from pipeline.cli import main
main()
"""

FOLDER_RECIPE = """\
name: folder
data: {source: image_folder, path: images, size: [8, 8]}
model: {name: fake}
export: {targets: [fake]}
devices: [fake]
"""


def write_image(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), (value % 256, value // 256, 7)).save(path)


def make_folder(place: Any, counts: dict[str, int]) -> Path:
    (place.directory / "folder.yaml").write_text(FOLDER_RECIPE)
    root: Path = place.directory / "images"
    root.mkdir()
    value = 0
    for name, count in counts.items():
        for index in range(count):
            value += 1
            write_image(root / name / f"{index:03}.png", value)
    return root


@dataclass(frozen=True)
class Bad:
    id: str
    arguments: tuple[str, ...]
    says: tuple[str, ...]
    code: int = 2
    files: dict[str, str] = field(default_factory=dict)


RECIPES = (
    Bad("missing-recipe", ("run", "nowhere.yaml"), ("nowhere.yaml",)),
    Bad("recipe-is-a-directory", ("run", "."), (".",)),
    Bad("missing-data", ("run", "tiny.yaml", "--set", "data.path=gone.npz"), ("gone.npz",)),
    Bad("wrong-key", ("run", "x.yaml"), ("x.yaml, line 3", "modle", "Did you mean model"),
        files={"x.yaml": "name: x\ndata: {source: digits, size: [8, 8]}\nmodle: {name: fake}\n"}),
    Bad("wrong-type", ("run", "tiny.yaml", "--set", "benchmark.min_count=many"),
        ("--set", "benchmark.min_count", "many")),
    Bad("unknown-network", ("run", "tiny.yaml", "--set", "model.name=mobilenet_v22"),
        ("mobilenet_v22", "mobilenet_v2")),
    Bad("broken-yaml", ("run", "x.yaml"), ("x.yaml", "YAML"), files={"x.yaml": "name: [x\ndata: }\n"}),
    Bad("empty-recipe", ("run", "x.yaml"), ("x.yaml",), files={"x.yaml": ""}),
    Bad("binary-recipe", ("run", "tiny.npz"), ("tiny.npz",)),
    Bad("unknown-device", ("run", "tiny.yaml", "--device", "fakke"), ("fakke", "did you mean 'fake'")),
    Bad("missing-profile", ("run", "tiny.yaml", "--device", "./none.yaml"), ("none.yaml",)),
    Bad("broken-profile", ("run", "tiny.yaml", "--device", "./p.yaml"), ("p.yaml",), files={"p.yaml": "a: [\n"}),
    Bad("device-twice", ("run", "tiny.yaml", "--device", "fake", "--device", "fake"), ("twice",)),
    Bad("bad-override", ("run", "tiny.yaml", "--set", "data"), ("--set data", "KEY=VALUE")),
    Bad("store-is-a-file", ("run", "tiny.yaml", "--store", "tiny.npz"), ("tiny.npz", "is a file")),
    Bad("store-below-a-file", ("run", "tiny.yaml", "--store", "tiny.npz/store"), ("tiny.npz", "is a file")),
    Bad("shared-store", ("run", "tiny.yaml", "--shared-store", "nowhere://x"), ("nowhere://x", "fsspec")),
    Bad("no-report", ("report", "tiny.yaml"), ("There is no report", "edgeship run")),
    Bad("missing-model", ("bench", "gone.tflite"), ("There is no model gone.tflite",)),
    Bad("unknown-suffix", ("inspect", "tiny.npz"), ("tiny.npz", ".tflite")),
    Bad("model-twice", ("bench", "tiny.npz", "./tiny.npz"), ("named twice",)),
    Bad("unknown-network-shown", ("models", "show", "mobilenet_v22"), ("mobilenet_v22",)),
)  # fmt: skip


@pytest.mark.parametrize("bad", RECIPES, ids=lambda bad: bad.id)
def test_what_is_asked_for_cannot_be_used(workplace: Any, bad: Bad) -> None:
    for name, text in bad.files.items():
        (workplace.directory / name).write_text(text)

    outcome = workplace.edgeship(*bad.arguments)

    assert_one_message(outcome, bad.code, *bad.says)
    assert outcome.stdout == ""
    assert workplace.artifacts() == []


def test_a_class_with_one_image(workplace: Any) -> None:
    make_folder(workplace, {"cats": 40, "lonely": 1})

    outcome = workplace.edgeship("run", "folder.yaml")

    assert_one_message(outcome, 2, "lonely")


def test_an_image_that_cannot_be_read(workplace: Any) -> None:
    root = make_folder(workplace, {"cats": 20, "dogs": 20})
    (root / "cats" / "broken.png").write_bytes(b"no image at all")

    outcome = workplace.edgeship("run", "folder.yaml")

    assert_one_message(outcome, 2, "broken.png")
    assert workplace.artifacts() == []
    (root / "cats" / "broken.png").unlink()
    assert workplace.edgeship("run", "folder.yaml", "--until", "data").code == 0


def test_an_empty_folder(workplace: Any) -> None:
    make_folder(workplace, {})

    assert_one_message(workplace.edgeship("run", "folder.yaml"), 2, "images")


def test_a_missing_folder(workplace: Any) -> None:
    shutil.rmtree(make_folder(workplace, {}))

    assert_one_message(workplace.edgeship("run", "folder.yaml"), 2, "images")


@contextlib.contextmanager
def small_disk(directory: Path, size: str) -> Iterator[bool]:
    """Mounts a small file system, where this user may; says whether it could."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    mounted = os.getuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("64k", "the decoded images take"),
        ("220k", "No space left on the device"),
        ("300k", "No space left on the device"),
    ],
    ids=["known-before", "in-the-child", "later"],
)
def test_a_full_disk(workplace: Any, size: str, words: str) -> None:
    disk = workplace.directory / "disk"
    arguments = ("run", "tiny.yaml", "--store", "disk/store")
    with small_disk(disk, size) as mounted:
        outcome = workplace.edgeship(*arguments) if mounted else workplace.python(FULL_DISK, *arguments)

        assert_one_message(outcome, 2, words if mounted else "No space left on the device", "store gc")
        for manifest in disk.glob("store/artifacts/*/*/manifest.json"):
            assert manifest.stat().st_size
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert workplace.edgeship(*arguments).code == 0


@pytest.mark.slow
def test_a_disk_that_never_syncs(workplace: Any) -> None:
    outcome = workplace.python(FULL_DISK, "run", "tiny.yaml")

    assert_one_message(outcome, 2, "No space left on the device")
    assert workplace.artifacts() == []
    assert workplace.edgeship("run", "tiny.yaml").code == 0


@pytest.fixture
def public(workplace: Any) -> Iterator[Path]:
    """A directory that another user can read but not write."""
    with tempfile.TemporaryDirectory() as name:
        for source in (workplace.recipe, workplace.directory / "tiny.npz"):
            shutil.copy(source, name)
            (Path(name) / source.name).chmod(0o644)
        Path(name).chmod(0o555)
        yield Path(name)
        Path(name).chmod(0o755)


def test_a_store_without_write_permission(workplace: Any, public: Path) -> None:
    outcome = workplace.python(AS_NOBODY, "run", public / "tiny.yaml", "--store", public / "store")

    assert_one_message(outcome, 2, "No permission to write", str(public / "store"), "--store")


@pytest.mark.parametrize("command", ["ls", "gc"])
def test_a_store_to_look_at_without_write_permission(workplace: Any, public: Path, command: str) -> None:
    outcome = workplace.python(AS_NOBODY, "store", command, "--store", public / "store")

    assert_one_message(outcome, 2, "No permission to write", str(public / "store"))


def test_a_corrupt_artifact(finished: Any) -> None:
    [train] = finished.artifacts("train")
    (train / "network.npz").chmod(0o644)
    (train / "network.npz").write_bytes(b"changed")

    assert_one_message(finished.edgeship("run", "tiny.yaml"), 2, f"train/{train.name}", "has 7 bytes", "quarantine")
    outcome = finished.edgeship("run", "tiny.yaml", "--json")
    assert outcome.code == 0
    assert [stage["name"] for stage in outcome.json()["stages"] if not stage["cached"]] == ["train"]


@pytest.mark.slow
def test_a_gate_that_fails_names_artifact_value_and_limit(finished: Any) -> None:
    with np.load(finished.directory / "tiny.npz") as arrays:
        images = np.random.default_rng(1).integers(0, 256, arrays["images"].shape).astype(np.uint8)
        np.savez(finished.directory / "tiny.npz", images=images, labels=arrays["labels"])
    shutil.rmtree(finished.runs)

    outcome = finished.edgeship("run", "tiny.yaml", "--json", "--set", "gates.int8.min_snr_db=200")

    assert outcome.code == 1, outcome.stderr
    assert "Traceback" not in outcome.stderr
    [line] = [line for line in outcome.stderr.splitlines() if line.startswith("Gate failed:")]
    assert "fake/int8" in line
    assert "200" in line
    [row] = [row for row in outcome.json()["gates"] if not row["passed"]]
    assert f"{row['value']:.2f}"[:3] in line
    assert (finished.runs / "tiny" / "report.json").is_file()
    assert "fake/int8" in (finished.runs / "tiny" / "report.md").read_text()


def test_a_device_that_dies(finished: Any) -> None:
    (finished.directory / "dying.yaml").write_text(
        "extends: fake\nname: dying\ntransport: {kind: fake, die_on: facts}\n"
    )

    outcome = finished.edgeship("run", "tiny.yaml", "--json", "--device", "./dying.yaml")

    assert outcome.code == 3, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert "was ended by SIGSEGV" in outcome.stderr
    assert "was ended by SIGSEGV" in outcome.json()["failures"][0]
    assert "SIGSEGV" in (finished.runs / "tiny" / "report.md").read_text()


@pytest.mark.slow
def test_an_export_that_crashes(without_stages: Any) -> None:
    place = without_stages("export", "verify", "benchmark", "select")
    hooks = place.directory / "hooks"
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(
        "import sys\n"
        "if sys.orig_argv[-2:] == ['-m', 'pipeline.child']:\n"
        "    import ctypes\n"
        "    import devices.board.jsonlines as jsonlines\n"
        "    real = jsonlines.serve\n"
        "    def serve(handlers):\n"
        "        def run(params, emit_event):\n"
        "            if params['config'].get('precision') == 'float16':\n"
        "                print('native words', file=sys.stderr, flush=True)\n"
        "                ctypes.string_at(0)\n"
        "            return handlers['run'](params, emit_event)\n"
        "        real({'run': run})\n"
        "    jsonlines.serve = serve\n"
    )
    root = str(Path(__file__).resolve().parents[2])

    outcome = place.edgeship("run", "tiny.yaml", "--json", env={"PYTHONPATH": f"{root}{os.pathsep}{hooks}"})

    assert outcome.code == 4, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert "The process of stage export (fake float16) was ended by SIGSEGV" in outcome.stderr
    assert "native words" in outcome.stderr
    report = outcome.json()
    assert [row["precision"] for row in report["artifacts"]] == ["float32", "int8"]
    assert report["selected"]["fake"]["selected"]
    assert (place.runs / "tiny" / "report.md").is_file()
    again = place.edgeship("run", "tiny.yaml", "--json")
    assert again.code == 0
    assert sum(not stage["cached"] for stage in again.json()["stages"]) == 4, "one export, what measures it, the choice"
