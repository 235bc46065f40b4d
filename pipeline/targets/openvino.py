"""OpenVINO: its converter, NNCF, and reading its `.xml` files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from pipeline.errors import ModelFileError
from pipeline.model_source import Calibration, ModelSource
from pipeline.targets.base import (
    GraphSummary,
    LinearOperation,
    TensorDescription,
    summarize,
)

_LINEAR = {"Convolution", "GroupConvolution", "MatMul", "ConvolutionBackpropData"}
_TRANSPARENT = {"Reshape", "Transpose", "Subtract", "Multiply", "Convert"}
_TYPES = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "i8": "int8",
    "u8": "uint8",
    "i32": "int32",
    "i64": "int64",
    "boolean": "bool",
}
_BITS = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "uint8": 8, "int32": 32, "int64": 64}


class OpenVinoTarget:
    """Intermediate representation (`.xml` and `.bin`); int8 by NNCF post-training quantization."""

    suffix = ".xml"
    format_name = "OpenVINO"
    precisions: tuple[str, ...] = ("float32", "float16", "int8")
    tools: tuple[str, ...] = ("keras", "nncf", "numpy", "openvino", "tensorflow")
    runtime = "openvino"
    notes: Mapping[str, str] = {
        "float16": "weights are stored in float16; the CPU plugin computes in float32",
    }

    def export(self, source: ModelSource, precision: str, calibration: Calibration, out_dir: Path) -> Path:
        """Converts the SavedModel, quantizes it for int8, and saves it."""
        import openvino as ov

        model = ov.convert_model(str(source.path))
        model.inputs[0].get_tensor().set_names({"image"})
        model.outputs[0].get_tensor().set_names({"logits"})
        if precision == "int8":
            model = _to_int8(model, calibration)
        # What the converter notes about itself names the temporary directory it read from.
        model.set_rt_info("", ["conversion_parameters", "input_model"])
        path = out_dir / f"model{self.suffix}"
        ov.save_model(model, str(path), compress_to_fp16=precision == "float16")
        return path

    def inspect(self, path: Path) -> GraphSummary:
        """Parses the .xml; the runtime is not loaded.

        Raises:
            ModelFileError: It is no OpenVINO model, or the .bin beside it is missing.
        """
        try:
            root = ET.parse(path).getroot()  # noqa: S314 (a local file; expat bounds entity expansion)
        except ET.ParseError as error:
            raise ModelFileError(f"{path} is no XML file: {error}.") from error
        if root.tag != "net" or root.find("layers") is None:
            raise ModelFileError(f"{path} is no OpenVINO model: expected <net> with <layers>, found <{root.tag}>.")
        if not path.with_suffix(".bin").is_file():
            raise ModelFileError(f"The weights {path.with_suffix('.bin')} are missing beside {path}.")
        _check_weights(path, root)
        return _Reader(root).summary(path)


def _check_weights(path: Path, root: ET.Element) -> None:
    """Refuses a .bin that is shorter than the constants the .xml takes from it."""
    constants = root.iterfind("./layers/layer[@type='Const']/data")
    needed = max((int(data.get("offset", "0")) + int(data.get("size", "0")) for data in constants), default=0)
    weights = path.with_suffix(".bin")
    if weights.stat().st_size < needed:
        raise ModelFileError(
            f"{weights} has {weights.stat().st_size} bytes, but {path} takes constants up to {needed}."
        )


def _to_int8(model: Any, calibration: Calibration) -> Any:
    """Returns the model with FakeQuantize operations whose ranges come from the calibration images."""
    import nncf

    nncf.set_log_level(logging.ERROR)
    samples = list(calibration)
    # Correcting each layer's bias with the layers before it quantized costs seconds and gains decibels; the fast
    # form, NNCF's default, loses 15 points of MobileNetV3-small-050 on ImageNet (NNCF, ptq_reference_data.yaml).
    return nncf.quantize(
        model,
        nncf.Dataset(samples),
        subset_size=len(samples),
        target_device=nncf.TargetDevice.CPU,
        fast_bias_correction=False,
    )


class _Reader:
    """Reads layers and edges of an intermediate representation."""

    def __init__(self, root: ET.Element) -> None:
        self._layers = {layer.attrib["id"]: layer for layer in root.iterfind("./layers/layer")}
        self._sources = {
            (edge.attrib["to-layer"], edge.attrib["to-port"]): edge.attrib["from-layer"]
            for edge in root.iterfind("./edges/edge")
        }

    def summary(self, path: Path) -> GraphSummary:
        layers = self._layers.values()
        weights: dict[str, int] = {}
        for layer in layers:
            data = layer.find("data")
            if layer.attrib["type"] == "Const" and data is not None:
                name = _type_name(data.attrib["element_type"])
                weights[name] = weights.get(name, 0) + int(data.attrib["size"])
        ports = [port for layer in layers for port in layer.iterfind("./output/port")]
        return summarize(
            path,
            format_name="openvino",
            inputs=[self._input(layer) for layer in layers if layer.attrib["type"] == "Parameter"],
            outputs=[self._output(layer) for layer in layers if layer.attrib["type"] == "Result"],
            operations=[
                layer.attrib["type"] for layer in layers if layer.attrib["type"] not in ("Const", "Parameter", "Result")
            ],
            tensor_types=[_type_name(port.attrib.get("precision", "unknown")) for port in ports],
            weight_bytes=weights,
            linear=[self._linear(layer) for layer in layers if layer.attrib["type"] in _LINEAR],
        )

    def _linear(self, layer: ET.Element) -> LinearOperation:
        first, second = self._inputs(layer)[:2]
        stored = self._stored(second)
        activations = "int8" if first is not None and first.attrib["type"] == "FakeQuantize" else "float"
        return LinearOperation(layer.attrib["name"], stored, activations)

    def _stored(self, layer: ET.Element | None) -> str:
        """Returns the element type of the constant that a value comes from."""
        while layer is not None:
            if layer.attrib["type"] == "Const":
                data = layer.find("data")
                return _type_name(data.attrib["element_type"]) if data is not None else "unknown"
            if layer.attrib["type"] == "FakeQuantize":
                return "int8"
            if layer.attrib["type"] not in _TRANSPARENT:
                break
            layer = self._inputs(layer)[0]
        return "computed"

    def _inputs(self, layer: ET.Element) -> list[ET.Element | None]:
        return [
            self._layers.get(self._sources.get((layer.attrib["id"], port.attrib["id"]), ""))
            for port in layer.iterfind("./input/port")
        ]

    def _input(self, layer: ET.Element) -> TensorDescription:
        return _describe(layer.find("./output/port"), layer.attrib["name"])

    def _output(self, layer: ET.Element) -> TensorDescription:
        source = self._inputs(layer)[0]
        port = source.find("./output/port") if source is not None else None
        return _describe(port, layer.attrib["name"])


def _describe(port: ET.Element | None, name: str) -> TensorDescription:
    if port is None:
        return TensorDescription(name, "unknown", ())
    dims = tuple(int(dim.text or -1) for dim in port.iterfind("dim"))
    return TensorDescription(port.attrib.get("names", name), _type_name(port.attrib.get("precision", "")), dims)


def _type_name(name: str) -> str:
    return _TYPES.get(name.lower().replace("fp", "f"), name.lower())
