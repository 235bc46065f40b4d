"""The commands of `edgeship-board` that concern releases: install, status, rollback, recover, whom to trust.

They are for a bundle that comes by hand, without a host. They need no package, so that they can bring the first ones:
this is the half of `program` that is there before numpy is, and its exit codes are the same.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from typing import Any, Callable, Dict, Optional, Sequence

from .places import default_root, who
from .release_errors import BadBundle, BadSignature, Refusal
from .release_form import form_in_use
from .release_install import Installer
from .release_requests import release_handlers

DONE, BAD_INPUT, FAILED = 0, 2, 3
COMMANDS = ("install", "status", "rollback", "recover", "trust")

_PROGRAM = "edgeship-board"


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs one command.

    Args:
        arguments: Without the program's name; the process's own where left out.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(_PROGRAM, description="Runs, serves and installs models on this board.")
    add_commands(parser.add_subparsers(dest="command", required=True, metavar="COMMAND"))
    return run(parser.parse_args(arguments))


def add_commands(commands: Any) -> None:
    """Adds the commands to the subparsers of a parser."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--root", default=default_root(), help="where releases lie (EDGESHIP_ROOT; %(default)s)")
    shared.add_argument("--json", action="store_true", help="print one JSON object")
    shared.add_argument("--debug", action="store_true", help="show where an error comes from")

    install = commands.add_parser("install", parents=[shared], help="check, test and put into use a bundle")
    install.add_argument("bundle", metavar="BUNDLE", help="as `edgeship package` writes it")
    install.add_argument("--dry-run", action="store_true", help="do everything but the switch, and leave nothing")
    commands.add_parser("status", parents=[shared], help="tell which releases are in use")
    rollback = commands.add_parser("rollback", parents=[shared], help="go back to the release before")
    rollback.add_argument("name", metavar="NAME", help="of the model")
    recover = commands.add_parser("recover", parents=[shared], help="finish installations that were interrupted")
    recover.add_argument("--no-restart", action="store_true", help="of services, which are not running yet")
    trust = commands.add_parser("trust", parents=[shared], help="say whose bundles to take; without options, tell")
    trust.add_argument("--allowed-signers", metavar="FILE", help="keys to trust, see ssh-keygen(1)")
    trust.add_argument("--revoked-keys", metavar="FILE", help="a key revocation list, or public keys")
    trust.add_argument("--allow-unsigned", action="store_true", default=None, help="take unsigned bundles")
    trust.add_argument("--signed-only", action="store_false", dest="allow_unsigned", help="take signed bundles only")


def run(given: argparse.Namespace) -> int:
    """Runs a command that was parsed; returns the exit code."""
    commands: Dict[str, Callable[[argparse.Namespace], Dict[str, Any]]] = {
        "install": _install,
        "status": _status,
        "rollback": _rollback,
        "recover": _recover,
        "trust": _trust,
    }
    try:
        told = commands[given.command](given)
    except (Refusal, OSError) as error:
        if given.debug:
            raise
        at = f" at the step '{error.step}'" if isinstance(error, Refusal) and error.step else ""
        sys.stderr.write(f"{_PROGRAM}: error: refused{at}: {error}\n")
        return BAD_INPUT if isinstance(error, (BadBundle, BadSignature)) else FAILED
    words = told.pop("words")
    _print(json.dumps(told) if given.json else words)
    return DONE


def _install(given: argparse.Namespace) -> Dict[str, Any]:
    told = _installer(given).install(given.bundle, dry_run=given.dry_run)
    verb = "installed" if told["changed"] else "would install" if given.dry_run else "already in use:"
    by = f", signed by {told['signed_by']}" if told["signed_by"] else ""
    return {**told, "words": f"{verb} {told['name']}, release {told['digest']}{by}{_form_words(told['measured'])}"}


def _status(given: argparse.Namespace) -> Dict[str, Any]:
    told: Dict[str, Any] = _ask("releases", given)
    rows = [
        f"{row['name']}: {row['current_digest'] or 'nothing'} in use, {row['previous_digest'] or 'none'} before it, "
        f"{len(row['releases'])} kept{_form_words(form_in_use(row))}"
        for row in told["releases"]
    ]
    return {**told, "words": "\n".join(rows) or f"nothing is installed in {told['root']}"}


def _rollback(given: argparse.Namespace) -> Dict[str, Any]:
    told = _installer(given).rollback(given.name)
    return {**told, "words": f"{given.name} is back at release {told['digest']}{_form_words(told['measured'])}"}


def _recover(given: argparse.Namespace) -> Dict[str, Any]:
    from .release_recover import recover_releases  # with what restarts services, which nothing else here needs

    rows = recover_releases(given.root, restart=not given.no_restart)
    words = []
    for row in rows:
        entry = row["entry"]
        told = "somebody is at work on it" if entry is None else f"{entry['result']}: {entry.get('reason', '')}"
        words.append(f"{row['name']}: {told}")
    return {"recovered": rows, "words": "\n".join(words) or f"nothing was interrupted in {given.root}"}


def _trust(given: argparse.Namespace) -> Dict[str, Any]:
    params: Dict[str, Any] = {"allow_unsigned": given.allow_unsigned}
    for name in ("allowed_signers", "revoked_keys"):
        path = getattr(given, name)
        if path is not None:
            with open(path, "rb") as stream:
                params[name] = base64.b64encode(stream.read()).decode()
    told = _ask("trust", given, **params)
    if "refused" in told:
        raise Refusal(told["refused"])
    unsigned = "takes" if told["settings"]["allow_unsigned"] else "refuses"
    return {**told, "words": f"trusts {told['signers']} keys, {unsigned} unsigned bundles"}


def _form_words(measured: Optional[Dict[str, Any]]) -> str:
    """Which form is run, of a release with a compiled one."""
    if not measured or not measured.get("form"):
        return ""
    return f"; runs as {measured['form']}" + (f" ({measured['form_reason']})" if measured["form_reason"] else "")


def _installer(given: argparse.Namespace) -> Installer:
    def on_step(step: str) -> None:
        sys.stderr.write(f"{_PROGRAM}: {step}\n")
        sys.stderr.flush()

    return Installer(given.root, who=who(), on_step=on_step)


def _ask(method: str, given: argparse.Namespace, **params: Any) -> Dict[str, Any]:
    answer: Dict[str, Any] = release_handlers()[method]({"root": given.root, **params}, lambda _: None)
    return answer


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
