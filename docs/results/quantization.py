"""Quantizes the networks of `training.py` in every runtime, and writes `quantization.json` and `quantization.md` beside it.

    .venv/bin/python docs/results/quantization.py [--only tiny_imagenet_20/mobilenet_v2]
    .venv/bin/python docs/results/quantization.py --train --tiny-imagenet FILE --cifar10 FILE
    .venv/bin/python docs/results/quantization.py --latency

It takes what `training.py` trained; where there is nothing, it says which command makes it, and with `--train` it calls
that command. FILE is a folder or an archive of `split/class/*.jpg`. A run that is interrupted goes on where it stood;
rows that were measured before stay in the tables. With `--tables` alone nothing is measured and the tables are written
anew.

A row is a network in a runtime: float32; int8 as a user gets it from the converter's defaults by hand
(`pipeline.targets.by_hand`); and ours, with the remedies that `quantization.accuracy` tries until the drop on the
validation split is at most half a point. All three come from the same trained network and the same calibration images,
and answer the same images of the test split, by which no remedy and no range of a row is chosen. The rules themselves were
found on these networks, though (decision 0011): that samples count alike, and that `samples` keeps 95 % of them.

Latencies are a pass of their own (`--latency`), for a machine that does nothing else: all files of a network, in all
runtimes, take turns in one run with one thread each.
"""  # noqa: E501 (the first line)

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import training
from quantization_tables import write_tables
from training import DATASETS, NETWORKS, recipe_of

from devices.errors import DeviceError
from devices.measurement import Case, benchmark
from devices.profile import DeviceProfile, load_profile
from pipeline.answers import answers_on
from pipeline.artifacts import ArtifactStore
from pipeline.benchmark_config import BenchmarkConfig
from pipeline.calibration.smooth import smooth_change
from pipeline.errors import StageError
from pipeline.executor import StageExecutor, child_environment
from pipeline.making import host_facts, take_or_make
from pipeline.manifest import Artifact, sha256_of
from pipeline.model_source import Calibration, ModelSource
from pipeline.network import ModelConfig
from pipeline.quantization.comparison import AccuracyDrop, compare_accuracy, compare_confidence, expected_drop
from pipeline.quantization.section import AccuracyConfig, QuantizationConfig
from pipeline.quantizing import Quantizing
from pipeline.recipe import Recipe
from pipeline.samples import calibration_input_file, reference_samples
from pipeline.signature import read_signature
from pipeline.stages.base import Stage
from pipeline.stages.export import ExportConfig
from pipeline.stages.frontier import FrontierStage
from pipeline.stages.verify import VerifyStage
from pipeline.targets import QUANTIZERS, TARGETS
from pipeline.targets.base import Precision, TargetName, model_files
from pipeline.targets.by_hand import BY_HAND

HERE = Path(__file__).resolve().parent
WORK = HERE.parents[1] / "runs" / "results" / "quantization"
MAX_DROP = 0.005
"""Half a point, of accuracy and of the calibration error."""


def main() -> None:
    """Measures what is missing and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny-imagenet", type=Path)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--only", help="DATASET/NETWORK, or DATASET")
    parser.add_argument("--train", action="store_true", help="train what is not trained yet")
    parser.add_argument("--latency", action="store_true", help="only measure latencies, of what is quantized already")
    parser.add_argument("--tables", action="store_true", help="measure nothing")
    parser.add_argument("--by-hand", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.by_hand:
        quantize_by_hand(*(Path(each) for each in options.by_hand))
        return
    missing = []
    for dataset, path in {"tiny_imagenet_20": options.tiny_imagenet, "cifar10": options.cifar10}.items():
        for network in NETWORKS:
            if options.tables or options.only not in {None, dataset, f"{dataset}/{network}"}:
                continue
            if options.latency:
                measure_latency(dataset, network)
            elif not measure(dataset, network, path, train=options.train):
                missing.append(training_command(dataset, network, path))
            write_tables(WORK, HERE, MAX_DROP)
    write_tables(WORK, HERE, MAX_DROP)
    if missing:
        sys.exit("Not trained yet, so left out. These commands train them:\n" + "\n".join(missing))


def training_command(dataset: str, network: str, path: Path | None) -> str:
    """Returns the command that trains a network, for people."""
    return " ".join(["python", "docs/results/training.py", *_training_arguments(dataset, network, path)])


def _training_arguments(dataset: str, network: str, path: Path | None) -> list[str]:
    option = {"tiny_imagenet_20": "--tiny-imagenet", "cifar10": "--cifar10"}[dataset]
    return [option, str(path or "FILE"), "--side", "edgeship", "--only", f"{dataset}/{network}"]


def find_trained(dataset: str, network: str) -> dict[str, Artifact] | None:
    """Returns the artifacts `data`, `train` and `calibrate` of a trained network; None where it is not trained.

    They are those that `training.py` names. Where it names none, they are the newest of this training in its store.
    """
    store = ArtifactStore(training.WORK / "store")
    noted = training.WORK / dataset / network / "edgeship.json"
    if noted.exists():
        keys = json.loads(noted.read_text(encoding="utf-8"))["keys"]
        found = {stage: store.get(stage, keys[stage]) for stage in ("data", "train", "calibrate")}
        known = {stage: artifact for stage, artifact in found.items() if artifact is not None}
        if len(known) == len(found) and _is_training(known["train"], dataset, network):
            return known
    calibrated = [artifact for artifact in store.artifacts() if artifact.manifest.stage == "calibrate"]
    for artifact in sorted(calibrated, key=lambda each: each.manifest.created, reverse=True):
        inputs = artifact.manifest.inputs
        train, data = store.get("train", inputs["train"]), store.get("data", inputs["data"])
        if train and data and _is_training(train, dataset, network) and _is_data(data, dataset):
            return {"data": data, "train": train, "calibrate": artifact}
    return None


def _is_training(train: Artifact, dataset: str, network: str) -> bool:
    """Whether a network was trained as the table says; options that did not exist at that time don't count."""
    found, recipe = train.manifest.config, recipe_of(dataset, network, Path())
    wanted = {name: getattr(recipe, name).model_dump(mode="json") for name in ("model", "train")}
    return all(
        found[part].get(name, value) == value for part, values in wanted.items() for name, value in values.items()
    )


def _is_data(data: Artifact, dataset: str) -> bool:
    return list(data.manifest.config["source"]["size"]) == DATASETS[dataset]["size"]


class Run:
    """A run that begins with a trained network (see `pipeline.quantizing.Run`).

    Args:
        recipe: What is exported, and how.
        trained: The artifacts `data` and `calibrate`.
        executor: Runs the stages.

    Attributes:
        artifacts: By name.
        failures: Why there is no artifact, by name.
    """

    def __init__(self, recipe: Recipe, trained: Mapping[str, Artifact], executor: StageExecutor) -> None:
        self.recipe = recipe
        self.profiles: tuple[DeviceProfile, ...] = (load_profile("local"),)
        self.artifacts = dict(trained)
        self.failures: dict[str, str] = {}
        self.has_own_model = False
        self._executor = executor
        self._store = ArtifactStore(WORK / "store")

    @property
    def exports(self) -> list[tuple[TargetName, Precision]]:
        """Targets and precisions."""
        return [(target, precision) for target in self.recipe.export.targets for precision in ("float32", "int8")]

    def network(self) -> ModelConfig:
        """Returns the network that was trained."""
        return ModelConfig.model_validate(self.artifacts["train"].manifest.config["model"])

    def was_tried(self, name: str) -> bool:
        """Whether a stage ran, in vain or not."""
        return name in self.artifacts or name in self.failures

    def name_again(self, name: str, known: str) -> None:
        """Gives an artifact a second name."""
        self.artifacts[name] = self.artifacts[known]

    def attempt(self, name: str, stage: Stage, inputs: Mapping[str, str]) -> None:
        """Makes an artifact, or notes why there is none; latencies are a pass of their own and left out."""
        if isinstance(stage, FrontierStage):
            return
        sources, started = {role: self.artifacts[source] for role, source in inputs.items()}, time.monotonic()
        try:
            self.artifacts[name], cached = take_or_make(
                name, stage, sources, store=self._store, executor=self._executor, tell=_tell
            )
        except (StageError, DeviceError) as error:
            self.failures[name] = error.message
            print(f"{name} failed: {error.message}", flush=True)
        else:
            print(f"{name}: {'known' if cached else f'{time.monotonic() - started:.0f} s'}", flush=True)


def measure(dataset: str, network: str, path: Path | None, *, train: bool) -> bool:
    """Quantizes one network in every runtime; the artifact store knows what is done already.

    Returns:
        Whether the network is trained.
    """
    trained = find_trained(dataset, network)
    if trained is None and train and path is not None:
        command = [sys.executable, str(HERE / "training.py"), *_training_arguments(dataset, network, path)]
        subprocess.run(command, check=True)
        trained = find_trained(dataset, network)
    if trained is None:
        return False
    print(f"== {dataset}/{network}, {trained['calibrate'].manifest.key}", flush=True)
    recipe = recipe_of(dataset, network, path or Path()).model_copy(
        update={
            "export": ExportConfig(targets=tuple(QUANTIZERS), precisions=("float32", "int8")),
            "quantization": QuantizationConfig(accuracy=AccuracyConfig(max_drop=MAX_DROP)),
        }
    )
    with StageExecutor(_tell) as executor:
        run = Run(recipe, trained, executor)
        Quantizing(run).export()
        for name in [name for name in run.artifacts if name.startswith("export/")]:
            label = name.removeprefix("export/")
            stage = VerifyStage(target=label.split("/")[0], host=host_facts())
            run.attempt(f"verify/{label}", stage, {"calibrate": "calibrate", "export": name})
    by_hand = make_by_hand(dataset, network, run)
    rows = [row_of(dataset, network, target, run, by_hand[target]) for target in QUANTIZERS]
    out = WORK / dataset / f"{network}.json"
    write_rows(out, [row for row in rows if row])
    return True


def make_by_hand(dataset: str, network: str, run: Run) -> dict[TargetName, Path]:
    """Writes int8 by the converters' defaults in a process of its own; returns where each should be."""
    calibrate = run.artifacts["calibrate"]
    floats = {target: run.artifacts.get(f"export/{target}/float32") for target in QUANTIZERS}
    out = WORK / dataset / network / f"by-hand-{calibrate.manifest.key}"
    paths = {target: out / target / f"model{TARGETS[target].suffix}" for target in QUANTIZERS}
    wanted = {
        target: str(artifact.file(artifact.manifest.metrics["model"]))
        for target, artifact in floats.items()
        if artifact is not None and not paths[target].exists()
    }
    if wanted:
        out.mkdir(parents=True, exist_ok=True)
        (out / "floats.json").write_text(json.dumps(wanted), encoding="utf-8")
        arguments = [str(calibrate.directory), str(out / "floats.json"), str(out)]
        subprocess.run(
            [sys.executable, __file__, "--by-hand", *arguments], check=True, env=child_environment("tensorflow")
        )
    return paths


def quantize_by_hand(calibrate: Path, floats: Path, out: Path) -> None:
    """Writes int8 by the defaults of each converter; one that refuses leaves no file."""
    signature = read_signature(calibrate)
    source = ModelSource(calibrate, signature)
    name = signature.inputs[0].name
    samples = list(Calibration(signature, {name: np.load(calibrate / calibration_input_file(0))}))
    for target, float_path in json.loads(floats.read_text(encoding="utf-8")).items():
        path = out / target / f"model{TARGETS[target].suffix}"
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            made = Path(scratch) / path.name
            try:
                BY_HAND[target](source, Path(float_path), samples, made)
            except Exception as error:  # noqa: BLE001 (converters raise whatever they like)
                print(f"{target} by hand failed: {error}", flush=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            for file in reversed(model_files(made)):  # the one that is looked for comes last
                shutil.move(file, path.with_suffix(file.suffix))


def row_of(dataset: str, network: str, target: TargetName, run: Run, by_hand: Path) -> dict[str, Any] | None:
    """Returns what is known of one network in one runtime; None where it was not exported in float and int8."""
    labels = np.load(run.artifacts["calibrate"].file("reference_labels.npy"))
    ours = next((each for each in ("int8", "mixed") if f"verify/{target}/{each}" in run.artifacts), None)
    if ours is None or f"verify/{target}/float32" not in run.artifacts:
        return None
    logits = {
        name: np.load(run.artifacts[f"verify/{target}/{precision}"].file("output_0.npy"))[: len(labels)]
        for name, precision in {"float32": "float32", "int8": ours}.items()
    }
    exports = {
        name: run.artifacts[f"export/{target}/{each}"] for name, each in {"float32": "float32", "int8": ours}.items()
    }
    files = {name: artifact.file(artifact.manifest.metrics["model"]) for name, artifact in exports.items()}
    if by_hand.exists():
        files["naive_int8"] = by_hand
        logits["naive_int8"] = _answers(target, by_hand, run.artifacts["calibrate"].directory)[: len(labels)]
    quantized = exports["int8"].manifest.metrics["quantization"]
    chosen = quantized["attempts"][quantized["chosen"]]
    drop = _drop(logits["float32"], logits["int8"], labels)
    confidence = compare_confidence(logits["float32"], logits["int8"], labels)
    smooth = smooth_change(logits["float32"], logits["int8"], labels)
    row = {
        "dataset": dataset,
        "network": network,
        "target": target,
        "device": device(),
        "test_images": len(labels),
        "float32_accuracy": drop.float_accuracy,
        "naive_int8_accuracy": None,
        "int8_accuracy": drop.int8_accuracy,
        "drop": drop.drop,
        "drop_interval": list(drop.interval),
        "drop_verdict": drop.verdict(MAX_DROP),
        "expected_drop": expected_drop(logits["float32"], logits["int8"].argmax(axis=1), labels),
        "remedy": quantized["remedy"],
        "ece_float32": confidence.float_ece,
        "ece_int8": confidence.int8_ece,
        "ece_change": confidence.change,
        "ece_change_interval": list(confidence.interval),
        "smooth_ece_float32": smooth.before,
        "smooth_ece_int8": smooth.after,
        "smooth_ece_change": smooth.change,
        "smooth_ece_change_interval": list(smooth.interval),
        "float32_p50_ms": None,
        "naive_int8_p50_ms": None,
        "int8_p50_ms": None,
        "paired": dataclasses.asdict(drop),
        "images_needed": drop.images_needed(MAX_DROP),
        "naive": None,
        "precision": ours,
        "scheme": quantized["scheme"],
        "range_method": quantized["range_method"],
        "float_layers": quantized["float_layers"],
        "validation_holds": quantized["holds"],
        "validation": chosen["drop"],
        "attempts": [
            {name: attempt[name] for name in ("remedy", "scheme", "range_method", "holds", "seconds")}
            | {"float_layers": len(attempt["float_layers"]), "drop": attempt["drop"]["drop"]}
            for attempt in quantized["attempts"]
        ],
        "seconds": {
            name: artifact.manifest.wall_time_s
            for name, artifact in run.artifacts.items()
            if name.startswith(("remedy/", f"int8/{target}/"))
        },
        "files": {name: str(path.relative_to(WORK)) for name, path in files.items()},
        "sha256": {name: sha256_of(path) for name, path in files.items()},
        "keys": {name: run.artifacts[name].manifest.key for name in ("data", "train", "calibrate")},
    }
    if "naive_int8" in logits:
        naive = _drop(logits["float32"], logits["naive_int8"], labels)
        change = compare_confidence(logits["float32"], logits["naive_int8"], labels)
        row["naive_int8_accuracy"] = naive.int8_accuracy
        row["naive"] = {
            "paired": dataclasses.asdict(naive),
            "expected_drop": expected_drop(logits["float32"], logits["naive_int8"].argmax(axis=1), labels),
            "ece": change.int8_ece,
            "ece_change": change.change,
        }
    return row


def _drop(floats: Any, others: Any, labels: Any) -> AccuracyDrop:
    return compare_accuracy(floats.argmax(axis=1) == labels, others.argmax(axis=1) == labels)


def _answers(target: TargetName, path: Path, calibrate: Path) -> Any:
    signature = read_signature(calibrate)
    case = Case(id=f"{target}/by hand", runtime=target, path=str(path), num_threads=1)
    samples = reference_samples(calibrate, signature).for_device()
    with tempfile.TemporaryDirectory() as scratch:
        answers = answers_on(load_profile("local"), case, samples, signature, scratch=Path(scratch))
    return answers[signature.outputs[0].name]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the rows of a network; latencies of the same files stay."""
    known = {}
    if path.exists():
        known = {row["target"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
    for row in rows:
        before = known.get(row["target"], {})
        if before.get("latency") and before["sha256"] == row["sha256"]:
            row |= {name: before[name] for name in before if name.endswith("_p50_ms") or name == "latency"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measure_latency(dataset: str, network: str) -> None:
    """Measures all files of a network side by side and adds the medians to its rows."""
    path = WORK / dataset / f"{network}.json"
    if not path.exists():
        return
    rows = json.loads(path.read_text(encoding="utf-8"))
    cases = [
        Case(id=f"{row['target']}/{name}", runtime=row["target"], path=str(WORK / file), num_threads=1)
        for row in rows
        for name, file in row["files"].items()
    ]
    print(f"== {dataset}/{network}: {len(cases)} files", flush=True)
    result = benchmark(load_profile("local"), cases, BenchmarkConfig().settings())
    found = {case.id: case.latency_ms for case in result.cases}
    for row in rows:
        medians = {}
        for name in row["files"]:
            latency = found[f"{row['target']}/{name}"]
            if latency is not None:
                medians[name] = latency.p50
                row[f"{name}_p50_ms"] = latency.p50
        row["latency"] = {
            "load_average_before": result.load_average_before,
            "warnings": list(result.warnings),
            "intervals": {name: list(found[f"{row['target']}/{name}"].p50_interval) for name in medians},
        }
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def device() -> str:
    """Returns what this machine is called in the tables."""
    cores = len(os.sched_getaffinity(0))
    return f"{cores} core{'s' if cores > 1 else ''}, {host_facts()['cpu'] or platform.machine()}"


def _tell(event: Mapping[str, Any]) -> None:
    text = event.get("message") or event.get("warning")
    if text:
        print(f"   {text}", flush=True)


if __name__ == "__main__":
    main()
