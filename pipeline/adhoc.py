"""One model file at a time, without a recipe: measuring it, converting it, its accuracy on a data set."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from devices.measurement import Case
from devices.profile import DeviceProfile
from pipeline.artifacts import ArtifactStore
from pipeline.bench_loading import compiled_case_of
from pipeline.errors import CorruptArtifactError, InputError, StageError
from pipeline.evaluation import Asked, Evaluation, ModelFile, case_of, evaluate_file
from pipeline.gates import parity_rows
from pipeline.imports.checks import check_image_input
from pipeline.imports.description import ModelDescription
from pipeline.making import make_artifact
from pipeline.manifest import MANIFEST, Artifact, read_manifest
from pipeline.recipe import Recipe
from pipeline.runner import RunResult, run_recipe
from pipeline.samples import split_samples
from pipeline.signature import Signature, image_signature, read_signature
from pipeline.sources import DataConfig, RecipeData
from pipeline.sources.samples import ArraysConfig
from pipeline.stages.base import Tell
from pipeline.stages.data import DataStage
from pipeline.stages.import_model import ImportStage
from pipeline.stages.reference_model import ReferenceStage
from pipeline.stages.samples import SamplesStage
from pipeline.targets import TARGETS, inspect_model
from pipeline.targets.base import model_files
from pipeline.vela import CUSTOM_OPERATION

_SUFFIXES = frozenset(target.suffix for target in TARGETS.values())


def cases_of_models(
    paths: Sequence[Path],
    profile: DeviceProfile,
    *,
    store: ArtifactStore,
    description: ModelDescription,
    tell: Tell,
) -> list[Case]:
    """Returns what is to be measured of model files.

    What no runtime takes as it is, a Keras model or a SavedModel, is exported in float32 to every target first. A
    compiled file is told by the `compiled.json` beside it.

    Args:
        paths: Files of runtimes, Keras models, SavedModels.
        profile: The device.
        store: Where exports are kept.
        description: What the command line says about the inputs.
        tell: Takes progress events.

    Raises:
        InputError: A file is missing or of no known format, or is named twice.
    """
    if len({path.resolve() for path in paths}) != len(paths):
        raise InputError("A model file is named twice. Name each once.")
    shapes = {each.name: each.shape for each in description.inputs if each.name and each.shape}
    cases = []
    for path in paths:
        compiled = compiled_case_of(path, profile)
        if compiled is not None:
            cases.append(compiled)
            continue
        if path.is_file() and path.suffix.lower() in _SUFFIXES:
            cases.append(_case(path, str(path), input_shapes=shapes))
            continue
        own = description if len(paths) == 1 else _without_names(description)
        recipe = _recipe(path, own, data={"source": "random"}, export={"precisions": ["float32"]})
        result = run_recipe(recipe, store, devices=[profile.name], until="export", tell=tell)
        for error in result.failures:
            tell({"warning": error.message})
        cases += [
            _case(
                artifact.directory / artifact.manifest.metrics["model"],
                f"{path} {name.removeprefix('export/')}",
            )
            for name, artifact in result.artifacts.items()
            if name.startswith("export/")
        ]
    if not cases:
        raise StageError(f"None of {', '.join(map(str, paths))} could be exported to a target; --debug says more.")
    return cases


def convert_model(
    path: Path,
    out_dir: Path,
    *,
    targets: Sequence[str],
    precisions: Sequence[str],
    source: str | None,
    calibration_images: int | None,
    description: ModelDescription,
    store: ArtifactStore,
    tell: Tell,
) -> tuple[list[dict[str, Any]], RunResult]:
    """Converts a model of one's own, verifies every file against the model itself, and writes the files.

    Args:
        path: A .keras file, a SavedModel, an .onnx, a .tflite or an OpenVINO .xml file.
        out_dir: Gets `<name>_<target>_<precision>` files; made where it is missing.
        targets: None at all takes all that can be reached.
        precisions: The same for precisions.
        source: What the samples come from, as of `evaluate_model`; None takes random ones.
        calibration_images: How many samples integer ranges come from; None takes the recipe's default.
        description: What the command line says about the model.
        store: Where artifacts are kept.
        tell: Takes progress events.

    Returns:
        A row for each file (`target`, `precision`, `path`, `sha256`, `size_bytes`, `parity`, `accuracy`,
        `accuracy_drop`, `gates`), and the run.

    Raises:
        InputError: The model can't be used, or can't go where it is asked to.
    """
    export = {name: list(values) for name, values in (("targets", targets), ("precisions", precisions)) if values}
    size = image_size_of(path, description, store, tell) if source is not None and _is_images(source) else None
    data = {"source": "random"} if source is None else _data_values(source, size)
    quantization = {} if calibration_images is None else {"calibration_images": calibration_images}
    recipe = _recipe(path, description, data=data, export=export, quantization=quantization)
    result = run_recipe(recipe, store, devices=["local"], until="verify", tell=tell)
    rows = []
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for name, artifact in result.artifacts.items():
            verified = result.artifacts.get(name.replace("export/", "verify/", 1))
            if not name.startswith("export/") or verified is None:
                continue
            rows.append(_written(artifact, verified, out_dir, path.stem or path.name, recipe))
    except OSError as error:
        raise InputError(f"{out_dir} can't be written: {error.strerror or error}. Choose another --out.") from error
    return rows, result


def evaluate_model(
    path: Path,
    source: str,
    profile: DeviceProfile,
    *,
    split: str,
    description: ModelDescription,
    store: ArtifactStore,
    reference: Path | None = None,
    count: int | None = None,
    tell: Tell,
) -> Evaluation:
    """Measures how well a model does its task on a split of a data set, on a device.

    A model that lies in an artifact is evaluated on the very split of the run that made it, where that run used
    the same data. A Keras model or a SavedModel runs in TensorFlow on this machine.

    Args:
        path: A model in one of the five formats.
        source: `digits`, a directory, a .tar, .tar.gz or .tar.xz archive, or an .npz file of images or of arrays.
        profile: The device.
        split: train, validation or test.
        description: What the command line says about the model.
        store: Where the prepared data set is kept.
        reference: A model file whose answers on this machine are compared with; see `evaluate_file`.
        count: So many samples of the split; None takes all.
        tell: Takes progress events.

    Raises:
        InputError: The model does not fit the data, or either can't be read.
        DeviceError: The device or the model can't be used.
    """
    size = image_size_of(path, description, store, tell) if _is_images(source) else None
    if size is None and split == "validation":
        raise InputError("--split is validation, but arrays are split into train and test: choose one of these.")
    signature = _signature_of(path, description, store, tell)
    config = _data_config(source, size, path, store)
    stage = SamplesStage(source=config) if isinstance(config, ArraysConfig) else DataStage(source=config)
    data = make_artifact(stage, store, tell)
    if size is not None:
        signature = check_image_input(signature, size)
        _check_classes(path, signature, data, source)
    if signature.source == "saved_model":
        if reference is not None or count is not None:
            raise InputError(f"{path} runs in TensorFlow, without --reference and --samples: convert it first.")
        imported = _imported(path, description, store, tell)
        values = _judged_in_tensorflow(path, profile, {"model": imported, "data": data}, split, store=store, tell=tell)
        found = Evaluation(values, None)
    else:
        samples = split_samples(data.directory, split, signature)
        other = None if reference is None else _reference(reference, signature, description, store, tell)
        model = ModelFile(case_of(path), signature)
        found = evaluate_file(profile, model, samples, Asked(source, split, count), other, tell=tell)
    if found.values["metric"] is None:
        raise InputError(
            f"{path} gives {signature.outputs[0].name} {list(signature.outputs[0].shape)}, which {source} has nothing "
            f"to judge by. Name --metric mse or auc, and give labels or targets in an .npz file."
        )
    return found._replace(values={"model": str(path), "data": source, "split": split, **found.values})


def _reference(
    path: Path, signature: Signature, description: ModelDescription, store: ArtifactStore, tell: Tell
) -> ModelFile:
    """The model that another is compared with: of a runtime, with the same inputs."""
    if not path.is_file() or path.suffix.lower() not in _SUFFIXES:
        raise InputError(f"--reference is {path}; expected a file of a runtime: {', '.join(sorted(_SUFFIXES))}.")
    found = _signature_of(path, description, store, tell)
    if len(found.inputs) != len(signature.inputs):
        raise InputError(f"{path} takes {len(found.inputs)} inputs, expected {len(signature.inputs)}: another model.")
    return ModelFile(case_of(path), found)


def _judged_in_tensorflow(
    path: Path,
    profile: DeviceProfile,
    inputs: Mapping[str, Artifact],
    split: str,
    *,
    store: ArtifactStore,
    tell: Tell,
) -> dict[str, Any]:
    """Judges a Keras model or a SavedModel, which no device runs, in its own framework."""
    if profile.transport.kind != "local":
        raise InputError(
            f"{path} runs in TensorFlow, on this machine alone, not on {profile.name}. Convert it with edgeship "
            f"convert and evaluate the file that the device runs."
        )
    metrics = make_artifact(ReferenceStage(quantization=None, split=split), store, tell, inputs).manifest.metrics
    return {
        "sha256": inputs["model"].manifest.fingerprint,
        "precision": "float32",
        "device": "TensorFlow on this machine",
        "images": metrics["reference_samples"],
        **metrics["quality"],
    }


def image_size_of(path: Path, description: ModelDescription, store: ArtifactStore, tell: Tell) -> tuple[int, int]:
    """Returns height and width of the images that a model takes, in pixels.

    Raises:
        InputError: It takes no images, or can't be read.
    """
    signature = _signature_of(path, description, store, tell)
    shape = signature.inputs[0].shape
    size = (shape[1], shape[2]) if len(shape) == 4 and shape[3] in (1, 3) else tuple(shape[-2:])
    height, width = size if len(shape) == 4 else (0, 0)
    check_image_input(signature, (height, width))
    return height, width


def _signature_of(path: Path, description: ModelDescription, store: ArtifactStore, tell: Tell) -> Signature:
    if path.suffix == TARGETS["fake"].suffix:  # of the stand-in, which nothing imports
        summary = inspect_model(path)
        _, height, width, channels = summary.inputs[0].shape
        shape = (height, width, channels)
        return image_signature(shape, summary.outputs[0].shape[-1], source="fake", model=path.name)
    return read_signature(_imported(path, description, store, tell).directory)


def _imported(path: Path, description: ModelDescription, store: ArtifactStore, tell: Tell) -> Artifact:
    return make_artifact(ImportStage(path=str(path), description=description), store, tell)


def _recipe(path: Path, description: ModelDescription, **sections: Any) -> Recipe:
    """Returns the recipe that a command without one stands for."""
    model = {"path": str(path), **description.model_dump(mode="json", exclude_none=True)}
    name = re.sub(r"[^a-z0-9._-]+", "-", (path.stem or path.name).lower()).strip("-._") or "model"
    values = {"name": name, "model": model, **sections}
    try:
        return Recipe.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(f"{path} can't be used so: {first['msg'].removeprefix('Value error, ')}") from error


def _without_names(description: ModelDescription) -> ModelDescription:
    """Returns what is said of any model; inputs by name may be another model's, of several side by side."""
    kept = tuple(each for each in description.inputs if each.name is None)
    return description.model_copy(update={"inputs": kept})


def _case(path: Path, label: str, *, input_shapes: Mapping[str, Any] | None = None) -> Case:
    summary = inspect_model(path)
    if CUSTOM_OPERATION in summary.operations:
        raise InputError(
            f"{path} was compiled by Vela: it runs on an Ethos-U alone, and no wheel of a runtime has the delegate for "
            f"it. Measure the int8 file that it was made of, on the CPU."
        )
    names = {tensor.name for tensor in summary.inputs}
    shapes = {name: shape for name, shape in (input_shapes or {}).items() if name in names}
    return case_of(path).model_copy(update={"id": label, "input_shapes": shapes})


def _written(exported: Artifact, verified: Artifact, out_dir: Path, stem: str, recipe: Recipe) -> dict[str, Any]:
    """Copies an exported model to where the user wants it, and returns what is known about it."""
    metrics, found = exported.manifest.metrics, verified.manifest.metrics
    source = exported.file(metrics["model"])
    target = out_dir / f"{stem}_{metrics['target']}_{metrics['precision']}{source.suffix}"
    for file in model_files(source):
        copy = target.with_suffix(file.suffix)
        partial = copy.with_name(f"{copy.name}.partial")
        shutil.copyfile(file, partial)
        partial.replace(copy)
    label = f"{metrics['target']}/{metrics['precision']}"
    rows = parity_rows(recipe.gates, label, metrics["precision"], found)
    return {
        "target": metrics["target"],
        "precision": metrics["precision"],
        "path": str(target),
        "sha256": metrics["graph"]["sha256"],
        "weights_sha256": metrics["graph"]["weights_sha256"],
        "size_bytes": metrics["graph"]["size_bytes"],
        "note": metrics["note"],
        "parity": found["parity"],
        "outputs": found["outputs"],
        "samples": found["images"],
        "metric": found["metric"],
        "accuracy": found["accuracy"],
        "accuracy_interval": found["accuracy_interval"],
        "accuracy_drop": found["accuracy_drop"],
        "gates": [row.to_dict() for row in rows],
    }


def _check_classes(path: Path, signature: Signature, data: Artifact, source: str) -> None:
    classes = json.loads(data.file("dataset.json").read_text(encoding="utf-8"))["classes"]
    shape = signature.outputs[0].shape
    if len(shape) == 2 and shape[-1] not in (-1, len(classes)) and signature.metric in (None, "top1"):
        raise InputError(
            f"{path} gives {shape[-1]} logits, but {source} has {len(classes)} classes. "
            f"Evaluate it on the data it was trained for."
        )


def _is_images(source: str) -> bool:
    """Whether the text names labelled images: an .npz file does if it has arrays that are called so."""
    if not source.endswith(".npz") or not Path(source).expanduser().is_file():
        return True
    try:
        with zipfile.ZipFile(Path(source).expanduser()) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return True
    return any(name == "images.npy" or name.endswith("_images.npy") for name in names)


def _data_values(text: str, size: tuple[int, int] | None) -> dict[str, Any]:
    """Returns the data section of a recipe that a text stands for; without a size, of arrays."""
    if size is None:
        return {"source": "arrays", "path": text}
    if text == "digits":
        values: dict[str, Any] = {"source": "digits"}
    elif text.endswith(".npz"):
        values = {"source": "npz", "path": text}
    else:
        values = {"source": "image_folder", "path": text}
    return {**values, "size": list(size)}


def _data_config(text: str, size: tuple[int, int] | None, model: Path, store: ArtifactStore) -> Any:
    """Returns the data config for a source: that of the run that made the model, where it used the same data."""
    values = _data_values(text, size)
    try:
        config: Any = TypeAdapter(RecipeData).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(f"--data {text} can't be used: {first['msg']}.") from error
    origin = _data_of(model, store)
    if size is None or origin is None or origin.manifest.fingerprint != DataStage(source=config).fingerprint():
        return config
    settings = {**origin.manifest.config["source"], **{name: values[name] for name in ("path",) if name in values}}
    return TypeAdapter(DataConfig).validate_json(json.dumps(settings), strict=True)


def _data_of(model: Path, store: ArtifactStore) -> Artifact | None:
    """Returns the data artifact that a model in the store was made from."""
    directory = model.resolve().parent
    try:
        if not (directory / MANIFEST).is_file():
            return None
        calibrate = store.get("calibrate", read_manifest(directory).inputs["calibrate"])
        return store.get("data", calibrate.manifest.inputs["data"]) if calibrate else None
    except (CorruptArtifactError, KeyError):
        return None
