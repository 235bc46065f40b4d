"""What the server answers to which path."""

from __future__ import annotations

import contextlib
import json
import math
import re
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple
from urllib.parse import parse_qs, unquote

import numpy as np

from ..errors import AgentError
from ..images import ImageRejected, decode_image
from ..memory import resident_memory_mb
from ..model import BadInput, InstalledModel
from . import metrics, protocol
from .access import Access
from .models import Copies, ServedModel, is_classifier
from .wire import Connection, ConnectionEnded, Head, HttpError, Response, aligned_bytes

SERVER_NAME = "edgeship-board"
SERVER_VERSION = "1"
EXTENSIONS = ("binary_tensor_data", "image_classification")

Array = np.ndarray

_MAX_TOP = 1000
_MIB = 1 << 20
_STARTED = time.time()
"""Of this process, as well as Python knows it."""


class Limits(NamedTuple):
    """How much a client may ask for.

    Attributes:
        image_bytes: Of one image.
        image_pixels: Of one image.
        buffered_bytes: Of the bodies of all requests together.
        wait_s: For a free copy of the model.
    """

    image_bytes: int = 16 * _MIB
    image_pixels: int = 40_000_000
    buffered_bytes: int = 64 * _MIB
    wait_s: float = 10.0


class Application:
    """The answers to requests.

    Args:
        models: That are served, by name.
        access: What clients need.
        limits: See there.
        counted: Where requests are counted.
    """

    def __init__(
        self, models: Mapping[str, ServedModel], *, access: Access, limits: Limits, counted: metrics.Metrics
    ) -> None:
        self._models, self._access, self._limits, self._metrics = models, access, limits, counted
        self._lock = threading.Lock()
        self._buffered = 0
        self.ready = True
        """Whether new requests are welcome; false once the server stops."""
        self.gauges: Dict[metrics.Family, Callable[[], List[Tuple[metrics.Labels, float]]]] = {
            ("edgeship_model_info", "gauge", "Which release is served."): self._info,
            ("edgeship_resident_memory_bytes", "gauge", "Of this process."): lambda: [
                ((), (resident_memory_mb() or math.nan) * _MIB)
            ],
            ("edgeship_buffered_bytes", "gauge", "Of the bodies of requests."): lambda: [((), float(self._buffered))],
            ("process_start_time_seconds", "gauge", "When this process started, Unix time."): lambda: [((), _STARTED)],
        }

    def handle(self, head: Head, connection: Connection) -> Tuple[str, Response]:
        """Answers one request; its body is read where it is needed.

        Returns:
            The endpoint's name for the metrics, and the answer.
        """
        endpoint = "other"
        try:
            self._access.check(head.headers)
            endpoint, methods, answer = self._find([unquote(part) for part in head.path.split("/")[1:]])
            if head.method not in methods:
                allowed = {"Allow": ", ".join(methods)}
                raise HttpError(
                    405, f"{head.method} is not answered here; expected {allowed['Allow']}", headers=allowed
                )
            return endpoint, answer(head, connection)
        except HttpError as error:
            return endpoint, error_response(error)
        except (BadInput, ImageRejected) as error:
            return endpoint, error_response(HttpError(400, str(error)))
        except MemoryError:
            return endpoint, error_response(HttpError(503, "the memory does not suffice for this request", close=True))
        except AgentError as error:
            return endpoint, error_response(HttpError(500, str(error)))

    def _find(self, parts: List[str]) -> Tuple[str, Tuple[str, ...], Callable[[Head, Connection], Response]]:
        """The endpoint's name, the methods that it knows and what answers them."""
        reading = ("GET", "HEAD")
        fixed: Dict[Tuple[str, ...], Tuple[str, Callable[[Head, Connection], Response]]] = {
            ("v2",): ("server", self._server),
            ("v2", "health", "live"): ("live", lambda *_: _json({"live": True})),
            ("v2", "health", "ready"): ("ready", self._ready),
            ("metrics",): ("metrics", self._page),
        }
        found = fixed.get(tuple(parts))
        if found is not None:
            return found[0], reading, found[1]
        if parts[:2] != ["v2", "models"] or len(parts) < 3:
            raise HttpError(404, "there is nothing at this path; expected /v2, /v2/health/..., /v2/models/NAME...")
        copies, rest = self._version(parts[2], parts[3:])
        if rest == []:
            return "model", reading, lambda *_: _json(protocol.model_metadata(copies.model))
        if rest == ["ready"]:
            return "model_ready", reading, lambda *_: _json({"name": parts[2], "ready": True})
        if rest == ["infer"]:
            return "infer", ("POST",), lambda head, connection: self._infer(parts[2], copies, head, connection)
        if rest == ["classify"]:
            return "classify", ("POST",), lambda head, connection: self._classify(parts[2], copies, head, connection)
        raise HttpError(404, "a model has nothing at this path; expected ready, infer or classify")

    def _version(self, name: str, rest: List[str]) -> Tuple[Copies, List[str]]:
        """The copies that a path means, and what follows of it."""
        served = self._models.get(name)
        if served is None:
            raise HttpError(404, f"there is no model '{name[:64]}'; there are: {', '.join(self._models)}")
        copies = served.copies
        if rest[:1] == ["versions"]:
            digest = copies.model.release.digest
            if rest[1:2] != [digest]:
                raise HttpError(404, f"the model '{name}' is served as version {digest} only")
            rest = rest[2:]
        return copies, rest

    def _server(self, head: Head, connection: Connection) -> Response:  # noqa: ARG002
        return _json({"name": SERVER_NAME, "version": SERVER_VERSION, "extensions": list(EXTENSIONS)})

    def _ready(self, head: Head, connection: Connection) -> Response:  # noqa: ARG002
        return _json({"ready": self.ready}, 200 if self.ready else 503)

    def _page(self, head: Head, connection: Connection) -> Response:  # noqa: ARG002
        return Response(200, self._metrics.page(self.gauges), metrics.CONTENT_TYPE)

    def _info(self) -> List[Tuple[metrics.Labels, float]]:
        return [(_info_labels(each.copies.model), 1) for each in self._models.values()]

    def _infer(self, name: str, copies: Copies, head: Head, connection: Connection) -> Response:
        feeds = copies.model.feeds
        json_limit, binary_limit = protocol.json_limit(feeds), protocol.binary_limit(feeds)
        with self._errors_counted(copies), self._reserved(head, json_limit + binary_limit) as reserve:
            text, binary = _read_parts(head, connection, json_limit, binary_limit, reserve)
            with self._models[name].place():
                call = protocol.read_call(text, binary, copies.model)
                with copies.lease(self._limits.wait_s) as model:
                    answers = self._run(model, call.arrays)
                    response = protocol.answer(call, model, answers)
                    if is_classifier(model):
                        with contextlib.suppress(AgentError):  # of another shape: no confidence to count
                            self._metrics.confidence(name, float(model.probabilities_of(answers).max()))
        return response

    def _classify(self, name: str, copies: Copies, head: Head, connection: Connection) -> Response:
        copies.model.check_classifier()
        top = _top(head.query)
        with self._errors_counted(copies), self._reserved(head, self._limits.image_bytes) as reserve:
            data = _read_all(head, connection, self._limits.image_bytes, reserve)
            with self._models[name].place():
                pixels = decode_image(data, max_pixels=self._limits.image_pixels)
                array = copies.model.prepare(pixels)
                with copies.lease(self._limits.wait_s) as model:
                    labels = model.labels_of(self._run(model, [array]), top=top)
        self._metrics.confidence(name, labels[0].probability)
        rows = [{"index": each.index, "label": each.name, "probability": each.probability} for each in labels]
        return _json({"model_name": name, "model_version": copies.model.release.digest, "labels": rows})

    def _run(self, model: InstalledModel, arrays: List[Array[Any, Any]]) -> List[Array[Any, Any]]:
        begun = time.perf_counter()
        answers = model.run(arrays)
        self._metrics.inference(model.release.name, time.perf_counter() - begun)
        return answers

    @contextlib.contextmanager
    def _errors_counted(self, copies: Copies) -> Iterator[None]:
        """Counts what `handle` and the server answer with 500 or above, by the release that was asked."""
        status = 200
        try:
            yield
        except HttpError as error:
            status = error.status
            raise
        except (BadInput, ImageRejected, ConnectionEnded, OSError):  # the client's
            raise
        except MemoryError:
            status = 503
            raise
        except Exception:
            status = 500
            raise
        finally:
            if status >= 500:
                self._metrics.model_error(copies.model.release.name, copies.model.release.digest, status)

    @contextlib.contextmanager
    def _reserved(self, head: Head, limit: int) -> Iterator[Callable[[int], None]]:
        """Memory for the body of a request, of what all of them may take; gives what reserves more, for chunks.

        Raises:
            HttpError: 411, 413, 415 or 503.
        """
        if head.headers.get("content-encoding", "identity").lower() != "identity":
            raise HttpError(415, "the body is compressed; send it as it is", close=True)
        if head.length == 0:
            raise HttpError(400, "the request has no body")
        if head.length is not None and head.length > limit:
            raise HttpError(413, f"the body has {head.length} bytes; expected {limit} at most", close=True)
        taken = 0

        def reserve(size: int) -> None:
            nonlocal taken
            with self._lock:
                if self._buffered + size > self._limits.buffered_bytes:
                    raise HttpError(
                        503,
                        "too many bytes are being received; try again later",
                        headers={"Retry-After": "1"},
                        close=True,
                    )
                self._buffered += size
            taken += size

        try:
            reserve(head.length or 0)
            yield reserve
        finally:
            with self._lock:
                self._buffered -= taken


def _read_parts(
    head: Head, connection: Connection, json_limit: int, binary_limit: int, reserve: Callable[[int], None]
) -> Tuple[bytes, Optional[Array[Any, Any]]]:
    """The JSON of an inference request, and the bytes after it: straight into memory that the model can read."""
    text = head.headers.get(protocol.HEADER_LENGTH.lower())
    if text is None:
        return _read_all(head, connection, json_limit, reserve), None
    if not re.fullmatch(r"[0-9]{1,18}", text) or (head.length is not None and int(text) > head.length):
        raise HttpError(400, f"{protocol.HEADER_LENGTH} is no part of the body's length", close=True)
    json_size = int(text)
    if json_size > json_limit:
        raise HttpError(413, f"the JSON has {json_size} bytes; expected {json_limit} at most", close=True)
    if head.length is None:
        body = connection.read_chunks(json_limit + binary_limit, reserve)
        if json_size > len(body):
            raise HttpError(400, f"{protocol.HEADER_LENGTH} is no part of the body's length")
        return bytes(body[:json_size]), np.array(np.frombuffer(body, np.uint8)[json_size:])
    binary_size = head.length - json_size
    if binary_size > binary_limit:
        raise HttpError(413, f"{binary_size} bytes follow the JSON; expected {binary_limit} at most", close=True)
    connection.expect_continue(head)
    json_view, json_bytes = aligned_bytes(json_size)
    connection.read_into(json_view)
    binary_view, binary = aligned_bytes(binary_size)
    connection.read_into(binary_view)
    return json_bytes.tobytes(), binary


def _read_all(head: Head, connection: Connection, limit: int, reserve: Callable[[int], None]) -> bytes:
    connection.expect_continue(head)
    if head.length is None:
        return bytes(connection.read_chunks(limit, reserve))
    view, array = aligned_bytes(head.length)
    connection.read_into(view)
    return array.tobytes()


def _top(query: str) -> int:
    try:
        values = parse_qs(query, max_num_fields=16).get("top", ["5"])
    except ValueError as error:
        raise HttpError(400, f"the query can't be read: {error}") from error
    if len(values) != 1 or not re.fullmatch(r"[1-9][0-9]{0,3}", values[0]) or int(values[0]) > _MAX_TOP:
        raise HttpError(400, f"top is {values[0][:16]!r}; expected a whole number from 1 to {_MAX_TOP}")
    return int(values[0])


def _info_labels(model: InstalledModel) -> metrics.Labels:
    release = model.release
    return (
        ("model", release.name),
        ("release", release.digest),
        ("sha256", release.model_sha256),
        ("runtime", release.runtime),
        ("runtime_version", model.runtime_version),
        ("precision", release.precision),
    )


def _json(values: Mapping[str, Any], status: int = 200) -> Response:
    return Response(status, json.dumps(values, separators=(",", ":")).encode())


def error_response(error: HttpError) -> Response:
    """The answer that an error is, as the protocol writes it."""
    return _json({"error": error.message}, error.status)._replace(headers=error.headers, close=error.close)
