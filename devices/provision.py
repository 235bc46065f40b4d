"""Finds the wheels that a board needs for its runtimes, on the host: the board needs neither internet nor pip.

pip chooses and fetches each package for the board's platform, Python and C library. It evaluates the conditions of
dependencies for the host, though, whatever platform it is told (pip issue 11664), so dependencies are followed here.
What is on the board already, in a version that fits, is not sent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from email.parser import BytesParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_wheel_filename

from devices.errors import DeviceError, ProfileError, WheelMissingError
from devices.provision_pip import download
from devices.provision_tags import BoardPython

Installed = Callable[[Sequence[str]], Mapping[str, str | None]]
"""Takes names of packages; returns their versions on the board, None where one is missing."""

_MOST_ROUNDS = 30
_FORMAT = 1


@dataclass
class _Package:
    """What is wanted of one package and what was found."""

    name: str
    specifier: SpecifierSet = field(default_factory=SpecifierSet)
    extras: set[str] = field(default_factory=set)
    version: str | None = None
    wheel: Path | None = None
    depends: list[Requirement] = field(default_factory=list)

    @property
    def found(self) -> tuple[str | None, Path | None, list[Requirement]]:
        """Version, wheel (None where the board has it) and dependencies."""
        return self.version, self.wheel, self.depends

    def fits(self) -> bool:
        """Whether the version found is one that is wanted."""
        return self.version is not None and self.specifier.contains(self.version, prereleases=True)


def find_wheels(
    board: BoardPython,
    requirements: Sequence[str],
    *,
    installed: Installed,
    wheelhouse: Path | None,
    cache: Path,
) -> tuple[Path, ...]:
    """Returns the wheels that a board lacks, sorted by name; from the cache where the same was asked before.

    Args:
        board: Its Python.
        requirements: As in a profile, such as "ai-edge-litert>=2.3,<3".
        installed: Asks the board.
        wheelhouse: Take wheels from this directory alone; None takes the package index that pip is set up for.
        cache: Directory on this machine; made where it is missing. Removing it makes the next call look for newer
            versions.

    Raises:
        ProfileError: A requirement is not one.
        WheelMissingError: A package has no wheel for the board.
        DeviceError: pip can't be run, or the wheelhouse or the index can't be reached.
    """
    if wheelhouse is not None and not wheelhouse.is_dir():
        raise ProfileError(f"there is no directory {wheelhouse}, which the transport of the device names as wheelhouse")
    roots = [_parse(text) for text in requirements]
    question = [
        _FORMAT,
        sorted(map(str, roots)),
        board.abi,
        board.version,
        board.platforms,
        sorted(board.markers.items()),
    ]
    question.append(None if wheelhouse is None else _listing(wheelhouse))
    record = cache / "resolved" / f"{hashlib.sha256(json.dumps(question).encode()).hexdigest()[:32]}.json"
    found = _from_cache(record, cache, installed)
    if found is None:
        with TemporaryDirectory() as directory:
            search = _Search(board, installed, wheelhouse, Path(directory))
            wheels = search.run(roots)
            found = _into_cache(record, cache, wheels, search.asked)
    return found


class _Search:
    """One search: rounds of asking the board, fetching what it lacks, and reading what that depends on."""

    def __init__(self, board: BoardPython, installed: Installed, wheelhouse: Path | None, directory: Path) -> None:
        self._board, self._installed, self._wheelhouse, self._directory = board, installed, wheelhouse, directory
        self.asked: dict[str, str | None] = {}

    def run(self, roots: Sequence[Requirement]) -> list[Path]:
        """The wheels."""
        packages: dict[str, _Package] = {}
        for number in range(_MOST_ROUNDS):
            packages = self._wanted(roots, packages)
            missing = [package for package in packages.values() if not package.fits()]
            if not missing:
                return sorted(package.wheel for package in packages.values() if package.wheel is not None)
            self._take_installed(missing)
            to_fetch = [package for package in missing if not package.fits()]
            if to_fetch:
                self._fetch(to_fetch, self._directory / str(number))
        names = ", ".join(sorted(package.name for package in packages.values() if not package.fits()))
        raise DeviceError(f"no set of versions was found that fits together; these do not: {names}")

    def _wanted(self, roots: Sequence[Requirement], known: Mapping[str, _Package]) -> dict[str, _Package]:
        """All packages that are needed, as far as their dependencies are known, with what was found of them."""
        wanted: dict[str, _Package] = {}
        seen: set[tuple[str, frozenset[str]]] = set()
        todo: list[tuple[Requirement, frozenset[str]]] = [(root, frozenset()) for root in roots]
        while todo:
            requirement, parent_extras = todo.pop()
            if not self._applies(requirement, parent_extras):
                continue
            name = canonicalize_name(requirement.name)
            package = wanted.setdefault(name, _Package(name))
            package.specifier &= requirement.specifier
            package.extras |= requirement.extras
            if name in known:
                package.version, package.wheel, package.depends = known[name].found
            state = (name, frozenset(package.extras))
            if state not in seen:
                seen.add(state)
                todo += [(each, state[1]) for each in package.depends]
        return wanted

    def _applies(self, requirement: Requirement, extras: Iterable[str]) -> bool:
        if requirement.marker is None:
            return True
        environments = ({**self._board.markers, "extra": extra} for extra in ("", *extras))
        return any(requirement.marker.evaluate(dict(environment)) for environment in environments)

    def _take_installed(self, packages: Sequence[_Package]) -> None:
        unknown = [package.name for package in packages if package.name not in self.asked]
        if unknown:
            self.asked.update(self._installed(unknown))
        for package in packages:
            version = self.asked[package.name]
            if version is not None and package.specifier.contains(version, prereleases=True):
                package.version, package.wheel, package.depends = version, None, []

    def _fetch(self, packages: Sequence[_Package], directory: Path) -> None:
        texts = [f"{package.name}{package.specifier}" for package in packages]
        wheels = {}
        try:
            paths = download(self._board, texts, wheelhouse=self._wheelhouse, directory=directory)
        except WheelMissingError as error:
            raise self._all_missing(texts, error, directory) from error
        for path in paths:
            name, version, _, _ = parse_wheel_filename(path.name)
            wheels[str(name)] = (str(version), path)
        for package in packages:
            package.version, package.wheel = wheels[package.name]
            package.depends = read_dependencies(package.wheel)

    def _all_missing(self, texts: Sequence[str], first: WheelMissingError, directory: Path) -> WheelMissingError:
        """The error for all packages without a wheel: pip names but one."""
        errors = []
        for number, text in enumerate(texts if len(texts) > 1 else ()):
            try:
                download(self._board, [text], wheelhouse=self._wheelhouse, directory=directory / str(number))
            except WheelMissingError as error:
                errors.append(error)
        messages, details = zip(*((error.message, error.details) for error in errors or [first]), strict=True)
        return WheelMissingError("\n".join(messages), details="\n\n".join(details))


def read_dependencies(wheel: Path) -> list[Requirement]:
    """What a wheel's metadata says it depends on."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith(".dist-info/METADATA")]
        if len(names) != 1:
            raise DeviceError(f"{wheel.name} is no wheel: it has {len(names)} files METADATA, expected 1")
        metadata = BytesParser().parsebytes(archive.read(names[0]), headersonly=True)
    return [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]


def _parse(text: str) -> Requirement:
    try:
        requirement = Requirement(text)
        if requirement.url is not None:
            raise InvalidRequirement("an address is not taken; put the wheel into a wheelhouse")
    except InvalidRequirement as error:
        raise ProfileError(
            f"{text!r} is no requirement ({error}); expected one like 'ai-edge-litert>=2.3,<3' among the runtimes of "
            "the device's profile"
        ) from error
    return requirement


def _listing(wheelhouse: Path) -> list[tuple[str, int, int]]:
    states = sorted((path.name, path.stat()) for path in wheelhouse.glob("*.whl"))
    return [(name, state.st_size, state.st_mtime_ns) for name, state in states]


def _from_cache(record: Path, cache: Path, installed: Installed) -> tuple[Path, ...] | None:
    """What was found before, where it is whole still and the board has the same packages."""
    try:
        saved: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        paths = tuple(_place(cache, wheel["sha256"], wheel["name"]) for wheel in saved["wheels"])
        digests = [wheel["sha256"] for wheel in saved["wheels"]]
        if [_sha256(path) for path in paths] != digests:
            return None
        asked: dict[str, str | None] = saved["installed"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return paths if dict(installed(list(asked))) == asked else None


def _into_cache(record: Path, cache: Path, wheels: Sequence[Path], asked: Mapping[str, str | None]) -> tuple[Path, ...]:
    rows, paths = [], []
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        for wheel in wheels:
            sha256 = _sha256(wheel)
            place = _place(cache, sha256, wheel.name)
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = place.with_name(f".{place.name}.{os.getpid()}")
            shutil.copyfile(wheel, temporary)
            temporary.replace(place)
            rows.append({"name": wheel.name, "sha256": sha256})
            paths.append(place)
        temporary = record.with_name(f".{record.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"installed": dict(asked), "wheels": rows}, indent=1), encoding="utf-8")
        temporary.replace(record)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise DeviceError(f"wheels can't be kept in {cache}: {error}") from error
    return tuple(paths)


def _place(cache: Path, sha256: str, name: str) -> Path:
    return cache / "files" / sha256[:16] / name


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
