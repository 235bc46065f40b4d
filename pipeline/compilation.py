"""Compiling model files for a device: which form, what it answers beside the model itself, what it saves."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from devices.compiled import MANIFEST as COMPILED_MANIFEST
from devices.compiled import RUNTIMES, CompiledManifest, Form, Processor, file_record, find_compiled
from devices.compiling import compile_on, compiled_case, measure_loading
from devices.measurement import Case, SampleFile, predict
from devices.profile import DeviceProfile, load_profile
from pipeline.artifacts import write_durably
from pipeline.compile_config import DEFAULT_STARTS
from pipeline.errors import GateError, InputError
from pipeline.gates import GateRow, GatesConfig, parity_rows
from pipeline.manifest import MANIFEST
from pipeline.metrics import parity, worst_parity
from pipeline.stages.base import Tell
from pipeline.targets import inspect_model, target_of
from pipeline.targets.base import GraphSummary
from pipeline.vela import compile_with_vela, cpu_operations

FORMS: dict[Form, str] = {
    "xnnpack_cache": "weights as XNNPACK packs them, beside the .tflite file",
    "ort": "ONNX Runtime's optimized graph",
    "openvino_blob": "what OpenVINO's CPU plugin makes of a model",
    "vela": "a program for an Ethos-U, by Vela",
    "fake": "of the stand-in",
}
"""What a model can be compiled to, for people."""
SAMPLES = 8
"""Random inputs that the compiled form must answer as the model itself does."""

_UNJUDGED = dict.fromkeys(("accuracy", "accuracy_drop", "metric"))
"""Of random inputs, which have no labels."""
_VELA_REASON = "the file runs on the Ethos-U alone, which this machine does not have"
_HERE_REASON = "it was compiled on this machine for a device that was not asked"


def form_of(path: Path, profile: DeviceProfile, asked: Form | None) -> Form:
    """Returns what a model becomes for a device.

    Args:
        path: The model file.
        profile: The device.
        asked: By the user; None takes the one form of the model's runtime, and Vela where a `.tflite` file is for a
            device with an Ethos-U.

    Raises:
        InputError: The form is not one of the model's runtime, or the device lacks what it is for.
    """
    runtime = target_of(path)
    possible = [form for form, needed in RUNTIMES.items() if needed == runtime]
    if profile.ethos_u is None:
        possible = [form for form in possible if form != "vela"]
    if asked is None:
        if not possible:
            raise InputError(f"{path} can't be compiled: no form is made of a {path.suffix} file.")
        form = "vela" if "vela" in possible else possible[0]
    elif asked in possible:
        form = asked
    elif asked == "vela" and runtime == "litert":
        raise InputError(f"{profile.name} has no Ethos-U in its profile (ethos_u), which --form vela compiles for.")
    else:
        raise InputError(
            f"{path.name} can't become {asked}: of a {path.suffix} file can be made {', '.join(possible)}."
        )
    if form != "vela" and runtime not in profile.runtimes:
        raise InputError(
            f"{profile.name} has no {runtime}, which {path.name} needs; it has {', '.join(profile.runtimes)}."
        )
    return form


def compile_file(
    path: Path,
    profile: DeviceProfile,
    out_dir: Path,
    *,
    form: Form,
    here: bool = False,
    pairs: int = DEFAULT_STARTS,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    num_threads: int | None = None,
    tell: Tell,
) -> CompiledManifest:
    """Compiles a model for a device, holds the result to the model, and measures what it saves.

    Args:
        path: The model file.
        profile: The device.
        out_dir: An existing empty directory; gets the files and `compiled.json`.
        form: See `form_of`.
        here: Whether this machine compiles, not the device.
        pairs: How often both forms are started; 0 does not measure.
        input_shapes: Of inputs with free dimensions.
        num_threads: Of one inference; None takes the profile's.
        tell: Takes progress events.

    Raises:
        InputError: The model can't become that, or not on this machine.
        GateError: The compiled form answers otherwise than the model.
        DeviceError: The device or the model can't be used.
    """
    summary = inspect_model(path)
    case = _case(path, summary, input_shapes or {}, num_threads)
    tell({"message": f"compiling {path.name} to {form} for {profile.name}"})
    if form == "vela":
        manifest = _for_ethos_u(path, profile, out_dir)
    elif here and profile.transport.kind != "local":
        manifest = _on_this_machine(case, profile, form, out_dir)
    else:
        manifest = compile_on(profile, case, form, out_dir)
        compiled = compiled_case(out_dir / manifest.files[0].name, manifest, label=form, num_threads=num_threads)
        agreement = _agreement(profile, case, compiled, summary, tell)
        manifest = manifest.model_copy(update={"parity": agreement})
        manifest = _measured(manifest, profile, case, compiled, pairs, tell)
    write_durably(out_dir / COMPILED_MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return manifest


def compile_beside(
    path: Path, profile: DeviceProfile, out_dir: Path | None, **how: Any
) -> tuple[Path, CompiledManifest]:
    """Compiles a model into a directory of its own, which appears whole or not at all.

    Args:
        path: The model file.
        profile: The device.
        out_dir: The directory; None takes `<model>-<form>-<device>` beside the model. One that holds a compiled model
            is replaced.
        how: See `compile_file`.

    Raises:
        InputError: The directory holds something else, or can't be written.
    """
    target = out_dir or path.parent / f"{path.stem}-{how['form']}-{profile.name}"
    if out_dir is None and (path.parent / MANIFEST).exists():
        raise InputError(f"{path} lies in an artifact of the store, which nothing is added to. Give --out DIR.")
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and find_compiled(target) is None)):
        raise InputError(f"{target} exists and holds no compiled model. Give another --out.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
            work = Path(scratch) / "made"
            work.mkdir()
            manifest = compile_file(path, profile, work, **how)
            if target.exists():
                target.rename(Path(scratch) / "old")
            work.rename(target)
    except OSError as error:
        raise InputError(f"{target} can't be written: {error.strerror or error}. Choose another --out.") from error
    return target, manifest


def plain_case(compiled: Case, path: Path) -> Case | None:
    """Returns the model that a compiled file was made of, where it lies at a path and is the same still."""
    if compiled.compiled is None or not path.is_file():
        return None
    summary = inspect_model(path)
    source = compiled.compiled.source[0]
    return _case(path, summary, {}, compiled.num_threads) if summary.sha256 == source.sha256 else None


def _case(path: Path, summary: GraphSummary, shapes: Mapping[str, tuple[int, ...]], num_threads: int | None) -> Case:
    return Case(
        id=path.name,
        runtime=target_of(path),
        path=str(path.resolve()),
        sha256=summary.sha256,
        weights_sha256=summary.weights_sha256,
        num_threads=num_threads,
        input_shapes={tensor.name: shapes[tensor.name] for tensor in summary.inputs if tensor.name in shapes},
    )


def _for_ethos_u(path: Path, profile: DeviceProfile, out_dir: Path) -> CompiledManifest:
    if profile.ethos_u is None:
        raise InputError(f"{profile.name} has no Ethos-U in its profile (ethos_u), which Vela compiles for.")
    started, made = time.perf_counter(), out_dir / "model_vela.tflite"
    found = compile_with_vela(path, profile.ethos_u, made)
    notes = ["What Vela says of speed is predicted, of the Ethos-U alone: operations on the CPU are not in it."]
    if found["cpu_operations"]:
        notes.append(f"Operations that stay on the CPU: {cpu_operations(found)}.")
    return CompiledManifest(
        form="vela",
        runtime=RUNTIMES["vela"],
        package="ethos-u-vela",
        version=version("ethos-u-vela"),
        device=profile.name,
        made_on="host",
        processor=Processor(
            architecture=profile.architecture, cpu_features=None, accelerator=profile.ethos_u.accelerator
        ),
        source=(file_record(path),),
        files=(file_record(made),),
        seconds=time.perf_counter() - started,
        parity_reason=_VELA_REASON,
        measured_reason=_VELA_REASON,
        predicted=found,
        notes=tuple(notes),
    )


def _on_this_machine(case: Case, profile: DeviceProfile, form: Form, out_dir: Path) -> CompiledManifest:
    """Compiles here what suits any processor; what is bound to one is left to the device.

    Raises:
        InputError: The form is bound to the processor.
    """
    if form != "ort":
        raise InputError(
            f"{form} is bound to the processor and the runtime that make it, so {profile.name} compiles it itself: "
            f"leave --here out. For ONNX Runtime --here makes a file that suits any processor."
        )
    manifest = compile_on(load_profile("local"), case, form, out_dir, level="extended")
    return manifest.model_copy(
        update={
            "device": profile.name,
            "made_on": "host",
            "parity_reason": _HERE_REASON,
            "measured_reason": f"{_HERE_REASON}; edgeship bench measures it there",
        }
    )


def _measured(
    manifest: CompiledManifest, profile: DeviceProfile, plain: Case, compiled: Case, pairs: int, tell: Tell
) -> CompiledManifest:
    if pairs == 0:
        return manifest.model_copy(update={"measured_reason": "no starts were asked for"})
    found = measure_loading(profile, plain, compiled, pairs=pairs, tell=tell)
    return manifest.model_copy(update={"measured": found})


def _agreement(
    profile: DeviceProfile, plain: Case, compiled: Case, summary: GraphSummary, tell: Tell
) -> dict[str, Any]:
    """Compares the answers of both forms on the device, within the limits of verification.

    Raises:
        GateError: They differ by more.
    """
    answers: list[dict[str, npt.NDArray[np.float32]]] = []
    with tempfile.TemporaryDirectory(prefix="edgeship-compiled-") as scratch:
        samples = _samples(summary, plain, Path(scratch))
        for case in (plain, compiled):
            found = predict(profile, case, samples, None, str(Path(scratch) / str(len(answers))), tell=tell)
            answers.append({output.name: np.load(output.path) for output in found.outputs})
    if list(answers[0]) != list(answers[1]):
        raise GateError(
            f"{compiled.id} of {plain.path} has the outputs {', '.join(answers[1])}, the model itself "
            f"{', '.join(answers[0])}."
        )
    return _compared(plain, compiled, summary, answers)


def _compared(
    plain: Case, compiled: Case, summary: GraphSummary, answers: Sequence[Mapping[str, npt.NDArray[np.float32]]]
) -> dict[str, Any]:
    try:
        rows = [parity(values, answers[1][name], classes=values.ndim == 2) for name, values in answers[0].items()]
    except ValueError as error:
        raise GateError(f"{compiled.id} of {plain.path} can't be compared with the model itself: {error}") from error
    equal = all(np.array_equal(values, answers[1][name]) for name, values in answers[0].items())
    found = {"samples": SAMPLES, "bit_equal": equal, **worst_parity(rows)}
    broken = _broken(compiled.id, summary.precision, found)
    if broken:
        said = "; ".join(row.sentence() for row in broken)
        raise GateError(f"{compiled.id} of {plain.path} answers otherwise than the model itself: {said}.")
    return found


def _broken(label: str, precision: str, found: Mapping[str, Any]) -> list[GateRow]:
    gates = GatesConfig()
    known = precision if hasattr(gates, precision) else "float32"
    return [row for row in parity_rows(gates, label, known, {**_UNJUDGED, "parity": found}) if row.failed]


def _samples(summary: GraphSummary, case: Case, directory: Path) -> list[SampleFile]:
    """Random inputs: any small integers, floats of [0, 1), other integers 0 and 1."""
    generator, files = np.random.default_rng(0), []
    for index, tensor in enumerate(summary.inputs):
        free = tuple(1 if size < 0 else size for size in tensor.shape)
        whole, dtype = case.input_shapes.get(tensor.name, free), np.dtype(tensor.dtype)
        shape = (SAMPLES, *(whole[1:] if whole[:1] == (1,) else whole))
        if dtype.kind == "f":
            values: npt.NDArray[Any] = generator.random(shape).astype(dtype)
        elif dtype.kind in "iu" and dtype.itemsize <= 2:
            limits = np.iinfo(dtype)
            values = generator.integers(limits.min, limits.max, shape, dtype, endpoint=True)
        else:
            values = generator.integers(0, 2, shape).astype(dtype)
        np.save(directory / f"input_{index}.npy", values)
        files.append(SampleFile(name=tensor.name, path=str(directory / f"input_{index}.npy")))
    return files
