"""Tensors as the Open Inference Protocol writes them: JSON, and the extension for binary tensors.

See "Open Inference Protocol", version 2, REST, and its binary tensor data extension: the header
`Inference-Header-Content-Length` says where the JSON ends; the bytes of the tensors follow in the order of the JSON,
row-major and little-endian.
"""

from __future__ import annotations

import itertools
import json
import math
from typing import Any, Dict, List, Mapping, NamedTuple, NoReturn, Optional, Sequence, Set, Tuple

import numpy as np

from ..model import InstalledModel
from ..runners.contract import Feed, find_tensor, names_of
from .wire import HttpError, Response

Array = np.ndarray

DATATYPES = {
    "bool": "BOOL",
    **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
}
"""The protocol's names of NumPy's types."""

JSON_BYTES_PER_VALUE = 32
JSON_BYTES_BESIDE_VALUES = 64 * 1024
HEADER_LENGTH = "Inference-Header-Content-Length"

_MAX_DIGITS = 400
_AS_ZEROS = bytes(0x30 if 0x30 <= byte <= 0x39 else byte for byte in range(256))
_MAX_ID_LENGTH = 256
_PLAIN_TYPES: Dict[str, Set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}


class Call(NamedTuple):
    """One inference that a client asks for.

    Attributes:
        id: That the answer repeats, or None.
        arrays: All inputs in the order of the model's.
        outputs: Indices of the outputs to answer with, each with whether its bytes follow the JSON.
    """

    id: Optional[str]
    arrays: List[Array[Any, Any]]
    outputs: List[Tuple[int, bool]]


def model_metadata(model: InstalledModel) -> Dict[str, Any]:
    """What `/v2/models/NAME` answers."""
    return {
        "name": model.release.name,
        "versions": [model.release.digest],
        "platform": f"{model.release.runtime}_{model.release.precision}".rstrip("_"),
        "inputs": [
            {"name": feed.name, "datatype": DATATYPES[feed.dtype.name], "shape": list(feed.shape)}
            for feed in model.feeds
        ],
        "outputs": [
            {
                "name": record["name"],
                "datatype": DATATYPES[record["dtype"]],
                "shape": [-1 if size is None else size for size in record["shape"] or [None]],
            }
            for record in model.outputs
        ],
    }


def json_limit(feeds: Sequence[Feed]) -> int:
    """How many bytes the JSON of a request may have: enough for every value, written out."""
    return JSON_BYTES_BESIDE_VALUES + JSON_BYTES_PER_VALUE * sum(math.prod(feed.shape) for feed in feeds)


def binary_limit(feeds: Sequence[Feed]) -> int:
    """How many bytes of tensors may follow the JSON."""
    return sum(math.prod(feed.shape) * feed.dtype.itemsize for feed in feeds)


def parse_object(data: bytes) -> Dict[str, Any]:
    """Reads a JSON object that nobody vouches for.

    Raises:
        HttpError: It is none.
    """
    # Older Pythons take quadratic time for a long number. A search for a run of any digits would take as long as all
    # of the JSON; one for zeros takes a thirtieth of that.
    if b"0" * _MAX_DIGITS in data.translate(_AS_ZEROS):
        raise HttpError(400, "the JSON holds a number of 400 digits or more")
    try:
        values = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise HttpError(400, f"the body is no JSON: {str(error)[:200]}") from error
    if not isinstance(values, dict):
        raise HttpError(400, f"the JSON is {_kind(values)}; expected an object")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON; send such values as a binary tensor")


def read_call(data: bytes, binary: Optional[Array[Any, Any]], model: InstalledModel) -> Call:
    """Reads a request for an inference.

    Args:
        data: The JSON.
        binary: uint8 `(bytes,)`, what follows it; None where the request has no such part. The arrays of the call
            share its memory where they can.
        model: That it is for.

    Raises:
        HttpError: The request is not of the protocol, or does not fit the model.
    """
    request = parse_object(data)
    identity = request.get("id")
    if identity is not None and (not isinstance(identity, str) or len(identity) > _MAX_ID_LENGTH):
        raise HttpError(400, f"the id is {_kind(identity)}; expected a text of {_MAX_ID_LENGTH} characters at most")
    parameters = _parameters(request, "the request")
    given = _objects(request.get("inputs"), "inputs")
    arrays: List[Optional[Array[Any, Any]]] = [None] * len(model.feeds)
    offset = 0
    for tensor in given:
        index = _index(model.inputs, tensor, "input")
        if arrays[index] is not None:
            raise HttpError(400, f"the input '{model.feeds[index].name}' is given twice; expected once")
        array, size = _input(tensor, model.feeds[index], binary, offset)
        arrays[index] = array
        offset += size
    if binary is not None and offset != binary.size:
        raise HttpError(400, f"{binary.size} bytes follow the JSON, whose inputs name {offset}; expected as many")
    whole = [array for array in arrays if array is not None]
    if len(whole) != len(arrays):
        raise HttpError(400, f"{len(whole)} of {len(arrays)} inputs are given; expected {names_of(model.inputs)}")
    return Call(identity, whole, _wanted(request, parameters, model))


def _wanted(request: Mapping[str, Any], parameters: Mapping[str, Any], model: InstalledModel) -> List[Tuple[int, bool]]:
    """Which outputs, and which of them in binary."""
    all_binary = parameters.get("binary_data_output") is True
    if request.get("outputs") in (None, []):
        return [(index, all_binary) for index in range(len(model.outputs))]
    wanted: Dict[int, bool] = {}
    for tensor in _objects(request["outputs"], "outputs"):
        index = _index(model.outputs, tensor, "output")
        own = _parameters(tensor, f"the output '{model.outputs[index]['name']}'")
        wanted[index] = own.get("binary_data", all_binary) is True
    return list(wanted.items())


def _parameters(values: Mapping[str, Any], owner: str) -> Dict[str, Any]:
    parameters = values.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise HttpError(400, f"the parameters of {owner} are {_kind(parameters)}; expected an object")
    for name in ("classification", "shared_memory_region"):
        if parameters.get(name):
            raise HttpError(400, f"the parameter {name} of {owner} is not supported here; leave it out")
    return parameters


def _objects(values: Any, name: str) -> List[Dict[str, Any]]:
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise HttpError(400, f"'{name}' is {_kind(values)}; expected an array of objects")
    return values


def _index(records: Sequence[Dict[str, Any]], tensor: Mapping[str, Any], kind: str) -> int:
    name = tensor.get("name")
    index = find_tensor(records, name) if isinstance(name, str) else None
    if index is None:
        received = f"'{name[:64]}'" if isinstance(name, str) else _kind(name)
        raise HttpError(400, f"the model has no {kind} {received}; expected {names_of(records)}")
    return index


def _input(
    tensor: Mapping[str, Any], feed: Feed, binary: Optional[Array[Any, Any]], offset: int
) -> Tuple[Array[Any, Any], int]:
    """One input and how many bytes it took of what follows the JSON."""
    shape, datatype = tensor.get("shape"), tensor.get("datatype")
    same = isinstance(shape, list) and all(type(size) is int for size in shape) and tuple(shape) == feed.shape
    if not same or datatype != DATATYPES[feed.dtype.name]:
        received = f"{str(datatype)[:16]} {str(shape)[:64]}"
        raise HttpError(
            400, f"the input '{feed.name}' is {received}; expected {DATATYPES[feed.dtype.name]} {list(feed.shape)}"
        )
    size = _parameters(tensor, f"the input '{feed.name}'").get("binary_data_size")
    if size is None:
        return _from_json(tensor.get("data"), feed), 0
    expected = math.prod(feed.shape) * feed.dtype.itemsize
    if binary is None or type(size) is not int or size != expected or offset + size > binary.size or "data" in tensor:
        raise HttpError(
            400,
            f"the bytes of the input '{feed.name}' are not all there, or it has data as well: its binary_data_size is "
            f"{str(size)[:32]}, expected {expected}, and {HEADER_LENGTH} must say where the JSON ends",
        )
    return _from_bytes(binary[offset : offset + size], feed), size


def _from_bytes(part: Array[Any, Any], feed: Feed) -> Array[Any, Any]:
    if feed.dtype.kind == "b":  # any byte but 0 and 1 would be no value of the type
        return np.asarray(part != 0).reshape(feed.shape)
    values = part.view(feed.dtype).reshape(feed.shape)
    return values if values.flags.aligned else values.copy()


def _from_json(data: Any, feed: Feed) -> Array[Any, Any]:
    """The values of a flat or a nested array; nothing is cast but whole numbers to floats.

    NumPy is only given a flat list of numbers: it would make texts as long as the longest of them of a list of texts.
    """
    values = _flat(data, feed)
    kind = feed.dtype.kind
    if not set(map(type, values)) <= _PLAIN_TYPES[kind]:
        raise HttpError(400, f"the data of the input '{feed.name}' holds something else than {feed.dtype.name}")
    if feed.dtype == np.uint8:  # images: several times faster than by way of 64 bits
        try:
            return np.frombuffer(bytearray(values), np.uint8).reshape(feed.shape)
        except ValueError as error:
            raise HttpError(400, f"the data of the input '{feed.name}' is out of range; expected 0 to 255") from error
    wide = {"i": np.int64, "u": np.uint64, "f": np.float64, "b": np.bool_}[kind]
    try:
        array: Array[Any, Any] = np.array(values, wide)
    except (OverflowError, ValueError) as error:
        raise HttpError(400, f"the data of the input '{feed.name}' is out of range: {str(error)[:100]}") from error
    if kind in "iu":
        limits = np.iinfo(feed.dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise HttpError(
                400, f"the data of the input '{feed.name}' is out of range; expected {limits.min} to {limits.max}"
            )
    with np.errstate(over="ignore"):
        return array.astype(feed.dtype).reshape(feed.shape)


def _flat(data: Any, feed: Feed) -> List[Any]:
    count = math.prod(feed.shape)
    if isinstance(data, list) and (not data or type(data[0]) is not list):
        if len(data) != count:
            raise HttpError(400, f"the input '{feed.name}' has {len(data)} values; expected {count}")
        return data
    level, sizes = [data], feed.shape
    for size in sizes:
        if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
            raise HttpError(
                400, f"the data of the input '{feed.name}' is no array of the shape {list(sizes)}, nested or flat"
            )
        level = list(itertools.chain.from_iterable(level))
    return level


def answer(call: Call, model: InstalledModel, answers: Sequence[Array[Any, Any]]) -> Response:
    """What the client gets; the answers are copied.

    Raises:
        HttpError: A value is no finite number, which JSON can't hold.
    """
    tensors: List[Dict[str, Any]] = []
    parts: List[bytes] = []
    for index, binary in call.outputs:
        values, name = answers[index], model.outputs[index]["name"]
        tensor: Dict[str, Any] = {
            "name": name,
            "datatype": DATATYPES[values.dtype.name],
            "shape": list(values.shape),
        }
        if binary:
            parts.append(values.tobytes())
            tensor["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            tensor["data"] = values.reshape(-1).tolist()
        tensors.append(tensor)
    record: Dict[str, Any] = {"model_name": model.release.name, "model_version": model.release.digest}
    if call.id is not None:
        record["id"] = call.id
    record["outputs"] = tensors
    try:
        text = json.dumps(record, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise HttpError(500, "the model answers with a value that JSON can't hold; ask for binary data") from error
    if not parts:
        return Response(200, text)
    headers = {HEADER_LENGTH: str(len(text))}
    return Response(200, b"".join([text, *parts]), "application/octet-stream", headers)


def _kind(value: Any) -> str:
    """What JSON calls a value."""
    names = {dict: "an object", list: "an array", str: "a text", bool: "a truth value", type(None): "missing"}
    return names.get(type(value), "a number")
