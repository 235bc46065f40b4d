"""int8 as a user gets it by hand: the defaults of each converter, to compare with.

| target | tool | what its defaults are |
|---|---|---|
| `litert` | `tf.lite.TFLiteConverter` with a representative data set | int8 activations, weights per channel |
| `onnxruntime` | `onnxruntime.quantization.quantize_static` | int8 activations, one scale for all weights of a layer |
| `openvino` | `nncf.quantize` | symmetric activations, weights per channel, fast bias correction |
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.model_source import ModelSource, Sample
from pipeline.targets.base import TargetName
from pipeline.targets.tensorflow_graph import find_endpoint

ByHand = Callable[[ModelSource, Path, Sequence[Sample], Path], None]
"""Takes the SavedModel, the target's float file, calibration samples, and where to write."""


def _litert(source: ModelSource, float_path: Path, samples: Sequence[Sample], out_path: Path) -> None:
    import tensorflow as tf

    del float_path  # the converter starts from the SavedModel
    converter = tf.lite.TFLiteConverter.from_saved_model(str(source.path), signature_keys=[find_endpoint(source).key])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.representative_dataset = lambda: iter(samples)
    out_path.write_bytes(converter.convert())


def _onnxruntime(source: ModelSource, float_path: Path, samples: Sequence[Sample], out_path: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    del source

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped
        def __init__(self) -> None:
            self._left = iter(samples)

        def get_next(self) -> Any:
            return next(self._left, None)

    logging.getLogger().setLevel(logging.ERROR)  # it warns of models that were not pre-processed by its own tool
    quantize_static(str(float_path), str(out_path), Reader())


def _openvino(source: ModelSource, float_path: Path, samples: Sequence[Sample], out_path: Path) -> None:
    import nncf
    import openvino as ov

    del source
    nncf.set_log_level(logging.ERROR)
    model = ov.Core().read_model(str(float_path))
    ov.save_model(nncf.quantize(model, nncf.Dataset(list(samples)), subset_size=len(samples)), str(out_path))


BY_HAND: Mapping[TargetName, ByHand] = {"litert": _litert, "onnxruntime": _onnxruntime, "openvino": _openvino}
