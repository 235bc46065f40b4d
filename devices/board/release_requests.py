"""The agent's requests about releases.

install {bundle, root, who, dry_run?, discard?}   -> see `Installer.install`; `discard` removes the bundle afterwards
rollback {name, root, who}                        -> see `Installer.rollback`
releases {root}                                   -> `root`, absolute, and `releases`, see `release_home.status`
carried {root, name}                              -> whether the release before the one in use brought its `packages`
installed {names}                                 -> versions by name, null where a package is missing
trust {root, allow_unsigned?, keep?,
       allowed_signers?, revoked_keys?}           -> `settings`, and the number of `signers`; files are Base64
service {root, name?, set?, off?}                 -> `services`, see `release_service.read_services`; `set` changes
                                                     fields of the service of a name, or of all; `off` removes it

Each step of an installation is an event `{"step": ...}`. What the board refuses is an answer too:
`{"refused": message, "kind": ..., "step": ...}`.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from typing import Any, Callable, Dict

from .bundle_signature import ALLOWED_SIGNERS, REVOKED_KEYS, SETTINGS, TRUST_DIRECTORY, read_settings
from .interpreter import installed_version
from .jsonlines import EmitEvent, Handler
from .release_disk import replace_file
from .release_errors import Refusal
from .release_home import linked, read_release, status
from .release_install import Installer
from .release_service import forget_service, read_services, set_service

Params = Dict[str, Any]


def release_handlers() -> Dict[str, Handler]:
    """By method name, for `jsonlines.serve`."""
    return {
        "install": _install,
        "rollback": _rollback,
        "releases": lambda params, _: {"root": _root(params), "releases": status(_root(params))},
        "carried": lambda params, _: {"packages": _carried(params)},
        "installed": lambda params, _: {name: installed_version(name) for name in params["names"]},
        "trust": lambda params, _: _answer(lambda: _trust(params)),
        "service": lambda params, _: _answer(lambda: {"services": _service(params)}),
    }


def _install(params: Params, emit_event: EmitEvent) -> Params:
    try:
        return _answer(
            lambda: _installer(params, emit_event).install(params["bundle"], dry_run=params.get("dry_run", False))
        )
    finally:
        if params.get("discard"):
            with contextlib.suppress(OSError):
                os.unlink(params["bundle"])
                os.rmdir(os.path.dirname(params["bundle"]))


def _rollback(params: Params, emit_event: EmitEvent) -> Params:
    return _answer(lambda: _installer(params, emit_event).rollback(params["name"]))


def _installer(params: Params, emit_event: EmitEvent) -> Installer:
    return Installer(_root(params), who=params["who"], on_step=lambda step: emit_event({"step": step}))


def _carried(params: Params) -> bool:
    home = os.path.join(_root(params), os.path.basename(str(params["name"])))
    try:
        return bool(
            read_release(os.path.join(home, "releases", str(linked(os.path.join(home, "previous")))))[0].get("wheels")
        )
    except Refusal:
        return False


def _trust(params: Params) -> Params:
    """Replaces what is given, each file by one rename, and leaves the rest as it is; given nothing, it only tells."""
    directory = os.path.join(_root(params), TRUST_DIRECTORY)
    told = {name: params[name] for name in ("allow_unsigned", "keep") if params.get(name) is not None}
    settings = {**read_settings(_root(params)), **told}
    written = {name: base64.b64decode(params[name]) for name in (ALLOWED_SIGNERS, REVOKED_KEYS) if name in params}
    if told:
        written[SETTINGS] = json.dumps(settings, indent=2, sort_keys=True).encode() + b"\n"
    for name, content in written.items():
        os.makedirs(directory, exist_ok=True)
        replace_file(os.path.join(directory, name), content)
    signers = 0
    with contextlib.suppress(FileNotFoundError), open(os.path.join(directory, ALLOWED_SIGNERS), "rb") as stream:
        signers = sum(1 for line in stream if line.strip() and not line.startswith(b"#"))
    return {"settings": settings, "signers": signers}


def _service(params: Params) -> Params:
    root, name = _root(params), params.get("name")
    if params.get("off"):
        return forget_service(root, name)
    return set_service(root, name, params["set"]) if params.get("set") else read_services(root)


def _answer(work: Callable[[], Params]) -> Params:
    try:
        return work()
    except Refusal as error:
        return {"refused": str(error), "kind": error.kind, "step": error.step}


def _root(params: Params) -> str:
    return os.path.abspath(os.path.expanduser(str(params["root"])))
