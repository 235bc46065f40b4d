"""What follows a switch where a service uses the release: it is restarted and watched, then the release is kept or not.

The agent does not import this; the watcher's process does, and whoever finishes what a watcher left.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any, Callable, Dict, Optional

from .release_errors import Refusal
from .release_health import Probe, Unhealthy, make_probe, run_command
from .release_home import Home, read_state
from .release_service import Service, service_of

_POLL_S = 1.0
_MAX_BUSY = 3
"""So many times in a row a service may be too busy to say how it is."""


class _Failed(Exception):
    """A step after the switch failed."""

    def __init__(self, step: str, reason: str) -> None:
        super().__init__(reason)
        self.step, self.reason = step, reason


def watch_over(home: Home, service: Service, probe: Probe, on_step: Callable[[str], None]) -> Dict[str, Any]:
    """Restarts and watches the service after the switch that the state tells of, and draws the conclusion.

    A release that was installed is kept, or the one before is used again. One that was gone back to stays, well or not.

    Args:
        home: Held; its state says what was switched.
        service: That uses the release.
        probe: Made before the switch.
        on_step: Called before `restart`, `watch`, and then `previous` and `record` or `back`.

    Returns:
        The entry of the history.

    Raises:
        OSError: The release should be replaced by the one before, and can't be.
    """
    task = read_state(home.path)["running"] or {}
    digest, goes_back = str(task.get("digest")), task.get("action") != "rollback"
    told: Dict[str, Any] = {"result": "done"}
    try:
        told["up_after_s"] = _bring_up(service, probe, digest, on_step)
        if goes_back:
            _stay_well(service, probe, digest)
            told["watched_s"] = service.watch_s
        try:
            home.prove()
        except OSError as error:
            raise _Failed("record", f"that the service is well can't be noted: {error}") from error
    except _Failed as failed:
        if goes_back:
            on_step("back")
            return home.go_back(task, step=failed.step, reason=failed.reason, restart=restarter(home, service))
        told = {"result": "unhealthy", "step": failed.step, "reason": failed.reason}
        with contextlib.suppress(OSError):
            home.prove()
    with contextlib.suppress(OSError):  # it is in use; the state file lets the next one finish the rest
        on_step("previous")
        home.point_previous_at(task.get("from"))
        on_step("record")
        home.end(**told)
    return {**task, **told}


def restarter(home: Home, service: Optional[Service] = None) -> Callable[[Optional[str]], str]:
    """What restarts the service of a model and waits until it is up.

    Args:
        home: Of the model.
        service: None is that of the board's settings.

    Returns:
        A function of the release in use, None where there is none any more; returns what went wrong, or nothing.
    """

    def restart(digest: Optional[str]) -> str:
        try:
            found = service or service_of(home.root, home.name)
            if found is None:
                return ""
            _bring_up(found, make_probe(found, home.name) if digest else None, str(digest), lambda _: None)
        except (Refusal, _Failed) as error:
            return str(error) if digest else ""
        return ""

    return restart


def _bring_up(service: Service, probe: Optional[Probe], digest: str, on_step: Callable[[str], None]) -> float:
    """Restarts a service and waits until it is up with a release; returns how long that took, in seconds."""
    begun = time.monotonic()
    deadline = begun + service.come_up_s
    if service.restart:
        on_step("restart")
        try:
            run_command(service.restart, service.come_up_s, what="the restart command")
        except Unhealthy as error:
            raise _Failed("restart", str(error)) from error
    if probe is None:
        return 0.0
    on_step("watch")
    while True:
        try:
            probe.check_up(digest)
        except Unhealthy as error:
            if error.final:
                raise _Failed("watch", str(error)) from error
            if time.monotonic() >= deadline:
                reason = f"the service did not come up with the release within {service.come_up_s:g} s: {error}"
                raise _Failed("watch", reason) from error
        else:
            return round(time.monotonic() - begun, 3)
        time.sleep(_pause_s(service.come_up_s))


def _stay_well(service: Service, probe: Probe, digest: str) -> None:
    begun, num_busy = time.monotonic(), 0
    while True:
        last = time.monotonic() >= begun + service.watch_s
        try:
            probe.check_well(digest)
            num_busy = 0
        except Unhealthy as error:
            num_busy = num_busy + 1 if error.busy else _MAX_BUSY
            if num_busy >= _MAX_BUSY:
                after_s = time.monotonic() - begun
                raise _Failed(
                    "watch", f"the service came up, and was not well {after_s:.1f} s later: {error}"
                ) from error
        else:
            if last:
                return
        time.sleep(_pause_s(service.watch_s))


def _pause_s(span_s: float) -> float:
    return min(_POLL_S, span_s / 10)
