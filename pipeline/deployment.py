"""From the selected artifact of a run to a release on a device.

A release carries the model, its labels, the pre-processing record, golden images with the logits that the exported
model gave for them, and the keys of everything it was made from.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from devices.errors import DeviceError
from devices.measurement import Case, SampleFile, predict
from devices.profile import DeviceProfile
from devices.release import SelfTest, install
from pipeline.errors import GateError, InputError
from pipeline.runner import RunResult
from pipeline.targets.base import file_digest, model_files

GOLDEN_IMAGES = 16
GOLDEN_TOLERANCE = 0.02
"""How far a logit may lie from its golden value, as a share of the golden logits' range."""


def deploy(result: RunResult, profile: DeviceProfile, root: Path, scratch: Path) -> dict[str, Any]:
    """Installs the artifact that a run selected for a device.

    Args:
        result: A whole run, `select` included.
        profile: The device.
        root: Directory of the device's releases.
        scratch: A directory for temporary files.

    Returns:
        `changed` (False where this very release was in use already) and the release's manifest.

    Raises:
        GateError: The run selected nothing for the device.
        InputError: The device is not reached through a file system.
        DeviceError: The release failed its self-test or could not be written.
    """
    check_reachable(profile)
    selection = result.artifacts.get(f"select/{profile.name}")
    label = selection.manifest.metrics["selected"] if selection else None
    if selection is None or label is None:
        reason = selection.manifest.metrics["reason"] if selection else "the run did not get that far"
        raise GateError(f"There is nothing to deploy to {profile.name}: {reason}")
    exported = result.artifacts[f"export/{label}"]
    data = json.loads(result.artifacts["data"].file("dataset.json").read_text(encoding="utf-8"))
    reference = result.artifacts["calibrate"]
    images = np.load(reference.file("reference_images.npy"), mmap_mode="r")[:GOLDEN_IMAGES]
    logits = np.load(result.artifacts[f"verify/{label}"].file("logits.npy"))[:GOLDEN_IMAGES]
    np.save(scratch / "golden_images.npy", images)
    np.save(scratch / "golden_logits.npy", logits)
    model = exported.file(exported.manifest.metrics["model"])
    files = {path.name: path for path in (*model_files(model), *sorted(scratch.glob("golden_*.npy")))}
    manifest = {
        "schema_version": 1,
        "name": result.recipe.name,
        "target": exported.manifest.metrics["target"],
        "precision": exported.manifest.metrics["precision"],
        "model": model.name,
        "classes": data["classes"],
        "preprocess": data["preprocess"],
        "golden_tolerance": GOLDEN_TOLERANCE,
        "files": {name: file_digest(path) for name, path in sorted(files.items())},
        "made_from": {name: artifact.manifest.key for name, artifact in sorted(_lineage(result, label).items())},
    }
    changed = install(root, manifest, files, self_test=self_test_on(profile))
    return {"changed": changed, "device": profile.name, "root": str(root), "release": manifest}


def check_reachable(profile: DeviceProfile) -> None:
    """Refuses a device whose releases can't be reached through this machine's file system.

    Raises:
        InputError: It is such a device.
    """
    if profile.transport.kind != "local":
        raise InputError(
            f"{profile.name} is reached by {profile.transport.kind}; deploy reaches devices with transport local."
        )


def self_test_on(profile: DeviceProfile) -> SelfTest:
    """Returns the self-test of releases: the golden images through the device's own runtime."""

    def run(directory: Path, manifest: Mapping[str, Any]) -> None:
        golden = np.load(directory / "golden_logits.npy")
        case = Case(
            id=f"self-test of {manifest['name']}",
            runtime=manifest["target"],
            path=str(directory / manifest["model"]),
            sha256=manifest["files"][manifest["model"]],
        )
        with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
            images = SampleFile(path=str(directory / "golden_images.npy"))
            answer = predict(profile, case, [images], None, scratch)
            logits = np.load(answer.outputs[0].path)
        limit = manifest["golden_tolerance"] * float(golden.max() - golden.min())
        worst = float(np.abs(logits - golden).max()) if logits.shape == golden.shape else float("inf")
        if not worst <= limit:
            raise DeviceError(
                f"The self-test of {manifest['name']} failed on {profile.name}: a logit differs by {worst:.4g} from "
                f"its golden value, allowed are {limit:.4g}. The release in use was not changed."
            )

    return run


def _lineage(result: RunResult, label: str) -> dict[str, Any]:
    names = ("data", "train", "calibrate", f"export/{label}", f"verify/{label}")
    return {name: result.artifacts[name] for name in names}
