"""The process that watches a service after a switch: it depends neither on the installer nor on the host.

It has a session of its own, and holds the releases by the same lock as the installer that started it. It is started
before the switch and waits: a byte says that the switch was done, the end of the pipe that the installer is gone, and
then the link says it. So there is no moment in which a new release is in use and nobody watches.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import traceback
from typing import Any, Callable, Dict, List, Optional

from .release_disk import Disk
from .release_errors import Refusal
from .release_home import Home, read_state
from .release_service import Service, service_from

_START = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv[1]); runpy.run_module(sys.argv[2], run_name='__main__')"
)
_LAST_WORDS = 500

OnStep = Callable[[str], None]


class Watcher:
    """The asking side of the process.

    Args:
        home: Held; its state says what will be switched.
        service: That uses the release.

    Raises:
        Refusal: The process does not start.
    """

    module = __name__
    """What the process runs."""

    def __init__(self, home: Home, service: Service) -> None:
        go, self._go = os.pipe()
        events, theirs = os.pipe()
        self._events = os.fdopen(events, encoding="utf-8", errors="replace")
        self._words: List[str] = []
        request = {"path": home.path, "service": service._asdict(), "go": go, "events": theirs}
        paths = [os.path.abspath(path) for path in sys.path]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, json.dumps(paths), self.module, json.dumps(request)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=theirs,
                cwd="/",
                start_new_session=True,
                pass_fds=[home.lock_fd, go, theirs],
            )
        except OSError as error:
            self._close()
            raise Refusal(
                f"the watch of the service can't be started: {error}; the release in use was not changed"
            ) from error
        finally:
            os.close(go)
            os.close(theirs)
        if self._next() != {"ready": True}:
            self.abandon()
            raise Refusal(
                f"the watch of the service did not start: {self._last_words()}; the release in use was not changed"
            )

    def go(self) -> None:
        """Tells it that the switch was done."""
        with contextlib.suppress(OSError):  # it was killed; `outcome` says so
            os.write(self._go, b"1")

    def outcome(self, on_step: OnStep) -> Optional[Dict[str, Any]]:
        """Waits for its end.

        Args:
            on_step: Is told of each step, see `release_watch.watch_over`.

        Returns:
            The entry of the history; None where it was killed, or could not do what was to be done.
        """
        entry: Optional[Dict[str, Any]] = None
        while (event := self._next()) is not None:
            if "step" in event:
                on_step(event["step"])
            entry = event.get("entry", entry)
        self._process.wait()
        self._close()
        return entry

    def abandon(self) -> None:
        """Ends it, where the switch was not done."""
        self._process.kill()
        self._process.wait()
        while self._next() is not None:
            pass
        self._close()

    def _next(self) -> Optional[Dict[str, Any]]:
        """The next event, None at the end; other lines are kept as its words."""
        for line in self._events:
            try:
                event: Dict[str, Any] = json.loads(line)
            except ValueError:
                self._words.append(line)
            else:
                return event
        return None

    def _last_words(self) -> str:
        return " ".join("".join(self._words).split())[-_LAST_WORDS:] or "it ended at once"

    def _close(self) -> None:
        os.close(self._go)
        self._events.close()


StartWatcher = Callable[[Home, Service], Watcher]


def run_watcher(request: Dict[str, Any], on_step: OnStep = lambda _: None) -> None:
    """The process's own side.

    Args:
        request: `path` of the home, `service`, and the file descriptors `go` and `events`.
        on_step: Is told of each step, and of `ready` before them.
    """
    from .release_health import make_probe  # not for the agent, whose memory is measured
    from .release_watch import watch_over

    for fd in (request["go"], request["events"]):
        os.set_inheritable(fd, False)

    def emit(event: Dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            os.write(request["events"], json.dumps(event).encode() + b"\n")

    def step(name: str) -> None:
        emit({"step": name})
        on_step(name)

    home = Home(request["path"], Disk())
    service = service_from(request["service"])
    probe = make_probe(service, home.name)
    on_step("ready")
    emit({"ready": True})
    os.read(request["go"], 1)
    task = read_state(home.path)["running"]
    if task is None or home.current != task.get("digest"):
        return
    try:
        emit({"entry": watch_over(home, service, probe, step)})
    except OSError:
        emit({"failed": traceback.format_exc()})


if __name__ == "__main__":
    run_watcher(json.loads(sys.argv[-1]))
