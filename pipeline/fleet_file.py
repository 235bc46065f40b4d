"""`fleet.yaml`: which boards there are, in groups that share a device profile.

schema_version: 1
name: shops
groups:
  tills:
    profile: raspberry-pi-4              # a name, or a path beside this file
    root: /srv/models                    # of the releases; may be left out
    transport: {user: pi, identity_file: ~/.ssh/fleet}
    labels: {country: de}
    boards:
      - till-1: 10.0.0.11                # name: [user@]host[:port]
      - till-2                           # reached under its name, an alias of ~/.ssh/config
      - {name: till-3, host: 10.0.0.13, port: 2222, labels: {floor: "2"}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic_core import ErrorDetails

from devices.address import parse_address
from devices.errors import ProfileError
from devices.fleet import Fleet, FleetBoard
from devices.profile import DeviceProfile, did_you_mean, load_profile
from devices.release import check_reachable
from devices.transport_config import SshTransport
from devices.transports.ssh_client import describe
from pipeline.errors import InputError
from pipeline.stages.base import FrozenConfig
from pipeline.yaml_source import KeyPath, YamlSource, read_yaml, shown

LOCK_TIMEOUT_S = 60.0
"""How long a board that somebody else uses is waited for, where nothing is said: others could have their turn."""

_NAME = r"^[a-z0-9][a-z0-9._-]*$"
_FILES = ("identity_file", "known_hosts", "wheelhouse")


def _in_full(value: Any) -> Any:
    """A board as a mapping with `name`, whichever way it was written."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and len(value) == 1 and not {*value} & {*BoardEntry.model_fields}:
        ((name, address),) = value.items()
        if isinstance(address, str):
            try:
                return {"name": name, **parse_address(address, by="its address")}
            except ProfileError as error:
                raise ValueError(error.message) from error
    return value


class BoardEntry(FrozenConfig):
    """One board.

    Attributes:
        name: Unique in the fleet.
        host: Name or address; the board's name where it is left out.
        port: Of its SSH server.
        user: There.
        identity_file: A private key on this machine.
        known_hosts: A file of host keys instead of the user's.
        jump: Hosts in between.
        root: Directory of its releases.
        labels: Whatever its owner wants to remember.
    """

    name: Annotated[str, Field(pattern=_NAME, max_length=100)]
    host: str | None = None
    port: int | None = None
    user: str | None = None
    identity_file: str | None = None
    known_hosts: str | None = None
    jump: tuple[str, ...] | None = None
    root: str | None = None
    labels: dict[str, str] = Field(default={})


class Group(FrozenConfig):
    """Boards of one kind.

    Attributes:
        profile: Of all of them: a name, or a path relative to the fleet's file.
        root: Directory of their releases; `~` is the home there.
        transport: What their transports have in common, see `SshTransport`.
        labels: Of all of them.
        boards: The boards.
    """

    profile: Annotated[str, Field(min_length=1)]
    root: str | None = None
    transport: dict[str, Any] = Field(default={})
    labels: dict[str, str] = Field(default={})
    boards: Annotated[tuple[Annotated[BoardEntry, BeforeValidator(_in_full)], ...], Field(min_length=1)]


class FleetFile(FrozenConfig):
    """The whole file.

    Attributes:
        schema_version: Of this form.
        name: Of the fleet.
        groups: By name.
    """

    schema_version: Literal[1]
    name: Annotated[str, Field(pattern=_NAME, max_length=100)]
    groups: Annotated[dict[Annotated[str, Field(pattern=_NAME, max_length=100)], Group], Field(min_length=1)]


def load_fleet(path: Path, root: Path) -> Fleet:
    """Reads a fleet.

    Args:
        path: A YAML file.
        root: Directory of the releases of boards for which the file names none.

    Raises:
        InputError: It can't be used; the message says where and why.
    """
    source = read_yaml(path, what="fleet", keys="schema_version, name and groups")
    try:
        parsed = FleetFile.model_validate(source.data)
    except ValidationError as error:
        problems = [_explain(source, problem) for problem in error.errors(include_url=False)]
        raise InputError("\n".join(dict.fromkeys(problems))) from error
    boards: list[FleetBoard] = []
    names: dict[str, str] = {}
    places: dict[str, str] = {}
    for group_name, group in parsed.groups.items():
        profile = _load_profile(source, path, group_name, group)
        for index, entry in enumerate(group.boards):
            where = source.place_of(("groups", group_name, "boards", index))
            board = _board(source, path, (group_name, index), profile, group, entry, root)
            _require_new(names, entry.name, where, f"the name '{entry.name}'")
            place = _place(board)
            _require_new(places, place, where, f"the place of '{entry.name}' ({place})")
            boards.append(board)
    return Fleet(parsed.name, tuple(boards))


def _load_profile(source: YamlSource, path: Path, group_name: str, group: Group) -> DeviceProfile:
    where = source.place_of(("groups", group_name, "profile"))
    named: str | Path = group.profile
    if "/" in group.profile or group.profile.endswith((".yaml", ".yml")):
        named = path.parent / Path(group.profile).expanduser()
    try:
        # Where a single board of that kind stands is nothing that counts for a fleet of them.
        profile = load_profile(named, environment={})
        check_reachable(profile)
    except ProfileError as error:
        raise InputError(f"{where}: {error.message}") from error
    return profile


def _board(
    source: YamlSource,
    path: Path,
    at: tuple[str, int],
    profile: DeviceProfile,
    group: Group,
    entry: BoardEntry,
    root: Path,
) -> FleetBoard:
    group_name, index = at
    below: KeyPath = ("groups", group_name, "boards", index)
    shared: KeyPath = ("groups", group_name, "transport")
    own = entry.model_dump(exclude={"name", "root", "labels"}, exclude_none=True)
    if "host" in group.transport:
        raise InputError(f"{source.place_of((*shared, 'host'))}: each board has a host of its own; say it there.")
    transport = profile.transport
    if isinstance(transport, SshTransport):
        told = {**group.transport, **own}
        told |= {key: _beside(path, str(told[key])) for key in _FILES if isinstance(told.get(key), str)}
        known = transport.model_dump(exclude_unset=True)
        try:
            transport = SshTransport.model_validate(
                {"lock_timeout_s": LOCK_TIMEOUT_S, **known, **told, "host": own.get("host", entry.name)}
            )
        except ValidationError as error:
            problems = [
                _explain(source, {**each, "loc": (*(below if each["loc"][0] in own else shared), *each["loc"])})
                for each in error.errors(include_url=False)
            ]
            raise InputError("\n".join(problems)) from error
    elif own or group.transport:
        place = source.place_of(below if own else shared)
        keys = ", ".join([*own, *group.transport])
        raise InputError(
            f"{place}: {keys} belong to boards that are reached over SSH, but {group.profile} is reached by "
            f"{transport.kind}."
        )
    home = Path(entry.root or group.root or root)
    if transport.kind == "local":
        home = (
            (path.parent / home.expanduser()).absolute() if entry.root or group.root else home.expanduser().absolute()
        )
    named = profile.model_copy(update={"name": entry.name, "transport": transport})
    return FleetBoard(named, group_name, home, {**group.labels, **entry.labels})


def _beside(path: Path, name: str) -> str:
    """A file of this machine, as the fleet's file names it."""
    return str((path.parent / Path(name).expanduser()).absolute())


def _place(board: FleetBoard) -> str:
    """Where no other board of a fleet may be; one host has one connection."""
    transport = board.profile.transport
    return describe(transport) if isinstance(transport, SshTransport) else f"{transport.kind}, {board.root}"


def _require_new(seen: dict[str, str], key: str, where: str, what: str) -> None:
    if key in seen:
        raise InputError(f"{where}: {what} is taken already, by {seen[key]}; each board stands in the fleet once.")
    seen[key] = where


def _explain(source: YamlSource, problem: ErrorDetails) -> str:
    """One problem in words: where, what was received, what was expected."""
    path = tuple(part for part in problem["loc"] if part != "[key]")
    key, where = ".".join(map(str, path)) or "the fleet", source.place_of(path)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(path[:-1])
        return f"{where}: unknown key {key}{did_you_mean(str(path[-1]), known)}; there are: {', '.join(known)}."
    if problem["type"] == "missing":
        return f"{where}: {key} is missing."
    reason = problem["msg"].removeprefix("Value error, ").replace("Input should be", "expected").rstrip(".")
    hint = " Write it in quotes." if problem["type"] == "string_type" and isinstance(problem["input"], int) else ""
    return f"{where}: {key} is {shown(problem['input'])}: {reason}.{hint}"


def _known_keys(path: Iterable[str | int]) -> tuple[str, ...]:
    names = [part for part in path if isinstance(part, str)]
    tables: Mapping[int, type[BaseModel]] = {0: FleetFile, 2: Group}
    if len(names) > 2:
        table = SshTransport if names[2] == "transport" else BoardEntry
        return tuple(name for name in table.model_fields if name not in ("kind",))
    return tuple(tables[len(names)].model_fields) if len(names) in tables else ()
