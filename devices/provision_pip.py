"""Runs `pip download` for a board, and says what there is where a package has no wheel for it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from devices.errors import DeviceError, WheelMissingError
from devices.provision_android import android_hint
from devices.provision_tags import BoardPython

_TIMEOUT_S = 1800.0
_TAIL_CHARACTERS = 4000
_HINTS = {
    "numpy": "; on the board: sudo apt install python3-numpy",
    "pillow": "; on the board: sudo apt install python3-pil. Or give a binary .ppm, which needs no package",
}


def download(
    board: BoardPython, requirements: Sequence[str], *, wheelhouse: Path | None, directory: Path
) -> tuple[Path, ...]:
    """Fetches one wheel for each requirement, without what they depend on.

    Args:
        board: Whose wheels.
        requirements: With distinct names.
        wheelhouse: Take wheels from this directory alone; None takes the package index that pip is set up for.
        directory: Gets the wheels; made.

    Raises:
        WheelMissingError: One has no wheel for the board.
        DeviceError: pip is missing, or the index can't be reached.
    """
    directory.mkdir(parents=True)
    log = directory / "log"
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input",
        "--disable-pip-version-check", "--progress-bar=off", "--retries=2", "--log", str(log),
        "--dest", str(directory), "--implementation", "cp", "--abi", board.abi,
        "--python-version", ".".join(map(str, board.version)),
    ]  # fmt: skip
    for platform in board.platforms:
        command += ["--platform", platform]
    if wheelhouse is not None:
        command += ["--isolated", "--no-index", "--find-links", str(wheelhouse)]
    try:
        done = subprocess.run(
            [*command, *requirements],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise DeviceError(f"pip did not fetch {', '.join(requirements)} within {_TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        raise _explain(board, requirements, done, log, wheelhouse)
    wheels = tuple(sorted(directory.glob("*.whl")))
    foreign = [path.name for path in wheels if not board.takes(path.name)]
    if foreign:
        raise DeviceError(f"pip chose {', '.join(foreign)}, which does not run on {board.describe()}")
    return wheels


def _explain(
    board: BoardPython,
    requirements: Sequence[str],
    done: subprocess.CompletedProcess[str],
    log: Path,
    wheelhouse: Path | None,
) -> DeviceError:
    details = "\n".join(
        f"{name}:\n{text.strip()[-_TAIL_CHARACTERS:]}"
        for name, text in (("standard output", done.stdout), ("standard error", done.stderr))
    )
    details = f"command: pip download for {board.describe()}\nexit status: {done.returncode}\n{details}"
    if "No module named pip" in done.stderr:
        return DeviceError(
            "pip is not installed beside Edgeship, and it fetches the wheels for the board; install pip there",
            details=details,
        )
    match = re.search(r"No matching distribution found for (.+)", done.stderr)
    if match is None:
        last = done.stderr.strip().rpartition("\n")[2]
        return DeviceError(f"pip can't fetch {', '.join(requirements)}: {last}", details=details)
    wanted = Requirement(match[1].strip())
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    names = set(re.findall(r"[^/\s\"'()]+\.whl", text))
    if wheelhouse is not None:
        names |= {path.name for path in wheelhouse.glob("*.whl")}
    elif not names and "Retrying" in done.stderr:
        return DeviceError(
            f"{wanted} can't be fetched: the package index can't be reached. Name a directory of wheels as "
            "`wheelhouse` of the device's transport, or try again with a connection",
            details=details,
        )
    source = f"in {wheelhouse}" if wheelhouse is not None else "in the package index"
    hint = _HINTS.get(canonicalize_name(wanted.name), "")
    if board.libc == "bionic":
        hint = f"; {android_hint(str(wanted))}"
    return WheelMissingError(
        f"{wanted} has no wheel for {board.describe()} {source}; there is: {available(wanted, names)}{hint}",
        details=details,
    )


def available(wanted: Requirement, wheel_names: set[str]) -> str:
    """What there is of a package for Linux: the newest version that is wanted, else the newest, and its platforms.

    Args:
        wanted: The requirement.
        wheel_names: File names of wheels, of any package.
    """
    found: dict[Version, dict[str, set[str]]] = {}
    for file_name in wheel_names:
        try:
            name, version, _, tags = parse_wheel_filename(file_name)
        except InvalidWheelFilename:
            continue
        if name == canonicalize_name(wanted.name):
            platforms = found.setdefault(version, {})
            for tag in tags:
                if "linux" in tag.platform or tag.platform == "any":
                    platforms.setdefault(tag.platform, set()).add(tag.interpreter)
    found = {version: platforms for version, platforms in found.items() if platforms}
    if not found:
        return "nothing for Linux"
    fitting = [version for version in found if wanted.specifier.contains(version, prereleases=True)]
    newest = max(fitting or found)
    rows = [f"{platform} ({', '.join(sorted(pythons))})" for platform, pythons in sorted(found[newest].items())]
    return f"{newest} for {'; '.join(rows)}"
