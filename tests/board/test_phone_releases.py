"""Releases on a phone, through the real adb client and both ways that lead there; see `test_phones`."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from devices import release
from devices.errors import BundleError, DeviceError, ReleaseRefusedError, RuntimeMissingError
from devices.profile import DeviceProfile
from tests.board.test_phones import BY_SHELL, Place, edgeship, place, wrapper
from tests.bundles import PARTS, make_bundle, make_key, opened, part_files, signer_line

__all__ = ["place"]

WITHOUT_LINKS = """#!/bin/sh
exec {python} -c '
import errno, os, runpy, sys
def symlink(*_, **__):
    raise PermissionError(errno.EPERM, "Operation not permitted")
os.symlink = symlink
arguments = sys.argv[2:]
if arguments[0] == "-c":
    exec(arguments[1])
else:
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")
' "$@"
"""


@pytest.fixture
def bundles(tmp_path: Path) -> tuple[Path, Path]:
    key = make_key(tmp_path / "key")
    (tmp_path / "signers").write_text(signer_line(key, "builder@example.org"))
    one, two = (make_bundle(tmp_path / f"{seed}.edgeship", seed, key=key) for seed in (1, 2))
    return one, two


def install(profile: DeviceProfile, root: Path, bundle: Path, **options: Any) -> dict[str, Any]:
    return release.install(profile, root, bundle, **options)


def test_releases_on_a_phone(place: Place, bundles: tuple[Path, Path], tmp_path: Path) -> None:
    profile, root = place.profile(), tmp_path / "releases"
    with pytest.raises(BundleError, match=r"phone refuses at the step 'signature': this board trusts nobody yet"):
        install(profile, root, bundles[0])
    told = release.set_trust(profile, root, allowed_signers=tmp_path / "signers")
    assert told == {"settings": {"allow_unsigned": False, "keep": 5}, "signers": 1}
    steps: list[str] = []
    assert not install(profile, root, bundles[0], dry_run=True, on_step=steps.append)["changed"]
    assert {"fit", "unpack", "self-test"} <= set(steps)
    for bundle in bundles:
        answer = install(profile, root, bundle)
        assert (answer["changed"], answer["signed_by"]) == (True, "builder@example.org")
        assert answer["measured"]["worst"] < 1e-5
    first, second = (opened(bundle).digest for bundle in bundles)
    assert release.rollback(profile, root, "net") == first
    where, (row,) = release.status(profile, root)
    assert where == str(root)
    assert (row.current_digest, row.previous_digest) == (first, second)
    assert [entry["action"] for entry in row.history] == ["install", "install", "rollback"]
    assert not list((place.root / "files").glob("*/*.edgeship")), "bundles are left on the phone"


def test_a_bundle_that_brings_its_packages(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched for the agent then: this machine may be without a package index, and without wheels."""
    (tmp_path / "empty").mkdir()
    profile, root = place.profile(wheelhouse=str(tmp_path / "empty")), tmp_path / "releases"
    lacking = profile.model_copy(
        update={"runtimes": {"fake": "", "litert": "nonesuch>=1"}, "preference": ("fake", "litert")}
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    release.set_trust(lacking, root, allow_unsigned=True)
    with pytest.raises(DeviceError, match="nonesuch>=1 has no wheel"):
        install(lacking, root, make_bundle(tmp_path / "plain"))
    full = [make_bundle(tmp_path / f"full-{seed}", seed, files=part_files(seed), **PARTS) for seed in (1, 2)]
    for bundle in full:
        assert install(lacking, root, bundle)["measured"]["form"] == "fake"
    assert release.rollback(lacking, root, "net") == opened(full[0]).digest
    _, (row,) = release.status(lacking, root)
    assert (row.form, row.form_reason) == ("fake", "")


def test_what_a_phone_refuses(place: Place, tmp_path: Path) -> None:
    profile, root = place.profile(), tmp_path / "releases"
    release.set_trust(profile, root, allow_unsigned=True)
    with pytest.raises(RuntimeMissingError, match=r"at the step 'fit': this board has no nonesuch"):
        install(profile, root, make_bundle(tmp_path / "lacking", requires={"runtime": "nonesuch>=1"}))
    with pytest.raises(RuntimeMissingError, match=r"wants the C library bionic"):
        install(profile, root, make_bundle(tmp_path / "other", requires={"libc": "bionic"}))
    install(profile, root, make_bundle(tmp_path / "one"))
    place.phone.cut()
    assert release.status(profile, root)[1][0].current_digest == opened(tmp_path / "one").digest


def test_a_place_without_links(place: Place, tmp_path: Path) -> None:
    python = wrapper(tmp_path / "python3", WITHOUT_LINKS.format(python=sys.executable))
    profile, root = place.profile(python=python), tmp_path / "releases"
    release.set_trust(profile, root, allow_unsigned=True)
    with pytest.raises(ReleaseRefusedError, match=r"at the step 'switch': .* without symbolic links .* with --root"):
        install(profile, root, make_bundle(tmp_path / "one"))
    assert not (root / "net" / "current").exists()


@BY_SHELL
def test_an_android_without_ssh_keygen(place: Place, bundles: tuple[Path, Path], tmp_path: Path) -> None:
    profile, root = place.profile(), tmp_path / "releases"
    release.set_trust(profile, root, allowed_signers=tmp_path / "signers")
    (tmp_path / "bin").mkdir()
    for name in ("sh", "env"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    place.phone.environment["PATH"] = str(tmp_path / "bin")
    place.phone.cut()
    with pytest.raises(BundleError, match=r"there is no ssh-keygen; .* \(in Termux: pkg install openssh\)"):
        install(profile, root, bundles[0])


def test_by_the_command_line(place: Place, bundles: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "phone.yaml").write_text(place.profile().model_dump_json(exclude_none=True))
    where = ("--device", str(tmp_path / "phone.yaml"), "--root", str(tmp_path / "releases"), "--json")
    trusted = edgeship("trust", "--allowed-signers", str(tmp_path / "signers"), *where)
    assert json.loads(trusted.stdout)["signers"] == 1, trusted.stderr
    for bundle in bundles:
        deployed = edgeship("deploy", str(bundle), *where)
        assert json.loads(deployed.stdout)["changed"], deployed.stderr
    assert json.loads(edgeship("rollback", "net", *where).stdout)["current"] == opened(bundles[0]).digest
    (row,) = json.loads(edgeship("status", *where).stdout)["releases"]
    assert row["previous_digest"] == opened(bundles[1]).digest
