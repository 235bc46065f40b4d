"""The runtimes a board can run, one file each."""

from __future__ import annotations

from typing import Dict, Type

from .contract import Runner
from .fake import FakeRunner
from .litert import LiteRtRunner
from .onnxruntime import OnnxRuntimeRunner
from .openvino import OpenVinoRunner

RUNNERS: Dict[str, Type[Runner]] = {
    "fake": FakeRunner,
    "litert": LiteRtRunner,
    "onnxruntime": OnnxRuntimeRunner,
    "openvino": OpenVinoRunner,
}
"""By runtime name. Importing this table loads no runtime."""

__all__ = ["RUNNERS", "Runner"]
