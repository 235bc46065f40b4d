"""A device that does not exist: an agent inside this process."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from devices.board.agent import BoardAgent
from devices.board.cores import find_cores
from devices.board.errors import AgentError, BadInput, ModelRejected, RuntimeMissing
from devices.board.runners.fake import FakeRunner
from devices.errors import (
    AgentCrashedError,
    AgentTimeoutError,
    BadInputError,
    DeviceError,
    ModelRejectedError,
    RuntimeMissingError,
)
from devices.profile import DeviceProfile
from devices.transport_config import FakeTransport
from devices.transports.base import OnEvent

_NOWHERE = "/nonexistent"
"""A root without sensors."""


class FakeDevice:
    """Files stay where they are; an agent lives in this process, with scripted latencies and faults.

    Args:
        profile: With a fake transport.
    """

    def __init__(self, profile: DeviceProfile) -> None:
        if not isinstance(profile.transport, FakeTransport):
            raise TypeError(f"device '{profile.name}' has the transport '{profile.transport.kind}', expected 'fake'")
        self._profile, self._script = profile, profile.transport

    def put(self, local_path: str) -> str:
        """See `Transport`."""
        return str(Path(local_path).absolute())

    def get(self, device_path: str, local_path: str) -> None:
        """See `Transport`."""
        if Path(device_path).absolute() != Path(local_path).absolute():
            shutil.copyfile(device_path, local_path)

    def start_agent(self, *, releases_only: bool = False) -> FakeAgent:  # noqa: ARG002 (it keeps no releases)
        """See `Transport`."""
        return FakeAgent(self._profile, self._script)


class FakeAgent:
    """The board's own agent with the fake runner, a scripted clock, and faults that harm nobody.

    Args:
        profile: Its name, memory and cores become facts.
        script: The latencies and the faults.
    """

    def __init__(self, profile: DeviceProfile, script: FakeTransport) -> None:
        self._profile, self._script = profile, script
        self._clock = _ScriptedClock(script.latency_ms)
        self._alive = True
        board = BoardAgent({"fake": self._runner}, clock_ns=self._clock.read, root=_NOWHERE)
        self._handlers = board.handlers()

    def request(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        idle_timeout_s: float | None = None,
        on_event: OnEvent | None = None,
    ) -> Any:
        """See `Agent`."""
        name = f"the agent of device '{self._profile.name}'"
        if not self._alive:
            raise AgentCrashedError(f"{name} is gone: it ended during an earlier request")
        try:
            if method == self._script.die_on:
                raise _Died
            if method == self._script.hang_on:
                raise _Hung
            return self._answer(method, dict(params or {}), on_event or _ignore)
        except _Died:
            self._alive = False
            raise AgentCrashedError(f"{name} was ended by SIGSEGV while it worked on '{method}'") from None
        except _Hung:
            self._alive = False
            limits_s = [limit_s for limit_s in (timeout_s, idle_timeout_s) if limit_s is not None]
            patience = f"within {min(limits_s):g} s" if limits_s else "in time"
            raise AgentTimeoutError(f"{name} did not answer '{method}' {patience} and was ended") from None
        except BadInput as error:
            raise BadInputError(str(error)) from error
        except ModelRejected as error:
            raise ModelRejectedError(str(error)) from error
        except RuntimeMissing as error:
            raise RuntimeMissingError(str(error)) from error
        except (AgentError, OSError, ValueError, LookupError) as error:
            raise DeviceError(f"{name} refuses '{method}': {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._alive = False

    def _answer(self, method: str, params: dict[str, Any], on_event: OnEvent) -> Any:
        if method not in self._handlers:
            raise AgentError(f"no method '{method}'; there are: {', '.join(sorted(self._handlers))}")
        if method == "load" and params.get("runtime") != "fake":
            raise RuntimeMissing(f"the fake device runs the runtime 'fake' only, not '{params.get('runtime')}'")
        if method == "load" and Path(params["path"]).is_file():
            self._clock.start(Path(params["path"]).read_bytes())
        if method == "load":
            # This process is no board: its own cores are left alone.
            asked = params.pop("cores", None)
            cores = find_cores(asked, params.get("clusters") or {}) if asked else None
            return {**self._handlers[method](params, on_event), "cores": cores}
        answer = self._handlers[method](params, on_event)
        return {**answer, **self._own_facts()} if method == "facts" else answer

    def _own_facts(self) -> dict[str, Any]:
        """What would otherwise tell of this machine and change from run to run."""
        return {
            "cpu_model": "fake",
            "board_model": None,
            "architecture": self._profile.architecture,
            "cpu_features": list(self._profile.cpu_features or ()),
            "cores": self._profile.cores,
            "usable_cores": self._profile.cores,
            "governor": None,
            "frequency_mhz": None,
            "memory_mb": self._profile.memory_mb,
            "available_memory_mb": self._profile.memory_mb,
            "cpu_busy_share": 0.0,
            "load_average": [0.0, 0.0, 0.0],
            "throttle_count": None,
            "clusters": [],
            "throttling": None,
            "cooling_states": {},
            "temperatures_c": {},
            "energy_sensors": [],
            "storage_mb": None,
            "free_storage_mb": None,
            "kernel": None,
            "os": self._profile.os,
            "libc": None,
            "cpu_ids": False,
            "runtimes": {"fake": {"runtime": "fake", "version": "1"}},
        }

    @staticmethod
    def _runner() -> FakeRunner:
        return FakeRunner(die=_die, hang=_hang)


class _ScriptedClock:
    """A clock whose every second reading lies one scripted latency after the reading before it."""

    def __init__(self, median_ms: float) -> None:
        self._median_ms = median_ms
        self._now_ns = 0
        self.start(b"")

    def start(self, model: bytes) -> None:
        """Seeds the latencies by the model's digest."""
        self._random = np.random.default_rng(int.from_bytes(hashlib.sha256(model).digest()[:8], "big"))
        self._scale_ns = self._median_ms * 1e6 * self._random.uniform(0.75, 1.25)

    def read(self) -> int:
        """The time in nanoseconds."""
        self._now_ns += int(self._scale_ns * self._random.lognormal(0.0, 0.05))
        return self._now_ns


class _Died(BaseException):
    """A fault that ends the process of a real agent; no handler of ordinary errors may take it."""


class _Hung(BaseException):
    """A request that a real agent never answers."""


def _ignore(event: dict[str, Any]) -> None:
    """Takes an event and does nothing."""


def _die() -> None:
    raise _Died


def _hang() -> None:
    raise _Hung
