"""Takes an artifact from the store, or makes and publishes it under the lock of its key."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devices.board.facts import parse_cpu_features, parse_cpu_model
from pipeline.artifacts import ArtifactStore
from pipeline.executor import StageExecutor
from pipeline.keys import artifact_key, code_digest, tool_versions
from pipeline.manifest import Artifact, Manifest
from pipeline.stages.base import Stage, Tell


def make_artifact(
    stage: Stage, store: ArtifactStore, tell: Tell, inputs: Mapping[str, Artifact] | None = None
) -> Artifact:
    """Takes the artifact of a stage from the store, or makes it.

    Raises:
        EdgeshipError: The stage failed.
    """
    with StageExecutor(lambda event: tell({"stage": stage.stage, **event})) as executor:
        artifact, _ = take_or_make(stage.stage, stage, inputs or {}, store=store, executor=executor, tell=tell)
    return artifact


def find_artifact(stage: Stage, store: ArtifactStore, inputs: Mapping[str, Artifact]) -> Artifact | None:
    """Returns what a stage made of these inputs before; None where it has not."""
    plan = plan_of(stage, inputs)
    return store.get(plan.stage, plan.key)


def take_or_make(
    name: str,
    stage: Stage,
    sources: Mapping[str, Artifact],
    *,
    store: ArtifactStore,
    executor: StageExecutor,
    tell: Tell,
) -> tuple[Artifact, bool]:
    """Returns an artifact and whether it was there; makes and publishes it under the lock of its key if not."""
    plan = plan_of(stage, sources)
    artifact = store.get(plan.stage, plan.key)
    if artifact is not None:
        return artifact, True
    tell({"stage": name, "state": "waiting", "key": plan.key})
    with store.lock(plan.key):
        artifact = store.get(plan.stage, plan.key)
        if artifact is not None:
            return artifact, True
        tell({"stage": name, "state": "running", "key": plan.key})
        for source in sources.values():
            store.verify(source)
        started = time.monotonic()
        work = store.workspace(plan.key, resumable=stage.resumable)
        metrics = executor.run(stage, {role: source.directory for role, source in sources.items()}, work)
        manifest = dataclasses.replace(plan, metrics=metrics, wall_time_s=round(time.monotonic() - started, 3))
        return store.publish(work, manifest), False


def plan_of(stage: Stage, sources: Mapping[str, Artifact]) -> Manifest:
    """Returns the manifest of an artifact as far as it is known before the work: all that its key is made of."""
    parts: dict[str, Any] = {
        "config": stage.key_config(),
        "inputs": {role: source.manifest.key for role, source in sources.items()},
        "code": code_digest(type(stage).__module__, *stage.other_code),
        "tools": tool_versions(stage.tool_names()),
        "fingerprint": stage.fingerprint(),
    }
    return Manifest(stage=stage.stage, key=artifact_key(stage.stage, **parts), **parts, metrics={}, wall_time_s=0.0)


def host_facts() -> dict[str, Any]:
    """Returns what tells this machine's processor from another: results measured here belong to it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    return {"cpu": parse_cpu_model(text), "features": parse_cpu_features(text), "cores": os.cpu_count()}
