"""The server as a process: its models, its watch of the links, signals, and what systemd hears of it."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any, Callable, List, NamedTuple, Optional, Sequence

from ..errors import AgentError
from ..installed import NoRelease, choose_name, installed_names
from ..model import InstalledModel, default_threads
from .access import Access
from .metrics import Metrics
from .models import ServedModel, load_copies
from .notify import Supervisor
from .routes import Application, Limits
from .server import Patience, Server, listen

Tell = Callable[[str], None]

_TICK_S = 0.2
_WATCH_S = 1.0


class Settings(NamedTuple):
    """What the server is told.

    Attributes:
        root: Where releases lie.
        names: Of the models to serve; all that are installed where it is empty.
        host: To listen on.
        port: To listen on; 0 takes a free one.
        workers: How many requests a model runs at once, each in a copy of its own.
        num_threads: Of one inference; None shares the cores among the workers.
        queue_length: How many more requests may wait for a model.
        hang_s: An inference that takes longer stops the messages to systemd's watchdog; None is the watchdog's time.
    """

    root: str
    names: Sequence[str] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    num_threads: Optional[int] = None
    queue_length: int = 32
    hang_s: Optional[float] = None


class Service:
    """A server with its models, ready to run.

    Args:
        settings: See there.
        access: What clients need.
        limits: What they may ask for.
        patience: How long they are waited for.
        tell: Takes lines for the log.

    Raises:
        AgentError: A model can't be served, or the address can't be listened on.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        access: Access,
        limits: Limits = Limits(),  # noqa: B008 (it can't be changed)
        patience: Patience = Patience(),  # noqa: B008 (the same)
        tell: Tell,
    ) -> None:
        self._settings, self._tell = settings, tell
        self._metrics = Metrics()
        self._again = self._hurry = False
        self._wake, self._ended = threading.Event(), threading.Event()
        self.models = [self._served(name) for name in self._names()]
        try:
            listener = listen(settings.host, settings.port)
        except OSError as error:
            raise AgentError(f"{settings.host} port {settings.port} can't be listened on: {error}") from error
        host, port = listener.getsockname()[:2]
        scheme = "http" if access.tls is None else "https"
        self.url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        application = Application(
            {model.name: model for model in self.models}, access=access, limits=limits, counted=self._metrics
        )
        self._server = Server(
            application, listener, tls=access.tls, patience=patience, counted=self._metrics, tell=tell
        )

    def _names(self) -> List[str]:
        settings = self._settings
        names = [choose_name(settings.root, name) for name in settings.names] or installed_names(settings.root)
        if not names:
            raise NoRelease(f"no model is installed in {settings.root}; deploy one first")
        return sorted(set(names))

    def _served(self, name: str) -> ServedModel:
        workers = self._settings.workers
        num_threads = self._settings.num_threads or default_threads(workers)

        def open_copies(root: str, name: str) -> List[InstalledModel]:
            return load_copies(root, name, workers=workers, num_threads=num_threads)

        return ServedModel(
            self._settings.root,
            name,
            open_copies=open_copies,
            max_requests=workers + self._settings.queue_length,
            tell=self._tell,
        )

    def stop(self) -> None:
        """Lets `run` finish what has begun and return; may be called from a handler of a signal."""
        self._server.stop()

    def reload(self) -> None:
        """Looks for another release at once, also one that was refused; may be called from a handler of a signal."""
        self._again = self._hurry = True  # no Event: a handler may interrupt another in its lock

    def handle_signals(self) -> None:
        """SIGTERM and SIGINT stop, SIGHUP reloads; only the main thread may call this."""

        def stop(number: int, frame: Any) -> None:  # noqa: ARG001
            self.stop()

        def reload(number: int, frame: Any) -> None:  # noqa: ARG001
            self.reload()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGHUP, reload)

    def run(self, supervisor: Optional[Supervisor] = None) -> bool:
        """Serves until `stop`; returns whether all requests were finished then."""
        told = supervisor or Supervisor({})
        watching = threading.Thread(target=self._watch, args=(told,), name="watch", daemon=True)
        watching.start()
        releases = ", ".join(f"{model.name} ({model.copies.model.release.digest})" for model in self.models)
        self._tell(f"serves {releases} on {self.url}")
        told.tell("READY=1", f"STATUS=serves {releases}")
        due = 0.0

        def tick() -> None:
            nonlocal due
            if self._hurry:
                self._hurry = False
                self._wake.set()
            if told.watchdog_s is not None and time.monotonic() >= due and self._is_alive(told.watchdog_s):
                told.tell("WATCHDOG=1")
                due = time.monotonic() + told.watchdog_s / 3

        try:
            finished = self._server.run(tick, _TICK_S)
        finally:
            told.tell("STOPPING=1")
            self._ended.set()
            self._wake.set()
        self._tell("stopped" if finished else "stopped, with requests that were not finished in time")
        return finished

    def _is_alive(self, watchdog_s: float) -> bool:
        hang_s = watchdog_s if self._settings.hang_s is None else self._settings.hang_s
        return all(model.longest_busy_s() <= hang_s for model in self.models)

    def _watch(self, told: Supervisor) -> None:
        """Switches to other releases as they come into use."""
        while True:
            self._wake.wait(_WATCH_S)
            if self._ended.is_set():
                return
            self._wake.clear()
            again, self._again = self._again, False
            for model in self.models:
                switched = model.refresh(again=again)
                if switched is not None:
                    self._metrics.switch(model.name, succeeded=switched)
                    told.tell(f"STATUS=serves {model.name} ({model.copies.model.release.digest})")
