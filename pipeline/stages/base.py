"""What a stage is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from pipeline.errors import EdgeshipError

RESUME = ".resume"
"""Directory of `out_dir` that holds what a resumable stage needs after a kill; it is not published."""

Tell = Callable[[dict[str, Any]], None]
"""Takes one progress event, a JSON object such as `{"epoch": 3, "epochs": 30, "loss": 0.4}` or
`{"message": "..."}` or `{"warning": "..."}`. What happens to it is the command line's business."""


class FrozenConfig(BaseModel):
    """A config whose unknown keys are errors and whose values never change."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Stage(FrozenConfig, ABC):
    """A frozen config and `run`, nothing else.

    The fields are hashed into the artifact's key, so a field that does not change the output does not belong
    here. Subclasses set:

    - `stage`: the name of the stage.
    - `runs_in_child`: whether it loads a heavy runtime, and so runs in a process of its own.
    - `resumable`: whether `out_dir` may still hold what an interrupted run of the same key left there.
    - `other_code`: modules of ours that it runs without importing them (`pipeline.keys.code_digest`).
    - `tools`: distributions whose versions shape the output, where `tool_names` doesn't say it otherwise.
    """

    stage: ClassVar[str]
    runs_in_child: ClassVar[bool] = True
    resumable: ClassVar[bool] = False
    other_code: ClassVar[tuple[str, ...]] = ()
    tools: ClassVar[tuple[str, ...]] = ()

    def tool_names(self) -> tuple[str, ...]:
        """Returns the distributions whose versions shape the output and so belong into the key."""
        return self.tools

    def key_config(self) -> dict[str, Any]:
        """Returns what of the config belongs into the key, as JSON values: all of it, where nothing says else."""
        return self.model_dump(mode="json")

    def fingerprint(self) -> str:
        """Returns a digest of what the stage reads from outside the store; empty where it reads nothing.

        Raises:
            DataError: What it would read is not there.
        """
        return ""

    def crash_error(self, end: str, last_words: str) -> EdgeshipError | None:  # noqa: ARG002 (for those who override)
        """Returns what it means that the stage's process ended without an answer; None for a crash of the stage.

        Args:
            end: How it ended: "was ended by SIGSEGV", "exited with status 1".
            last_words: The end of what it wrote to standard error.
        """
        return None

    @abstractmethod
    def run(self, inputs: Mapping[str, Path], out_dir: Path, tell: Tell) -> dict[str, Any]:
        """Does the work.

        Args:
            inputs: Directories of the published artifacts this stage reads, by role.
            out_dir: An existing directory to write files into. It becomes the artifact.
            tell: Takes progress events.

        Returns:
            Metrics, JSON values only; they are written into the manifest.
        """
