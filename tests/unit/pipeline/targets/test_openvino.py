"""What is read from OpenVINO files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pipeline.errors import ModelFileError
from pipeline.targets import inspect_model


@dataclasses.dataclass(frozen=True)
class Case:
    """How the weights are stored, through what they pass, and whether the input is fake-quantized."""

    label: str
    stored: str
    between: tuple[str, ...] = ()
    quantized: bool = False


CASES = [
    Case("float32", "f32"),
    Case("float16", "f16", ("Convert",)),
    Case("int8", "i8", ("Convert", "Multiply"), quantized=True),
    Case("int8", "u8", ("Convert", "Subtract", "Multiply", "Reshape"), quantized=True),
    Case("int8", "f32", ("FakeQuantize",), quantized=True),
    Case("int8_weights", "i8", ("Convert", "Multiply")),
]


def xml_of(case: Case) -> str:
    layers, edges, out_ports = [], [], []

    def layer(kind: str, inputs: list[int], data: str = "", names: str = "", shape: tuple[int, ...] = (1, 4)) -> int:
        number = len(layers)
        ports = "".join(f'<port id="{index}"/>' for index in range(len(inputs)))
        dims = "".join(f"<dim>{size}</dim>" for size in shape)
        out = f'<output><port id="{len(inputs)}" precision="FP32" {names}>{dims}</port></output>'
        layers.append(
            f'<layer id="{number}" name="{kind}{number}" type="{kind}">{data}<input>{ports}</input>{out}</layer>'
        )
        edges.extend(
            f'<edge from-layer="{source}" from-port="{out_ports[source]}" to-layer="{number}" to-port="{index}"/>'
            for index, source in enumerate(inputs)
        )
        out_ports.append(len(inputs))
        return number

    source = layer("Parameter", [], names='names="image"')
    weights = layer("Const", [], f'<data element_type="{case.stored}" size="16"/>')
    for kind in case.between:
        weights = layer(kind, [weights])
    if case.quantized:
        source = layer("FakeQuantize", [source])
    linear = layer("MatMul", [source, weights], names='names="logits"')
    layer("Result", [linear])
    return f'<net name="m"><layers>{"".join(layers)}</layers><edges>{"".join(edges)}</edges></net>'


def write(folder: Path, text: str) -> Path:
    path = folder / "model.xml"
    path.write_text(text)
    path.with_suffix(".bin").write_bytes(bytes(16))
    return path


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.label}-{case.stored}")
def test_label(tmp_path: Path, case: Case) -> None:
    summary = inspect_model(write(tmp_path, xml_of(case)))
    assert summary.precision == case.label
    assert [tensor.name for tensor in summary.inputs] == ["image"]
    assert [tensor.name for tensor in summary.outputs] == ["logits"]
    assert sum(summary.weight_bytes.values()) == 16
    assert summary.weights_sha256


def test_weights_missing(tmp_path: Path) -> None:
    path = write(tmp_path, xml_of(CASES[0]))
    path.with_suffix(".bin").unlink()
    with pytest.raises(ModelFileError, match=r"weights .*model\.bin are missing"):
        inspect_model(path)


def test_weights_truncated(tmp_path: Path) -> None:
    text = xml_of(CASES[0]).replace('size="16"', 'offset="0" size="16"')
    path = write(tmp_path, text)
    path.with_suffix(".bin").write_bytes(bytes(15))
    with pytest.raises(ModelFileError, match=r"model\.bin has 15 bytes.* 16"):
        inspect_model(path)


def test_truncated(tmp_path: Path) -> None:
    text = xml_of(CASES[0])
    with pytest.raises(ModelFileError, match="no XML file"):
        inspect_model(write(tmp_path, text[: len(text) // 2]))


def test_other_xml(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="found <html>"):
        inspect_model(write(tmp_path, "<html/>"))
