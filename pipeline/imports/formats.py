"""Which of the five formats a model is in, by its name and by its first bytes; no runtime is loaded."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree as ET

from pipeline.errors import InputError, ModelFileError
from pipeline.imports import wire

ModelFormat = Literal["keras", "saved_model", "onnx", "tflite", "openvino"]

TITLES: dict[ModelFormat, str] = {
    "keras": "a Keras model",
    "saved_model": "a TensorFlow SavedModel",
    "onnx": "an ONNX model",
    "tflite": "a TensorFlow Lite model",
    "openvino": "an OpenVINO model",
}

EXPECTED = "a .keras file, a SavedModel directory, an .onnx, a .tflite or an OpenVINO .xml file"

_SUFFIXES: dict[str, ModelFormat] = {
    ".keras": "keras",
    ".h5": "keras",
    ".hdf5": "keras",
    ".onnx": "onnx",
    ".tflite": "tflite",
    ".xml": "openvino",
}

_TORCH = (
    "it is PyTorch's own format, which needs the code of the network to be read. In PyTorch, write it as ONNX with "
    "torch.onnx.export(model, example, 'model.onnx', external_data=False)"
)
_REFUSED: dict[str, str] = {
    ".pt": _TORCH,
    ".pth": _TORCH,
    ".ckpt": "a checkpoint holds weights without an architecture. Load it where the network is defined and export that",
    ".safetensors": (
        "it holds weights without an architecture. Load it where the network is defined and export that: "
        "torch.onnx.export in PyTorch, model.save('model.keras') in Keras"
    ),
    ".pb": (
        "a graph alone is not enough. Of a SavedModel, give the directory that holds saved_model.pb; write a frozen "
        "graph as ONNX with python -m tf2onnx.convert --graphdef"
    ),
    ".bin": "it holds weights alone. Of an OpenVINO model, give the .xml beside it",
    ".npz": "it holds arrays without an architecture. Load them where the network is defined and export that",
    ".pkl": "a pickle runs code when it is read. Export the model from the framework that made it",
    ".mlmodel": "Core ML models are for Apple's devices. Export the model again from the framework that it came from",
}
_WEIGHTS = "it holds weights without an architecture: use model.weights with model.name"

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"
_LFS = b"version https://git-lfs"

# Field numbers of onnx.proto that lead to tensors, which may lie in files of their own.
_EXTERNAL_DATA = 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_TENSOR: dict[int, Any] = {_EXTERNAL_DATA: None}
_SPARSE: dict[int, Any] = {1: lambda: _TENSOR, 2: lambda: _TENSOR}
_ATTRIBUTE: dict[int, Any] = {
    5: lambda: _TENSOR,
    6: lambda: _GRAPH,
    10: lambda: _TENSOR,
    11: lambda: _GRAPH,
    22: lambda: _SPARSE,
    23: lambda: _SPARSE,
}
_NODE: dict[int, Any] = {5: lambda: _ATTRIBUTE}
_GRAPH: dict[int, Any] = {1: lambda: _NODE, 5: lambda: _TENSOR, 15: lambda: _SPARSE}
_FUNCTION: dict[int, Any] = {7: lambda: _NODE}
_MODEL: dict[int, Any] = {7: lambda: _GRAPH, 25: lambda: _FUNCTION}
_MODEL_GRAPH = 7


def format_of(path: Path) -> ModelFormat:
    """Returns the format of a model.

    Args:
        path: A file, or the directory of a SavedModel.

    Raises:
        InputError: There is no such file, or its name is that of no format which can be imported.
        ModelFileError: The content is not what the name says, or it is cut off.
    """
    try:
        if path.is_dir():
            return _directory_format(path)
        if not path.is_file():
            raise InputError(f"There is no model {path}. Give the path of {EXPECTED}.")
        return _file_format(path)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}): check its permissions.") from error


def model_files(path: Path) -> tuple[Path, ...]:
    """Returns all files that a model consists of, in a fixed order.

    Raises:
        InputError: As of `format_of`.
        ModelFileError: As of `format_of`, or a file that the model refers to is missing.
    """
    kind = format_of(path)
    if kind == "saved_model":
        return tuple(sorted(file for file in path.rglob("*") if file.is_file()))
    if kind == "openvino":
        return (path, path.with_suffix(".bin"))
    return (path, *external_files(path)) if kind == "onnx" else (path,)


def model_fingerprint(path: Path) -> str:
    """Returns the SHA-256 over the format and all files of a model; no runtime is loaded.

    Raises:
        InputError: As of `model_files`.
        ModelFileError: As of `model_files`.
    """
    digest = hashlib.sha256(format_of(path).encode())
    for file in model_files(path):
        # The name of the only or the first file is the user's; of the others the model knows the name.
        inside = path if path.is_dir() else path.parent
        name = "" if file == path or file.suffix == ".bin" else file.relative_to(inside).as_posix()
        try:
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"{file} can't be read ({error.strerror}): check its permissions.") from error
        digest.update(f"{name}\0{content}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def external_files(path: Path) -> tuple[Path, ...]:
    """Returns the files that hold weights of an ONNX model outside of it.

    Raises:
        ModelFileError: One is missing or lies outside the model's directory, or the model is damaged.
    """
    with _mapped(path) as data:
        try:
            entries = {_entry(data, begin, end) for begin, end in wire.messages(data, 0, len(data), _MODEL)}
        except wire.WireError as error:
            raise _damaged(path, "onnx", str(error)) from error
    files = []
    for location in sorted(value for key, value in entries if key == "location"):
        file = path.parent / location
        if not file.resolve().is_relative_to(path.parent.resolve()):
            raise ModelFileError(
                f"{path} takes weights from {location}, outside its directory. Expected a file beside the model; "
                f"export it again with its weights inside."
            )
        if not file.is_file():
            raise ModelFileError(
                f"{path} takes weights from {location}, but there is no {file}. Copy it beside the model, under "
                f"this name, or export the model again with its weights inside."
            )
        files.append(file)
    return tuple(files)


def _directory_format(path: Path) -> ModelFormat:
    if (path / "saved_model.pb").is_file():
        if (path / "saved_model.pb").stat().st_size == 0:
            raise _damaged(path / "saved_model.pb", "saved_model", "it is empty")
        return "saved_model"
    held = sorted(entry.name for entry in path.iterdir())[:5]
    if path.suffix == ".mlpackage":
        raise ModelFileError(f"{path} can't be imported: {_REFUSED['.mlmodel']}.")
    raise ModelFileError(
        f"{path} is a directory without a saved_model.pb (it holds: {', '.join(held) or 'nothing'}). "
        f"Expected a SavedModel, or the path of a file: {EXPECTED}."
    )


def _file_format(path: Path) -> ModelFormat:
    name, suffix = path.name.lower(), path.suffix.lower()
    if name.endswith((".weights.h5", ".weights.hdf5")):
        raise InputError(f"{path} can't be imported: {_WEIGHTS}.")
    if suffix in _REFUSED:
        raise InputError(f"{path} can't be imported: {_REFUSED[suffix]}. Expected {EXPECTED}.")
    if suffix not in _SUFFIXES:
        raise InputError(f"{path} ends in {suffix or 'no suffix'}; expected {EXPECTED}.")
    kind = _SUFFIXES[suffix]
    _CHECKS[kind](path)
    return kind


def _check_keras(path: Path) -> None:
    head = _head(path)
    if path.suffix.lower() != ".keras":
        if not head.startswith(_HDF5):
            raise _mismatch(path, "an HDF5 file")
        return
    if not head.startswith(_ZIP):
        raise _mismatch(path, "a zip archive with a config.json")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise _damaged(path, "keras", str(error)) from error
    if "config.json" not in names:
        raise _mismatch(path, "a zip archive with a config.json")


def _check_onnx(path: Path) -> None:
    head = _head(path)
    if not head or _known(head) is not None:
        raise _mismatch(path, "an ONNX protocol buffer")
    with _mapped(path) as data:
        has_graph = False
        try:
            for field in wire.fields(data, 0, len(data)):
                has_graph = has_graph or (field.number == _MODEL_GRAPH and field.wire == wire.BYTES)
        except wire.WireError as error:
            raise _damaged(path, "onnx", str(error)) from error
    if not has_graph:
        raise _mismatch(path, "an ONNX protocol buffer with a graph")


def _check_tflite(path: Path) -> None:
    if _head(path)[4:8] != b"TFL3":
        raise _mismatch(path, "a flatbuffer with the identifier TFL3 at byte 4")


def _check_openvino(path: Path) -> None:
    head = _head(path)
    if not head or _known(head) not in {None, "an XML file"}:
        raise _mismatch(path, "an XML file whose root is <net>")
    try:
        with path.open("rb") as stream:
            parser = ET.iterparse(stream, events=("start",))  # noqa: S314 (a local file; only its root is read)
            root = str(next(iter(parser))[1].tag)
    except (ET.ParseError, StopIteration, ValueError, LookupError) as error:
        raise _damaged(path, "openvino", str(error)) from error
    if root != "net":
        raise ModelFileError(
            f"{path} is no OpenVINO model: expected an XML file whose root is <net>, found <{root}>. "
            f"Give the .xml that openvino.save_model wrote."
        )
    if not path.with_suffix(".bin").is_file():
        raise ModelFileError(
            f"The weights {path.with_suffix('.bin')} are missing beside {path}. Copy both files of the model together."
        )


_CHECKS: dict[ModelFormat, Callable[[Path], None]] = {
    "keras": _check_keras,
    "onnx": _check_onnx,
    "tflite": _check_tflite,
    "openvino": _check_openvino,
}


def _mismatch(path: Path, expected: str) -> ModelFileError:
    return ModelFileError(
        f"{path} is not what its name says: expected {expected}, found {_found(path)}. "
        f"Give the file under its right name, or export it again."
    )


def _damaged(path: Path, kind: ModelFormat, reason: str) -> ModelFileError:
    return ModelFileError(
        f"{path} is damaged or cut off ({reason.rstrip('.')}). Expected the whole of {TITLES[kind]}; copy or export it "
        f"again."
    )


def _found(path: Path) -> str:
    """Returns what a file is, as far as its first bytes say it."""
    head = _head(path)
    if head.startswith(_ZIP):
        with contextlib.suppress(zipfile.BadZipFile, ValueError, NotImplementedError), zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if "config.json" in names:
                return "a Keras archive (.keras)"
            if any(name.endswith("data.pkl") for name in names):
                return f"a PyTorch archive ({_TORCH})"
            return f"a zip archive that holds {', '.join(names[:3]) or 'nothing'}"
        return "the beginning of a zip archive"
    return _known(head) or (f"other data, which begins with {head[:8]!r}" if head else "an empty file")


def _known(head: bytes) -> str | None:
    """Returns what the first bytes belong to; None where that is not known."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    known = (
        (head.startswith(_ZIP), "a zip archive"),
        (head.startswith(_HDF5), "an HDF5 file (.h5)"),
        (head[4:8] == b"TFL3", "a TensorFlow Lite model (.tflite)"),
        (head.startswith(_LFS), "a Git LFS pointer, not the file itself: run `git lfs pull`"),
        (text.startswith((b"<!doctype html", b"<html")), "a web page, so the download went wrong"),
        (text.startswith((b"<?xml", b"<net")), "an XML file"),
        (head.startswith(b"\x1f\x8b"), "a gzip archive, which has to be unpacked"),
        (head.startswith((b"\x80\x02", b"\x80\x04")), "a Python pickle"),
    )
    return next((name for matches, name in known if matches), None)


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(256)


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[Any]:
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _entry(data: Any, begin: int, end: int) -> tuple[str, str]:
    """Returns the key and the value of one `StringStringEntryProto`."""
    found = {
        field.number: bytes(data[field.begin : field.end]).decode("utf-8", "replace")
        for field in wire.fields(data, begin, end)
        if field.wire == wire.BYTES
    }
    return found.get(_ENTRY_KEY, ""), found.get(_ENTRY_VALUE, "")
