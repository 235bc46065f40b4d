"""Reads OpenVINO `.xml` files; the runtime is not loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from pipeline.errors import ModelFileError
from pipeline.targets.base import GraphSummary, LinearOperation, TensorDescription, summarize

_LINEAR = {
    "Convolution",
    "GroupConvolution",
    "MatMul",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
    "GRUCell",
    "GRUSequence",
    "LSTMCell",
    "LSTMSequence",
    "RNNCell",
    "RNNSequence",
}
_RECURRENT_WEIGHTS_AT = {
    "GRUCell": 2,
    "RNNCell": 2,
    "LSTMCell": 3,
    "GRUSequence": 3,
    "RNNSequence": 3,
    "LSTMSequence": 4,
}
"""Where the weights are among the inputs (OpenVINO operation specifications, opset 5); elsewhere second."""

_LAYOUT = {
    "BatchToSpace",
    "DepthToSpace",
    "Gather",
    "MaxPool",
    "Pad",
    "Reshape",
    "ShuffleChannels",
    "Slice",
    "SpaceToBatch",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "StridedSlice",
    "Transpose",
    "Unsqueeze",
    "VariadicSplit",
}
"""Operations that the runtime leaves in int8 behind a FakeQuantize: they choose and move values."""

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


def summary(path: Path) -> GraphSummary:
    """Parses the .xml, also the bodies of its loops.

    Raises:
        ModelFileError: It is no OpenVINO model, or the .bin beside it is missing or too short.
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
    graphs = list(_graphs(root))
    weights: dict[str, int] = {}
    for graph in graphs:
        for name, size in graph.constants():
            weights[name] = weights.get(name, 0) + size
    return summarize(
        path,
        format_name="openvino",
        inputs=graphs[0].inputs(),
        outputs=graphs[0].outputs(),
        operations=[name for graph in graphs for name in graph.operations()],
        tensor_types=[name for graph in graphs for name in graph.tensor_types()],
        weight_bytes=weights,
        linear=[operation for graph in graphs for operation in graph.linear()],
    )


def _check_weights(path: Path, root: ET.Element) -> None:
    """Refuses a .bin that is shorter than the constants the .xml takes from it."""
    constants = root.iterfind(".//layers/layer[@type='Const']/data")
    needed = max((int(data.get("offset", "0")) + int(data.get("size", "0")) for data in constants), default=0)
    weights = path.with_suffix(".bin")
    if weights.stat().st_size < needed:
        raise ModelFileError(
            f"{weights} has {weights.stat().st_size} bytes, but {path} takes constants up to {needed}."
        )


def _graphs(element: ET.Element) -> Iterator[_Graph]:
    """Yields the graph of an element that has layers and edges, then those inside its layers."""
    yield _Graph(element)
    for layer in element.iterfind("./layers/layer"):
        for body in layer:
            if body.find("layers") is not None:
                yield from _graphs(body)


class _Graph:
    """Layers and edges of one graph."""

    def __init__(self, element: ET.Element) -> None:
        self._layers = {layer.attrib["id"]: layer for layer in element.iterfind("./layers/layer")}
        self._sources = {
            (edge.attrib["to-layer"], edge.attrib["to-port"]): (edge.attrib["from-layer"], edge.attrib["from-port"])
            for edge in element.iterfind("./edges/edge")
        }

    def inputs(self) -> list[TensorDescription]:
        return [
            _describe(layer.find("./output/port"), layer.attrib["name"])
            for layer in self._layers.values()
            if layer.attrib["type"] == "Parameter"
        ]

    def outputs(self) -> list[TensorDescription]:
        return [
            _describe(self._source_port(layer), layer.attrib["name"])
            for layer in self._layers.values()
            if layer.attrib["type"] == "Result"
        ]

    def operations(self) -> list[str]:
        types = (layer.attrib["type"] for layer in self._layers.values())
        return [name for name in types if name not in ("Const", "Parameter", "Result")]

    def tensor_types(self) -> list[str]:
        ports = (port for layer in self._layers.values() for port in layer.iterfind("./output/port"))
        return [_type_name(port.attrib.get("precision", "unknown")) for port in ports]

    def constants(self) -> Iterator[tuple[str, int]]:
        """Yields the element type and the bytes of each stored constant."""
        for layer in self._layers.values():
            data = layer.find("data")
            if layer.attrib["type"] == "Const" and data is not None:
                yield _type_name(data.attrib["element_type"]), int(data.attrib["size"])

    def linear(self) -> list[LinearOperation]:
        return [self._linear(layer) for layer in self._layers.values() if layer.attrib["type"] in _LINEAR]

    def _linear(self, layer: ET.Element) -> LinearOperation:
        takes = self._inputs(layer)
        at = _RECURRENT_WEIGHTS_AT.get(layer.attrib["type"], 1)
        weights = takes[at] if at < len(takes) else None
        activations = "int8" if self._is_quantized(takes[0]) else "float"
        return LinearOperation(layer.attrib["name"], self._stored(weights), activations)

    def _is_quantized(self, layer: ET.Element | None) -> bool:
        """Whether the values that a layer gives come from a FakeQuantize, of all parts where they are joined."""
        layer = self._before_layout(layer)
        if layer is not None and layer.attrib["type"] == "Concat":
            return all(self._is_quantized(part) for part in self._inputs(layer))
        return layer is not None and layer.attrib["type"] == "FakeQuantize"

    def _before_layout(self, layer: ET.Element | None) -> ET.Element | None:
        """Returns the layer whose values a layer takes, only arranged otherwise."""
        while layer is not None and layer.attrib["type"] in _LAYOUT:
            layer = self._inputs(layer)[0]
        return layer

    def _stored(self, layer: ET.Element | None) -> str:
        """Returns the element type of the constant that a value comes from; of one that is computed, its own."""
        port = layer.find("./output/port") if layer is not None else None
        own = _type_name(port.attrib.get("precision", "")) if port is not None else "unknown"
        while layer is not None:
            if layer.attrib["type"] == "Const":
                data = layer.find("data")
                return _type_name(data.attrib["element_type"]) if data is not None else "unknown"
            if layer.attrib["type"] == "FakeQuantize":
                return "int8"
            if layer.attrib["type"] not in _TRANSPARENT:
                break
            layer = self._inputs(layer)[0]
        return own

    def _inputs(self, layer: ET.Element) -> list[ET.Element | None]:
        return [
            self._layers.get(self._sources.get((layer.attrib["id"], port.attrib["id"]), ("", ""))[0])
            for port in layer.iterfind("./input/port")
        ]

    def _source_port(self, layer: ET.Element) -> ET.Element | None:
        """Returns the port that a layer's first input comes from."""
        port = layer.find("./input/port")
        if port is None:
            return None
        name, number = self._sources.get((layer.attrib["id"], port.attrib["id"]), ("", ""))
        source = self._layers.get(name)
        return source.find(f"./output/port[@id='{number}']") if source is not None else None


def _describe(port: ET.Element | None, name: str) -> TensorDescription:
    """Describes a port under the first of its names; where it has none, under that of the layer."""
    if port is None:
        return TensorDescription(name, "unknown", ())
    dims = tuple(int(dim.text or -1) for dim in port.iterfind("dim"))
    # A comma within a name is escaped by a backslash.
    names = sorted(port.attrib.get("names", name).replace("\\,", "\0").split(","))
    return TensorDescription(names[0].replace("\0", ","), _type_name(port.attrib.get("precision", "")), dims)


def _type_name(name: str) -> str:
    return _TYPES.get(name.lower().replace("fp", "f"), name.lower())
