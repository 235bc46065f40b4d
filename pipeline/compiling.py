"""What `edgeship compile` does with a model file or a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from devices.compiled import CompiledManifest, Form
from devices.errors import DeviceError
from devices.profile import DeviceProfile
from pipeline.artifacts import ArtifactStore
from pipeline.compilation import compile_beside, form_of
from pipeline.compilation_text import compiled_lines, report_lines
from pipeline.compile_config import CompileConfig
from pipeline.errors import EdgeshipError, InputError
from pipeline.model_options import description_of
from pipeline.recipe import Recipe, load_recipes
from pipeline.report import report_of
from pipeline.run_directory import write_run_directory
from pipeline.runner import run_recipe
from pipeline.stages.base import Tell
from pipeline.targets import inspect_model


@dataclass(frozen=True)
class Asked:
    """What the options of the command say.

    Attributes:
        forms: None at all takes what suits.
        here: Whether this machine compiles.
        starts: How often both forms are started.
        threads: Of one inference.
        shapes: As of `description_of`.
        out: Where a model's files go.
    """

    forms: tuple[str, ...]
    here: bool
    starts: int
    threads: int | None
    shapes: tuple[str, ...]
    out: Path | None


@dataclass(frozen=True)
class Made:
    """A model that was compiled.

    Attributes:
        directory: With the files.
        manifest: What `compiled.json` there says.
    """

    directory: Path
    manifest: CompiledManifest

    def lines(self) -> list[str]:
        """For people."""
        return compiled_lines(self.directory, self.manifest)

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {
            "directory": str(self.directory),
            "path": str(self.directory / self.manifest.files[0].name),
            **self.manifest.model_dump(mode="json"),
        }


def compile_model(
    path: Path, profile: DeviceProfile, asked: Asked, overrides: Sequence[str] = (), *, tell: Tell
) -> Made:
    """Compiles one model file into a directory of its own.

    Raises:
        InputError: An option belongs to a recipe, or the model can't become what is asked for.
        EdgeshipError: Compiling failed.
        DeviceError: The device or the model can't be used.
    """
    if overrides:
        raise InputError(f"--set changes a recipe, but {path} is a model file. Leave it out.")
    if len(asked.forms) > 1:
        raise InputError(f"A model file becomes one form at a time, not {', '.join(asked.forms)}. Name one --form.")
    form = form_of(path, profile, _form(asked.forms[0]) if asked.forms else None)
    directory, manifest = compile_beside(
        path,
        profile,
        asked.out,
        form=form,
        here=asked.here,
        pairs=asked.starts,
        input_shapes=_shapes(path, asked.shapes),
        num_threads=asked.threads,
        tell=tell,
    )
    return Made(directory, manifest)


def recipes_to_compile(path: Path, overrides: Sequence[str], asked: Asked) -> list[Recipe]:
    """Returns the recipes of a file with what the command asks for in their section `compile`.

    Raises:
        InputError: A recipe can't be used, or an option belongs to a model file.
    """
    for given, name in ((asked.here, "--here"), (asked.threads, "--threads"), (asked.shapes, "--shape"),
                        (asked.out, "--out")):  # fmt: skip
        if given:
            raise InputError(f"{name} is for a model file, but {path} is a recipe. Leave it out.")
    recipes = []
    for recipe in load_recipes(path, overrides):
        forms = tuple(_form(form) for form in asked.forms) or recipe.compile.forms or _all_forms(recipe)
        recipes.append(recipe.model_copy(update={"compile": CompileConfig(forms=forms, starts=asked.starts)}))
    return recipes


def compile_recipe(
    recipe: Recipe, device: str, store: ArtifactStore, directory: Path, *, tell: Tell
) -> tuple[dict[str, Any], Sequence[EdgeshipError | DeviceError]]:
    """Runs a recipe up to its compiled files; returns the report and the errors of single ones."""
    result = run_recipe(recipe, store, devices=[device], until="compile", tell=tell)
    report = report_of(result)
    write_run_directory(directory, result, report, store)
    return report, result.failures


def recipe_lines(report: dict[str, Any], directory: Path) -> list[str]:
    """Returns what is to be said of a recipe whose exports were compiled."""
    if not report["compiled"]:
        return [
            f"Nothing of {report['recipe']} was compiled: the device takes none of the forms that its exports have."
        ]
    files = [f"{row['path']}" for row in report["compiled"]]
    return [*report_lines(report), *files, f"{len(files)} compiled files; report: {directory}/report.md"]


def _all_forms(recipe: Recipe) -> tuple[Form, ...]:
    """All but the stand-in's, unless the stand-in is what the recipe exports to."""
    return tuple(form for form in get_args(Form) if (form == "fake") == ("fake" in recipe.export.targets))


def _form(name: str) -> Form:
    if name not in get_args(Form):
        raise InputError(f"There is no form {name}; there are {', '.join(get_args(Form))}.")
    form: Form = name  # type: ignore[assignment]
    return form


def _shapes(path: Path, texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes that were given, by the input's name; one without a name is the only input's."""
    if not texts:
        return {}
    description = description_of(layout=None, scale=None, offset=None, shapes=texts, metric=None)
    names = [tensor.name for tensor in inspect_model(path).inputs]
    found = {}
    for each in description.inputs:
        if each.name is None and len(names) != 1:
            raise InputError(f"{path} has the inputs {', '.join(names)}: give --shape NAME=1,N,...")
        found[each.name or names[0]] = tuple(each.shape or ())
    return found
