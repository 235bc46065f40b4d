"""From the selected artifact of a run to a release on a device.

A release carries the model, its labels, the pre-processing record, the map of its confidence if it has one, golden
samples with what the exported model gave for them, and the keys of everything it was made from.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from devices.errors import DeviceError
from devices.measurement import Case, SampleFile
from devices.profile import DeviceProfile
from devices.release import SelfTest, install
from pipeline.answers import answers_on
from pipeline.errors import GateError, InputError
from pipeline.runner import RunResult
from pipeline.samples import output_file, reference_samples
from pipeline.signature import Signature, read_signature
from pipeline.targets.base import file_digest, model_files

RELEASE_SCHEMA = 2
"""Form of a release's manifest; before 2 it held one image input and one output."""

GOLDEN_SAMPLES = 16
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
    data = _data_description(result)
    reference = result.artifacts["calibrate"]
    signature = read_signature(reference.directory)
    golden = _golden_files(signature, reference.directory, result.artifacts[f"verify/{label}"].directory, scratch)
    model = exported.file(exported.manifest.metrics["model"])
    files = {path.name: path for path in (*model_files(model), *sorted(scratch.glob("golden_*.npy")))}
    confidence_map = exported.manifest.metrics.get("confidence_map")
    if confidence_map is not None:
        files[confidence_map] = exported.file(confidence_map)
    manifest = {
        "schema_version": RELEASE_SCHEMA,
        "name": result.recipe.name,
        "target": exported.manifest.metrics["target"],
        "precision": exported.manifest.metrics["precision"],
        "model": model.name,
        "classes": data["classes"],
        **({} if confidence_map is None else {"confidence_map": confidence_map}),
        "preprocess": data["preprocess"],
        "golden_tolerance": GOLDEN_TOLERANCE,
        **golden,
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
    """Returns the self-test of releases: the golden samples through the device's own runtime."""

    def run(directory: Path, manifest: Mapping[str, Any]) -> None:
        if manifest.get("schema_version") != RELEASE_SCHEMA:
            raise DeviceError(
                f"The release of {manifest['name']} has the form {manifest.get('schema_version')}, and this version "
                f"of Edgeship tests the form {RELEASE_SCHEMA}. Deploy it again. The release in use was not changed."
            )
        case = Case(
            id=f"self-test of {manifest['name']}",
            runtime=manifest["target"],
            path=str(directory / manifest["model"]),
            sha256=manifest["files"][manifest["model"]],
        )
        inputs = [
            SampleFile(name=each["name"], path=str(directory / each["file"]), transform=each["transform"])
            for each in manifest["inputs"]
        ]
        with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
            signature = Signature.model_validate_json(json.dumps(manifest["signature"]), strict=True)
            answers = answers_on(profile, case, inputs, signature, scratch=Path(scratch))
        for each in manifest["outputs"]:
            golden = np.load(directory / each["file"])
            found = answers[each["name"]]
            limit = manifest["golden_tolerance"] * float(golden.max() - golden.min())
            worst = float(np.abs(found - golden).max()) if found.shape == golden.shape else float("inf")
            if not worst <= limit:
                raise DeviceError(
                    f"The self-test of {manifest['name']} failed on {profile.name}: a value of {each['name']} differs "
                    f"by {worst:.4g} from its golden value, allowed are {limit:.4g}. The release in use was not "
                    f"changed."
                )

    return run


def _golden_files(signature: Signature, reference: Path, verified: Path, scratch: Path) -> dict[str, Any]:
    """Writes the golden inputs and what the exported model gave for them; returns their part of the manifest."""
    inputs, outputs = [], []
    for index, sample in enumerate(reference_samples(reference, signature).for_device()):
        file = f"golden_input_{index}.npy"
        np.save(scratch / file, np.load(sample.path, mmap_mode="r")[:GOLDEN_SAMPLES])
        inputs.append({"name": sample.name, "file": file, "transform": sample.transform})
    for index, output in enumerate(signature.outputs):
        file = f"golden_output_{index}.npy"
        np.save(scratch / file, np.load(verified / output_file(index), mmap_mode="r")[:GOLDEN_SAMPLES])
        outputs.append({"name": output.name, "file": file})
    return {"signature": signature.model_dump(mode="json"), "inputs": inputs, "outputs": outputs}


def _data_description(result: RunResult) -> dict[str, Any]:
    """Returns classes and pre-processing; None of a model that has neither."""
    data = result.artifacts.get("data")
    if data is None:
        return {"classes": None, "preprocess": None}
    found: dict[str, Any] = json.loads(data.file("dataset.json").read_text(encoding="utf-8"))
    return found


def _lineage(result: RunResult, label: str) -> dict[str, Any]:
    names = ("data", "model", "train", "calibrate", f"export/{label}", f"verify/{label}")
    return {name: result.artifacts[name] for name in names if name in result.artifacts}
