"""What is missing on a board, and the command that mends it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from devices import adb_doctor
from devices.board_checks import CHECKS, State, Verdict
from devices.errors import (
    ConnectionFailedError,
    DeviceError,
    HostKeyError,
    LoginRefusedError,
    PythonMissingError,
    StorageFullError,
)
from devices.profile import DeviceProfile
from devices.transport_config import AdbTransport, FakeTransport, LocalTransport, SshTransport, VirtualTransport
from devices.transports import Transport, open_transport
from devices.transports.virtual import running_transport

_FACTS_TIMEOUT_S = 60.0

_WITHOUT_FACTS = ("python", "C library", "runtimes")
"""Checks that know something from the profile alone."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        check: What was looked at.
        state: "ok"; "warning": it works, but numbers suffer or something is missing; "problem": the device can't be
            used; "unknown": the board does not tell.
        message: In words.
        mend: The command that mends it, to be run on this machine; None where there is none.
    """

    check: str
    state: State
    message: str
    mend: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Diagnosis:
    """All findings on one device.

    Attributes:
        device: The profile's name.
        findings: In the order of the checks.
        details: Of what kept the agent from starting, for `--debug`.
    """

    device: str
    findings: tuple[Finding, ...]
    details: str = ""

    @property
    def usable(self) -> bool:
        """Whether nothing keeps the device from being used."""
        return all(finding.state != "problem" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The diagnosis as one JSON object."""
        findings = [finding.to_dict() for finding in self.findings]
        return {"device": self.device, "usable": self.usable, "findings": findings}


def diagnose(
    profile: DeviceProfile, *, open_device: Callable[[DeviceProfile], Transport] = open_transport
) -> Diagnosis:
    """Asks a device for its facts and checks them; where it does not answer, says why and what to do.

    Args:
        profile: The device.
        open_device: The way to it.
    """
    try:
        facts = ask_facts(profile, open_device=open_device)
    except DeviceError as error:
        unreached = _unreached(profile, error)
        rest = [finding for finding in examine(profile, {}, _WITHOUT_FACTS) if finding.state in ("problem", "warning")]
        return Diagnosis(profile.name, (unreached, *rest), error.details)
    reached = Finding("connection", "ok", f"the agent answers by {profile.transport.kind}")
    return Diagnosis(profile.name, (reached, *examine(profile, facts)))


def ask_facts(
    profile: DeviceProfile, *, open_device: Callable[[DeviceProfile], Transport] = open_transport
) -> dict[str, Any]:
    """What a device says of itself, see `devices.board.facts.collect`.

    Raises:
        DeviceError: It can't be asked.
    """
    with open_device(profile).start_agent() as agent:
        facts: dict[str, Any] = agent.request("facts", timeout_s=_FACTS_TIMEOUT_S)
    return facts


def examine(
    profile: DeviceProfile, facts: Mapping[str, Any], names: tuple[str, ...] = tuple(CHECKS)
) -> tuple[Finding, ...]:
    """The findings of the checks named, on facts that are given."""
    return tuple(_finding(profile, name, CHECKS[name](profile, facts)) for name in names)


def on_board(profile: DeviceProfile, command: str) -> str | None:
    """The command line that runs a shell command on a device from this machine; None where none is known."""
    if isinstance(profile.transport, AdbTransport):
        return adb_doctor.on_phone(profile.transport, command)
    if isinstance(profile.transport, LocalTransport | FakeTransport):
        return command
    transport = _ssh_of(profile)
    if transport is None:
        return None
    return shlex.join(["ssh", "-t", *_ssh_options(transport), _target(transport), command])


def _ssh_of(profile: DeviceProfile) -> SshTransport | None:
    """How a device is reached by SSH; None for one that is not, and for a virtual board that does not run."""
    transport = profile.transport
    if isinstance(transport, VirtualTransport):
        return running_transport(transport)
    return transport if isinstance(transport, SshTransport) else None


def _finding(profile: DeviceProfile, name: str, verdict: Verdict) -> Finding:
    mend = None if verdict.mend is None else on_board(profile, verdict.mend)
    return Finding(name, verdict.state, verdict.message, mend)


def _unreached(profile: DeviceProfile, error: DeviceError) -> Finding:
    """Why there is no agent, with what mends that."""
    if isinstance(profile.transport, AdbTransport):
        mend = adb_doctor.mend(profile, profile.transport, error)
        return Finding("connection", "problem", error.message, mend)
    transport = _ssh_of(profile)
    mend = None if transport is None else _reach(profile, transport, error)
    return Finding("connection", "problem", error.message, mend)


def _reach(profile: DeviceProfile, transport: SshTransport, error: DeviceError) -> str | None:
    """The command that mends, or shows, what kept us from a board."""
    options, target = _ssh_options(transport), _target(transport)
    match error:
        case HostKeyError():
            return shlex.join(["ssh", *options, target])
        case LoginRefusedError():
            return shlex.join(["ssh-copy-id", *options, target])
        case ConnectionFailedError():
            return shlex.join(["ssh", "-v", *options, target, "true"])
        case PythonMissingError():
            return on_board(profile, "uv python install 3.11")
        case StorageFullError():
            return on_board(profile, f"rm -rf {transport.directory}/files {transport.directory}/envs")
        case _:
            return None


def _target(transport: SshTransport) -> str:
    return transport.host if transport.user is None else f"{transport.user}@{transport.host}"


def _ssh_options(transport: SshTransport) -> list[str]:
    options = [] if transport.port is None else ["-p", str(transport.port)]
    options += [] if transport.identity_file is None else ["-i", transport.identity_file]
    options += [] if transport.known_hosts is None else ["-o", f'UserKnownHostsFile="{transport.known_hosts}"']
    return options + (["-o", f"ProxyJump={','.join(transport.jump)}"] if transport.jump else [])
