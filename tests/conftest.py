from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
TINY_RECIPE = """\
name: tiny
data: {source: npz, path: tiny.npz, size: [8, 8]}
model: {name: fake}
export: {targets: [fake]}
gates: {}
devices: [fake]
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="Write the golden files anew instead of comparing.")


@pytest.fixture
def regenerate(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--regenerate"))


@dataclass(frozen=True)
class Outcome:
    """What a command gave."""

    code: int
    stdout: str
    stderr: str

    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.stdout)
        return found


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EDGESHIP_")}
    return {**kept, "PYTHONPATH": str(ROOT), **(extra or {})}


@dataclass(frozen=True)
class Workplace:
    """A directory with the recipe `tiny.yaml`, a store and the command line."""

    directory: Path

    @property
    def recipe(self) -> Path:
        return self.directory / "tiny.yaml"

    @property
    def store(self) -> Path:
        return self.directory / ".edgeship"

    @property
    def runs(self) -> Path:
        return self.directory / "runs"

    def command(self, *arguments: str | Path) -> list[str]:
        return [sys.executable, "-m", "pipeline.cli", *map(str, arguments)]

    def edgeship(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Outcome:
        return self.execute(self.command(*arguments), env=env)

    def python(self, code: str, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Outcome:
        return self.execute([sys.executable, "-c", code, *map(str, arguments)], env=env)

    def execute(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float = 120
    ) -> Outcome:
        done = subprocess.run(
            command,
            check=False,
            cwd=self.directory,
            env=clean_environment(env),
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def start(self, command: Sequence[str], *, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.directory,
            env=clean_environment(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Where the tests themselves run in the background, an interrupt is ignored and that is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )

    def artifacts(self, stage: str = "*") -> list[Path]:
        return sorted((self.store / "artifacts").glob(f"{stage}/*"))


@pytest.fixture(scope="session")
def _seed_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("seed")
    random = np.random.default_rng(0)
    labels = np.arange(480) % 3
    images = random.integers(0, 120, (480, 8, 8, 3)) + labels[:, None, None, None] * 60
    np.savez(directory / "tiny.npz", images=images.astype(np.uint8), labels=labels)
    (directory / "tiny.yaml").write_text(TINY_RECIPE)
    return directory


@pytest.fixture(scope="session")
def _finished_directory(_seed_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished") / "place"
    shutil.copytree(_seed_directory, directory)
    outcome = Workplace(directory).edgeship("run", "tiny.yaml")
    assert outcome.code == 0, outcome.stderr
    return directory


@pytest.fixture
def workplace(_seed_directory: Path, tmp_path: Path) -> Workplace:
    """With an empty store."""
    return Workplace(Path(shutil.copytree(_seed_directory, tmp_path / "place")))


@pytest.fixture(scope="module")
def module_workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """An empty directory that all tests of a module share."""
    return Workplace(tmp_path_factory.mktemp("module"))


@pytest.fixture
def finished(_finished_directory: Path, tmp_path: Path) -> Workplace:
    """With the store and the run directory that a whole run left."""
    return Workplace(Path(shutil.copytree(_finished_directory, tmp_path / "place", symlinks=True)))


@pytest.fixture
def without_stages(finished: Workplace) -> Callable[..., Workplace]:
    """The finished workplace without the artifacts of some stages."""

    def remove(*stages: str) -> Workplace:
        for stage in stages:
            shutil.rmtree(finished.store / "artifacts" / stage)
        return finished

    return remove


@pytest.fixture(scope="session")
def record_shards() -> ModuleType:
    """What writes images as shards of records."""
    spec = importlib.util.spec_from_file_location("record_shards", Path(__file__).with_name("record_shards.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXPORT_SCRIPT = """
import json, sys
from pathlib import Path
import keras
import numpy as np
from pipeline.network import ModelConfig, build_network, save_network
from pipeline.stages.export import ExportStage
from pipeline.saved_model import write_saved_model

out, variants = Path(sys.argv[1]), sys.argv[2] == "variants"
source = out / "calibrate"
source.mkdir(parents=True)
keras.utils.set_random_seed(0)
config = ModelConfig(name="mobilenet_v2", width=0.35, early_stride=True)
network = build_network(config, (32, 32, 3), 4)
rng = np.random.default_rng(0)
for weight in network.weights:
    if weight.name in ("gamma", "moving_variance"):
        weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    elif weight.name in ("beta", "moving_mean"):
        weight.assign(rng.normal(0, 0.2, weight.shape))
save_network(network, source, config=config, classes=list("abcd"))
write_saved_model(network, source)
np.save(source / "calibration_input_0.npy", rng.integers(0, 256, (64, 32, 32, 3), dtype=np.uint8))
for target in ("litert", "onnxruntime", "openvino"):
    for precision in ("float32", "float16", "int8"):
        folder = out / target / precision
        folder.mkdir(parents=True)
        stage = ExportStage(target=target, precision=precision)
        metrics = stage.run({"calibrate": source}, folder, lambda event: None)
        (out / f"{target}-{precision}.json").write_text(json.dumps(metrics))
if variants:
    import nncf
    import openvino as ov
    import tensorflow as tf
    from onnxruntime.quantization import quantize_dynamic

    converter = tf.lite.TFLiteConverter.from_saved_model(str(source / "saved_model"))
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    (out / "dynamic.tflite").write_bytes(converter.convert())
    quantize_dynamic(out / "onnxruntime/float32/model.onnx", out / "dynamic.onnx", op_types_to_quantize=["MatMul"])
    weights = nncf.compress_weights(ov.Core().read_model(out / "openvino/float32/model.xml"))
    ov.save_model(weights, out / "weights.xml", compress_to_fp16=False)
"""


@dataclass(frozen=True)
class Exports:
    """A tiny MobileNetV2 with random weights, by every target in every precision, as the export stage writes it."""

    directory: Path
    home: Path

    def metrics(self, target: str, precision: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / f"{target}-{precision}.json").read_text())
        return found

    def folder(self, target: str, precision: str) -> Path:
        return self.directory / target / precision


def make_exports(directory: Path, *, variants: bool) -> Exports:
    from pipeline.executor import child_environment

    home = directory / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", EXPORT_SCRIPT, str(directory / "out"), "variants" if variants else "plain"],
        check=False,
        env={**child_environment("tensorflow"), "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return Exports(directory / "out", home)


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return make_exports(tmp_path_factory.mktemp("exports"), variants=True)


@pytest.fixture(scope="session")
def exports_again(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """The same from another process and another directory."""
    return make_exports(tmp_path_factory.mktemp("another-name-of-another-length"), variants=False)
