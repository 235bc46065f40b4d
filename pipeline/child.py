"""A stage's own process: `python -m pipeline.child <stage module>`.

It answers the request `run` with the stage's metrics. Memory and thread pools of heavy runtimes end with it, and a
native crash ends it alone.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from devices.board.jsonlines import EmitEvent, serve
from pipeline.errors import EdgeshipError
from pipeline.stages.base import Stage
from pipeline.store_errors import store_trouble


def run_stage(params: dict[str, Any], emit_event: EmitEvent) -> dict[str, Any]:
    """Runs one stage.

    Args:
        params: `module`, `stage_class`, `config`, `inputs` and `out_dir`.
        emit_event: Takes progress events.
    """
    stage_class: type[Stage] = getattr(importlib.import_module(params["module"]), params["stage_class"])
    stage = stage_class.model_validate(params["config"])
    inputs = {role: Path(path) for role, path in params["inputs"].items()}
    out_dir = Path(params["out_dir"])
    try:
        return stage.run(inputs, out_dir, emit_event)
    except EdgeshipError:
        raise
    except Exception as error:
        trouble = store_trouble(error, out_dir)
        if trouble is not None:
            raise trouble from error
        raise


def main() -> None:
    """Answers requests until standard input ends."""
    sys.setrecursionlimit(10_000)
    serve({"run": run_stage})


if __name__ == "__main__":
    main()
