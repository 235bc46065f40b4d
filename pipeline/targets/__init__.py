"""The compile half of each runtime. Its run half lives in `devices/board/runners/` under the same name.

Adding a target is one file here, one file there, one line in `TARGETS`, one test case.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import InputError, ModelFileError
from pipeline.quantization.quantizer import Quantizer
from pipeline.signature import SourceFormat
from pipeline.targets import litert_int8, onnxruntime_int8, openvino_int8
from pipeline.targets.base import GraphSummary, Reach, Target, TargetName
from pipeline.targets.fake import FakeTarget
from pipeline.targets.litert import LiteRTTarget
from pipeline.targets.onnxruntime import OnnxRuntimeTarget
from pipeline.targets.openvino import OpenVinoTarget

TARGETS: dict[TargetName, Target] = {
    "litert": LiteRTTarget(),
    "onnxruntime": OnnxRuntimeTarget(),
    "openvino": OpenVinoTarget(),
    "fake": FakeTarget(),
}

QUANTIZERS: dict[TargetName, Quantizer] = {
    "litert": litert_int8,
    "onnxruntime": onnxruntime_int8,
    "openvino": openvino_int8,
}
"""What makes int8 of a target's float files."""


def reachable(source: SourceFormat) -> dict[TargetName, tuple[str, ...] | str]:
    """Returns what each target makes of a source format: the precisions, or why there are none, as a sentence."""
    reach: dict[TargetName, tuple[str, ...] | str] = {}
    for name, target in TARGETS.items():
        found = target.sources.get(source, Reach(reason=f"The target {name} takes no {source} models."))
        reach[name] = found.precisions or found.reason
    return reach


def target_of(path: Path) -> TargetName:
    """Returns the name of the target whose runtime runs a model file, by its suffix.

    Raises:
        InputError: There is no such file, or no target for its suffix.
    """
    if not path.is_file():
        raise InputError(f"There is no model file {path}. Give the path of a .tflite, .onnx or .xml file.")
    for name, target in TARGETS.items():
        if path.suffix.lower() == target.suffix:
            return name
    suffixes = ", ".join(target.suffix for target in TARGETS.values())
    raise InputError(f"{path} ends in {path.suffix or 'no suffix'}; expected one of {suffixes}.")


def inspect_model(path: Path) -> GraphSummary:
    """Reads a model file and says what is in it. No runtime is loaded.

    Raises:
        InputError: There is no such file, or no target for its suffix.
        ModelFileError: The file is not what its suffix says, or is damaged.
    """
    target = TARGETS[target_of(path)]
    try:
        return target.inspect(path)
    except ModelFileError as error:
        if str(path) in error.message:
            raise
        raise ModelFileError(f"{path} can't be used: {error.message}", details=error.details) from error
    except Exception as error:
        raise ModelFileError(
            f"{path} can't be read as a {target.format_name} file: {type(error).__name__}: {error}. "
            f"Expected a whole file as a converter writes it; export it again."
        ) from error
