"""Compiling a model on a device, and measuring what that saves at a start."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from devices.compiled import RUNTIMES, CompiledManifest, Form, Processor, file_record
from devices.errors import DeviceError, RuntimeMissingError
from devices.loading import Loading, compare_starts, times_of
from devices.profile import DeviceProfile
from devices.records import BenchmarkSettings, Case
from devices.rounds import TIMEOUT_S, Tell, load_params, refuse_misfit
from devices.transports import Transport, open_transport

_WARM_UP = {"min_count": 5, "min_time_s": 0.1}
_BLOCK = {"count": 100, "time_s": 0.5, "settle_count": 0}
"""Of later inferences in each start: enough for a median, and short, for the starts are many."""

_PORTABLE = (
    "Made with the optimizations that suit every processor (extended): those that are for one kind alone, such as "
    "blocked layouts of convolutions on x86, are left out, and without these inference can take twice as long. Compile "
    "on the device for all of them."
)


def compile_on(
    profile: DeviceProfile, case: Case, form: Form, out_dir: Path, *, level: str = "all"
) -> CompiledManifest:
    """Compiles a model on the device that `profile` describes, and brings the result here.

    Args:
        profile: The device that compiles.
        case: The model.
        form: What it becomes; any but vela.
        out_dir: An existing directory for the files.
        level: Of ONNX Runtime's optimizations, see `devices.board.compiling.LEVELS`.

    Returns:
        The manifest, without measurements; it is not written.

    Raises:
        RuntimeMissingError: The device lacks the runtime.
        DeviceError: The device or the model can't be used.
    """
    transport = open_transport(profile)
    with transport.start_agent() as agent:
        facts = agent.request("facts", timeout_s=TIMEOUT_S)
        params = load_params(profile, transport, case)
        params |= {"form": form, "level": level}
        made = agent.request("compile", params, timeout_s=BenchmarkSettings().load_timeout_s)
        try:
            files = []
            for file in made["files"]:
                path = out_dir / PurePosixPath(file).name
                transport.get(file, str(path))
                files.append(file_record(path))
        finally:
            with contextlib.suppress(DeviceError):  # it only tidies up
                agent.request("unload", timeout_s=TIMEOUT_S)
    source = [Path(case.path)]
    weights = source[0].with_suffix(".bin")
    portable = form == "ort" and level != "all"
    return CompiledManifest(
        form=form,
        runtime=RUNTIMES[form],
        package=made["package"],
        version=_installed(facts, made["package"]),
        device=profile.name,
        made_on="device",
        level=level if form == "ort" else None,
        processor=Processor(
            architecture=None if portable else facts["architecture"],
            cpu_model=facts["cpu_model"],
            cpu_features=None if portable else tuple(facts["cpu_features"]),
        ),
        source=tuple(map(file_record, [*source, weights] if source[0].suffix == ".xml" else source)),
        files=tuple(files),
        num_threads=params["num_threads"],
        input_shapes=case.input_shapes,
        seconds=made["seconds"],
        notes=(_PORTABLE,) if portable else (),
    )


def _installed(facts: Mapping[str, Any], package: str) -> str:
    """The version that the device will be asked for again."""
    found = facts["runtimes"].get(package)
    if found is None:
        raise RuntimeMissingError(f"{package} compiled the model, but is not among the packages that the device lists")
    version: str = found["version"]
    return version


def compiled_case(path: Path, manifest: CompiledManifest, *, label: str, num_threads: int | None = None) -> Case:
    """The case of a compiled file."""
    return Case(
        id=label,
        runtime=manifest.runtime,
        path=str(path),
        sha256=manifest.files[0].sha256,
        weights_sha256=manifest.files[1].sha256 if len(manifest.files) > 1 else None,
        num_threads=num_threads,
        input_shapes=manifest.input_shapes,
        compiled=manifest,
    )


def measure_loading(
    profile: DeviceProfile, plain: Case, compiled: Case, *, pairs: int, seed: int = 0, tell: Tell | None = None
) -> Loading:
    """Starts both forms of a model in turns, each in processes of its own, see `devices.loading`.

    Args:
        profile: The device.
        plain: The model itself.
        compiled: The compiled form.
        pairs: How often each.
        seed: Of the order.
        tell: Takes progress events.

    Raises:
        CompiledMisfitError: The compiled file does not fit the device.
        DeviceError: The device or a file can't be used.
    """
    transport = open_transport(profile)
    done = 0

    def start(case: Case) -> dict[str, float]:
        nonlocal done
        times = _start(profile, transport, case)
        done += 1
        if tell is not None:
            tell({"message": f"start {done} of {2 * pairs + 2}: {case.id} loaded in {times['load_ms']:.1f} ms"})
        return times

    return compare_starts(
        lambda: start(plain), lambda: start(compiled), pairs=pairs, seed=seed, label=profile.latency_label
    )


def _start(profile: DeviceProfile, transport: Transport, case: Case) -> dict[str, float]:
    """One process: import, load, first inference, some more."""
    settings = BenchmarkSettings()
    with transport.start_agent() as agent:
        refuse_misfit(profile, agent, case)
        cached = case.compiled is not None and case.compiled.form == "xnnpack_cache"
        runtime = "litert_cached" if cached else case.runtime
        imported = agent.request("import_runtime", {"runtime": runtime}, timeout_s=settings.load_timeout_s)
        loaded = agent.request("load", load_params(profile, transport, case), timeout_s=settings.load_timeout_s)
        agent.request("warm_up", _WARM_UP, timeout_s=settings.inference_timeout_s)
        measured = agent.request("measure", _BLOCK, timeout_s=settings.inference_timeout_s)
    return times_of(imported, loaded, measured["latencies_ns"])
