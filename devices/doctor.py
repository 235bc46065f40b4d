"""What is missing on a board, and the command that mends it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from devices import adb_doctor
from devices.address import host_hint
from devices.board_checks import CHECKS, State, Verdict
from devices.errors import DeviceError
from devices.profile import DeviceProfile
from devices.transport_config import AdbTransport, SshTransport
from devices.transports import Transport, open_transport

_FACTS_TIMEOUT_S = 60.0
_NOT_FOUND = ("ConnectionFailedError", "HostKeyError")
"""Errors after which the board may be somewhere else than was thought, or be another one."""

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
        DeviceError: It can't be asked; where it was not found, the message says how to tell where it is.
    """
    try:
        with open_device(profile).start_agent() as agent:
            facts: dict[str, Any] = agent.request("facts", timeout_s=_FACTS_TIMEOUT_S)
    except DeviceError as error:
        transport = profile.transport
        if isinstance(transport, SshTransport) and type(error).__name__ in _NOT_FOUND:
            hint = host_hint(profile.name, transport.host)
            raise type(error)(f"{error.message}. {hint}", details=error.details) from error
        raise
    return facts


def examine(
    profile: DeviceProfile, facts: Mapping[str, Any], names: tuple[str, ...] = tuple(CHECKS)
) -> tuple[Finding, ...]:
    """The findings of the checks named, on facts that are given."""
    return tuple(_finding(profile, name, CHECKS[name](profile, facts)) for name in names)


def on_board(profile: DeviceProfile, command: str) -> str | None:
    """The command line that runs a shell command on a device from this machine; None where it can't be run there."""
    transport = profile.transport
    if isinstance(transport, AdbTransport):
        return adb_doctor.on_phone(transport, command)
    if not isinstance(transport, SshTransport):
        return command
    return shlex.join(["ssh", "-t", *_ssh_options(transport), _target(transport), command])


def _finding(profile: DeviceProfile, name: str, verdict: Verdict) -> Finding:
    mend = None if verdict.mend is None else on_board(profile, verdict.mend)
    return Finding(name, verdict.state, verdict.message, mend)


def _unreached(profile: DeviceProfile, error: DeviceError) -> Finding:
    """Why there is no agent, with what mends that, by the name of the error."""
    transport, message = profile.transport, error.message
    if isinstance(transport, AdbTransport):
        return Finding("connection", "problem", message, adb_doctor.mend(profile, transport, error))
    if not isinstance(transport, SshTransport):
        return Finding("connection", "problem", message)
    options, target = _ssh_options(transport), _target(transport)
    mends = {
        "HostKeyError": shlex.join(["ssh", *options, target]),
        "LoginRefusedError": shlex.join(["ssh-copy-id", *options, target]),
        "ConnectionFailedError": shlex.join(["ssh", "-v", *options, target, "true"]),
        "PythonMissingError": on_board(profile, "uv python install 3.11"),
        "StorageFullError": on_board(profile, f"rm -rf {transport.directory}/files {transport.directory}/envs"),
    }
    return Finding("connection", "problem", message, mends.get(type(error).__name__))


def _target(transport: SshTransport) -> str:
    return transport.host if transport.user is None else f"{transport.user}@{transport.host}"


def _ssh_options(transport: SshTransport) -> list[str]:
    options = [] if transport.port is None else ["-p", str(transport.port)]
    options += [] if transport.identity_file is None else ["-i", transport.identity_file]
    return options + (["-o", f"ProxyJump={','.join(transport.jump)}"] if transport.jump else [])
