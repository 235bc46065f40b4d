"""Whether a service is well with a release: asked over the Open Inference Protocol, or by a command of the owner.

The agent does not import this; whoever watches a service does.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Protocol, Sequence, Tuple
from urllib.parse import quote, urlsplit

from .release_service import Service

_ASK_S = 5.0
_LOOK_S = 15.0
"""A look at a server is over after so long, however slowly it goes on answering."""
_CHECK_S = 10.0
_MAX_BYTES = 4 << 20
_MAX_WORDS = 600
_KEPT_VARIABLES = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TMPDIR", "XDG_RUNTIME_DIR",
                   "DBUS_SESSION_BUS_ADDRESS")  # fmt: skip
_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_BUSY = 503
_FAULT = 500


class Unhealthy(Exception):
    """The service is not well, or not yet.

    Attributes:
        final: Whether waiting is of no use.
        busy: Whether it may only have had no time to answer.
    """

    def __init__(self, message: str, *, final: bool = False, busy: bool = False) -> None:
        super().__init__(message)
        self.final, self.busy = final, busy


class Probe(Protocol):
    """Looks at a service. Make it before a switch, so that it sees what the switch changes."""

    def check_up(self, digest: str) -> None:
        """Whether the service is up with a release.

        Raises:
            Unhealthy: It is not.
        """

    def check_well(self, digest: str) -> None:
        """Whether it is up and was so since the last time this was asked.

        Raises:
            Unhealthy: It is not, was started anew, or answers with errors.
        """


def make_probe(service: Service, name: str) -> Probe:
    """What looks at a service of a model."""
    return ServerProbe(service, name) if service.url else CommandProbe(service, name)


class CommandProbe:
    """A command of the owner."""

    def __init__(self, service: Service, name: str) -> None:
        self._service, self._name = service, name

    def check_up(self, digest: str) -> None:
        """See `Probe`."""
        run_command(
            self._service.check,
            _CHECK_S,
            what="the check",
            EDGESHIP_MODEL=self._name,
            EDGESHIP_RELEASE=digest,
        )

    def check_well(self, digest: str) -> None:
        """See `Probe`."""
        self.check_up(digest)


class Page(NamedTuple):
    """What a metrics page says.

    Attributes:
        started: When the process started, Unix time; None where it does not say.
        failed_switches: Of the model to other releases.
        errors: Of each release of the model: answers of 500 and above, without those of a server that is busy.
    """

    started: Optional[float]
    failed_switches: float
    errors: Mapping[str, float]


class ServerProbe:
    """A server that speaks the Open Inference Protocol; of `edgeship-board serve` the metrics are read as well."""

    def __init__(self, service: Service, name: str) -> None:
        self._parts, self._name = urlsplit(service.url), name
        self._token_file, self._ca = service.token_file, service.ca
        self._model = f"/v2/models/{quote(name, safe='')}"
        self._before: Optional[Page] = None
        self._settled: Optional[Page] = None
        with contextlib.suppress(Unhealthy), self._connected() as connection:
            self._before = self._page(connection)

    def check_up(self, digest: str) -> None:
        """See `Probe`."""
        with self._connected() as connection:
            self._check_served(connection, digest)

    def check_well(self, digest: str) -> None:
        """See `Probe`."""
        with self._connected() as connection:
            self._check_served(connection, digest)
            page = self._page(connection)
        if page is None:
            return
        if self._settled is None:
            self._settled = page
        if page.started != self._settled.started:
            raise Unhealthy("the server's process ended and was started anew", final=True)
        count = page.errors.get(digest, 0.0)
        if self._before is not None and self._before.started == page.started:
            count -= self._before.errors.get(digest, 0.0)
        if count > 0:
            raise Unhealthy(
                f"the server answered {count:g} requests for the model with an error of its own", final=True
            )

    def _check_served(self, connection: http.client.HTTPConnection, digest: str) -> None:
        path = f"{self._model}/ready"
        status, body = self._get(connection, path)
        if status != 200:
            raise Unhealthy(f"{path} is answered with {status}: {_shown(body)}", busy=status == _BUSY)
        status, body = self._get(connection, self._model)
        try:
            versions = json.loads(body)["versions"] if status == 200 else None
            served = [str(version) for version in versions or ()]
        except (ValueError, LookupError, TypeError, RecursionError):
            served = []
        if not served:
            raise Unhealthy(f"{self._model} is answered with {status} and no versions", busy=status == _BUSY)
        if digest in served:
            return
        page = self._page(connection)
        if page is not None and page.failed_switches > self._known_failures(page):
            raise Unhealthy(
                f"the server tried to serve the release {digest} and could not, its log says why; it serves "
                f"{', '.join(served)}",
                final=True,
            )
        raise Unhealthy(f"the server serves {', '.join(served)}, not the release {digest}")

    def _known_failures(self, page: Page) -> float:
        same = self._before is not None and self._before.started == page.started
        return self._before.failed_switches if self._before is not None and same else 0.0

    def _page(self, connection: http.client.HTTPConnection) -> Optional[Page]:
        status, body = self._get(connection, "/metrics")
        return read_page(body.decode(errors="replace"), self._name) if status == 200 else None

    def _get(self, connection: http.client.HTTPConnection, path: str) -> Tuple[int, bytes]:
        try:
            headers = {"Authorization": f"Bearer {self._token()}"} if self._token_file else {}
            connection.request("GET", self._parts.path.rstrip("/") + path, headers=headers)
            answer = connection.getresponse()
            body = answer.read(_MAX_BYTES + 1)
        except (TimeoutError, socket.timeout) as error:
            raise Unhealthy(f"{self._place} does not answer within {_ASK_S:g} s", busy=True) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unhealthy(f"{self._place} can't be asked: {error or type(error).__name__}") from error
        if len(body) > _MAX_BYTES:
            raise Unhealthy(f"{path} is answered with more than {_MAX_BYTES >> 20} MiB", final=True)
        if answer.length:  # what is left of it
            raise Unhealthy(f"{self._place} stopped in the middle of its answer to {path}")
        return answer.status, body

    def _token(self) -> str:
        with open(self._token_file, encoding="ascii") as stream:
            return stream.read().strip()

    @property
    def _place(self) -> str:
        return f"{self._parts.scheme}://{self._parts.netloc}"

    @contextlib.contextmanager
    def _connected(self) -> Iterator[http.client.HTTPConnection]:
        host, port = str(self._parts.hostname), self._parts.port
        if self._parts.scheme == "http":
            connection = http.client.HTTPConnection(host, port, timeout=_ASK_S)
        else:
            try:
                context = ssl.create_default_context(cafile=self._ca or None)
            except OSError as error:
                raise Unhealthy(f"the certificates in {self._ca} can't be used: {error}", final=True) from error
            connection = http.client.HTTPSConnection(host, port, timeout=_ASK_S, context=context)
        guard = threading.Timer(_LOOK_S, _cut, [connection])
        guard.daemon = True
        guard.start()
        try:
            with contextlib.closing(connection):
                yield connection
        finally:
            guard.cancel()


def _cut(connection: http.client.HTTPConnection) -> None:
    with contextlib.suppress(OSError, AttributeError):  # it is not connected, or not any more
        socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)  # of a TLS socket the connection below it


def read_page(text: str, name: str) -> Page:
    """What a metrics page of `edgeship-board serve` says of a model; of other servers it says little or nothing."""
    started: Optional[float] = None
    failed, errors = 0.0, dict[str, float]()
    for line in text.splitlines():
        match = _SAMPLE.fullmatch(line)
        if match is None or line.startswith("#"):
            continue
        family, labels = match[1], _labels(match[2] or "")
        with contextlib.suppress(ValueError):
            value = float(match[3])
            if family == "process_start_time_seconds":
                started = value
            elif labels.get("model") != name:
                continue
            elif family == "edgeship_model_switches_total" and labels.get("outcome") == "failed":
                failed += value
            elif family == "edgeship_model_errors_total" and labels.get("code") != str(_BUSY):
                release = labels.get("release", "")
                errors[release] = errors.get(release, 0.0) + value
    return Page(started, failed, errors)


def run_command(words: Sequence[str], limit_s: float, *, what: str, **variables: str) -> None:
    """Runs a command of the owner to its end, without a shell.

    Args:
        words: The program and its arguments.
        limit_s: Then it is killed, with all that it started and that stayed with it.
        what: It is, for messages.
        **variables: Are added to its environment.

    Raises:
        Unhealthy: It can't be started, ends with another status than 0, or not in time.
    """
    kept: Dict[str, str] = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    # A file and no pipe: what the command leaves running may keep it open.
    with tempfile.TemporaryFile() as said:
        try:
            process = subprocess.Popen(
                list(words),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={**kept, **variables},
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise Unhealthy(f"{what} {words[0]} can't be started: {error.strerror}") from error
        try:
            status = process.wait(max(0.0, limit_s))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise Unhealthy(f"{what} {words[0]} did not end within {limit_s:.3g} s", busy=True) from None
        if status != 0:
            said.seek(max(0, said.seek(0, os.SEEK_END) - _MAX_WORDS))
            ended = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            raise Unhealthy(f"{what} {words[0]} {ended}: {_shown(said.read())}")


def _labels(text: str) -> Dict[str, str]:
    found: List[Tuple[str, str]] = _LABEL.findall(text)
    return {name: re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], value) for name, value in found}


def _shown(words: Any) -> str:
    text = " ".join(words.decode(errors="replace").split())
    return text[-_MAX_WORDS:] or "(it says nothing)"
