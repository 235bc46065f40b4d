"""What is known of a foreign model before its native library is loaded, and what is checked of it."""

from __future__ import annotations

import importlib
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.errors import InputError, ModelFileError, StageCrashError
from pipeline.executor import StageExecutor
from pipeline.imports import (
    ModelDescription,
    check_image_input,
    format_of,
    import_model,
    model_files,
    model_fingerprint,
    wire,
)
from pipeline.imports.base import one_line, printable
from pipeline.imports.checks import FoundOutput, FoundTensor, distinct_names, make_signature, resolve_inputs
from pipeline.imports.inspection import inspect_in_child
from pipeline.imports.keras_file import _foreign
from pipeline.imports.tensorflow_function import argument_names
from pipeline.signature import InputTensor, OutputTensor, Signature, Transform
from pipeline.stages.import_model import ImportStage

PLAIN_ONNX = b"\x08\x08\x3a\x02\x12\x00\x42\x02\x10\x11"
TFLITE = b"\x1c\x00\x00\x00TFL3" + bytes(20)
HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(20)


def write_zip(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "{}")


def write_model(directory: Path, name: str) -> Path:
    """A file that is of its format as far as its first bytes go."""
    path = directory / name
    if name == "saved":
        (path / "variables").mkdir(parents=True)
        (path / "saved_model.pb").write_bytes(b"\x08\x01")
        (path / "variables" / "variables.index").write_bytes(b"index")
    elif name.endswith(".keras"):
        write_zip(path, "config.json", "model.weights.h5")
    elif name.endswith(".xml"):
        path.write_text('<?xml version="1.0"?>\n<net name="net" version="11"><layers/></net>')
        path.with_suffix(".bin").write_bytes(b"1234")
    else:
        path.write_bytes({".h5": HDF5, ".onnx": PLAIN_ONNX, ".tflite": TFLITE}[path.suffix])
    return path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("m.keras", "keras"),
        ("m.h5", "keras"),
        ("saved", "saved_model"),
        ("m.onnx", "onnx"),
        ("m.tflite", "tflite"),
        ("m.xml", "openvino"),
    ],
)
def test_format_of(tmp_path: Path, name: str, expected: str) -> None:
    assert format_of(write_model(tmp_path, name)) == expected


@dataclass(frozen=True)
class Wrong:
    """A file that is refused before any library sees it."""

    name: str
    content: bytes | str | None
    says: tuple[str, ...]
    error: type[InputError] = ModelFileError

    def __str__(self) -> str:
        return f"{self.name}-{self.says[0]}".replace(" ", "_")


WRONG = [
    Wrong("m.onnx", TFLITE, ("is not what its name says", "found a TensorFlow Lite model (.tflite)")),
    Wrong("m.onnx", b"", ("an empty file",)),
    Wrong("m.onnx", b"\x08\x08\x42\x02\x10\x11", ("with a graph",)),
    Wrong("m.onnx", PLAIN_ONNX[:5], ("damaged or cut off (field 7 reaches to byte 6, but there are only 5",)),
    Wrong("m.onnx", "<!DOCTYPE html><html>", ("a web page, so the download went wrong",)),
    Wrong("m.tflite", "version https://git-lfs.github.com/spec/v1\noid", ("Git LFS pointer", "git lfs pull")),
    Wrong("m.tflite", HDF5, ("identifier TFL3 at byte 4", "an HDF5 file")),
    Wrong("m.tflite", b"\x1c\x00", ("other data, which begins with b'\\x1c\\x00'",)),
    Wrong("m.keras", HDF5, ("a zip archive with a config.json", "an HDF5 file (.h5)")),
    Wrong("m.keras", b"PK\x03\x04 the rest is lost", ("damaged or cut off", "a Keras model")),
    Wrong("m.keras", "zip:m/data.pkl", ("a PyTorch archive", "torch.onnx.export")),
    Wrong("m.keras", "zip:a,b", ("a zip archive that holds a, b",)),
    Wrong("m.h5", "zip:config.json", ("an HDF5 file", "found a Keras archive (.keras)")),
    Wrong("m.xml", "<html></html>", ("found a web page",)),
    Wrong("m.xml", "<other/>", ("root is <net>, found <other>",)),
    Wrong("m.xml", "<?xml version='1.0'?><n", ("damaged or cut off",)),
    Wrong("m.xml", "<net/>", ("m.bin are missing beside",)),
    Wrong("m.weights.h5", HDF5, ("weights without an architecture", "model.weights with model.name"), InputError),
    Wrong("m.pt", "zip:m/data.pkl", ("torch.onnx.export",), InputError),
    Wrong("m.PTH", b"x", ("torch.onnx.export",), InputError),
    Wrong("m.safetensors", b"x", ("weights without an architecture", "model.save('model.keras')"), InputError),
    Wrong("m.pb", b"x", ("give the directory that holds saved_model.pb",), InputError),
    Wrong("m.bin", b"x", ("give the .xml beside it",), InputError),
    Wrong("m.docx", b"x", ("ends in .docx; expected a .keras file, a SavedModel directory",), InputError),
    Wrong("m", b"x", ("ends in no suffix",), InputError),
    Wrong("gone.onnx", None, ("There is no model",), InputError),
]


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_a_file_that_is_no_model_is_refused_by_name_and_first_bytes(tmp_path: Path, case: Wrong) -> None:
    path = tmp_path / case.name
    if isinstance(case.content, bytes):
        path.write_bytes(case.content)
    elif case.content is not None and case.content.startswith("zip:"):
        write_zip(path, *case.content[4:].split(","))
    elif case.content is not None:
        path.write_text(case.content)
    with pytest.raises(InputError) as caught:
        format_of(path)
    assert type(caught.value) is case.error
    assert caught.value.exit_code == 2
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    for words in case.says:
        assert words in caught.value.message


def test_a_directory_without_a_saved_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ModelFileError, match=r"without a saved_model.pb \(it holds: notes.txt\)"):
        format_of(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ModelFileError, match="it is empty"):
        format_of(tmp_path)


def with_location(location: str) -> bytes:
    """An ONNX model whose one constant lies in another file."""

    def field_of(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    entry = field_of(1, b"location") + field_of(2, location.encode())
    return b"\x08\x08" + field_of(7, field_of(5, field_of(13, entry)))


def test_weights_outside_an_onnx_model_belong_to_it(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(with_location("side.bytes"))
    with pytest.raises(ModelFileError, match=r"there is no .*side.bytes. Copy it beside the model"):
        model_files(path)
    (tmp_path / "side.bytes").write_bytes(b"1")
    assert model_files(path) == (path, tmp_path / "side.bytes")
    before = model_fingerprint(path)
    (tmp_path / "side.bytes").write_bytes(b"2")
    assert model_fingerprint(path) != before


@pytest.mark.parametrize("location", ["../side.bytes", "/elsewhere/side.bytes"])
def test_weights_from_elsewhere_on_the_machine_are_refused(tmp_path: Path, location: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(with_location(location))
    with pytest.raises(ModelFileError, match="outside its directory"):
        model_files(path)


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "saved", "m.onnx", "m.tflite", "m.xml"])
def test_the_fingerprint_goes_by_content_and_not_by_path(tmp_path: Path, name: str) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    path = write_model(first, name)
    copies = {file: second / file.relative_to(first) for file in model_files(path)}
    for file, copy in copies.items():
        copy.parent.mkdir(exist_ok=True, parents=True)
        copy.write_bytes(file.read_bytes())
    renamed = second / (f"other{path.suffix}" if path.suffix else "other")
    (second / name).rename(renamed)
    if path.suffix == ".xml":
        (second / "m.bin").rename(second / "other.bin")
    assert model_fingerprint(renamed) == model_fingerprint(path)
    changed = model_files(renamed)[-1]
    changed.write_bytes(changed.read_bytes() + b"\x42\x02\x10\x11")
    assert model_fingerprint(renamed) != model_fingerprint(path)


def test_a_renamed_part_of_a_saved_model_changes_the_fingerprint(tmp_path: Path) -> None:
    path = write_model(tmp_path, "saved")
    before = model_fingerprint(path)
    (path / "variables" / "variables.index").rename(path / "variables" / "other")
    assert model_fingerprint(path) != before


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_wire_error(data: bytes) -> None:
    try:
        found = list(wire.fields(data, 0, len(data)))
    except wire.WireError:
        return
    assert not data or found[-1].end == len(data)
    assert all(entry.number > 0 and 0 <= entry.begin <= entry.end <= len(data) for entry in found)


# --- what a recipe says, brought together with what is found


def described(*inputs: dict[str, Any], **others: Any) -> ModelDescription:
    return ModelDescription.model_validate({"inputs": inputs, **others})


IMAGE = FoundTensor("image", "float32", (None, 3, 32, 48), known_as=("image:0",))
FREE = FoundTensor("x", "float32", (None, None, 6))
PAIR = (FoundTensor("left", "int32", (1, 4)), FoundTensor("right", "float32", (1, 4)))


def test_an_input_without_a_description_is_taken_as_it_is_with_a_batch_of_one() -> None:
    (tensor,) = resolve_inputs([IMAGE], ModelDescription())
    assert tensor == InputTensor(name="image", dtype="float32", shape=(1, 3, 32, 48))


def test_a_description_completes_an_input() -> None:
    (tensor,) = resolve_inputs(
        [IMAGE], described({"name": "image:0", "layout": "NCHW", "scale": (1.0, 2.0, 3.0), "offset": -1.0})
    )
    assert tensor.name == "image"
    assert tensor.transform == Transform(layout="NCHW", scale=(1.0, 2.0, 3.0), offset=-1.0)
    (tensor,) = resolve_inputs([FREE], described({"shape": (1, 7, 6)}))
    assert tensor.shape == (1, 7, 6)


@dataclass(frozen=True)
class Contradiction:
    found: tuple[FoundTensor, ...]
    says: str
    inputs: tuple[dict[str, Any], ...] = ()
    error: type[InputError] = field(default=InputError)


CONTRADICTIONS = {
    "unknown-name": Contradiction(
        (IMAGE,),
        "names imgae, but the model has no such input; it has: image float32 .*Did you mean image",
        ({"name": "imgae"},),
    ),
    "unlike-any-name": Contradiction((IMAGE,), r"it has: image float32 \(\?, 3, 32, 48\)\.$", ({"name": "zzz"},)),
    "fixed-size": Contradiction(
        (IMAGE,),
        r"said to have the shape \(1, 3, 64, 48\), but in the file it has \(\?, 3, 32, 48\)",
        ({"shape": (1, 3, 64, 48)},),
    ),
    "rank": Contradiction((FREE,), "said to have the shape", ({"shape": (1, 6)},)),
    "free": Contradiction((FREE,), r"more than the batch is free.*shape: \[1, 224, 6\]"),
    "no-rank": Contradiction((FoundTensor("x", "float32", None),), "no fixed number of dimensions"),
    "batch-of-four": Contradiction((FoundTensor("x", "float32", (4, 3)),), r"\(4, 3\); expected a batch of 1"),
    "batch-of-two-wanted": Contradiction((FREE,), r"\(2, 7, 6\); expected a batch of 1", ({"shape": (2, 7, 6)},)),
    "scalar": Contradiction((FoundTensor("x", "float32", ()),), "expected a batch of 1"),
    "dtype": Contradiction((IMAGE,), "said to take uint8, but in the file it takes float32", ({"dtype": "uint8"},)),
    "layout-of-a-series": Contradiction(
        (PAIR[0],), "has 2 dimensions, and only images of 4", ({"layout": "NHWC", "scale": 1.0},)
    ),
    "other-layout": Contradiction((IMAGE,), "is that of NCHW", ({"layout": "NHWC", "scale": 1.0},)),
    "layout-without-scale": Contradiction((IMAGE,), "has a layout, but no scale", ({"layout": "NCHW"},)),
    "channels": Contradiction(
        (IMAGE,), "scale of input image has 2 numbers.*has 3 channels", ({"layout": "NCHW", "scale": (1.0, 2.0)},)
    ),
    "channels-unstated-layout": Contradiction(
        (IMAGE,), "48 channels.*state layout: NCHW", ({"scale": (1.0, 2.0, 3.0)},)
    ),
    "offset-channels": Contradiction(
        (IMAGE,), "offset of input image has 1 numbers", ({"layout": "NCHW", "scale": 1.0, "offset": (1.0,)},)
    ),
    "not-computable": Contradiction((IMAGE,), "can't be computed.*float32 can hold", ({"scale": 1e300},)),
    "nameless": Contradiction(PAIR, "has 2 inputs .*entry of model.inputs has no name", ({"scale": 1.0},)),
    "twice": Contradiction((IMAGE,), "describes image twice", ({"name": "image"}, {"name": "image:0"})),
    "text": Contradiction((FoundTensor("x", "string", (1, 2)),), "has the type string", error=ModelFileError),
    "no-inputs": Contradiction((), "has no inputs", error=ModelFileError),
}


@pytest.mark.parametrize("case", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_what_does_not_fit_together_is_said(case: Contradiction) -> None:
    with pytest.raises(InputError, match=case.says) as caught:
        resolve_inputs(case.found, described(*case.inputs))
    assert type(caught.value) is case.error


@pytest.mark.parametrize(
    "values",
    [
        {"inputs": [{"scale": 1.0}, {"name": "b"}]},
        {"inputs": [{"name": "b"}, {"name": "b"}]},
        {"outputs": [{"kind": "logits"}, {"kind": "values"}]},
        {"inputs": [{"shape": [1, 0]}]},
        {"inputs": [{"scale": []}]},
        {"inputs": [{"layout": "CHWN"}]},
        {"metric": "f1"},
        {"input": []},
    ],
)
def test_a_description_that_says_nothing_sound_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ModelDescription.model_validate(values)


def signature_of(*outputs: FoundOutput, **described_as: Any) -> Signature:
    tensor = InputTensor(name="x", dtype="float32", shape=(1, 3))
    return make_signature("onnx", "model.onnx", (tensor,), outputs, ModelDescription.model_validate(described_as))


def test_the_kind_of_an_output_follows_from_the_graph_and_the_metric() -> None:
    plain, softmax = FoundOutput("a", "float32", (1, 5)), FoundOutput("b", "float32", (1, 5), is_softmax=True)
    kinds = lambda signature: [tensor.kind for tensor in signature.outputs]  # noqa: E731
    assert kinds(signature_of(plain, softmax)) == ["values", "probabilities"]
    assert kinds(signature_of(plain, plain2 := FoundOutput("c", "float32", (1, 5)), metric="top1")) == [
        "logits",
        "values",
    ]
    assert kinds(signature_of(softmax, plain2, metric="top1")) == ["probabilities", "values"]
    stated = [{"name": "a", "kind": "probabilities"}, {"name": "b", "kind": "logits"}]
    assert kinds(signature_of(plain, softmax, outputs=stated)) == ["probabilities", "logits"]


def test_a_free_dimension_of_an_output_is_minus_one() -> None:
    (tensor,) = signature_of(FoundOutput("a", "float32", (1, None))).outputs
    assert tensor.shape == (1, -1)


@dataclass(frozen=True)
class Judged:
    metric: str
    shape: tuple[int | None, ...]
    fits: bool


@pytest.mark.parametrize(
    "case",
    [
        Judged("top1", (1, 5), True),
        Judged("top1", (1, 1), False),
        Judged("top1", (1, 8, 8, 3), False),
        Judged("top1", (1, None), False),
        Judged("auc", (1, 1), True),
        Judged("auc", (5,), False),
        Judged("mse", (1, 8, 8, 3), True),
    ],
    ids=str,
)
def test_a_metric_needs_an_output_that_it_can_judge(case: Judged) -> None:
    output = FoundOutput("a", "float32", case.shape)
    if case.fits:
        assert signature_of(output, metric=case.metric).metric == case.metric
    else:
        with pytest.raises(InputError, match=f"model.metric is {case.metric}.*first output a has the shape"):
            signature_of(output, metric=case.metric)


def test_outputs_that_are_missing_or_unknown() -> None:
    with pytest.raises(ModelFileError, match="has no outputs"):
        signature_of()
    with pytest.raises(InputError, match=r"names logit, but the model has no such output.*Did you mean logits"):
        signature_of(FoundOutput("logits", "float32", (1, 2)), outputs=[{"name": "logit"}])


# --- images


def image_model(*inputs: InputTensor) -> Signature:
    outputs = (OutputTensor(name="y", dtype="float32", shape=(1, 2)),)
    return Signature(source="onnx", model="model.onnx", inputs=inputs, outputs=outputs)


def image_input(dtype: str, *shape: int, **transform: Any) -> InputTensor:
    made = Transform.model_validate(transform) if transform else None
    return InputTensor(name="x", dtype=dtype, shape=shape, transform=made)


@dataclass(frozen=True)
class Image:
    tensor: InputTensor
    expected: Transform | None


@pytest.mark.parametrize(
    "case",
    [
        Image(image_input("uint8", 1, 8, 6, 3), None),
        Image(image_input("uint8", 1, 3, 8, 6), Transform(layout="NCHW")),
        Image(image_input("int32", 1, 8, 6, 3), Transform()),
        Image(image_input("float32", 1, 8, 6, 3, scale=0.5), Transform(scale=0.5)),
        Image(image_input("float32", 1, 8, 6, 3, scale=1.0), Transform()),
        Image(image_input("float32", 1, 3, 8, 6, scale=0.5), Transform(layout="NCHW", scale=0.5)),
        Image(image_input("float32", 1, 3, 8, 6, scale=0.5, layout="NCHW"), Transform(layout="NCHW", scale=0.5)),
    ],
    ids=str,
)
def test_an_image_input_is_settled(case: Image) -> None:
    signature = check_image_input(image_model(case.tensor), (8, 6))
    assert signature.inputs[0].transform == case.expected
    assert signature.inputs[0].model_copy(update={"transform": case.tensor.transform}) == case.tensor


def test_a_layout_that_could_be_either_has_to_be_stated() -> None:
    with pytest.raises(InputError, match="may come first or last"):
        check_image_input(image_model(image_input("uint8", 1, 3, 8, 3)), (8, 3))
    stated = image_model(image_input("uint8", 1, 3, 8, 3, layout="NCHW"))
    assert check_image_input(stated, (8, 3)) == stated


@dataclass(frozen=True)
class NoImage:
    tensors: tuple[InputTensor, ...]
    says: str


@pytest.mark.parametrize(
    "case",
    [
        NoImage(
            (image_input("uint8", 1, 9, 9, 3),),
            r"images of 9x9 \(height x width\), but the data gives 8x6. Set data.size: \[9, 9\]",
        ),
        NoImage((image_input("uint8", 1, 3, 6, 8),), "images of 6x8"),
        NoImage((image_input("uint8", 1, 8, 6, 4),), "which is no image"),
        NoImage((image_input("uint8", 1, 48),), "which is no image"),
        NoImage((image_input("uint8", 1, 8, 6, 1),), "images of 1 channels, but the data gives 3"),
        NoImage(
            (image_input("float32", 1, 8, 6, 3),),
            r"x takes float32; say how pixels 0..255 become it: model.inputs: \[\{scale",
        ),
        NoImage((image_input("int8", 1, 8, 6, 3),), "x takes int8; say how"),
        NoImage(
            (image_input("uint8", 1, 8, 6, 3), InputTensor(name="z", dtype="uint8", shape=(1, 2))), r"2 inputs \(x, z\)"
        ),
    ],
    ids=lambda case: case.says[:20],
)
def test_an_input_that_takes_no_such_images(case: NoImage) -> None:
    with pytest.raises(InputError, match=case.says):
        check_image_input(image_model(*case.tensors), (8, 6))


def test_one_channel_where_the_data_has_one() -> None:
    check_image_input(image_model(image_input("uint8", 1, 8, 6, 1)), (8, 6), channels=1)


# --- names and texts


def test_names_that_a_signature_can_have() -> None:
    assert argument_names(["image:0", "a/b-c", "a.b_c", "1st", ":0", "Image"]) == [
        "image", "a_b_c", "a_b_c_2", "x1st", "tensor", "Image",
    ]  # fmt: skip
    assert distinct_names(["a", "", "a", "b"], "input") == ["input_0", "input_1", "input_2", "b"]


def test_what_a_damaged_file_held_can_be_printed() -> None:
    text = one_line(ValueError("a\udcede\x00b\n\x1b[1mc\x1b[0m" + "d" * 1000))
    assert text.encode()
    assert text.startswith("a\ufffde\ufffdb cd")
    assert len(text) < 450
    assert printable("Exception from src/core/a-b.cpp:12: no") == "no"


def test_classes_that_keras_does_not_have() -> None:
    dense = {"module": "keras.layers", "class_name": "Dense", "registered_name": None}
    own = {"module": None, "class_name": "Own", "registered_name": "Own", "config": {}}
    package = {"module": None, "class_name": "Own", "registered_name": "mine>Own", "config": {}}
    function = {"module": "builtins", "class_name": "function", "config": "squared", "registered_name": "function"}
    code = {"class_name": "__lambda__", "config": {"value": "4wAAAA=="}}
    layer = {"module": "keras.layers", "class_name": "Lambda", "config": {"name": "plus", "function": code}}
    legacy = {"class_name": "Lambda", "config": {"name": "plus", "function": ["4wAAAA==", None, None]}}
    assert list(_foreign({**dense, "config": {"activation": "relu"}})) == []
    assert list(_foreign([{**dense, "config": {"activation": function}}, own, package])) == [
        "squared",
        "Own",
        "mine>Own",
    ]
    assert list(_foreign({"config": {"layers": [layer, legacy]}})) == ["Lambda plus", "Lambda plus"]


# --- the stage


def test_the_key_goes_by_content_and_description(tmp_path: Path) -> None:
    stage = ImportStage(path=str(write_model(tmp_path, "m.onnx")), cpu_limit_s=3)
    assert stage.key_config() == {"description": ModelDescription().model_dump(mode="json"), "backend": "tensorflow"}
    assert stage.fingerprint() == model_fingerprint(tmp_path / "m.onnx")
    with pytest.raises(InputError, match="There is no model"):
        ImportStage(path=str(tmp_path / "gone.onnx")).fingerprint()


def test_a_file_that_is_no_model_starts_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(InputError, match="There is no model"):
        inspect_in_child(tmp_path / "gone.onnx", ModelDescription())


CRASHES = """
import os, signal
from typing import ClassVar
from pipeline.stages.import_model import ImportStage, _cpu_limit


class Crashing(ImportStage):
    how: str = ""

    def run(self, inputs, out_dir, tell):
        if self.how == "busy":
            with _cpu_limit(0.2):
                while True:
                    pass
        if self.how == "exit":
            os._exit(1)
        os.kill(os.getpid(), getattr(signal, self.how))
"""


@pytest.fixture
def crashing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Runs a stage that ends its process in a way of choice."""
    name = "stages_of_the_imports_test"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / f"{name}.py").write_text(CRASHES)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    module = importlib.import_module(name)
    path = write_model(tmp_path, "m.tflite")

    def run(how: str) -> None:
        with StageExecutor([].append) as executor:
            executor.run(module.Crashing(path=str(path), how=how), {}, tmp_path)

    yield run
    del sys.modules[name]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("SIGSEGV", "crashes the parser of its format: it is damaged or not a TensorFlow Lite model .*SIGSEGV"),
        ("SIGABRT", "SIGABRT"),
        ("SIGKILL", "memory runs out"),
        ("exit", "exited with status 1"),
        ("busy", r"busy without end \(it was stopped after 180 s"),
    ],
)
def test_a_parser_that_crashes_was_given_a_bad_file(crashing: Callable[[str], None], how: str, says: str) -> None:
    with pytest.raises(ModelFileError, match=says) as caught:
        crashing(how)
    assert caught.value.exit_code == 2
    assert "m.tflite" in caught.value.message
    assert "\n" not in caught.value.message


def test_a_process_that_somebody_ended_says_nothing_about_the_file(crashing: Callable[[str], None]) -> None:
    with pytest.raises(StageCrashError):
        crashing("SIGTERM")


def test_a_bug_of_ours_is_told_with_the_file_that_showed_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise KeyError("odd\nthing")

    monkeypatch.setattr("pipeline.imports.IMPORTERS", {"tflite": fail})
    path = write_model(tmp_path, "m.tflite")
    with pytest.raises(ModelFileError, match=r"m.tflite can't be read as a TensorFlow Lite model: KeyError") as caught:
        import_model(path, tmp_path, ModelDescription())
    assert "\n" not in caught.value.message
