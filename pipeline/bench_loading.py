"""What compiled files among the models of a bench save at a start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from devices.compiled import check_fits, find_compiled
from devices.compiling import compiled_case, measure_loading
from devices.errors import DeviceError
from devices.measurement import BenchmarkResult, Case
from devices.profile import DeviceProfile
from pipeline.compilation import plain_case
from pipeline.stages.base import Tell


def compiled_case_of(path: Path, profile: DeviceProfile) -> Case | None:
    """Returns the case of a compiled file, or of the directory of one; None for any other.

    Raises:
        ModelRejectedError: It was changed after it was compiled.
        CompiledMisfitError: No device of ours runs it, whatever it says of itself.
    """
    found = find_compiled(path)
    if found is None:
        return None
    file, manifest = found
    if manifest.form == "vela":
        check_fits(manifest, {}, path=str(path), device=profile.name)
    return compiled_case(file, manifest, label=str(path))


def with_loading(
    profile: DeviceProfile, cases: Sequence[Case], result: BenchmarkResult, *, starts: int, seed: int, tell: Tell
) -> BenchmarkResult:
    """Returns a measurement with what each compiled file saves at a start, beside the model it was made of.

    The model is looked for among the other cases, beside the compiled file, and above its directory. Where it is not
    there, or a start fails, a warning says so.

    Args:
        profile: The device.
        cases: What was measured.
        result: The measurement.
        starts: Of each; 0 does not measure.
        seed: Of the order.
        tell: Takes progress events.
    """
    if starts == 0:
        return result
    found, warnings = {}, []
    for case, measured in zip(cases, result.cases, strict=True):
        if case.compiled is None or measured.error is not None:
            continue
        plain = _plain(case, cases)
        if plain is None:
            name = case.compiled.source[0].name
            warnings.append(f"{case.id}: {name}, which it was made of, is not at hand; name it too, to compare the two")
            continue
        try:
            found[case.id] = measure_loading(profile, plain, case, pairs=starts, seed=seed, tell=tell)
        except DeviceError as error:
            warnings.append(f"{case.id}: what it saves at a start could not be measured: {error.message}")
    for warning in warnings:
        tell({"warning": warning})
    return result.model_copy(
        update={
            "warnings": (*result.warnings, *warnings),
            "cases": tuple(
                case.model_copy(update={"loading": found[case.id]}) if case.id in found else case
                for case in result.cases
            ),
        }
    )


def _plain(case: Case, cases: Sequence[Case]) -> Case | None:
    """Returns the case of the model that a compiled one was made of."""
    if case.compiled is None:
        return None
    source = case.compiled.source[0]
    for other in cases:
        if other.compiled is None and other.sha256 == source.sha256 and other.num_threads == case.num_threads:
            return other
    directory = Path(case.path).parent
    for path in (
        directory.parent / source.name,
        directory / source.name,
        *directory.glob(f"*{Path(source.name).suffix}"),
    ):
        plain = plain_case(case, path)
        if plain is not None:
            return plain
    return None
