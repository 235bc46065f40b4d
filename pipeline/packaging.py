"""From a run to a bundle: one file with the artifact for a device and all that a release needs.

It carries the model, its compiled form if the run made one, its labels, the pre-processing record, the map of its
confidence if it has one, golden samples with what the exported model gave for them, the board's program, on request
the wheels of its runtime, what it was made from, the model card and the licences. See `devices.board.bundle` for the
form of the file.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from devices.board.bundle import SCHEMA_VERSION, blocks_of, digest_of, parse_manifest, read_bundle, write_bundle
from devices.board.bundle import Bundle as BoardBundle
from devices.board.release_errors import Refusal, Unfit
from devices.board.release_test import run_self_test
from devices.board_program import PROGRAM, board_program
from devices.bundle_signing import sign
from devices.carried_wheels import CarriedWheels, carried_wheels
from devices.errors import BundleError, ReleaseRefusedError
from devices.profile import DeviceProfile
from pipeline.errors import GateError, InputError
from pipeline.licences import LICENCE, licence_text, licences
from pipeline.manifest import Artifact
from pipeline.packaging_parts import check_names, compiled_form, requirement_of
from pipeline.packaging_text import model_card
from pipeline.runner import RunResult
from pipeline.samples import output_file, reference_samples
from pipeline.signature import SIGNATURE_FILE, Signature, read_signature
from pipeline.targets.base import file_digest, model_files

GOLDEN_SAMPLES = 16
GOLDEN_TOLERANCE = 0.02
"""How far a logit may lie from its golden value, as a share of the golden logits' range."""

SUFFIX = ".edgeship"
LABELS, LINEAGE, MODEL_CARD, LICENCES = "labels.txt", "lineage.json", "MODEL_CARD.md", "LICENSES.md"


@dataclass(frozen=True)
class Packaged:
    """A bundle that was written.

    Attributes:
        path: Where.
        digest: Names its release.
        manifest: Of the release.
        signed: Whether it is.
        wheels_told: For which Python its wheels are, and who told that; None where it has none.
    """

    path: Path
    digest: str
    manifest: dict[str, Any]
    signed: bool
    wheels_told: str | None = None


def package(
    result: RunResult,
    profile: DeviceProfile,
    out: Path,
    *,
    label: str | None = None,
    key: Path | None = None,
    wheels: bool = False,
) -> Packaged:
    """Writes the bundle of an artifact; the same run, and the same wheels, give the same bytes.

    Args:
        result: A whole run, `select` included.
        profile: The device.
        out: The file; it appears when it is whole.
        label: Of the artifact, such as `litert/int8`; None takes what the run selected for the device.
        key: Signs it; None leaves it unsigned.
        wheels: Put the wheels of the runtime and of numpy into it, see `devices.carried_wheels`.

    Raises:
        GateError: The run selected nothing for the device.
        InputError: There is no such artifact, or the file can't be written.
        BundleError: The key can't be used.
        DeviceError: The wheels can't be had.
    """
    label = label or _selected(result, profile)
    if f"export/{label}" not in result.artifacts or f"verify/{label}" not in result.artifacts:
        known = sorted(name.removeprefix("verify/") for name in result.artifacts if name.startswith("verify/"))
        raise InputError(f"There is no verified artifact '{label}'. There are: {', '.join(known) or 'none'}.")
    target = result.artifacts[f"export/{label}"].manifest.metrics["target"]
    images = _data_description(result)["preprocess"] is not None
    carried = carried_wheels(profile, target, images=images) if wheels else None
    if carried is not None:
        check_names(carried)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".package-", dir=out.parent) as directory:
            scratch = Path(directory)
            manifest, files = _contents(result, profile, label, scratch, carried)
            text = (json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
            parse_manifest(text)  # what a board would refuse is refused here
            signature = None if key is None else sign(text, key)
            with (scratch / "bundle").open("wb") as stream:
                write_bundle(stream, text, signature, {name: str(path) for name, path in files.items()})
            with (scratch / "bundle").open("rb") as stream:
                read_bundle(stream)
            (scratch / "bundle").replace(out)
    except OSError as error:
        raise InputError(f"{out} can't be written: {error.strerror or error}.") from error
    except Refusal as error:
        raise BundleError(f"No bundle can be made of {result.recipe.name}: {error}.") from error
    told = None if carried is None else carried.told
    return Packaged(out, digest_of(text), manifest, signature is not None, told)


def read(path: Path) -> BoardBundle:
    """Reads a bundle and checks all of it but the signature: structure, manifest, every digest.

    Raises:
        BundleError: It is none, or is damaged.
    """
    try:
        with path.open("rb") as stream:
            bundle = read_bundle(stream)
            for member in bundle.members:
                for _ in blocks_of(stream, member, bundle.manifest["files"][member.name]):
                    pass
    except OSError as error:
        raise BundleError(f"{path} can't be read: {error.strerror or error}.") from error
    except Refusal as error:
        raise BundleError(f"{path} is no whole bundle: {error}.") from error
    return bundle


def self_test(path: Path, bundle: BoardBundle) -> dict[str, Any]:
    """Runs a bundle's golden samples through this machine's runtime, as a board does.

    Returns:
        What `devices.board.release_test` measured; or `skipped`, why it could not be tested here.

    Raises:
        ReleaseRefusedError: It answers differently.
    """
    with tempfile.TemporaryDirectory(prefix="edgeship-") as directory, path.open("rb") as stream:
        for member in bundle.members:
            with (Path(directory) / member.name).open("wb") as target:
                target.writelines(blocks_of(stream, member, bundle.manifest["files"][member.name]))
        try:
            return run_self_test(directory, bundle.manifest)
        except Unfit as error:
            return {"skipped": str(error)}
        except Refusal as error:
            raise ReleaseRefusedError(f"{path} was refused on this machine: {error}.") from error


def lineage_of(result: RunResult, label: str) -> list[dict[str, Any]]:
    """Returns everything that an exported artifact was made from, in the order of the run, itself the last.

    Each has `stage`, `key`, `config`, `inputs`, `code`, `tools`, `fingerprint` and the digests of its `files`.
    """
    by_key = {artifact.manifest.key: artifact for artifact in result.artifacts.values()}
    wanted = [result.artifacts[f"verify/{label}"].manifest.key, result.artifacts[f"export/{label}"].manifest.key]
    found: dict[str, Artifact] = {}
    while wanted:
        key = wanted.pop()
        if key in found or key not in by_key:
            continue
        found[key] = by_key[key]
        wanted += by_key[key].manifest.inputs.values()
    ordered = [artifact.manifest for key, artifact in by_key.items() if key in found]
    return [
        {
            "stage": each.stage,
            "key": each.key,
            "config": each.config,
            "inputs": each.inputs,
            "code": each.code,
            "tools": each.tools,
            "fingerprint": each.fingerprint,
            "files": {record.path: record.sha256 for record in each.files},
        }
        for each in ordered
    ]


def _selected(result: RunResult, profile: DeviceProfile) -> str:
    selection = result.artifacts.get(f"select/{profile.name}")
    label = selection.manifest.metrics["selected"] if selection else None
    if selection is None or label is None:
        reason = selection.manifest.metrics["reason"] if selection else "the run did not get that far"
        raise GateError(f"There is nothing to deploy to {profile.name}: {reason}")
    return str(label)


def _contents(
    result: RunResult, profile: DeviceProfile, label: str, scratch: Path, wheels: CarriedWheels | None
) -> tuple[dict[str, Any], dict[str, Path]]:
    """The manifest, and the files by name; those that are made lie in `scratch`."""
    exported, reference = result.artifacts[f"export/{label}"], result.artifacts["calibrate"]
    verified = result.artifacts[f"verify/{label}"]
    told, data = exported.manifest.metrics, _data_description(result)
    signature = read_signature(reference.directory)
    golden = _golden_files(signature, reference.directory, verified.directory, scratch)
    lineage = lineage_of(result, label)
    model, confidence_map = exported.file(told["model"]), told.get("confidence_map")
    compiled, carried = compiled_form(result, profile, label, model), () if wheels is None else wheels.paths
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "name": result.recipe.name,
        "device": profile.name,
        "target": told["target"],
        "precision": told["precision"],
        "model": model.name,
        "classes": data["classes"],
        **({} if confidence_map is None else {"confidence_map": confidence_map}),
        "preprocess": data["preprocess"],
        "golden_tolerance": GOLDEN_TOLERANCE,
        **golden,
        "threads": profile.threads,
        "budget": _budget(result, profile),
        "requires": requirement_of(profile, told["target"], wheels),
        "program": PROGRAM,
        **({} if compiled is None else {"compiled": compiled.stated}),
        **({"wheels": [path.name for path in carried]} if carried else {}),
        "made_from": {name: artifact.manifest.key for name, artifact in sorted(_made_from(result, label).items())},
    }
    texts = {
        SIGNATURE_FILE: json.dumps(golden["signature"], indent=2, sort_keys=True) + "\n",
        LINEAGE: json.dumps(lineage, indent=2, sort_keys=True) + "\n",
        MODEL_CARD: model_card(manifest, lineage, verified.manifest.metrics),
        LICENCES: licences(told["target"], lineage, program=PROGRAM, wheels=carried),
        **({} if data["classes"] is None else {LABELS: "".join(f"{_line(name)}\n" for name in data["classes"])}),
    }
    for name, text in texts.items():
        (scratch / name).write_text(text, encoding="utf-8")
    (scratch / PROGRAM).write_bytes(board_program())
    (scratch / LICENCE).write_bytes(licence_text())
    parts = (*model_files(model), *(() if compiled is None else compiled.files), *carried)
    files = {path.name: path for path in (*parts, *sorted(scratch.iterdir()))}
    if confidence_map is not None:
        files[confidence_map] = exported.file(confidence_map)
    return {**manifest, "files": {name: file_digest(path) for name, path in sorted(files.items())}}, files


def _line(name: str) -> str:
    """A label on one line; `classes` of the manifest has it as it is."""
    return " ".join(name.split())


def _budget(result: RunResult, profile: DeviceProfile) -> dict[str, float]:
    """The tighter of the recipe's and the profile's; a simulated latency has none to keep to."""
    if profile.latency_label != "measured":
        return {}
    limits = {}
    for name in ("latency_p50_ms", "latency_p99_ms"):
        told = (getattr(result.recipe.gates, f"max_{name}"), getattr(profile.budgets, name))
        known = [limit for limit in told if limit is not None]
        if known:
            limits[name] = min(known)
    return limits


def _golden_files(signature: Signature, reference: Path, verified: Path, scratch: Path) -> dict[str, Any]:
    """Writes the golden inputs and what the exported model gave for them; returns their part of the manifest."""
    inputs, outputs = [], []
    for index, sample in enumerate(reference_samples(reference, signature).for_device()):
        file = f"golden_input_{index}.npy"
        _save(scratch / file, np.load(sample.path, mmap_mode="r")[:GOLDEN_SAMPLES])
        inputs.append({"name": sample.name, "file": file, "transform": sample.transform})
    for index, output in enumerate(signature.outputs):
        file = f"golden_output_{index}.npy"
        _save(scratch / file, np.load(verified / output_file(index), mmap_mode="r")[:GOLDEN_SAMPLES])
        outputs.append({"name": output.name, "file": file})
    return {"signature": signature.model_dump(mode="json"), "inputs": inputs, "outputs": outputs}


def _save(path: Path, array: Any) -> None:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    path.write_bytes(stream.getvalue())


def _data_description(result: RunResult) -> dict[str, Any]:
    """Returns classes and pre-processing; None of a model that has neither."""
    data = result.artifacts.get("data")
    if data is None:
        return {"classes": None, "preprocess": None}
    found: dict[str, Any] = json.loads(data.file("dataset.json").read_text(encoding="utf-8"))
    return found


def _made_from(result: RunResult, label: str) -> Mapping[str, Artifact]:
    names = ("data", "model", "train", "calibrate", f"export/{label}", f"verify/{label}")
    return {name: result.artifacts[name] for name in names if name in result.artifacts}
