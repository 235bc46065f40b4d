"""Device profiles: what a board is, how it is reached, which runtimes it has and what it must keep to.

A profile is a YAML file in `devices/profiles/`, or any other path. `extends: NAME` takes another profile's
values; mappings are merged key by key, anything else is replaced.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from devices.board.runners import RUNNERS
from devices.errors import ProfileError
from devices.transport_config import FakeTransport, LocalTransport, SshTransport, TransportConfig, VirtualTransport

PROFILES_DIR = Path(__file__).parent / "profiles"

LatencyLabel = Literal["measured", "simulated", "predicted"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Budgets(_Frozen):
    """What a model on this device must keep to; None sets no limit."""

    latency_p50_ms: PositiveFloat | None = None
    latency_p99_ms: PositiveFloat | None = None
    peak_memory_mb: PositiveFloat | None = None
    size_bytes: PositiveInt | None = None


class DeviceProfile(_Frozen):
    """One device.

    Attributes:
        name: How recipes and the command line call it.
        description: One line for people.
        architecture: As `uname -m` prints it; None where the device is asked instead, as for the five below.
        cpu_features: Instruction sets by their Linux names.
        cores: Logical cores.
        memory_mb: Main memory in MiB.
        os: Such as "Debian GNU/Linux 12 (bookworm)".
        python: The interpreter that runs the agent; None is the one that runs Edgeship.
        runtimes: By runtime name, the requirement that installs it, such as "ai-edge-litert>=2.3,<3".
        preference: Runtimes, the one to try first in front.
        transport: How the device is reached.
        threads: Threads of one inference where nothing else is asked for.
        latency_label: Whether latencies taken here are measured, simulated or predicted.
        budgets: Limits that become gates.
        notes: What a user of this device should know.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    description: str
    architecture: str | None = None
    cpu_features: tuple[str, ...] | None = None
    cores: PositiveInt | None = None
    memory_mb: PositiveInt | None = None
    os: str | None = None
    python: str | None = None
    runtimes: dict[str, str]
    preference: tuple[str, ...]
    transport: TransportConfig
    threads: PositiveInt = 1
    latency_label: LatencyLabel
    budgets: Budgets = Budgets()
    notes: tuple[str, ...] = ()

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
        return self


def list_profiles() -> tuple[str, ...]:
    """The names of the profiles that come with Edgeship, sorted."""
    return tuple(sorted(path.stem for path in PROFILES_DIR.glob("*.yaml")))


def load_profile(name_or_path: str | Path) -> DeviceProfile:
    """Reads one profile.

    Args:
        name_or_path: A name of `list_profiles()`, or the path of a YAML file (with a slash, or ending in
            `.yaml` or `.yml`).

    Raises:
        ProfileError: There is no such profile, or it can't be used; the message says where and why.
    """
    path = _find(name_or_path)
    values = _read_with_parents(path, ())
    try:
        return DeviceProfile.model_validate(values)
    except ValidationError as error:
        raise ProfileError(f"{path} is not a device profile:\n{_explain(error)}") from error


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
    tables: dict[tuple[int | str, ...], type[BaseModel]] = {
        (): DeviceProfile,
        ("budgets",): Budgets,
        ("transport", "local"): LocalTransport,
        ("transport", "fake"): FakeTransport,
        ("transport", "ssh"): SshTransport,
        ("transport", "virtual"): VirtualTransport,
    }
    model = tables.get(location)
    keys = tuple(model.model_fields) if model else ()
    return (*keys, "extends") if model is DeviceProfile else keys
