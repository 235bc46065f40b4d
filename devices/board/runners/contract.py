"""What every runner is, and the checks that they share."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Protocol, Sequence, Tuple

import numpy as np

from ..errors import ModelRejected

Array = np.ndarray
InputShapes = Mapping[str, Sequence[int]]

INPUT_DTYPES = (
    *("float16", "float32", "float64", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)


_REMEMBERED = 4
"""Sets of inputs: as many as an agent prepares."""


class Runner(Protocol):
    """One model in one runtime."""

    def load(self, path: str, *, num_threads: int, input_shapes: Optional[InputShapes] = None) -> None:
        """Reads and prepares the model.

        Args:
            path: The file.
            num_threads: Of one inference.
            input_shapes: By name, the whole shape of an input that has free dimensions. Without an entry a
                free first dimension (the batch) becomes 1.

        Raises:
            RuntimeMissing: The runtime is not installed.
            ModelRejected: The runtime raised while it loaded the file, or the shapes don't fit its inputs.
        """

    def infer(self, inputs: Sequence[Array[Any, Any]]) -> List[Array[Any, Any]]:
        """Runs the model once.

        Args:
            inputs: All inputs in the order of `describe`, each of exactly the shape and dtype that the model
                was loaded with, C-contiguous; nothing is cast.

        Returns:
            All outputs in the order of `describe`. The arrays may be overwritten by the next call.

        Raises:
            ValueError: An input is missing or is of another shape, dtype or order in memory.
        """

    def describe(self) -> Dict[str, Any]:
        """The runtime and the model's tensors.

        Returns:
            `runtime`, `version`, `package`, and `inputs` and `outputs`: lists of `tensor_record`, in the
            order of the file. Converters do not keep that order, so tensors are told apart by name.
        """


class Feed(NamedTuple):
    """What an input is fed with: the file's record with every dimension fixed."""

    name: str
    shape: Tuple[int, ...]
    dtype: np.dtype[Any]


def tensor_record(
    name: str,
    shape: Optional[Sequence[Any]],
    dtype: str,
    *,
    quantization: Optional[Dict[str, Any]] = None,
    aliases: Sequence[str] = (),
) -> Dict[str, Any]:
    """One tensor for `describe`, of JSON values.

    Args:
        name: How it is addressed.
        shape: As in the file; a dimension without a fixed size (negative, a text, None) is None in the record.
            None where not even the number of dimensions is fixed.
        dtype: NumPy's name of the type, or the runtime's own where NumPy has none.
        quantization: See `devices.board.quantization`; None where the tensor holds its values themselves.
        aliases: Further names by which the runtime knows it.

    Returns:
        `name`, `shape`, `dtype`, `quantization`, and `aliases` where it has any.
    """
    sizes = None
    if shape is not None:
        sizes = [int(size) if isinstance(size, (int, np.integer)) and size >= 0 else None for size in shape]
    record: Dict[str, Any] = {"name": name, "shape": sizes, "dtype": dtype, "quantization": quantization}
    others = sorted({alias for alias in aliases if alias and alias != name})
    return {**record, "aliases": others} if others else record


def with_distinct_names(records: List[Dict[str, Any]], kind: str) -> List[Dict[str, Any]]:
    """The records, those without a name of their own renamed to `<kind>_<index>`, such as `input_1`."""
    names = [record["name"] for record in records]
    return [
        record if record["name"] and names.count(record["name"]) == 1 else {**record, "name": f"{kind}_{index}"}
        for index, record in enumerate(records)
    ]


def find_tensor(records: Sequence[Dict[str, Any]], name: str) -> Optional[int]:
    """The index of the tensor with that name or alias; None where there is none."""
    for index, record in enumerate(records):
        if record["name"] == name:
            return index
    for index, record in enumerate(records):
        if name in record.get("aliases", ()):
            return index
    return None


def names_of(records: Sequence[Dict[str, Any]]) -> str:
    """The names of tensors, for a message."""
    return ", ".join(f"'{record['name']}'" for record in records)


def make_feeds(records: Sequence[Dict[str, Any]], input_shapes: Optional[InputShapes] = None) -> List[Feed]:
    """The shapes and types to feed, in the order of the records.

    Args:
        records: The model's inputs.
        input_shapes: See `Runner.load`.

    Raises:
        ModelRejected: The model has no inputs, or one of a type that can't be fed; an input keeps a free
            dimension; or an entry names no input or does not fit it.
    """
    if not records:
        raise ModelRejected("the model has no inputs; expected at least one, for its answers would all be the same")
    given: Dict[int, Tuple[int, ...]] = {}
    for name, shape in (input_shapes or {}).items():
        index = find_tensor(records, name)
        if index is None:
            raise ModelRejected(
                f"a shape is given for the input '{name}', but the model has no such input; it has: {names_of(records)}"
            )
        if index in given:
            raise ModelRejected(f"two shapes are given for the input '{records[index]['name']}'; give one")
        given[index] = _fitting_shape(records[index], shape)
    return [_feed(record, given.get(index)) for index, record in enumerate(records)]


def _fitting_shape(record: Dict[str, Any], shape: Sequence[int]) -> Tuple[int, ...]:
    """A given shape, where it agrees with all that the file fixes."""
    name, sizes = record["name"], record["shape"]
    whole = isinstance(shape, (list, tuple)) and all(type(size) is int and size >= 1 for size in shape)
    if not whole:
        raise ModelRejected(f"the shape given for the input '{name}' is {shape!r}; expected whole numbers from 1 on")
    fits = sizes is None or (
        len(sizes) == len(shape) and all(size in (None, wanted) for size, wanted in zip(sizes, shape))
    )
    if not fits:
        raise ModelRejected(
            f"the shape given for the input '{name}' is {list(shape)}, but the model takes {_shape_text(record)}; "
            "only free dimensions can be chosen"
        )
    return tuple(shape)


def _feed(record: Dict[str, Any], given: Optional[Tuple[int, ...]]) -> Feed:
    """One input with every dimension fixed."""
    name, shape, dtype = record["name"], record["shape"], record["dtype"]
    if dtype not in INPUT_DTYPES:
        raise ModelRejected(f"input '{name}' has the type {dtype}; expected one of: {', '.join(INPUT_DTYPES)}")
    if given is None:
        if shape is not None and shape[:1] == [None]:
            shape = [1, *shape[1:]]
        if shape is None or None in shape:
            raise ModelRejected(
                f"input '{name}' has the shape {_shape_text(record)}, where only the first dimension may be free; "
                f"give a shape for '{name}' (such as {_example(shape)}), or export the model with a fixed one"
            )
        given = tuple(shape)
    return Feed(name, given, np.dtype(dtype))


def _shape_text(record: Dict[str, Any]) -> str:
    """The shape as people write it: `(1, ?, ?, 3)`."""
    if record["shape"] is None:
        return "of any rank"
    sizes = ["?" if size is None else str(size) for size in record["shape"]]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _example(shape: Optional[Sequence[Optional[int]]]) -> List[int]:
    return [1, 224, 224, 3] if shape is None else [224 if size is None else size for size in shape]


class PreparedInputs:
    """What a runtime is fed with, by the arrays that it was made of.

    An inference is timed with what has to be done for its inputs. Arrays that come again, as the prepared ones of a
    measurement do, were looked at before: doing that again took 25 of 700 microseconds (MobileNetV3-Small in int8,
    OpenVINO, a busy machine). Their values may change, their shape, type and memory not.

    Args:
        feeds: What the inputs are.
        make: Makes what the runtime takes of arrays that fit.
    """

    def __init__(self, feeds: Sequence[Feed], make: Callable[[Sequence[Array[Any, Any]]], Any]) -> None:
        self._feeds, self._make = feeds, make
        self._known: Dict[Tuple[int, ...], Tuple[List[Array[Any, Any]], Any]] = {}

    def of(self, inputs: Sequence[Array[Any, Any]]) -> Any:
        """What the runtime takes.

        Raises:
            ValueError: See `check_inputs`.
        """
        key = tuple(map(id, inputs))
        found = self._known.get(key)
        if found is None:
            check_inputs(inputs, self._feeds)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            # The arrays are kept, so that no other can get the id of one of them.
            found = self._known[key] = list(inputs), self._make(inputs)
        return found[1]


def check_inputs(inputs: Sequence[Array[Any, Any]], feeds: Sequence[Feed]) -> None:
    """Refuses inputs that are not exactly what the model takes. It runs inside what is timed.

    Raises:
        ValueError: Another number of inputs, shape or dtype, or not C-contiguous.
    """
    if len(inputs) != len(feeds):
        names = ", ".join(f"'{feed.name}'" for feed in feeds)
        raise ValueError(f"the model takes {len(feeds)} inputs ({names}), but {len(inputs)} are given")
    for array, (name, shape, dtype) in zip(inputs, feeds):
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(
                f"the model's input '{name}' takes {dtype.name} {shape}, but it is given {array.dtype.name} "
                f"{array.shape}; nothing is cast"
            )
        if not array.flags.c_contiguous:
            raise ValueError(f"what the input '{name}' is given is not C-contiguous; pass np.ascontiguousarray of it")
