"""One step of the walk over the remedies, for one target: tries a remedy, and keeps the best file so far.

Each step is an artifact of its own that knows all attempts before it, so a walk that is interrupted goes on where it
stood, and a recipe with a tighter limit tries nothing twice.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from devices.measurement import Case
from devices.profile import load_profile
from pipeline.answers import answers_on
from pipeline.errors import DataError, StageError
from pipeline.metrics import Logits
from pipeline.quality import as_logits
from pipeline.quantization.comparison import AccuracyDrop, compare_accuracy, expected_drop
from pipeline.quantization.int8 import Int8Export
from pipeline.quantization.remedies import Attempt, Judge, Remedy, Trial, best_attempt, try_mixed, try_ranges
from pipeline.quantization.sensitivity import (
    LayerSensitivity,
    read_sensitivity,
    sensitivity_of,
    sensitivity_summary,
    write_sensitivity,
)
from pipeline.quantization.static import Observed
from pipeline.samples import split_samples
from pipeline.signature import Signature
from pipeline.stages.base import Tell
from pipeline.targets.base import TargetName, model_files

ATTEMPTS = "attempts"
"""Directory of a step that keeps the files of its attempts: `attempts/<number>.tflite`."""


class ValidationJudge:
    """Compares files with float on the validation split, by the code that runs on boards.

    Args:
        target: Whose runtime runs them.
        signature: Of the model, a classifier.
        data: Directory of the data artifact.
        float_path: The target's file in float32.
        scratch: An existing directory for temporary files.

    Raises:
        StageError: The model is no classifier, or the data has no labels.
        DataError: The validation split is empty.
    """

    def __init__(
        self, target: TargetName, signature: Signature, data: Path, float_path: Path, *, scratch: Path
    ) -> None:
        samples = split_samples(data, "validation", signature)
        if not signature.is_classifier or samples.labels is None:
            raise StageError(
                "quantization.accuracy sets a limit for the share of images that are classified right, but the model "
                "or its data has no classes. Leave it out."
            )
        self._target, self._signature, self._samples, self._scratch = target, signature, samples, scratch
        self._labels = np.load(samples.labels)
        if not len(self._labels):
            raise DataError(
                "The validation split has no images, but quantization.accuracy is judged on it: give images of it, or "
                "a larger data.validation_fraction."
            )
        self._floats = self._logits(float_path)

    def __call__(self, path: Path) -> AccuracyDrop:
        """Returns what an int8 file loses against float."""
        answers = self._logits(path).argmax(axis=1)
        drop = compare_accuracy(self._floats.argmax(axis=1) == self._labels, answers == self._labels)
        return replace(drop, expected=expected_drop(self._floats, answers, self._labels))

    def _logits(self, path: Path) -> Logits:
        case = Case(id=path.name, runtime=self._target, path=str(path), num_threads=1)
        answers = answers_on(
            load_profile("local"), case, self._samples.for_device(), self._signature, scratch=self._scratch
        )
        output = self._signature.outputs[0]
        return as_logits(answers[output.name], output.kind)


def take_step(
    export: Int8Export,
    remedy: Remedy,
    *,
    judge: Judge,
    max_drop: float,
    previous: Path | None,
    record: Mapping[str, Any] | None,
    out_dir: Path,
    tell: Tell,
) -> tuple[Path, dict[str, Any]]:
    """Tries a remedy and writes the best file so far, and beside it the files of all attempts of this step.

    Args:
        export: Of the network whose weights the remedy changed, or of the one that `mixed` starts from.
        remedy: Which.
        judge: On validation images.
        max_drop: The limit, 0..1 (`AccuracyDrop.holds`).
        previous: The best file of the steps before; None for the first.
        record: What stands in the manifest of the step before; None for the first.
        out_dir: Gets the files, and for `mixed`, or where the export asks for it, how sensitive the layers of the best
            file's network are in int8.
        tell: Takes progress events.

    Returns:
        The file, and for the manifest `attempts` of all steps (the `file` of each is in the step of its remedy),
        `chosen` (which of them), `holds`, and of the chosen one `remedy`, `scheme`, `range_method`, `range_ratios_db`
        and `float_layers`; `sensitivity` where it is known.
    """
    path = out_dir / f"model{export.float_path.suffix}"
    with tempfile.TemporaryDirectory(prefix=".attempts-", dir=out_dir) as scratch:
        trial = Trial(judge, max_drop, Path(scratch), lambda text: tell({"message": text}))
        known = read_sensitivity(previous.parent) if previous is not None else ()
        made, observed, layers = _attempts(export, remedy, trial, record, known)
        best = best_attempt(made)
        before = len(record["attempts"]) if record else 0
        rows = [_row(attempt, _kept(attempt.path, out_dir, number)) for number, attempt in enumerate(made, before)]
        attempts = [*(record["attempts"] if record else ()), *rows]
        beaten = (
            record is not None
            and not best.holds
            and _estimate(record["attempts"][record["chosen"]]) <= best.drop.estimate
        )
        for file in model_files(previous if beaten and previous is not None else best.path):
            shutil.copyfile(file, path.with_suffix(file.suffix))
        if beaten:
            layers = layers or known
        elif not layers and export.sensitivity and best.range_method is not None:
            layers = sensitivity_of(observed[best.scheme], best.range_method, Path(scratch))
    if layers:
        write_sensitivity(layers, out_dir, title=export.title)
    chosen = record["chosen"] if beaten and record is not None else before + made.index(best)
    row = attempts[chosen]
    names = ("remedy", "scheme", "range_method", "range_ratios_db", "float_layers", "holds")
    found = {"attempts": attempts, "chosen": chosen, "max_drop": max_drop, **{name: row[name] for name in names}}
    return path, found | ({"sensitivity": sensitivity_summary(layers)} if layers else {})


def _attempts(
    export: Int8Export,
    remedy: Remedy,
    trial: Trial,
    record: Mapping[str, Any] | None,
    known: tuple[LayerSensitivity, ...],
) -> tuple[list[Attempt], dict[str, Observed], tuple[LayerSensitivity, ...]]:
    """Returns the attempts, what was observed by scheme, and how sensitive layers are where the remedy asks for that.

    `mixed` starts from the best network so far, whose sensitivity the step before may have measured.
    """
    if remedy == "mixed":
        if record is None:
            raise StageError("mixed follows ranges; give quantization.accuracy.remedies in their order.")
        started = time.monotonic()
        observed = export.observed(record["scheme"], trial.directory)
        made, layers = try_mixed(trial, observed, record["range_method"], known)
        # The first file bears what all of them needed.
        others = sum(attempt.seconds for attempt in made[1:])
        made[0] = replace(made[0], seconds=time.monotonic() - started - others)
        return made, {observed.scheme: observed}, layers
    made, found = [], {}
    # Only the network as it is is tried in slower ways: changing weights costs more than a scheme.
    for scheme in export.schemes if remedy == "ranges" else export.schemes[:1]:
        started = time.monotonic()
        found[scheme] = observed = export.observed(scheme, trial.directory)
        attempt = try_ranges(trial, remedy, observed, export.methods)
        made.append(replace(attempt, seconds=time.monotonic() - started))
        if made[-1].holds:
            break
    return made, found, ()


def _kept(path: Path, out_dir: Path, number: int) -> str:
    """Copies the files of an attempt and returns the name of the model among those of the step."""
    name = f"{ATTEMPTS}/{number}{path.suffix}"
    (out_dir / ATTEMPTS).mkdir(exist_ok=True)
    for file in model_files(path):
        shutil.copyfile(file, (out_dir / name).with_suffix(file.suffix))
    return name


def _estimate(row: Mapping[str, Any]) -> float:
    """`AccuracyDrop.estimate` of an attempt that was written down."""
    expected = row["drop"].get("expected")
    return float(row["drop"]["drop"] if expected is None else expected)


def _row(attempt: Attempt, file: str) -> dict[str, Any]:
    return {
        "remedy": attempt.remedy,
        "scheme": attempt.scheme,
        "range_method": attempt.range_method,
        "range_ratios_db": dict(attempt.range_ratios),
        "float_layers": list(attempt.float_layers),
        "drop": asdict(attempt.drop),
        "holds": attempt.holds,
        "seconds": round(attempt.seconds, 3),
        "file": file,
    }
