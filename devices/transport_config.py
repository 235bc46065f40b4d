"""How a device is reached: the `transport` section of a profile."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

Request = Literal[
    "hello",
    "facts",
    "sample",
    "set_governor",
    "restore_governor",
    "import_runtime",
    "load",
    "warm_up",
    "measure",
    "measure_image",
    "profile",
    "memory",
    "predict",
    "unload",
]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LocalTransport(_Frozen):
    """The board is this machine: a child process of ours."""

    kind: Literal["local"] = "local"


class FakeTransport(_Frozen):
    """There is no board: an agent inside this process with scripted latencies and, on request, faults.

    Attributes:
        latency_ms: The median of the scripted latencies; each model's digest moves it by up to a quarter.
        die_on: At the first request of this name the agent ends as if by SIGSEGV.
        hang_on: At the first request of this name the agent stops answering.
    """

    kind: Literal["fake"] = "fake"
    latency_ms: PositiveFloat = 2.0
    die_on: Request | None = None
    hang_on: Request | None = None


class SshTransport(_Frozen):
    """The board answers SSH; the system's OpenSSH client is used, with the user's own configuration and agent.

    The board needs Python 3.9 or later and nothing else. Host keys are checked against the known hosts: a host
    that is unknown, or whose key changed, is refused.

    Attributes:
        host: Name or address, or an alias of the user's SSH configuration.
        user: None takes the configuration's.
        port: None takes the configuration's.
        identity_file: A private key on this machine; None takes the agent's and the configuration's.
        known_hosts: A file of host keys instead of the user's.
        jump: Hosts in between, the first to be reached in front, each `[user@]host[:port]`.
        directory: On the board, for the agent, environments and files; relative to the user's home.
        wheelhouse: A directory on this machine with wheels for the board; None fetches them from the package index.
        connect_timeout_s: For one connection.
        keep_alive_s: After so long without a sign of life the client asks for one; after three in vain it ends.
        lock_timeout_s: How long to wait for somebody else who uses the board.
    """

    kind: Literal["ssh"] = "ssh"
    host: str = Field(min_length=1, pattern=r"^[^-\s][^\s]*$")
    user: str | None = Field(default=None, min_length=1, pattern=r"^[^-\s][^\s@]*$")
    port: int | None = Field(default=None, ge=1, le=65535)
    identity_file: str | None = None
    known_hosts: str | None = None
    jump: tuple[Annotated[str, Field(pattern=r"^[^-\s,][^\s,]*$")], ...] = ()
    directory: str = Field(default=".edgeship", pattern=r"^[A-Za-z0-9._/-]+$")
    wheelhouse: str | None = None
    connect_timeout_s: PositiveFloat = 10.0
    keep_alive_s: PositiveInt = 15
    lock_timeout_s: PositiveFloat = 3600.0


class VirtualTransport(_Frozen):
    """A virtual board on this machine, see `devices.virtual`: SSH to a loopback port, started where it does not run.

    Attributes:
        architecture: Of the board, as Debian names it.
        directory: As in `SshTransport`.
        wheelhouse: As in `SshTransport`.
    """

    kind: Literal["virtual"] = "virtual"
    architecture: Literal["arm64", "armhf"]
    directory: str = Field(default=".edgeship", pattern=r"^[A-Za-z0-9._/-]+$")
    wheelhouse: str | None = None


TransportConfig = Annotated[
    LocalTransport | FakeTransport | SshTransport | VirtualTransport, Field(discriminator="kind")
]
