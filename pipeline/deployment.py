"""From a run, or a bundle, to a release on a device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from devices.profile import DeviceProfile
from devices.release import install
from pipeline.packaging import SUFFIX, package, read
from pipeline.runner import RunResult


def deploy(
    result: RunResult,
    profile: DeviceProfile,
    root: Path,
    scratch: Path,
    *,
    key: Path | None = None,
    dry_run: bool = False,
    on_step: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Installs the artifact that a run selected for a device.

    Args:
        result: A whole run, `select` included.
        profile: The device.
        root: Directory of the device's releases.
        scratch: A directory for the bundle.
        key: Signs it, for a device that takes signed bundles only.
        dry_run: Do everything there but the switch.
        on_step: Is told of each step there.

    Returns:
        `changed` (False where this very release was in use already), the `release`'s manifest, and what the device
        told: `digest`, `signed_by`, `measured`.

    Raises:
        GateError: The run selected nothing for the device.
        DeviceError: The device refused the release, or could not be used. What was in use before is in use still.
    """
    made = package(result, profile, scratch / f"{result.recipe.name}{SUFFIX}", key=key)
    return deploy_bundle(made.path, profile, root, dry_run=dry_run, on_step=on_step)


def deploy_bundle(
    bundle: Path,
    profile: DeviceProfile,
    root: Path,
    *,
    dry_run: bool = False,
    on_step: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Installs a bundle; see `deploy`.

    Raises:
        BundleError: It is damaged; nothing was sent.
    """
    manifest = read(bundle).manifest
    told = install(profile, root, bundle, dry_run=dry_run, on_step=on_step)
    return {
        **told,
        "device": profile.name,
        "root": str(root),
        "dry_run": dry_run,
        "release": manifest,
    }
