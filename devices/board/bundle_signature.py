"""Whom a board takes releases from: OpenSSH signatures, checked by the board's own `ssh-keygen`.

    <root>/.board/settings.json     {"allow_unsigned": false, "keep": 5}
    <root>/.board/allowed_signers   see ALLOWED SIGNERS in ssh-keygen(1)
    <root>/.board/revoked_keys      a key revocation list, or public keys; may be missing

The signature is of the manifest, which states the digests of all files. What these files don't allow is refused.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from typing import Any, Dict, List, Optional

from .release_errors import BadSignature, Refusal

NAMESPACE = "edgeship-release"
TRUST_DIRECTORY = ".board"
SETTINGS = "settings.json"
ALLOWED_SIGNERS = "allowed_signers"
REVOKED_KEYS = "revoked_keys"

_DEFAULTS: Dict[str, Any] = {"allow_unsigned": False, "keep": 5}
_TIMEOUT_S = 60


def read_settings(root: str) -> Dict[str, Any]:
    """What the board's owner has set, completed by defaults.

    Raises:
        Refusal: The file can't be read or says something else; nothing is allowed then.
    """
    path = os.path.join(root, TRUST_DIRECTORY, SETTINGS)
    try:
        with open(path, encoding="utf-8") as stream:
            told = json.load(stream)
    except FileNotFoundError:
        return dict(_DEFAULTS)
    except (OSError, ValueError, RecursionError) as error:
        raise Refusal(f"the board's settings {path} can't be read: {error}; mend the file") from error
    if not isinstance(told, dict) or not set(told) <= set(_DEFAULTS):
        raise Refusal(f"the board's settings {path} are not what is known: expected {', '.join(_DEFAULTS)}")
    settings = {**_DEFAULTS, **told}
    keep = settings["keep"]
    if not isinstance(settings["allow_unsigned"], bool) or isinstance(keep, bool) or not isinstance(keep, int):
        raise Refusal(f"the board's settings {path}: allow_unsigned is true or false, keep is a whole number")
    return settings


def check_signature(root: str, text: bytes, signature: Optional[bytes]) -> Optional[str]:
    """Checks who signed a manifest.

    Args:
        root: Directory of all releases of this board.
        text: The manifest.
        signature: None where there is none.

    Returns:
        The signer by the name in the board's list; None where the board takes unsigned releases.

    Raises:
        BadSignature: The board does not take it.
        Refusal: The board's settings can't be read.
    """
    allowed, revoked = (os.path.join(root, TRUST_DIRECTORY, name) for name in (ALLOWED_SIGNERS, REVOKED_KEYS))
    free = read_settings(root)["allow_unsigned"]
    if signature is None:
        if free:
            return None
        raise BadSignature(
            "the bundle is not signed, and this board takes signed bundles only: sign it with `edgeship package "
            "--sign KEY`, or allow it on the board with `edgeship trust --allow-unsigned`"
        )
    if not os.path.isfile(allowed):
        if free and not os.path.lexists(allowed):
            return None
        raise BadSignature(f"this board trusts nobody yet: there is no {allowed}; set it up with `edgeship trust`")
    return verify_signature(text, signature, allowed, revoked if os.path.lexists(revoked) else None)


def verify_signature(
    text: bytes, signature: bytes, allowed_signers: str, revoked_keys: Optional[str], identity: Optional[str] = None
) -> str:
    """Checks a signature against a list of signers.

    Args:
        text: What is signed.
        signature: Of `ssh-keygen -Y sign`.
        allowed_signers: Path of the list.
        revoked_keys: Path of a key revocation list, or None.
        identity: Who must have signed; None takes everybody in the list.

    Returns:
        The signer.

    Raises:
        BadSignature: It is not by such a signer, or their key is expired or revoked.
    """
    with tempfile.TemporaryDirectory(prefix="edgeship-") as directory:
        path = os.path.join(directory, "signature")
        with open(path, "wb") as stream:
            stream.write(signature)
        if identity is not None:
            candidates = [identity]
        else:
            found = _keygen(["-Y", "find-principals", "-s", path, "-f", allowed_signers], b"")
            candidates = found.stdout.decode(errors="replace").splitlines() if found.returncode == 0 else []
            if not candidates:
                raise BadSignature(
                    "the signature is damaged, or its key is unknown to the board, or not valid now: "
                    f"{_last_words(found)}"
                )
        reasons = []
        for candidate in candidates:
            arguments = ["-Y", "verify", "-n", NAMESPACE, "-f", allowed_signers, "-I", candidate, "-s", path]
            done = _keygen([*arguments, *(() if revoked_keys is None else ("-r", revoked_keys))], text)
            if done.returncode == 0:
                return candidate
            reasons.append(f"as {candidate}: {_last_words(done)}")
    raise BadSignature(
        f"the signature is not accepted ({'; '.join(reasons[:3])}): the key is unknown, expired or revoked, or the "
        "bundle was changed after it was signed"
    )


def _keygen(arguments: List[str], text: bytes) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            ["ssh-keygen", *arguments],
            input=text,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "HOME": "/"},
        )
    except FileNotFoundError as error:
        raise BadSignature(
            "signatures can't be checked: there is no ssh-keygen; install OpenSSH's client (in Termux: pkg install "
            "openssh)"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadSignature(f"signatures can't be checked: ssh-keygen failed: {error}") from error


def _last_words(done: subprocess.CompletedProcess[bytes]) -> str:
    text = (done.stderr + b"\n" + done.stdout).decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(lines[-3:])[:300] or f"ssh-keygen ended with {done.returncode}"
