"""How a device is reached: the `transport` section of a profile."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

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


class AdbTransport(_Frozen):
    """An Android phone behind adb, Android's debug bridge; the system's adb client is used.

    A phone has no Python. The app Termux brings one, and Android lets no other program into an app: one reaches it
    through Termux's own SSH server (`way: ssh`), over adb, or with `run-as` where Termux's build is debuggable. On an
    emulated or rooted system, `adb shell` itself may run a Python, which the profile's `python` names.

    Attributes:
        serial: As `adb devices` prints it; `host:port` for wireless debugging. None takes the only phone there is, or
            the one that ANDROID_SERIAL in the environment names.
        way: "ssh" connects to an SSH server on the phone; "shell" runs everything by `adb shell`.
        run_as: Of the way "shell": the app to be entered, such as com.termux.
        port: Of the way "ssh": of the server on the phone. Termux's is 8022.
        user: As in `SshTransport`. Termux takes any.
        identity_file: As in `SshTransport`.
        known_hosts: As in `SshTransport`.
        directory: As in `SshTransport`; relative to the app's home, or to /data/local/tmp.
        wheelhouse: As in `SshTransport`.
        connect_timeout_s: As in `SshTransport`.
        keep_alive_s: As in `SshTransport`.
        lock_timeout_s: As in `SshTransport`.
    """

    kind: Literal["adb"] = "adb"
    serial: str | None = Field(default=None, pattern=r"^[^-\s][^\t\n]*$")
    way: Literal["ssh", "shell"] = "ssh"
    run_as: str | None = Field(default=None, pattern=r"^[A-Za-z]\w*(\.\w+)+$")
    port: int = Field(default=8022, ge=1, le=65535)
    user: str | None = Field(default=None, min_length=1, pattern=r"^[^-\s][^\s@]*$")
    identity_file: str | None = None
    known_hosts: str | None = None
    directory: str = Field(default=".edgeship", pattern=r"^[A-Za-z0-9._/-]+$")
    wheelhouse: str | None = None
    connect_timeout_s: PositiveFloat = 15.0
    keep_alive_s: PositiveInt = 15
    lock_timeout_s: PositiveFloat = 3600.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.run_as is not None and self.way != "shell":
            raise ValueError(f"run_as is {self.run_as!r}, which needs `way: shell`")
        return self


TransportConfig = Annotated[
    LocalTransport | FakeTransport | SshTransport | VirtualTransport | AdbTransport, Field(discriminator="kind")
]
