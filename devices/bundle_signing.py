"""Signs bundles with the user's OpenSSH key, and checks signatures on the host."""

from __future__ import annotations

import subprocess
from pathlib import Path

from devices.board.bundle_signature import NAMESPACE, verify_signature
from devices.board.release_errors import BadSignature
from devices.errors import BundleError


def sign(text: bytes, key: Path) -> bytes:
    """Signs a manifest.

    Args:
        text: The manifest.
        key: A private key, or the public half of one that the user's agent holds.

    Raises:
        BundleError: It can't be used.
    """
    if not key.is_file():
        raise BundleError(f"There is no key {key}. Make one: ssh-keygen -t ed25519 -f {key}")
    try:
        done = subprocess.run(
            ["ssh-keygen", "-Y", "sign", "-f", str(key), "-n", NAMESPACE], input=text, capture_output=True, check=False
        )
    except FileNotFoundError as error:
        raise BundleError("Bundles can't be signed: there is no ssh-keygen. Install OpenSSH's client.") from error
    if done.returncode != 0 or not done.stdout.startswith(b"-----BEGIN SSH SIGNATURE-----"):
        raise BundleError(f"{key} can't be used to sign: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def check(
    text: bytes,
    signature: bytes | None,
    allowed_signers: Path,
    *,
    revoked_keys: Path | None = None,
    identity: str | None = None,
) -> str:
    """Returns who signed a manifest, as a board would find.

    Raises:
        BundleError: Nobody did, or nobody who is in the list; or a list can't be read.
    """
    for path in (allowed_signers, revoked_keys):
        if path is not None and not path.is_file():
            raise BundleError(f"There is no file {path}.")
    if signature is None:
        raise BundleError("The bundle is not signed. Sign it with `edgeship package --sign KEY`.")
    try:
        return verify_signature(
            text, signature, str(allowed_signers), None if revoked_keys is None else str(revoked_keys), identity
        )
    except BadSignature as error:
        message = str(error)
        raise BundleError(f"{message[0].upper()}{message[1:]}.") from error
