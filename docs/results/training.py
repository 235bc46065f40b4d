"""Trains networks with Edgeship's preset and with plain Keras, and writes `training.json` and `training.md` beside it.

    .venv/bin/python docs/results/training.py --tiny-imagenet FILE --cifar10 FILE [--only tiny_imagenet_20/mobilenet_v2]
    .venv/bin/python docs/results/training.py --tiny-imagenet FILE --throughput

FILE is a folder or an archive of `split/class/*.jpg`. A run that is interrupted goes on where it stood; rows that were
measured before stay in the tables. With `--tables` alone nothing is trained and the tables are written anew.

The two sides are trained at the same time, each by one thread on a core of its own: networks of this size gain little
from a second thread (MobileNetV2 at 64x64: 364 images/s with two threads, 272 and 260 with two trainings of one).

Plain Keras is `compile` and `fit` with the defaults of `keras.optimizers.Adam`, cross-entropy and nothing else, on the
same images, the same network, the same number of epochs and the same size of batch. Both keep the epoch that did best
on validation, and both are judged on the test split, which neither of them has seen.

The throughput is that of Edgeship's training and of Keras' `fit` on arrays, an epoch of 40 steps of the one after one
of the other in one process on one core: once with equal work (no augmentation, no averaging), once with the preset on
Edgeship's side.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifacts import ArtifactStore
from pipeline.calibration.methods import fit_temperature
from pipeline.executor import child_environment
from pipeline.making import host_facts
from pipeline.metrics import accuracy_interval, count_correct, expected_calibration_error
from pipeline.recipe import Recipe
from pipeline.runner import run_recipe

HERE = Path(__file__).resolve().parent
WORK = HERE.parents[1] / "runs" / "results" / "training"

NETWORKS = ("mobilenet_v2", "mobilenet_v3_small", "efficientnet_lite0", "efficientnet_b0")
UNCHANGED = {"crop": None, "shift": 0.0, "flip": False, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
"""No augmentation: three epochs are too few for it to pay. In a training each, MobileNetV3-small had 53.2 % of the
validation images of cifar10 right with it left out, 46.5 % with shifts and flips, 39.8 % with the preset's crops and
colors."""
DATASETS: dict[str, dict[str, Any]] = {
    "tiny_imagenet_20": {"size": [64, 64], "epochs": {"efficientnet_lite0": 20, "efficientnet_b0": 20}, "default": 30},
    "cifar10": {
        "size": [32, 32],
        "epochs": {},
        "default": 3,
        "train": {"learning_rate": 0.001, "warmup_epochs": 0.5, "augmentation": UNCHANGED},
    },
}
"""Fewer epochs for the larger networks, so that each training takes less than 40 minutes of one core."""
SIDES = ("baseline", "edgeship")
PRESET = "quick"
BATCH = 64
ROUNDS = 12
STEPS = 40
MODEL = {"early_stride": True, "batch_norm_momentum": 0.99}
"""The paper's strides, which leave 2x2 features of 64 pixels: what two cores train in minutes. For both sides."""


def main() -> None:
    """Trains what is missing and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny-imagenet", type=Path)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--only", help="DATASET/NETWORK, or DATASET")
    parser.add_argument("--side", choices=SIDES, help="only one of the two trainings")
    parser.add_argument("--tables", action="store_true", help="train nothing")
    parser.add_argument("--throughput", action="store_true", help="only compare images per second")
    parser.add_argument("--plain-keras", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--race", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain_keras:
        data, dataset, network, epochs, out = options.plain_keras
        train_plain_keras(Path(data), dataset, network, int(epochs), Path(out))
        return
    if options.race:
        data, network, preset, out = options.race
        race(Path(data), network, preset or None, Path(out))
        return
    if options.throughput:
        measure_throughput(options.tiny_imagenet)
        write_tables()
        return
    if options.side and not options.tables:
        use_one_core(SIDES.index(options.side))
        for dataset, path in {"tiny_imagenet_20": options.tiny_imagenet, "cifar10": options.cifar10}.items():
            for network in NETWORKS:
                if path is not None and options.only in {None, dataset, f"{dataset}/{network}"}:
                    SIDE_OF[options.side](dataset, network, path)
        return
    if not options.tables:
        sides = [subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--side", side]) for side in SIDES]
        codes = [side.wait() for side in sides]
        if any(codes):
            sys.exit("a training failed: see above")
    write_tables()


def use_one_core(index: int) -> None:
    """Keeps this process and its children to one thread on one of the cores it may use."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[index % len(cores)]})
    os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1"}


def recipe_of(dataset: str, network: str, path: Path) -> Recipe:
    """Returns the recipe of one row."""
    settings = DATASETS[dataset]
    data = {"source": "image_folder", "path": str(path), "size": settings["size"], "validation_fraction": 0.1}
    train = {"preset": PRESET, "epochs": settings["epochs"].get(network, settings["default"]), "batch_size": BATCH}
    train |= settings.get("train", {})
    section = {"name": network, **MODEL}
    name = f"{dataset}-{network}".replace("_", "-")
    return Recipe.model_validate_json(json.dumps({"name": name, "data": data, "model": section, "train": train}))


def measure_baseline(dataset: str, network: str, path: Path) -> None:
    """Trains one network with plain Keras in a process of its own, where that is not done yet."""
    out = WORK / dataset / network
    known, recipe = out / "baseline.json", recipe_of(dataset, network, path)
    if known.exists() and json.loads(known.read_text(encoding="utf-8"))["epochs"] == recipe.train.epochs:
        return
    out.mkdir(parents=True, exist_ok=True)
    result = run_recipe(recipe, ArtifactStore(WORK / "store"), until="data", tell=_tell)
    arguments = [str(result.artifacts["data"].directory), dataset, network, str(recipe.train.epochs), str(out)]
    command = [sys.executable, __file__, "--plain-keras", *arguments]
    subprocess.run(command, check=True, env=child_environment("tensorflow"))


def measure_edgeship(dataset: str, network: str, path: Path) -> None:
    """Trains one network with the preset; the artifact store knows what is done already."""
    out = WORK / dataset / network
    out.mkdir(parents=True, exist_ok=True)
    recipe = recipe_of(dataset, network, path)
    result = run_recipe(recipe, ArtifactStore(WORK / "store"), until="calibrate", tell=_tell)
    trained = result.artifacts["train"].manifest.metrics
    calibrated = result.artifacts["calibrate"].manifest.metrics
    after = calibrated["test"]["after"]
    row = {
        "dataset": dataset,
        "network": network,
        "preset": PRESET,
        "epochs": recipe.train.epochs,
        "device": _device(),
        "accuracy": after["accuracy"],
        "accuracy_interval": _interval(after["accuracy"], calibrated["test"]["test_images"]),
        "ece_before": calibrated["test"]["before"]["ece"],
        "ece_after": after["ece"],
        "images_per_second": trained["images_per_second"],
        "train_seconds": trained["train_seconds"],
        "keys": {record.name: record.key for record in result.stages},
    }
    (out / "edgeship.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


SIDE_OF = {"baseline": measure_baseline, "edgeship": measure_edgeship}


def train_plain_keras(data: Path, dataset: str, network: str, epochs: int, out: Path) -> None:
    """Trains without augmentation, schedule or averaging; runs in a process of its own."""
    import keras

    import models

    keras.utils.set_random_seed(0)
    splits = {
        split: (np.load(data / f"{split}_images.npy"), np.load(data / f"{split}_labels.npy"))
        for split in ("train", "validation", "test")
    }
    classes = json.loads((data / "dataset.json").read_text(encoding="utf-8"))["classes"]
    shape = splits["train"][0].shape[1:]
    model = models.build(network, input_shape=shape, num_classes=len(classes), **MODEL)
    model.compile(
        keras.optimizers.Adam(),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    best = keras.callbacks.ModelCheckpoint(
        str(out / "best.weights.h5"), monitor="val_accuracy", save_best_only=True, save_weights_only=True
    )
    started = time.monotonic()
    history = model.fit(
        *splits["train"],
        batch_size=BATCH,
        epochs=epochs,
        validation_data=splits["validation"],
        callbacks=[best],
        verbose=2,
    )
    seconds = time.monotonic() - started
    test, labels = splits["test"]
    last = model.predict(test, batch_size=BATCH, verbose=0)
    model.load_weights(out / "best.weights.h5")
    logits = model.predict(test, batch_size=BATCH, verbose=0)
    validation = model.predict(splits["validation"][0], batch_size=BATCH, verbose=0)
    temperature = fit_temperature(validation, splits["validation"][1])
    correct = count_correct(logits, labels)
    row = {
        "dataset": dataset,
        "network": network,
        "epochs": epochs,
        "device": _device(),
        "accuracy": correct / len(labels),
        "accuracy_interval": accuracy_interval(correct, len(labels)),
        "accuracy_last_epoch": count_correct(last, labels) / len(labels),
        "temperature": temperature,
        "ece_before": expected_calibration_error(logits, labels),
        "ece_after": expected_calibration_error(logits / temperature, labels),
        "train_seconds": seconds,
        "history": history.history,
    }
    (out / "baseline.json").write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


def measure_throughput(path: Path) -> None:
    """Compares the throughput of two networks with that of plain Keras, each in a process of its own."""
    use_one_core(0)
    for network in ("mobilenet_v2", "mobilenet_v3_small"):
        for preset in ("", PRESET):
            recipe = recipe_of("tiny_imagenet_20", network, path)
            store = ArtifactStore(WORK / "store")
            data = run_recipe(recipe, store, until="data", tell=_tell).artifacts["data"].directory
            out = WORK / "throughput" / f"{network}-{preset or 'plain'}.json"
            out.parent.mkdir(parents=True, exist_ok=True)
            arguments = [str(data), network, preset, str(out)]
            subprocess.run(
                [sys.executable, __file__, "--race", *arguments], check=True, env=child_environment("tensorflow")
            )


def race(data: Path, network: str, preset: str | None, out: Path) -> None:
    """Trains an epoch with Edgeship and one with plain Keras in turn; runs in a process of its own."""
    import keras

    import models
    from pipeline.network import ModelConfig
    from pipeline.stages.train import TrainStage
    from pipeline.training.config import TrainConfig

    images, labels = (np.load(data / f"train_{name}.npy")[: STEPS * BATCH] for name in ("images", "labels"))
    classes = json.loads((data / "dataset.json").read_text(encoding="utf-8"))["classes"]
    plain = models.build(network, input_shape=images.shape[1:], num_classes=len(classes), **MODEL)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    plain.compile(keras.optimizers.AdamW(), loss, metrics=["accuracy"], jit_compile=False)

    class Clock(keras.callbacks.Callback):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002 (Keras)
            self.times.append(time.monotonic())

    rounds: list[tuple[float, float]] = []

    def tell(event: dict[str, Any]) -> None:
        if "epoch_done" not in event:
            return
        clock = Clock()
        plain.fit(images, labels, batch_size=BATCH, verbose=0, callbacks=[clock])
        theirs = BATCH / statistics.median(np.diff(clock.times).tolist())
        rounds.append((event["epoch_done"]["images_per_second"], theirs))
        print(network, preset, rounds[-1], flush=True)

    section: dict[str, Any] = {"batch_size": BATCH, "epochs": ROUNDS + 1}
    section |= {"preset": preset} if preset else {"augmentation": {"shift": 0.0}, "label_smoothing": 0.0}
    stage = TrainStage(model=ModelConfig(name=network, **MODEL), train=TrainConfig.model_validate(section))
    with tempfile.TemporaryDirectory() as scratch:
        part = Path(scratch, "data")
        shutil.copytree(data, part, copy_function=os.link)
        for name, rows in {"images": images, "labels": labels}.items():
            (part / f"train_{name}.npy").unlink()
            np.save(part / f"train_{name}.npy", rows)
        stage.run({"data": part}, Path(scratch), tell)
    ours, theirs = (statistics.median(values) for values in zip(*rounds[1:], strict=True))
    ratios = [one / other for one, other in rounds[1:]]
    row = {
        "network": network,
        "preset": preset,
        "size": list(images.shape[1:3]),
        "batch_size": BATCH,
        "device": _device(),
        "images_per_second": ours,
        "keras_images_per_second": theirs,
        "ratio": statistics.median(ratios),
        "ratio_interval": median_interval(ratios),
        "ratios": ratios,
    }
    out.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")


def median_interval(values: list[float]) -> list[float]:
    """Returns the 95 % interval of a median by order statistics; 12 values give the third and the tenth."""
    ordered, total = sorted(values), 2 ** len(values)
    rank, below = 0, 1
    while below / total <= 0.025:
        rank += 1
        below += math.comb(len(values), rank)
    rank = max(rank, 1)
    return [ordered[rank - 1], ordered[-rank]]


def write_tables() -> None:
    """Writes the rows of which both sides are measured, the ones measured elsewhere before included."""
    file = HERE / "training.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"rows": [], "throughput": []}
    rows = {(row["dataset"], row["network"], row["device"]): row for row in known["rows"]}
    races = {(row["network"], row["preset"], row["device"]): row for row in known["throughput"]}
    for measured in sorted((WORK / "throughput").glob("*.json")):
        row = json.loads(measured.read_text(encoding="utf-8"))
        races[row["network"], row["preset"], row["device"]] = row
    for dataset in DATASETS:
        for network in NETWORKS:
            sides = [WORK / dataset / network / f"{side}.json" for side in ("edgeship", "baseline")]
            if not all(side.exists() for side in sides):
                continue
            row, baseline = (json.loads(side.read_text(encoding="utf-8")) for side in sides)
            for name in ("accuracy", "accuracy_interval", "accuracy_last_epoch", "ece_before", "ece_after"):
                row[f"baseline_{name}"] = baseline[name]
            rows[dataset, network, row["device"]] = row
    ordered = sorted(rows.values(), key=lambda row: (row["dataset"], NETWORKS.index(row["network"]), row["device"]))
    raced = [races[key] for key in sorted(races, key=str)]
    file.write_text(json.dumps({"rows": ordered, "throughput": raced}, indent=1) + "\n", encoding="utf-8")
    (HERE / "training.md").write_text(_markdown(ordered) + _races(raced), encoding="utf-8")


def _markdown(rows: list[dict[str, Any]]) -> str:
    columns = [
        *("data set", "network", "preset", "epochs", "device", "accuracy", "interval", "plain Keras", "better by"),
        *("ECE before", "ECE after", "plain ECE before", "after", "images/s"),
    ]
    lines = [
        "# Training: the preset against plain Keras",
        "",
        "Written by `docs/results/training.py`; all values are `measured`. Test accuracy in percent with its 95 %",
        "Wilson interval, calibration error (15 bins) before and after the temperature. Plain Keras has the same",
        "network, images, epochs and size of batch, and no augmentation, schedule or averaging; of both, the epoch",
        "that did best on validation is judged. On cifar10 the preset's augmentation is left out: three epochs are too",
        "few for it to pay.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    for row in rows:
        low, high = row["accuracy_interval"]
        better = row["accuracy"] - row["baseline_accuracy"]
        cells = [
            row["dataset"],
            row["network"],
            row["preset"],
            str(row["epochs"]),
            row["device"],
            f"{100 * row['accuracy']:.1f}",
            f"{100 * low:.1f}–{100 * high:.1f}",
            f"{100 * row['baseline_accuracy']:.1f}",
            f"{100 * better:+.1f}",
            *(
                f"{100 * row[name]:.1f}"
                for name in ("ece_before", "ece_after", "baseline_ece_before", "baseline_ece_after")
            ),
            f"{row['images_per_second']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _races(rows: list[dict[str, Any]]) -> str:
    columns = (
        *("network", "size", "batch", "device", "Edgeship trains with", "images/s", "plain Keras", "ratio"),
        "95 % interval",
    )
    lines = [
        "",
        "## Throughput against Keras' fit",
        "",
        "Epochs of 40 steps in turn in one process, medians; the ratio is the median of those of the rounds, with the",
        "interval of that median by order statistics. With the preset, augmentation takes its share of the one core.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    for row in rows:
        cells = [
            row["network"],
            "x".join(map(str, row["size"])),
            str(row["batch_size"]),
            row["device"],
            f"preset {row['preset']}" if row["preset"] else "the same work",
            f"{row['images_per_second']:.0f}",
            f"{row['keras_images_per_second']:.0f}",
            f"{row['ratio']:.3f}",
            " to ".join(f"{value:.3f}" for value in row["ratio_interval"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _interval(accuracy: float, count: int) -> list[float]:
    return list(accuracy_interval(round(accuracy * count), count))


def _device() -> str:
    cores = len(os.sched_getaffinity(0))
    return f"{cores} core{'s' if cores > 1 else ''}, {host_facts()['cpu'] or platform.machine()}"


def _tell(event: dict[str, Any]) -> None:
    if "epoch_done" in event:
        print(event["epoch_done"], flush=True)


if __name__ == "__main__":
    main()
