"""Releases of models on a device, from the host: what is installed, what is to be, and whom the device trusts.

The device does the work and decides: `devices.board.release_install` checks, tests and switches there, and
`devices.board.bundle_signature` knows whom it takes releases from. This module sends the bundle and asks.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from devices.board.bundle import read_bundle
from devices.board.bundle_signature import ALLOWED_SIGNERS, SETTINGS, TRUST_DIRECTORY
from devices.board.places import who
from devices.board.release_errors import FailedWatch, Refusal
from devices.board.release_form import form_in_use
from devices.errors import (
    BadInputError,
    BundleError,
    DeviceError,
    ProfileError,
    ReleaseRefusedError,
    RuntimeMissingError,
    StorageFullError,
)
from devices.profile import DeviceProfile
from devices.transports import open_transport

OnStep = Callable[[str], None]

_TIMEOUT_S = 3600.0
_REACHED = ("local", "ssh", "virtual", "adb")
_ERRORS: dict[str, type[DeviceError]] = {
    "bundle": BundleError,
    "signature": BundleError,
    "storage": StorageFullError,
    "unfit": RuntimeMissingError,
    "setting": BadInputError,
}
"""By the kind of a board's refusal; all others are `ReleaseRefusedError`."""


@dataclass(frozen=True)
class ReleaseStatus:
    """What is installed under one name.

    Attributes:
        name: Of the model.
        current: Manifest of the release in use, None where there is none.
        current_digest: Its digest.
        previous_digest: Digest of the release before it.
        releases: Digests of all releases that are kept.
        running: What is being installed, or was when it was interrupted; None where nothing is.
        history: What was done, the oldest first: `action`, `digest`, `who`, `when`, `signed_by`, `result` (`done`,
            `refused`, `interrupted`, `rolled back` by the watch of the service, `unhealthy` where that stays in use),
            and where something went wrong `step` and `reason`.
        held: Whether somebody is at work on it, such as a watcher; `running` without that was interrupted.
        form: What the release in use runs as, where it has a compiled form: that one's name, or `plain`.
        form_reason: Why it is not the compiled one.
    """

    name: str
    current: dict[str, Any] | None
    current_digest: str | None
    previous_digest: str | None
    releases: tuple[str, ...]
    running: dict[str, Any] | None
    history: tuple[dict[str, Any], ...]
    held: bool = False
    form: str | None = None
    form_reason: str = ""

    @property
    def doing(self) -> str:
        """What is going on, or was interrupted; empty where nothing is."""
        if self.running is None:
            return ""
        what = f"{self.running.get('action', 'install')} of the release {self.running.get('digest')}"
        if not self.held:
            return f"the {what} was interrupted; the next one, or `edgeship-board recover` there, finishes it"
        if self.running.get("failed"):
            return f"the {what} failed at the step '{self.running['failed']['step']}', and is being taken back"
        if self.running.get("watched") and self.current_digest == self.running.get("digest"):
            return f"the service is being watched after the {what}"
        return f"the {what} is going on"


def check_reachable(profile: DeviceProfile) -> None:
    """Refuses a device that keeps no releases.

    Raises:
        ProfileError: It is such a device.
    """
    if profile.transport.kind not in _REACHED:
        raise ProfileError(
            f"{profile.name} is reached by {profile.transport.kind}; releases are kept on devices with transport "
            f"{', '.join(_REACHED)}."
        )


def install(
    profile: DeviceProfile, root: Path, bundle: Path, *, dry_run: bool = False, on_step: OnStep | None = None
) -> dict[str, Any]:
    """Installs a bundle on a device and makes it the release in use.

    Args:
        profile: The device.
        root: Directory of all its releases; `~` is the home there.
        bundle: On this machine.
        dry_run: Do everything there but the switch, and leave nothing.
        on_step: Is told of each step there.

    Returns:
        `changed` (False where it was in use already), `name`, `digest`, `signed_by`, `measured`, and for how long a
        service was watched with it, `watched_s`.

    Raises:
        BundleError: The device does not take the bundle: damaged, not signed, not by somebody it trusts.
        DeviceError: Anything else went wrong. The release that was in use before is in use still, or again.
    """
    check_reachable(profile)
    local = profile.transport.kind == "local"
    transport = open_transport(profile)
    carried = carries_packages(bundle)
    path = transport.put(str(bundle))
    params = {"bundle": path, "root": str(root), "who": who(), "dry_run": dry_run, "discard": not local}
    is_new = local and not _is_set_up(root)
    if is_new:
        _allow_unsigned_here(root)
    try:
        return ask_device(profile, "install", params, on_step, releases_only=carried)
    finally:
        if is_new and dry_run:
            _forget_setup(root)


def rollback(profile: DeviceProfile, root: Path, name: str, *, on_step: OnStep | None = None) -> str:
    """Makes the previous release the one in use again, and the one in use the previous one.

    Returns:
        The digest of the release now in use.

    Raises:
        DeviceError: There is no previous release, it is damaged, or its self-test failed; nothing changed then. Or
            its service is not up with it, though it is in use now.
    """
    check_reachable(profile)
    params = {"name": name, "root": str(root), "who": who()}
    carried = ask_device(profile, "carried", params, None, releases_only=True)["packages"]
    digest: str = ask_device(profile, "rollback", params, on_step, releases_only=carried)["digest"]
    return digest


def status(profile: DeviceProfile, root: Path) -> tuple[str, list[ReleaseStatus]]:
    """Returns the absolute root on the device, and what is installed there, sorted by name."""
    check_reachable(profile)
    answer = ask_device(profile, "releases", {"root": str(root)}, None, releases_only=True)
    names = [each.name for each in fields(ReleaseStatus) if not each.name.startswith("form")]
    rows = [{name: row[name] for name in names} for row in answer["releases"]]
    for row in rows:
        row |= {"releases": tuple(row["releases"]), "history": tuple(row["history"]), **form_in_use(row)}
    return answer["root"], [ReleaseStatus(**row) for row in rows]


def set_trust(
    profile: DeviceProfile,
    root: Path,
    *,
    allowed_signers: Path | None = None,
    revoked_keys: Path | None = None,
    allow_unsigned: bool | None = None,
    keep: int | None = None,
) -> dict[str, Any]:
    """Tells a device whom to take releases from; None leaves what is set there, and nothing but None only asks.

    Args:
        profile: The device.
        root: Directory of all its releases.
        allowed_signers: See ALLOWED SIGNERS in ssh-keygen(1).
        revoked_keys: A key revocation list, or public keys.
        allow_unsigned: Whether it takes releases that nobody signed.
        keep: How many releases of one name it keeps, at least those in use and before.

    Returns:
        `settings` as they are now, and the number of `signers`.

    Raises:
        DeviceError: A file can't be read, or the device can't be used.
    """
    check_reachable(profile)
    params: dict[str, Any] = {"root": str(root), "allow_unsigned": allow_unsigned, "keep": keep}
    for key, path in (("allowed_signers", allowed_signers), ("revoked_keys", revoked_keys)):
        if path is not None:
            try:
                params[key] = base64.b64encode(path.read_bytes()).decode()
            except OSError as error:
                raise ProfileError(f"{path} can't be read: {error.strerror or error}") from error
    # On this machine unsigned bundles are taken until somebody says whom to trust; other settings don't change that.
    unsaid = profile.transport.kind == "local" and allow_unsigned is None and allowed_signers is None
    if unsaid and not (revoked_keys is None and keep is None):
        _allow_unsigned_here(root)
    told = ask_device(profile, "trust", params, None, releases_only=True)
    if unsaid and not _is_set_up(root):
        told["settings"]["allow_unsigned"] = True
    return told


def carries_packages(bundle: Path) -> bool:
    """Whether a bundle brings the wheels that its device needs; False of a file that is no bundle."""
    try:
        with bundle.open("rb") as stream:
            return bool(read_bundle(stream).manifest.get("wheels"))
    except (OSError, Refusal):
        return False


def ask_board(profile: DeviceProfile) -> dict[str, Any]:
    """What decides which packages run on a device, as it says itself, see `devices.board.interpreter.describe_board`.

    Raises:
        DeviceError: It can't be reached, or has no Python.
    """
    check_reachable(profile)
    return ask_device(profile, "board", {}, None, releases_only=True)


def ask_installed(profile: DeviceProfile, names: Sequence[str]) -> dict[str, str | None]:
    """The versions of packages on a device, None where one is missing.

    Raises:
        DeviceError: It can't be reached.
    """
    return ask_device(profile, "installed", {"names": list(names)}, None, releases_only=True)


def ask_device(
    profile: DeviceProfile,
    method: str,
    params: Mapping[str, Any],
    on_step: OnStep | None,
    *,
    releases_only: bool = False,
) -> dict[str, Any]:
    """Asks a device's agent about its releases.

    Args:
        profile: The device.
        method: See `devices.board.release_requests`.
        params: Of the method.
        on_step: Is told of each step there.
        releases_only: The agent needs no package for it.

    Returns:
        The answer.

    Raises:
        DeviceError: The device refuses, or can't be used.
    """

    def on_event(event: dict[str, Any]) -> None:
        if on_step is not None and "step" in event:
            on_step(event["step"])

    with open_transport(profile).start_agent(releases_only=releases_only) as agent:
        answer: dict[str, Any] = agent.request(method, params, timeout_s=_TIMEOUT_S, on_event=on_event)
    if "refused" in answer:
        kind = _ERRORS.get(answer["kind"], ReleaseRefusedError)
        at = f" at the step '{answer['step']}'" if answer["step"] else ""
        verb = f": after the switch,{at}" if answer["kind"] == FailedWatch.kind else f" refuses{at}"
        error = kind(f"{profile.name}{verb}: {answer['refused']}.")
        error.step = answer["step"]
        raise error
    return answer


def _allow_unsigned_here(root: Path) -> None:
    """On this machine the one who deploys is the one who would sign, unless a setting says otherwise.

    It is written down, so that it can be seen and taken back.
    """
    directory = root / TRUST_DIRECTORY
    if _is_set_up(root):
        return
    try:
        directory.mkdir(parents=True, exist_ok=True)
        written = directory / f"{SETTINGS}.{os.getpid()}"
        written.write_text('{"allow_unsigned": true, "keep": 5}\n', encoding="utf-8")
        written.replace(directory / SETTINGS)
    except OSError as error:
        raise DeviceError(
            f"The releases in {root} can't be written: {error}. Free some space or mend its permissions; the release "
            f"that was in use is in use still."
        ) from error


def _forget_setup(root: Path) -> None:
    """Removes what `_allow_unsigned_here` wrote, for a trial that is to leave nothing."""
    (root / TRUST_DIRECTORY / SETTINGS).unlink(missing_ok=True)
    for directory in (root / TRUST_DIRECTORY, root):
        with contextlib.suppress(OSError):  # it holds something else
            directory.rmdir()


def _is_set_up(root: Path) -> bool:
    return any((root / TRUST_DIRECTORY / name).exists() for name in (SETTINGS, ALLOWED_SIGNERS))
