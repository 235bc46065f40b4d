"""`edgeship-board`: the installed models on the board, `python -m board` there, or `edgeship-board.pyz` of a release.

With `release_program` and `start`, its halves that need no package, the only modules here that print.

Exit codes: 0 done; 2 bad usage or bad input; 3 the release, the runtime or the board failed.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import stat
import sys
from typing import Any, Dict, List, Optional, Sequence, Tuple

from . import release_program, start
from .errors import AgentError
from .images import ImageRejected
from .installed import NoRelease
from .launch import PROGRAM_VARIABLE
from .model import BadInput, InstalledModel, Label, default_root, open_model
from .serving.access import AccessRefused, is_loopback, make_access
from .serving.notify import Supervisor
from .serving.routes import Limits
from .serving.service import Service, Settings
from .serving.unit import recovery_text, unit_text

DONE, BAD_INPUT, FAILED = 0, 2, 3

_PROGRAM = "edgeship-board"
_MIB = 1 << 20


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Runs one command.

    Args:
        arguments: Without the program's name; the process's own where left out.

    Returns:
        The exit code.
    """
    given = _parser().parse_args(arguments)
    if given.command in release_program.COMMANDS:
        return release_program.run(given)
    commands = {"infer": _infer, "serve": _serve, "unit": _unit}
    try:
        return commands[given.command](given)
    except (BadInput, ImageRejected, NoRelease, AccessRefused) as error:
        return _fail(given, error, BAD_INPUT)
    except (AgentError, OSError, MemoryError) as error:
        return _fail(given, error, FAILED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(_PROGRAM, description="Runs, serves and installs models on this board.")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--root", default=default_root(), help="where releases lie (EDGESHIP_ROOT; %(default)s)")
    shared.add_argument("--debug", action="store_true", help="show where an error comes from")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    infer = commands.add_parser("infer", parents=[shared], help="tell what is on images")
    infer.add_argument("images", nargs="+", metavar="IMAGE", help="a .jpg, .png, .ppm or .npy file")
    infer.add_argument("--name", help="of the model, where several are installed")
    infer.add_argument("--top", type=_positive, default=5, help="how many classes (%(default)s)")
    infer.add_argument("--threads", type=_positive, help="of one inference (all cores)")
    infer.add_argument("--json", action="store_true", help="print one JSON object")

    serve = commands.add_parser("serve", parents=[shared], help="answer the Open Inference Protocol over HTTP")
    _add_serving(serve)

    unit = commands.add_parser("unit", parents=[shared], help="write a systemd unit for `serve`, or for `recover`")
    _add_serving(unit)
    unit.add_argument(
        "--recover", action="store_true", help="one that runs `recover` at boot, as who owns the releases"
    )
    unit.add_argument(
        "--before", action="append", metavar="UNIT", help="that uses the releases (edgeship-board.service)"
    )
    unit.add_argument("--output", help="the unit's file (standard output)")
    unit.add_argument("--group", default="", help="that may read the releases, where others may not")
    unit.add_argument("--memory-max", default="80%", help="of the service (%(default)s)")
    release_program.add_commands(commands)
    return parser


def _add_serving(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--name", action="append", default=[], help="a model to serve, once for each (all that are installed)")
    add("--host", default="127.0.0.1", help="to listen on; beyond loopback with a token or a client CA (%(default)s)")
    add("--port", type=_port, default=8000, help="to listen on, 0 takes a free one (%(default)s)")
    add("--workers", type=_positive, default=1, help="copies of each model, for requests at once (%(default)s)")
    add("--threads", type=_positive, help="of one inference (the cores shared among the workers)")
    add("--queue", type=_positive, default=32, help="requests that may wait for a model (%(default)s)")
    add("--max-image-mb", type=_positive, default=16, help="size of one image (%(default)s)")
    add("--max-buffered-mb", type=_positive, default=64, help="of all requests that are being read (%(default)s)")
    add("--token-file", help="holds the token that each request must carry")
    add("--certificate", help="of the server, PEM; then it speaks HTTPS")
    add("--key", help="of the certificate, where it lies in another file")
    add("--client-ca", help="PEM; clients must show a certificate that it signed")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port; expected 0 to 65535")
    return value


def _infer(given: argparse.Namespace) -> int:
    model = open_model(given.name, root=given.root, num_threads=given.threads)
    rows = [(image, model.classify(image, top=given.top)) for image in given.images]
    if given.json:
        _print(json.dumps(_record(model, rows)))
        return DONE
    for image, labels in rows:
        shown = "  ".join(f"{label.name} {label.probability:.1%}" for label in labels)
        _print(f"{image}: {shown}")
    return DONE


def _record(model: InstalledModel, rows: Sequence[Any]) -> Dict[str, Any]:
    release = model.release
    images: List[Dict[str, Any]] = [
        {"image": image, "labels": [_row(label) for label in labels]} for image, labels in rows
    ]
    return {
        "model": release.name,
        "release": release.digest,
        "runtime": release.runtime,
        "precision": release.precision,
        "images": images,
    }


def _row(label: Label) -> Dict[str, Any]:
    return {"index": label.index, "label": label.name, "probability": label.probability}


def _serve(given: argparse.Namespace) -> int:
    access = make_access(
        given.host,
        token_file=given.token_file,
        certificate=given.certificate,
        key=given.key,
        client_ca=given.client_ca,
    )
    settings = Settings(
        root=given.root,
        names=given.name,
        host=given.host,
        port=given.port,
        workers=given.workers,
        num_threads=given.threads,
        queue_length=given.queue,
    )
    limits = Limits(image_bytes=given.max_image_mb * _MIB, buffered_bytes=given.max_buffered_mb * _MIB)
    service = Service(settings, access=access, limits=limits, tell=_tell)
    service.handle_signals()
    _print(service.url)
    return DONE if service.run(Supervisor()) else FAILED


def _unit(given: argparse.Namespace) -> int:
    if given.token_file is None and given.client_ca is None:
        make_access(given.host)  # the rule of `serve`; the files themselves only the service will see
    command, packages, reads = _started_by()
    text = (_recovery_unit if given.recover else _server_unit)(given, command, packages, reads)
    if given.output is None:
        _print(text.rstrip("\n"))
        return DONE
    with open(given.output, "w", encoding="utf-8") as stream:
        stream.write(text)
    return DONE


def _server_unit(given: argparse.Namespace, command: List[str], packages: List[str], reads: List[str]) -> str:
    files = {"token-file": given.token_file, "certificate": given.certificate, "key": given.key}
    files["client-ca"] = given.client_ca
    return unit_text(
        [*command, *_serve_arguments(given)],
        root=os.path.abspath(given.root),
        packages=packages,
        reads=reads,
        secrets={option: os.path.abspath(path) for option, path in files.items() if path is not None},
        group=given.group,
        memory_max=given.memory_max,
        loopback=is_loopback(given.host),
    )


def _recovery_unit(given: argparse.Namespace, command: List[str], packages: List[str], reads: List[str]) -> str:
    root = os.path.abspath(given.root)
    owner = os.stat(root).st_uid
    if owner == 0:
        _check_owned_by_root(list(dict.fromkeys([command[0], *packages, *reads])))
    try:
        user = pwd.getpwuid(owner).pw_name
    except KeyError:
        user = str(owner)
    return recovery_text(
        [*command, "recover", "--no-restart", "--root", root],
        root=root,
        user=user,
        packages=packages,
        reads=reads,
        before=given.before or ["edgeship-board.service"],
    )


def _check_owned_by_root(paths: Sequence[str]) -> None:
    """Root runs no code that somebody else may change.

    Raises:
        AgentError: It would.
    """
    for path in paths:
        place = os.path.realpath(path)
        while place != os.path.dirname(place):
            state = os.stat(place)
            if state.st_uid != 0 or (state.st_mode & 0o022 and not state.st_mode & stat.S_ISVTX):
                raise AgentError(
                    f"the releases belong to root, who must not run {path}, for others may change {place}; give the "
                    "releases to a user of their own (chown -R), or install Edgeship where only root may write"
                )
            place = os.path.dirname(place)


def _started_by() -> Tuple[List[str], List[str], List[str]]:
    """What starts this program, the directories that it needs on Python's path, and what else it reads."""
    reads = [sys.prefix, sys.base_prefix]
    launcher = os.environ.get(PROGRAM_VARIABLE, "")
    if launcher:  # it goes on naming what came last, where directories come and go
        root = os.path.dirname(launcher)
        return [launcher], [], [*reads, launcher, os.path.join(root, "agents"), os.path.join(root, "envs")]
    package = str(__package__)
    here = os.path.abspath(__file__).rsplit(os.sep, package.count(".") + 2)[0]
    others = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if os.path.isfile(here):  # the program in one file, that of the release in use
        program = start.lasting_path(here)
        return [sys.executable, program], others, [*reads, program]
    return [sys.executable, "-m", package], list(dict.fromkeys([here, *others])), reads


def _serve_arguments(given: argparse.Namespace) -> List[str]:
    """What the unit starts; token and certificates come as credentials."""
    words = ["serve", "--root", os.path.abspath(given.root), "--host", given.host, "--port", str(given.port)]
    for name in given.name:
        words += ["--name", name]
    for option in ("workers", "threads", "queue", "max_image_mb", "max_buffered_mb"):
        value = getattr(given, option)
        if value is not None:
            words += [f"--{option.replace('_', '-')}", str(value)]
    return words


def _fail(given: argparse.Namespace, error: BaseException, code: int) -> int:
    if given.debug:
        raise error
    _tell(f"error: {error}")
    return code


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _tell(line: str) -> None:
    sys.stderr.write(f"{_PROGRAM}: {line}\n")
    sys.stderr.flush()
