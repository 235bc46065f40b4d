"""Compiles one exported model for a device."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from devices.compiled import MANIFEST, RUNTIMES, Form
from devices.profile import DeviceProfile
from pipeline.compilation import compile_file
from pipeline.compile_config import CompileConfig
from pipeline.manifest import read_manifest
from pipeline.stages.base import Stage, Tell


class CompileStage(Stage):
    """Reads `export`; writes the compiled file, what must lie beside it, and `compiled.json`.

    Attributes:
        form: What the model becomes.
        compile: How often is measured.
        num_threads: Of one inference; None takes the profile's.
        profile: The device.
        facts: Of the device, those that a compiled file is bound to: a device that changed gets another file.
    """

    stage: ClassVar[str] = "compile"
    runs_in_child: ClassVar[bool] = False  # a runtime is loaded by the device's agent, Vela by a process of its own
    other_code: ClassVar[tuple[str, ...]] = ("devices.board.*",)

    form: Form
    compile: CompileConfig
    num_threads: int | None = None
    profile: DeviceProfile
    facts: dict[str, Any]

    def tool_names(self) -> tuple[str, ...]:
        """Vela for its own; the versions of runtimes are among the facts."""
        return ("ethos-u-vela",) if self.form == "vela" else ("numpy",)

    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Compiles, compares with the model itself, and measures what a start gains.

        Raises:
            GateError: The compiled form answers otherwise than the model.
            DeviceError: The device or the model can't be used.
        """
        exported = read_manifest(inputs["export"]).metrics
        manifest = compile_file(
            inputs["export"] / exported["model"],
            self.profile,
            out_dir,
            form=self.form,
            pairs=self.compile.starts,
            num_threads=self.num_threads,
            tell=tell,
        )
        return {
            "device": self.profile.name,
            "target": exported["target"],
            "precision": exported["precision"],
            "model": manifest.files[0].name,
            "compiled": MANIFEST,
            **manifest.model_dump(mode="json"),
        }


def binding_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns of a device's facts those that a compiled file is bound to."""
    return {
        "architecture": facts.get("architecture"),
        "cpu_model": facts.get("cpu_model"),
        "cpu_features": list(facts.get("cpu_features") or ()),
        "runtimes": {name: found["version"] for name, found in sorted((facts.get("runtimes") or {}).items())},
    }


def forms_for(target: str, precision: str, profile: DeviceProfile, wanted: tuple[Form, ...]) -> list[Form]:
    """Returns of the forms that a recipe wants those that an export can become for a device."""
    return [
        form
        for form in wanted
        if RUNTIMES[form] == target
        and (
            profile.ethos_u is not None and precision in ("int8", "int16x8", "mixed")
            if form == "vela"
            else target in profile.runtimes
        )
    ]
