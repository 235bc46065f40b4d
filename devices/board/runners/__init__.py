"""The runtimes a board can run, one file each."""

from __future__ import annotations

from typing import Callable, Dict, Type

from .contract import Runner
from .fake import FakeRunner, import_fake
from .litert import LiteRtRunner, import_interpreter
from .litert_cached import import_compiled_model
from .onnxruntime import OnnxRuntimeRunner, import_onnxruntime
from .openvino import OpenVinoRunner, import_openvino

RUNNERS: Dict[str, Type[Runner]] = {
    "fake": FakeRunner,
    "litert": LiteRtRunner,
    "onnxruntime": OnnxRuntimeRunner,
    "openvino": OpenVinoRunner,
}
"""By runtime name. Importing this table loads no runtime."""

IMPORTS: Dict[str, Callable[[], object]] = {
    "fake": import_fake,
    "litert": import_interpreter,
    "litert_cached": import_compiled_model,
    "onnxruntime": import_onnxruntime,
    "openvino": import_openvino,
}
"""By runtime name, what imports it and makes it ready for a model; `litert_cached` for one with a cache of weights."""

__all__ = ["IMPORTS", "RUNNERS", "Runner"]
