"""The service that uses the releases of a board, as the board's owner describes it; a bundle can't.

    <root>/.board/service.json   {"all": {...}, "models": {NAME: {...}}}; see `Service` for what is in the braces

Where it says nothing of a model, a new release of it is switched to and not watched.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple
from urllib.parse import urlsplit

from .bundle_signature import TRUST_DIRECTORY
from .release_disk import replace_file
from .release_errors import BadSetting, Refusal

SERVICE_FILE = "service.json"
_LONGEST_S = 600.0


class Service(NamedTuple):
    """How a service is restarted, and how one sees that it is well.

    Attributes:
        url: Of a server that speaks the Open Inference Protocol; or nothing, then `check` says how it is.
        check: A command whose exit status 0, within ten seconds, means that the service is well; it finds
            `EDGESHIP_MODEL` and `EDGESHIP_RELEASE` in its environment.
        restart: A command that returns once the service was started anew; nothing for a service that sees a new
            release by itself.
        token_file: Holds the token that the server wants.
        ca: PEM; of the server's certificate, where the system does not know it.
        come_up_s: Within which the service, restart included, must be up with the new release.
        watch_s: For how long it must stay so.
    """

    url: str = ""
    check: Tuple[str, ...] = ()
    restart: Tuple[str, ...] = ()
    token_file: str = ""
    ca: str = ""
    come_up_s: float = 60.0
    watch_s: float = 30.0


def read_services(root: str) -> Dict[str, Any]:
    """What is set: `all` (None or a service) and `models`, a service by name.

    Raises:
        Refusal: The file can't be read, or says something else.
    """
    path = os.path.join(root, TRUST_DIRECTORY, SERVICE_FILE)
    try:
        with open(path, encoding="utf-8") as stream:
            told = json.load(stream)
    except FileNotFoundError:
        return {"all": None, "models": {}}
    except (OSError, ValueError, RecursionError) as error:
        raise Refusal(f"the board's settings {path} can't be read: {error}; mend or remove the file") from error
    try:
        if not isinstance(told, dict) or not set(told) <= {"all", "models"}:
            raise BadSetting("expected 'all' and 'models'")
        models = told.get("models", {})
        if not isinstance(models, dict):
            raise BadSetting("'models' is no object")
        for section in (*models.values(), *([told["all"]] if told.get("all") is not None else [])):
            service_from(section)
    except BadSetting as refusal:
        raise Refusal(f"the board's settings {path} are not what is known: {refusal}; mend or remove it") from None
    return {"all": told.get("all"), "models": models}


def service_of(root: str, name: str) -> Optional[Service]:
    """The service that uses a model, None where there is none.

    Raises:
        Refusal: The settings can't be read.
    """
    services = read_services(root)
    section = services["models"].get(name, services["all"])
    return None if section is None else service_from(section)


def set_service(root: str, name: Optional[str], changes: Mapping[str, Any]) -> Dict[str, Any]:
    """Changes what is set for a model, or for all; what is not given stays as it is.

    Args:
        root: Directory of all releases of this board.
        name: Of the model; None is all that have no settings of their own.
        changes: Fields of `Service`; `url` replaces a `check`, and the other way round.

    Returns:
        As `read_services`.

    Raises:
        BadSetting: The service can't be like this on this board; nothing was changed.
    """
    services = read_services(root)
    before = (services["all"] if name is None else services["models"].get(name)) or {}
    for one, other in (("url", "check"), ("check", "url")):
        if one in changes:
            before = {key: value for key, value in before.items() if key != other}
    section = {**before, **changes}
    for key in ("check", "restart"):
        if key in changes:
            section[key] = _found(key, changes[key])
    for key in ("token_file", "ca"):
        if key in changes:
            section[key] = _readable(key, changes[key])
    service = service_from(section)
    if not service.url and not service.check:
        raise BadSetting("it must be said how to see that the service is well: give its --url, or a --check")
    if name is None:
        services["all"] = section
    else:
        services["models"][_name(name)] = section
    return _write(root, services)


def forget_service(root: str, name: Optional[str]) -> Dict[str, Any]:
    """Removes what is set for a model, or for all; returns what is left as `read_services`."""
    services = read_services(root)
    if name is None:
        services["all"] = None
    else:
        services["models"].pop(name, None)
    return _write(root, services)


def _write(root: str, services: Dict[str, Any]) -> Dict[str, Any]:
    path = os.path.join(root, TRUST_DIRECTORY, SERVICE_FILE)
    if services != read_services(root):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        replace_file(path, json.dumps(services, indent=2, sort_keys=True).encode() + b"\n")
    return services


def service_from(section: Any) -> Service:
    """A section of the file as a service.

    Raises:
        BadSetting: It is none; whether its programs and files are there is not looked at.
    """
    if not isinstance(section, dict) or not set(section) <= set(Service._fields):
        raise BadSetting(f"a service has {', '.join(Service._fields)}, and nothing else")
    for key in ("url", "token_file", "ca"):
        if not isinstance(section.get(key, ""), str):
            raise BadSetting(f"{key} is {section[key]!r}; expected a text")
    for key in ("check", "restart"):
        words = section.get(key, [])
        if not isinstance(words, list) or not all(isinstance(word, str) and "\0" not in word for word in words):
            raise BadSetting(f"{key} is {words!r}; expected the words of a command")
    for key in ("come_up_s", "watch_s"):
        seconds = section.get(key, 1)
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds <= _LONGEST_S:
            raise BadSetting(f"{key} is {seconds!r}; expected seconds, more than 0 and at most {_LONGEST_S:g}")
    url = section.get("url", "")
    if url and section.get("check"):
        raise BadSetting("there is a url and a check; expected one of them")
    if url:
        _check_url(url)
    words = {key: tuple(section[key]) for key in ("check", "restart") if key in section}
    return Service(**{**section, **words})


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise BadSetting(f"the url {url!r} can't be read: {error}") from None
    plain = url.isascii() and url.isprintable() and " " not in url
    if not plain or parts.scheme not in {"http", "https"} or not host or port == 0:
        raise BadSetting(f"the url is {url!r}; expected such as http://127.0.0.1:8000")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise BadSetting("the url holds more than a host, a port and a path; a token belongs into --token-file")
    if parts.scheme == "http" and not _is_loopback(host):
        raise BadSetting(f"the url {url} leaves the board without TLS; expected https, or a loopback address")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _found(key: str, words: Any) -> List[str]:
    """The command with its program's absolute path, which another PATH does not change."""
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise BadSetting(f"{key} is {words!r}; expected a program and its arguments")
    program = os.path.expanduser(words[0])
    path = shutil.which(program)
    if path is None or (os.path.dirname(program) and not os.path.isabs(program)):
        raise BadSetting(
            f"{key} starts {words[0]!r}, which is no program on this board; give its absolute path, or a name that is "
            f"found in {os.environ.get('PATH', os.defpath)}"
        )
    return [os.path.abspath(path), *words[1:]]


def _readable(key: str, path: Any) -> str:
    if not isinstance(path, str) or not os.path.isabs(path):
        raise BadSetting(f"{key} is {path!r}; expected the absolute path of a file on the board")
    try:
        with open(path, "rb") as stream:
            stream.read(1)
    except OSError as error:
        raise BadSetting(f"{key} {path} can't be read by who owns the releases: {error.strerror}") from None
    return path


def _name(name: str) -> str:
    if not name or os.path.basename(name) != name or name.startswith("."):
        raise BadSetting(f"{name!r} is no name of a model")
    return name
