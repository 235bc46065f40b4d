"""Device profiles: what a board is, how it is reached, which runtimes it has and what it must keep to.

A profile is a YAML file in `devices/profiles/`, or any other path. `extends: NAME` takes another profile's
values; mappings are merged key by key, anything else is replaced, and `runtimes: {openvino: null}` takes a runtime
away. A file whose name begins with `_` is no device, only something to extend.

The profiles that come with Edgeship do not know where a user's board is. A board with the transport `ssh` is reached
under its profile's name, so an alias in `~/.ssh/config` is enough (`Host raspberry-pi-4`, `HostName 10.0.0.7`,
`User pi`). `EDGESHIP_HOST_RASPBERRY_PI_4=pi@10.0.0.7` in the environment does the same for one shell or one CI job,
`edgeship devices doctor raspberry-pi-4 --host pi@10.0.0.7` for one command. A phone with the transport `adb` is the
only one that is plugged in, or the one whose serial is said in the same ways. For boards that stay, a YAML of one's own
is best, given by its path wherever a device is named:

    extends: raspberry-pi-4
    name: kitchen
    transport: {host: 10.0.0.7, user: pi}
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, PositiveInt, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from devices.address import host_variable, parse_address
from devices.board.runners import RUNNERS
from devices.errors import ProfileError
from devices.profile_parts import Budgets, CoreCluster, EthosU, Frozen, Sensor, Sensors, Storage
from devices.transport_config import (
    AdbTransport,
    FakeTransport,
    LocalTransport,
    SshTransport,
    TransportConfig,
    VirtualTransport,
)
from devices.wording import counted

PROFILES_DIR = Path(__file__).parent / "profiles"

FACTS = (
    *(
        "board_model",
        "soc",
        "architecture",
        "cpu_features",
        "cores",
        "clusters",
        "accelerators",
        "ethos_u",
        "memory_mb",
    ),
    *("storage", "os", "python_version", "libc", "runtimes", "sensors"),
)
"""The keys of a profile that state a fact, which may have a source."""

LatencyLabel = Literal["measured", "simulated", "predicted"]

Sources = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1),
]
"""One source or several: the document, and where it is to be had."""


class DeviceProfile(Frozen):
    """One device. Facts that are None are not known, or are asked from the device instead.

    Attributes:
        name: How recipes and the command line call it.
        description: One line for people.
        board_model: How the kernel names the board (/proc/device-tree/model), or the beginning of it.
        soc: The processor, such as "Broadcom BCM2711".
        architecture: As `uname -m` prints it.
        cpu_features: Instruction sets by their Linux names, as far as `devices.board.facts.CPU_FEATURES` has them.
        cores: Logical cores.
        clusters: The same by kind, in the order of their numbers.
        accelerators: Other processors for networks that the board has, for people.
        ethos_u: Of these the one that models are compiled for with Vela.
        memory_mb: Main memory in MiB.
        storage: What the system lies on.
        os: The system that this profile is written for, such as "Debian GNU/Linux 12 (bookworm)".
        python_version: Of that system's Python, such as "3.11".
        libc: Of that system, such as "glibc 2.36"; Android's is "bionic".
        python: The interpreter that runs the agent; None is the one that runs Edgeship on this machine, and the
            system's `python3` elsewhere.
        runtimes: By runtime name, the requirement that installs it, such as "ai-edge-litert>=2.3,<3".
        preference: Runtimes, the one to try first in front.
        packages: Requirements beside these, such as "pillow"; Edgeship adds that by itself where an image needs it.
        transport: How the device is reached.
        threads: Threads of one inference where nothing else is asked for.
        latency_label: Whether latencies taken here are measured, simulated or predicted.
        sensors: How temperature, frequency, throttling and energy are read.
        budgets: Limits that become gates.
        notes: What a user of this device should know.
        sources: By the name of a fact, where it comes from.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    description: str
    board_model: str | None = Field(default=None, min_length=1)
    soc: str | None = Field(default=None, min_length=1)
    architecture: str | None = None
    cpu_features: tuple[str, ...] | None = None
    cores: PositiveInt | None = None
    clusters: tuple[CoreCluster, ...] | None = Field(default=None, min_length=1)
    accelerators: tuple[str, ...] = ()
    ethos_u: EthosU | None = None
    memory_mb: PositiveInt | None = None
    storage: Storage | None = None
    os: str | None = None
    python_version: str | None = Field(default=None, pattern=r"^3\.\d{1,2}(\.\d{1,2})?$")
    libc: str | None = Field(default=None, pattern=r"^((glibc|musl) \d+\.\d+(\.\d+)?|bionic)$")
    python: str | None = None
    runtimes: dict[str, str]
    preference: tuple[str, ...]
    packages: tuple[str, ...] = ()
    transport: TransportConfig
    threads: PositiveInt = 1
    latency_label: LatencyLabel
    sensors: Sensors = Sensors()
    budgets: Budgets = Budgets()
    notes: tuple[str, ...] = ()
    sources: dict[str, Sources] = Field(default={})

    @model_validator(mode="after")
    def _check(self) -> DeviceProfile:
        for runtime in self.runtimes:
            if runtime not in RUNNERS:
                raise ValueError(
                    f"no runtime '{runtime}'{did_you_mean(runtime, RUNNERS)}; there are: {', '.join(RUNNERS)}"
                )
        if set(self.preference) != set(self.runtimes) or len(set(self.preference)) != len(self.preference):
            raise ValueError(
                "preference must name each of the runtimes once: "
                f"it has {', '.join(self.preference) or 'none'}, "
                f"the runtimes are {', '.join(self.runtimes) or 'none'}"
            )
        if self.transport.kind == "fake" and self.latency_label == "measured":
            raise ValueError("latency_label is 'measured', but a fake device measures nothing; say 'simulated'")
        for fact in self.sources:
            if fact not in FACTS:
                raise ValueError(
                    f"sources names '{fact}', which is no fact{did_you_mean(fact, FACTS)}; "
                    f"facts are: {', '.join(FACTS)}"
                )
        return self

    @model_validator(mode="after")
    def _check_cores(self) -> DeviceProfile:
        cpus = [cpu for cluster in self.clusters or () for cpu in cluster.cpus]
        if len(set(cpus)) != len(cpus):
            twice = sorted({cpu for cpu in cpus if cpus.count(cpu) > 1})
            raise ValueError(f"clusters name the logical cores {', '.join(map(str, twice))} twice; each is of one kind")
        if cpus and self.cores is not None and len(cpus) != self.cores:
            raise ValueError(f"cores is {self.cores}, but the clusters have {counted(len(cpus), 'logical core')}")
        return self


def list_profiles() -> tuple[str, ...]:
    """The names of the profiles that come with Edgeship, sorted."""
    return tuple(sorted(path.stem for path in PROFILES_DIR.glob("*.yaml") if not path.stem.startswith("_")))


def load_profile(
    name_or_path: str | Path, *, host: str | None = None, environment: Mapping[str, str] | None = None
) -> DeviceProfile:
    """Reads one profile.

    Args:
        name_or_path: A name of `list_profiles()`, or the path of a YAML file (with a slash, or ending in
            `.yaml` or `.yml`).
        host: Where the board is, `[user@]host[:port]`, instead of what the profile and the environment say.
        environment: Variables such as EDGESHIP_HOST_RASPBERRY_PI_4; None takes those of this process.

    Raises:
        ProfileError: There is no such profile, or it can't be used; the message says where and why.
    """
    path = _find(name_or_path)
    values = _read_with_parents(path, ())
    if isinstance(values.get("runtimes"), dict):
        values["runtimes"] = {name: each for name, each in values["runtimes"].items() if each is not None}
    _set_host(values, host, os.environ if environment is None else environment)
    try:
        return DeviceProfile.model_validate(values)
    except ValidationError as error:
        raise ProfileError(f"{path} is not a device profile:\n{_explain(error)}") from error


def _set_host(values: dict[str, Any], host: str | None, environment: Mapping[str, str]) -> None:
    """Says where a board is that is reached over SSH: as told, else as written, else under its name; which phone."""
    name, transport = values.get("name"), values.get("transport")
    if not isinstance(name, str) or not isinstance(transport, dict):
        return  # the validation says what is wrong
    variable = host_variable(name)
    told, by = (host, "--host") if host is not None else (environment.get(variable), variable)
    if transport.get("kind") == "ssh":
        transport.setdefault("host", name)
        transport |= {} if told is None else parse_address(told, by=by)
    elif transport.get("kind") == "adb":
        transport |= {} if told is None else {"serial": told}
    elif told is not None:
        raise ProfileError(
            f"{by} says where '{name}' is, but it is reached by {transport.get('kind')}, not by SSH or adb"
        )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'local'?`, or nothing where no known word is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _find(name_or_path: str | Path, *, beside: Path | None = None) -> Path:
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        path = Path(text) if beside is None else beside / text
        if not path.is_file():
            raise ProfileError(f"there is no device profile {path}: no such file")
        return path
    names = list_profiles()
    if text not in names:
        parent = PROFILES_DIR / f"{text}.yaml"
        if beside is not None and re.fullmatch(r"_[a-z0-9._-]+", text) and parent.is_file():
            return parent
        raise ProfileError(
            f"there is no device '{text}'{did_you_mean(text, names)} (devices: {', '.join(names)}); "
            "or give the path of a profile"
        )
    return PROFILES_DIR / f"{text}.yaml"


def _read_with_parents(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    """The file's values over those it extends."""
    if path.resolve() in children:
        chain = " -> ".join(child.name for child in (*children, path))
        raise ProfileError(f"device profiles extend each other in a circle: {chain}")
    values = _read(path)
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise ProfileError(f"{path}: extends is {parent!r}; expected the name or the path of one profile")
    below = _read_with_parents(_find(parent, beside=path.parent), (*children, path.resolve()))
    if isinstance(below.get("sources"), dict):
        # The source of a fact that is replaced is no source of the new one.
        below["sources"] = {fact: source for fact, source in below["sources"].items() if fact not in values}
    return _merge(below, values)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProfileError(f"{path} can't be read: {error.strerror or error}") from error
    except (YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ProfileError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ProfileError(f"{path} is not a device profile: expected a mapping of names to values")
    return values


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        # Another kind of transport shares no keys with the one it replaces.
        same_kind = (
            key != "transport" or not isinstance(value, dict) or value.get("kind") in (None, (old or {}).get("kind"))
        )
        if isinstance(old, dict) and isinstance(value, dict) and same_kind:
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _explain(error: ValidationError) -> str:
    """One line for each problem, with a suggestion for an unknown key."""
    lines = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _known_keys(problem["loc"][:-1])
            lines.append(f"  {place}: unknown key{did_you_mean(str(problem['loc'][-1]), known)}")
        else:
            reason = problem["msg"].removeprefix("Value error, ")
            received = "" if problem["type"] == "missing" or not place else f" ({problem['input']!r:.80})"
            lines.append(f"  {place or 'profile'}: {reason}{received}")
    return "\n".join(lines)


def _known_keys(location: tuple[int | str, ...]) -> tuple[str, ...]:
    """The keys a profile may have at a location of a pydantic error."""
    tables: dict[tuple[str, ...], type[BaseModel]] = {
        (): DeviceProfile,
        ("budgets",): Budgets,
        ("clusters",): CoreCluster,
        ("storage",): Storage,
        ("ethos_u",): EthosU,
        ("sensors",): Sensors,
        **{("sensors", quantity): Sensor for quantity in Sensors.model_fields},
        ("transport", "local"): LocalTransport,
        ("transport", "fake"): FakeTransport,
        ("transport", "ssh"): SshTransport,
        ("transport", "virtual"): VirtualTransport,
        ("transport", "adb"): AdbTransport,
    }
    model = tables.get(tuple(part for part in location if isinstance(part, str)))
    keys = tuple(model.model_fields) if model else ()
    return (*keys, "extends") if model is DeviceProfile else keys
