"""`edgeship train --dry-run` and `--find-learning-rate`: tries out a recipe's training, and says it in words."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.artifacts import ArtifactStore
from pipeline.errors import InputError
from pipeline.executor import StageExecutor
from pipeline.manifest import Artifact
from pipeline.model_config import OwnModelConfig
from pipeline.model_tables import readable_bytes, readable_count
from pipeline.network import FAKE_NETWORK, ModelConfig
from pipeline.progress import duration
from pipeline.recipe import Recipe
from pipeline.runner import check_sizes, find_artifact, run_recipe, train_stage
from pipeline.stages.base import Stage, Tell
from pipeline.stages.rehearse import DryRunStage, LearningRateStage
from pipeline.store_errors import store_errors
