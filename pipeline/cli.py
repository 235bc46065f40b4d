"""The command line: the only place that prints or sets an exit code.

Our own modules are imported inside the commands, so that `edgeship --help` answers at once.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

STAGE_NAMES = ("data", "model", "train", "calibrate", "search", "export", "verify", "compile", "benchmark",
               "select", "report")  # fmt: skip

_DEBUG = click.option("--debug", is_flag=True, help="Show tracebacks and the last words of child processes.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object.")
_STORE = click.option(
    "--store",
    type=click.Path(path_type=Path),
    default=Path(".edgeship"),
    envvar="EDGESHIP_STORE",
    show_default=True,
    show_envvar=True,
    help="Directory of the artifact store.",
)
_SHARED_STORE = click.option(
    "--shared-store",
    envvar="EDGESHIP_SHARED_STORE",
    show_envvar=True,
    help="Any fsspec address that several machines share, such as s3://bucket/path.",
)
_RUNS = click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="Where links and reports go.",
)
_SET = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value of the recipe.")
_RECIPE = click.argument("recipe_path", metavar="RECIPE", type=click.Path(path_type=Path))
_ROOT = click.option(
    "--root",
    type=click.Path(path_type=Path),
    default=Path("~/.local/share/edgeship"),
    envvar="EDGESHIP_ROOT",
    show_default=True,
    show_envvar=True,
    help="Directory of the releases on the device.",
)
_DEVICE = click.option("--device", "device_name", default="local", show_default=True, help="A device profile.")

_RESULTS = click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("runs/results.jsonl"),
    envvar="EDGESHIP_RESULTS",
    show_default=True,
    show_envvar=True,
    help="The file that every result is added to.",
)


def _describes_model(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say of a model file what the file does not; they arrive as `described`."""
    options = (
        click.option("--layout", type=click.Choice(["NHWC", "NCHW"]), help="Of an image input."),
        click.option("--scale", metavar="N[,N,N]", help="Pixels 0..255 are multiplied with it, for all or by channel."),
        click.option("--offset", metavar="N[,N,N]", help="Is added then."),
        click.option("--shape", "shapes", multiple=True, metavar="[NAME=]1,N,...", help="Fixes free dimensions."),
        click.option("--metric", type=click.Choice(["top1", "mse", "auc"]), help="What accuracy means."),
    )

    @functools.wraps(function)
    def gathered(*args: Any, **kwargs: Any) -> Any:
        names = ("layout", "scale", "offset", "shapes", "metric")
        return function(*args, described={name: kwargs.pop(name) for name in names}, **kwargs)

    for option in reversed(options):
        gathered = option(gathered)
    return gathered


def _bench_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say how long and how something is measured; they arrive as `asked`."""
    options = (
        click.option("--threads", metavar="N[,N...]", help="Of one inference; several are swept. [default: profile's]"),
        click.option("--cores", metavar="LIST|NAME", help="Keep to cores: 0-3, or by name: big, Cortex-A76."),
        click.option("--governor", metavar="NAME", help="Set it while measuring, and put the old one back."),
        click.option("--min-count", type=click.IntRange(10), help="Inferences.  [default: 400; --rules theirs]"),
        click.option("--min-time", type=click.FloatRange(0), help="Seconds of them.  [default: 1; compared 15; --rules "
                     "theirs]"),
        click.option("--max-time", type=click.FloatRange(0, min_open=True), help="Then stop.  [default: 60]"),
        click.option("--precision", type=click.FloatRange(0, 100), metavar="PERCENT", help="Stop once p90, or a "
                     "compared ratio, is known so well; 0 stops at count and time.  [default: 1]"),
        click.option("--sessions", type=click.IntRange(1, 40), help="New processes so often.  [default: 1; compared "
                     "10]"),
        click.option("--compare", is_flag=True, help="Say whether each is faster or slower than the first."),
        click.option("--sustained", metavar="TIME", help="Run each without a pause, such as 30m; latency by minute."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of the order."),
        click.option("--rules", type=click.Choice(["mlperf"]), help="Single-stream and offline by these rules: 600 s "
                     "each; --min-time and --min-count make shorter tries."),
    )  # fmt: skip
    names = ("threads", "cores", "governor", "min_count", "min_time", "max_time", "precision", "sessions", "compare",
             "sustained", "seed", "rules")  # fmt: skip

    @functools.wraps(function)
    def gathered(*args: Any, **kwargs: Any) -> Any:
        return function(*args, asked={name: kwargs.pop(name) for name in names}, **kwargs)

    for option in reversed(options):
        gathered = option(gathered)
    return gathered


def _fleet_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say how a bundle goes to a fleet; they arrive as `asked`, None where nothing was said."""
    options = (
        click.option("--fleet", "path", metavar="FLEET.yaml", type=click.Path(path_type=Path), help="All boards of a "
                     "fleet, instead of one device: canaries first, then batches."),
        click.option("--group", "groups", multiple=True, metavar="NAME", help="Only this group of the fleet. "
                     "Repeatable."),
        click.option("--canary", metavar="N|N%", help="Boards that must have it before any other.  [default: 1]"),
        click.option("--batch", metavar="N|N%", help="Boards that get it then, at a time.  [default: 10%]"),
        click.option("--max-failures", metavar="N|N%", help="Stop where more of those tried fail.  [default: 5%]"),
        click.option("--parallel", type=click.IntRange(1, 256), help="Boards at the same time.  [default: 8]"),
        click.option("--attempts", type=click.IntRange(1), help="Tries of a board that is off.  [default: 3]"),
        click.option("--retry-off", "retry_off_s", type=click.FloatRange(0), metavar="SECONDS", help="At least so long "
                     "between two of them.  [default: 30]"),
        click.option("--pause", "pause_s", type=click.FloatRange(0), metavar="SECONDS", help="Between two batches."),
        click.option("--resume", "go_on", flag_value="resume", help="Go on where it ended, also after a stop."),
        click.option("--restart", "go_on", flag_value="restart", help="Begin anew; each board is asked."),
    )  # fmt: skip
    names = ("path", "groups", "canary", "batch", "max_failures", "parallel", "attempts", "retry_off_s", "pause_s",
             "go_on")  # fmt: skip

    @functools.wraps(function)
    def gathered(*args: Any, **kwargs: Any) -> Any:
        return function(*args, asked={name: kwargs.pop(name) for name in names}, **kwargs)

    for option in reversed(options):
        gathered = option(gathered)
    return gathered


def command(group: click.Group, name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Adds a command whose errors become one message and an exit code."""

    def add(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def guarded(*args: Any, debug: bool, **kwargs: Any) -> Any:
            with _Guard(debug=debug):
                return function(*args, **kwargs)

        return group.command(name)(_DEBUG(guarded))

    return add


class _Guard:
    """Turns every error into one message on standard error and an exit code."""

    def __init__(self, *, debug: bool) -> None:
        self._debug = debug or bool(os.environ.get("EDGESHIP_DEBUG"))

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, click.exceptions.Exit | click.ClickException | SystemExit):
            return
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        if isinstance(error, KeyboardInterrupt):
            _fail("Interrupted. What was finished is kept; run the same command again to go on.", 130)
        if self._debug:
            import traceback

            click.echo("".join(traceback.format_exception(error)).rstrip(), err=True)
            click.echo(getattr(error, "details", ""), err=True)
        elif getattr(error, "shows_details", False):
            click.echo(getattr(error, "details", ""), err=True)
        code = getattr(error, "exit_code", None)
        message = getattr(error, "message", None)
        if isinstance(code, int) and isinstance(message, str):
            _fail(message, code)
        if isinstance(error, Exception):
            _fail(f"Unexpected {type(error).__name__}: {error}. --debug shows the traceback.", 4)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(click.style("Error: ", fg="red", bold=True) + message, err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="edgeship", prog_name="edgeship")
def main() -> None:
    """From a recipe to verified, measured mobile vision models on LiteRT, ONNX Runtime and OpenVINO.

    Exit codes: 0 done; 1 a gate failed; 2 bad usage or bad input; 3 a device failed; 4 a stage crashed.
    """


@command(main, "run")
@_RECIPE
@click.option("--device", "devices", multiple=True, help="A device profile, instead of the recipe's. Repeatable.")
@click.option("--until", type=click.Choice(STAGE_NAMES), default="report", show_default=True, help="Last stage.")
@_SET
@_RESULTS
@_STORE
@_SHARED_STORE
@_RUNS
@_JSON
def run(
    recipe_path: Path,
    devices: tuple[str, ...],
    until: str,
    overrides: tuple[str, ...],
    results: Path,
    store: Path,
    shared_store: str | None,
    runs: Path,
    as_json: bool,
) -> None:
    """Run RECIPE: train, export, verify, measure, select, report.

    A stage whose inputs did not change does no work.
    """
    from pipeline.recipe import load_recipes
    from pipeline.remote_store import open_store
    from pipeline.report import failed_gates, report_of
    from pipeline.run_directory import measured_anew, write_run_directory
    from pipeline.runner import run_recipe

    recipes = load_recipes(recipe_path, overrides)
    artifact_store = open_store(store, shared_store)
    reports, code = [], 0
    for recipe in recipes:
        if len(recipes) > 1:
            click.echo(f"== {recipe.name}", err=True)
        with _watched(recipe, runs) as tracking:
            result = run_recipe(recipe, artifact_store, devices=devices, until=until, tell=tracking.tell)
            if result.trained_along:
                click.echo(f"{recipe.name}: trained along; process 0 has the network and the report.", err=True)
                continue
            report = report_of(result)
            write_run_directory(runs / recipe.name, result, report, artifact_store)
            tracking.finish(result, report)
            measured = measured_anew(result)
        reports.append(report)
        if measured:  # a run that is cached loads nothing that measures
            from pipeline.measuring import record_stages

            record_stages(results, recipe.name, measured)
        if not as_json:
            _print_report(report, runs / recipe.name)
        for error in result.failures:
            code = max(code, error.exit_code)
            _show_details(error.details)
        broken = failed_gates(report)
        for sentence in broken if as_json else ():
            click.echo(f"{click.style('Gate failed:', fg='red', bold=True)} {sentence}.", err=True)
        code = code or int(bool(broken))
    if as_json:
        click.echo(json.dumps(reports[0] if len(reports) == 1 else {"runs": reports}, indent=2))
    sys.exit(code)


@command(main, "train")
@_RECIPE
@click.option("--dry-run", is_flag=True, help="Say what would be trained, with how much memory, in what time.")
@click.option("--find-learning-rate", is_flag=True, help="Try rates from 1e-6 to 10 and suggest one.")
@click.option("--coordinator", metavar="HOST:PORT", help="Of process 0, where several train together.")
@click.option("--processes", type=click.IntRange(1), help="How many train together.")
@click.option("--process", type=click.IntRange(0), help="Which one of them this is, from 0.")
@_SET
@_STORE
@_SHARED_STORE
@_RUNS
@_JSON
def train(
    recipe_path: Path,
    dry_run: bool,
    find_learning_rate: bool,
    coordinator: str | None,
    processes: int | None,
    process: int | None,
    overrides: tuple[str, ...],
    store: Path,
    shared_store: str | None,
    runs: Path,
    as_json: bool,
) -> None:
    """Train and calibrate the network of RECIPE, or try its training out for a few steps.

    Several processes, on one host or many, train one network together where each is started with --coordinator,
    --processes and its own --process.
    """
    from pipeline import rehearsal, training_summary
    from pipeline.recipe import load_recipes
    from pipeline.remote_store import open_store

    if dry_run and find_learning_rate:
        raise _input_error("--dry-run and --find-learning-rate are two different trials: give one of them.")
    training_summary.join_processes(coordinator, processes, process)
    recipes = load_recipes(recipe_path, overrides)
    artifact_store = open_store(store, shared_store)
    found: list[dict[str, Any]] = []
    for recipe in recipes:
        if len(recipes) > 1:
            click.echo(f"== {recipe.name}", err=True)
        directory = runs / recipe.name
        with _watched(recipe, runs, list_epochs=True) as tracking:
            if dry_run:
                found.append(rehearsal.dry_run(recipe, artifact_store, tracking.tell))
                lines = rehearsal.dry_run_lines(found[-1])
            elif find_learning_rate:
                found.append(rehearsal.learning_rate_search(recipe, artifact_store, directory, tracking.tell))
                lines = rehearsal.learning_rate_lines(found[-1])
            else:
                found.append(training_summary.train_recipe(recipe, artifact_store, directory, tracking))
                lines = training_summary.training_lines(found[-1])
        if not as_json:
            _print_pairs(lines)
            if find_learning_rate:
                _print_table("", rehearsal.TABLE_COLUMNS, rehearsal.learning_rate_rows(found[-1]))
    if as_json:
        click.echo(json.dumps(found[0] if len(found) == 1 else {"runs": found}, indent=2))


@command(main, "report")
@_RECIPE
@_SET
@_RUNS
@_JSON
def report_command(recipe_path: Path, overrides: tuple[str, ...], runs: Path, as_json: bool) -> None:
    """Print the report of the last run of RECIPE again."""
    from pipeline.recipe import load_recipes
    from pipeline.run_directory import read_report

    names = [recipe.name for recipe in load_recipes(recipe_path, overrides)]
    reports = [read_report(runs / name) for name in names]
    if as_json:
        click.echo(json.dumps(reports[0] if len(reports) == 1 else {"runs": reports}, indent=2))
        return
    for name, report in zip(names, reports, strict=True):
        _print_report(report, runs / name)


_SIGN = click.option(
    "--sign", "key", type=click.Path(path_type=Path), metavar="KEY", help="Sign the bundle with this OpenSSH key."
)


@command(main, "package")
@_RECIPE
@_DEVICE
@click.option("--artifact", metavar="LABEL", help="Instead of the one selected, such as litert/int8.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="[default: runs/NAME/NAME-DEVICE.edgeship]")
@click.option("--wheels", is_flag=True, help="Bring the runtime's packages, for a device without a package index.")
@_SIGN
@_SET
@_STORE
@_SHARED_STORE
@_RUNS
@_JSON
def package_command(
    recipe_path: Path,
    device_name: str,
    artifact: str | None,
    out: Path | None,
    wheels: bool,
    key: Path | None,
    overrides: tuple[str, ...],
    store: Path,
    shared_store: str | None,
    runs: Path,
    as_json: bool,
) -> None:
    """Write the bundle of RECIPE for a device: one file with the model and all that a release needs."""
    from pipeline.packaging import SUFFIX, package

    result = _run_for_device(recipe_path, device_name, overrides, store, shared_store, runs)
    name = result.recipe.name
    out = out or runs / name / f"{name}-{result.profiles[0].name}{SUFFIX}"
    made = package(result, result.profiles[0], out, label=artifact, key=key, wheels=wheels)
    if made.wheels_told is not None:
        click.echo(f"wheels for {made.wheels_told}", err=True)
    if as_json:
        found = {"path": str(made.path), "digest": made.digest, "signed": made.signed, "release": made.manifest}
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(f"{made.path}: {name} ({made.manifest['target']} {made.manifest['precision']}), release {made.digest}, "
               f"{made.path.stat().st_size / 2**20:.1f} MiB, {'signed' if made.signed else 'not signed'}")  # fmt: skip


@command(main, "deploy")
@click.argument("source", metavar="RECIPE|BUNDLE", type=click.Path(path_type=Path))
@_DEVICE
@_ROOT
@_SIGN
@click.option("--dry-run", is_flag=True, help="Do everything on the device but the switch, and leave nothing there.")
@_fleet_options
@_SET
@_STORE
@_SHARED_STORE
@_RUNS
@_JSON
def deploy_command(
    source: Path,
    device_name: str,
    root: Path,
    key: Path | None,
    dry_run: bool,
    asked: dict[str, Any],
    overrides: tuple[str, ...],
    store: Path,
    shared_store: str | None,
    runs: Path,
    as_json: bool,
) -> None:
    """Put a bundle, or the model that RECIPE selects, onto a device, which checks and tests it before it switches.

    With --fleet a bundle goes to many. Exit codes then: 0 done, also where boards are off or some failed within
    the limit; 3 stopped, or no board has it; 130 paused by Ctrl-C: boards under way end, and the same command goes on.
    """
    import tempfile

    from devices.profile import load_profile
    from devices.release import check_reachable
    from pipeline.deployment import deploy, deploy_bundle
    from pipeline.packaging import SUFFIX

    if asked["path"] is not None:
        _deploy_to_fleet(source, asked, root, runs, dry_run=dry_run, as_json=as_json, other=bool(key or overrides))
        return
    _refuse_without_fleet(asked)
    profile = load_profile(device_name)
    check_reachable(profile)
    place = _root_on(profile, root)

    def on_step(step: str) -> None:
        click.echo(f"{profile.name}: {step}", err=True)

    if source.suffix == SUFFIX:
        if key or overrides:
            raise _input_error(f"{source} is a bundle already: --sign and --set belong to `edgeship package`.")
        deployed = deploy_bundle(source, profile, place, dry_run=dry_run, on_step=on_step)
    else:
        result = _run_for_device(source, device_name, overrides, store, shared_store, runs)
        with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
            deployed = deploy(result, profile, place, Path(scratch), key=key, dry_run=dry_run, on_step=on_step)
    if as_json:
        click.echo(json.dumps(deployed, indent=2))
        return
    release = deployed["release"]
    verb = "Deployed" if deployed["changed"] else "Would deploy" if dry_run else "Already in use:"
    by = f", signed by {deployed['signed_by']}" if deployed["signed_by"] else ""
    watched = f", its service watched for {deployed['watched_s']:g} s" if deployed.get("watched_s") else ""
    click.echo(f"{verb} {release['name']} ({release['target']} {release['precision']}{by}) in "
               f"{place / release['name']}/current{watched}")  # fmt: skip


def _deploy_to_fleet(
    bundle: Path, asked: Mapping[str, Any], root: Path, runs: Path, *, dry_run: bool, as_json: bool, other: bool
) -> None:
    from pipeline import fleet_deployment, fleet_text
    from pipeline.packaging import SUFFIX

    if click.get_current_context().get_parameter_source("device_name") is not click.core.ParameterSource.DEFAULT:
        raise _input_error("--device and --fleet exclude each other: give one of them.")
    if bundle.suffix != SUFFIX or other:
        raise _input_error(
            f"--fleet takes a bundle, which all boards get as it is; {bundle} is none, or is to be changed. Write one "
            f"with `edgeship package RECIPE --device NAME -o model{SUFFIX}` (--sign and --set belong there)."
        )
    fleet, boards = fleet_deployment.load(asked["path"], root, asked["groups"])
    plan = fleet_deployment.make_plan(asked)
    wanted = fleet_deployment.Asked(bundle, runs, asked["go_on"] or "auto", dry_run)
    with _fleet_progress() as progress:
        report = fleet_deployment.deploy_to_fleet(wanted, fleet, boards, plan, tell=progress.show)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _print_table("", fleet_text.OUTCOME_COLUMNS, fleet_text.outcome_rows(report))
        if report["failures"]:
            _print_table("", fleet_text.FAILURE_COLUMNS, fleet_text.failure_rows(report))
        for line in fleet_text.summary_lines(report):
            click.echo(line)
    sys.exit(fleet_deployment.exit_code(report))


def _refuse_without_fleet(asked: Mapping[str, Any]) -> None:
    """Refuses options that say nothing of a single device."""
    given = [name for name, value in asked.items() if value not in (None, ())]
    if given:
        names = {"groups": "group", "retry_off_s": "retry-off", "pause_s": "pause", "go_on": str(asked["go_on"])}
        options = ", ".join("--" + names.get(name, name.replace("_", "-")) for name in given)
        raise _input_error(f"{options} needs --fleet: a single device has no order and no batches.")


@main.group("fleet")
def fleet_group() -> None:
    """Many boards together, as `fleet.yaml` lists them."""


_FLEET = click.argument("path", metavar="FLEET.yaml", type=click.Path(path_type=Path))
_GROUPS = click.option("--group", "groups", multiple=True, metavar="NAME", help="Only this group. Repeatable.")
_PARALLEL = click.option("--parallel", type=click.IntRange(1, 256), default=8, show_default=True, help="At a time.")


@command(fleet_group, "show")
@_FLEET
@_ROOT
@_JSON
def fleet_show(path: Path, root: Path, as_json: bool) -> None:
    """List the boards of a fleet and how each is reached; asks none of them."""
    from pipeline import fleet_deployment, fleet_text

    fleet, _ = fleet_deployment.load(path, root, ())
    if as_json:
        click.echo(json.dumps({"fleet": fleet.name, "boards": fleet_text.board_values(fleet)}, indent=2))
        return
    _print_table(fleet.name, fleet_text.BOARD_COLUMNS, fleet_text.board_rows(fleet))


@command(fleet_group, "status")
@_FLEET
@_GROUPS
@_PARALLEL
@_ROOT
@_JSON
def fleet_status(path: Path, groups: tuple[str, ...], parallel: int, root: Path, as_json: bool) -> None:
    """Ask each board what it runs; exit code 3 where none can be asked."""
    from devices.fleet_boards import ask_status, on_each
    from pipeline import fleet_deployment, fleet_text

    fleet, boards = fleet_deployment.load(path, root, groups)
    found = on_each(boards, ask_status, parallel)
    if as_json:
        click.echo(json.dumps({"fleet": fleet.name, "boards": fleet_text.status_values(found)}, indent=2))
    else:
        _print_table(fleet.name, fleet_text.STATUS_COLUMNS, fleet_text.status_rows(found))
        click.echo(fleet_text.status_line(found))
    sys.exit(0 if any(each.releases is not None for each in found) else 3)


def _trust_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say whom to trust; None where nothing was said."""
    options = (
        click.option("--allowed-signers", type=click.Path(path_type=Path), help="Keys to trust, see ssh-keygen(1)."),
        click.option("--revoked-keys", type=click.Path(path_type=Path), help="A key revocation list, or public keys."),
        click.option("--allow-unsigned/--signed-only", default=None, help="Whether unsigned bundles are taken."),
        click.option("--keep", type=click.IntRange(2), help="How many releases of one name are kept."),
    )
    for option in reversed(options):
        function = option(function)
    return function


@command(fleet_group, "trust")
@_FLEET
@_GROUPS
@_PARALLEL
@_ROOT
@_trust_options
@_JSON
def fleet_trust(path: Path, groups: tuple[str, ...], parallel: int, root: Path, as_json: bool, **wanted: Any) -> None:
    """Tell each board whose bundles to take, as `edgeship trust` does; exit code 3 where one can't be told."""
    from devices.fleet_boards import Trust, on_each
    from pipeline import fleet_deployment, fleet_text

    fleet, boards = fleet_deployment.load(path, root, groups)
    found = on_each(boards, Trust(**wanted), parallel)
    if as_json:
        click.echo(json.dumps({"fleet": fleet.name, "boards": fleet_text.trust_values(found)}, indent=2))
    else:
        for line in fleet_text.trust_lines(found):
            click.echo(line)
    sys.exit(0 if all(told is not None for _, told, _ in found) else 3)


@command(main, "status")
@_DEVICE
@_ROOT
@click.option("--history", is_flag=True, help="What was done: when, by whom, and why it failed.")
@_JSON
def status_command(device_name: str, root: Path, history: bool, as_json: bool) -> None:
    """Show which releases are in use on a device."""
    from dataclasses import asdict

    from devices.profile import load_profile
    from devices.release import status

    profile = load_profile(device_name)
    place, found = status(profile, _root_on(profile, root))
    rows = [asdict(row) for row in found]
    if as_json:
        click.echo(json.dumps({"root": place, "releases": rows}, indent=2))
        return
    cells = [
        (row["name"], "-" if row["current"] is None else f"{row['current']['target']} {row['current']['precision']}"
         + (f" as {row['form']}" if row["form"] else ""),
         row["current_digest"] or "-", row["previous_digest"] or "-", str(len(row["releases"]))) for row in rows
    ]  # fmt: skip
    _print_table(place, ("name", "in use", "current", "previous", "kept"), cells)
    for each in found:
        if each.doing:
            click.echo(f"{each.name}: {each.doing}")
    for row in rows if history else ():
        done = [
            (each.get("when", "-"), each.get("action", "-"), each.get("digest", "-"), each.get("who", "-"),
             each.get("result", "-"), each.get("reason", "")) for each in row["history"]
        ]  # fmt: skip
        _print_table(row["name"], ("when", "what", "release", "who", "result", "why"), done)


@command(main, "rollback")
@click.argument("name")
@_DEVICE
@_ROOT
@_JSON
def rollback_command(name: str, device_name: str, root: Path, as_json: bool) -> None:
    """Go back to the previous release of NAME on a device, after its self-test."""
    from devices.profile import load_profile
    from devices.release import rollback

    profile = load_profile(device_name)
    digest = rollback(profile, _root_on(profile, root), name)
    if as_json:
        click.echo(json.dumps({"name": name, "current": digest}, indent=2))
        return
    click.echo(f"{name} is back at release {digest}")


@command(main, "trust")
@_DEVICE
@_ROOT
@_trust_options
@_JSON
def trust_command(
    device_name: str,
    root: Path,
    allowed_signers: Path | None,
    revoked_keys: Path | None,
    allow_unsigned: bool | None,
    keep: int | None,
    as_json: bool,
) -> None:
    """Tell a device whose bundles to take. What is not given stays as it is; given nothing, it says what is set."""
    from devices.profile import load_profile
    from devices.release import set_trust
    from devices.wording import counted

    profile = load_profile(device_name)
    told = set_trust(
        profile,
        _root_on(profile, root),
        allowed_signers=allowed_signers,
        revoked_keys=revoked_keys,
        allow_unsigned=allow_unsigned,
        keep=keep,
    )
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    unsigned = "takes" if told["settings"]["allow_unsigned"] else "refuses"
    click.echo(f"{profile.name} trusts {counted(told['signers'], 'key')}, {unsigned} unsigned bundles, and keeps "
               f"{counted(told['settings']['keep'], 'release')} of each name.")  # fmt: skip


@command(main, "service")
@click.argument("name", required=False)
@_DEVICE
@_ROOT
@click.option("--url", help="Of a server of the Open Inference Protocol on the device, such as http://127.0.0.1:8000.")
@click.option("--check", metavar="COMMAND", help="Instead: exit status 0 means that the service is well.")
@click.option("--restart", metavar="COMMAND", help="Starts the service anew; `edgeship-board serve` needs none.")
@click.option("--token-file", metavar="PATH", help="On the device: the token that the server wants.")
@click.option("--ca", metavar="PATH", help="On the device: PEM, of the server's certificate.")
@click.option("--come-up", "come_up_s", type=float, metavar="SECONDS", help="Until it must be up.  [default: 60]")
@click.option("--watch", "watch_s", type=float, metavar="SECONDS", help="For which it is watched.  [default: 30]")
@click.option("--off", is_flag=True, help="Forget what was set.")
@_JSON
def service_command(name: str | None, device_name: str, root: Path, off: bool, as_json: bool, **options: Any) -> None:
    """Tell a device which service uses the releases of NAME, or of every model, to be restarted and watched.

    After a switch to a new release the device restarts the service, watches it, and goes back by itself where it is
    not well. A COMMAND is one argument, split here as a shell would; on the device no shell runs it. What is not given
    stays as it is; given nothing, it says what is set.
    """
    from devices.profile import load_profile
    from devices.service import forget_service, service_lines, service_settings, set_service

    profile = load_profile(device_name)
    place = _root_on(profile, root)
    changes = {key: value for key, value in options.items() if value is not None}
    if off and changes:
        raise _input_error("--off forgets a service, and the other options set one; give one of the two.")
    for key in {"check", "restart"} & set(changes):
        try:
            changes[key] = shlex.split(changes[key])
        except ValueError as error:
            raise _input_error(f"--{key} {changes[key]!r} can't be split into words: {error}.") from error
    if off:
        told = forget_service(profile, place, name)
    else:
        told = set_service(profile, place, name, changes) if changes else service_settings(profile, place)
    _print_lines(service_lines(told), told, as_json=as_json)


@command(main, "verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--allowed-signers", type=click.Path(path_type=Path), help="Check the signature against these keys.")
@click.option("--revoked-keys", type=click.Path(path_type=Path), help="Keys that count no more.")
@click.option("--identity", metavar="NAME", help="Who must have signed, by the name in the list of signers.")
@click.option("--self-test/--no-self-test", "tested", default=True, show_default=True, help="Run it, if possible.")
@_JSON
def verify_command(
    bundle: Path,
    allowed_signers: Path | None,
    revoked_keys: Path | None,
    identity: str | None,
    tested: bool,
    as_json: bool,
) -> None:
    """Check a bundle: its structure, every digest, who signed it, and what it answers on this machine."""
    from devices import bundle_signing
    from pipeline import packaging, packaging_parts

    if allowed_signers is None and (identity or revoked_keys):
        raise _input_error("--identity and --revoked-keys need --allowed-signers, the list that keys are looked up in.")
    found = packaging.read(bundle)
    signer = None
    if allowed_signers is not None:
        signer = bundle_signing.check(
            found.text, found.signature, allowed_signers, revoked_keys=revoked_keys, identity=identity
        )
    parts = packaging_parts.check_parts(bundle, found)
    measured = packaging.self_test(bundle, found) if tested else {"skipped": "as asked"}
    manifest = found.manifest
    if as_json:
        told = {"digest": found.digest, "signed": found.signature is not None, "signed_by": signer,
                "self_test": measured, "parts": parts, "release": manifest}  # fmt: skip
        click.echo(json.dumps(told, indent=2))
        return
    signed = f"signed by {signer}" if signer else "not signed" if found.signature is None else "signature not checked"
    answer = f"not tested: {measured['skipped']}" if "skipped" in measured else "it answers as it should here"
    click.echo(f"{bundle}: {manifest['name']} ({manifest['target']} {manifest['precision']}), release {found.digest}, "
               f"{len(found.members)} files whole, {signed}, {answer}")  # fmt: skip
    click.echo("\n".join(packaging_parts.parts_lines(parts)))


def _root_on(profile: Any, root: Path) -> Path:
    """Where the releases are; `~` of another device is the home there."""
    return root.expanduser().absolute() if profile.transport.kind == "local" else root


def _run_for_device(
    recipe_path: Path,
    device_name: str,
    overrides: tuple[str, ...],
    store: Path,
    shared_store: str | None,
    runs: Path,
) -> Any:
    """Runs what is missing of one recipe for one device, and writes its report."""
    from pipeline.recipe import load_recipes
    from pipeline.remote_store import open_store
    from pipeline.report import report_of
    from pipeline.run_directory import write_run_directory
    from pipeline.runner import run_recipe

    recipes = load_recipes(recipe_path, overrides)
    if len(recipes) != 1:
        raise _input_error(f"{recipe_path} stands for {len(recipes)} recipes; give one. Choose with --set.")
    artifact_store = open_store(store, shared_store)
    with _watched(recipes[0], runs) as tracking:
        result = run_recipe(recipes[0], artifact_store, devices=[device_name], tell=tracking.tell)
        if result.trained_along:
            raise _input_error(
                f"This process trained {recipes[0].name} along with others, and process 0 has the network. Do this "
                f"where process 0 runs, or without EDGESHIP_PROCESS in the environment."
            )
        report = report_of(result)
        write_run_directory(runs / recipes[0].name, result, report, artifact_store)
        tracking.finish(result, report)
    return result


@command(main, "bench-int8")
@click.option("--network", "networks", multiple=True, metavar="NAME", help="Instead of the seven; may be repeated.")
@_DEVICE
@click.option("--min-count", type=click.IntRange(10), default=300, show_default=True, help="Timed inferences.")
@click.option("--min-time", type=click.FloatRange(0), default=2.0, show_default=True, help="Seconds of them.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/bench/int8_latency.json"), show_default=True)
@_JSON
def bench_int8(
    networks: tuple[str, ...], device_name: str, min_count: int, min_time: float, out: Path, as_json: bool
) -> None:
    """Measure how fast int8 is beside float32 and beside the converters' defaults: 224x224, one thread.

    The networks have random weights: latency does not depend on what they have learned.
    """
    from devices.measurement import BenchmarkSettings
    from devices.profile import load_profile
    from pipeline.executor import child_environment

    profile = load_profile(device_name)
    os.environ.update(child_environment("tensorflow"))  # before Keras is loaded
    from pipeline import int8_latency

    settings = BenchmarkSettings(min_count=min_count, min_time_s=min_time)
    with contextlib.redirect_stdout(sys.stderr):  # NNCF draws there
        rows = int8_latency.measure_networks(
            networks or int8_latency.NETWORKS,
            profile,
            settings=settings,
            tell=lambda text: click.echo(text, err=True),
        )
    int8_latency.write_rows(rows, out, device=profile.name)
    if as_json:
        click.echo(out.read_text(encoding="utf-8").rstrip())
        return
    for line in int8_latency.table(rows):
        click.echo(line)
    gain = int8_latency.gain_over_default(rows)
    click.echo(f"{gain:.2f} times as fast as the converters' defaults (geometric mean); the rows are in {out}")


@command(main, "bench")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@_DEVICE
@_bench_options
@click.option("--image", type=click.Path(path_type=Path), help="Times its whole way too: decode to softmax.")
@click.option("--profile", "profiled", is_flag=True, help="Say where operations run, and how long each takes.")
@click.option(
    "--starts",
    type=click.IntRange(0, 200),
    default=10,
    show_default=True,
    help="Of a compiled file, and of the model it was made of, in turns.",
)
@_describes_model
@_RESULTS
@_STORE
@_SHARED_STORE
@_JSON
def bench(
    models: tuple[Path, ...],
    device_name: str,
    asked: dict[str, Any],
    image: Path | None,
    profiled: bool,
    starts: int,
    described: dict[str, Any],
    results: Path,
    store: Path,
    shared_store: str | None,
    as_json: bool,
) -> None:
    """Measure MODEL files side by side on a device.

    A .tflite, .onnx or .xml file runs as it is, and so does what edgeship compile made of one; a .keras file or a
    SavedModel is exported to every target first.
    """
    from devices.decoding import with_decoder
    from devices.profile import load_profile
    from pipeline import bench_loading, by_rules, compilation_text, measuring, measuring_text
    from pipeline.adhoc import cases_of_models
    from pipeline.model_options import description_of
    from pipeline.remote_store import open_store

    options, device = measuring.bench_options(**asked, image=image, profiled=profiled), load_profile(device_name)
    with _progress() as progress:
        description, artifacts = description_of(**described), open_store(store, shared_store)
        cases = cases_of_models(models, device, store=artifacts, description=description, tell=progress.show)
        if image is not None:
            cases = [measuring.with_image(case, image, description) for case in cases]
            device = with_decoder(device, image)
        cases = measuring.with_threads(cases, options.threads)
        if options.rules is not None:
            ruled = by_rules.measure(device, cases, options, results, tell=progress.show)
            _print_lines(by_rules.lines(ruled), by_rules.printed(ruled), as_json=as_json)
            _end_of_bench(ruled.failed, ruled.unwritten)
        if options.sustained_s is not None:
            worked = measuring.work(device, cases, options, tell=progress.show)
            unwritten = measuring.try_record_work(results, worked, options)
            _print_lines(measuring_text.sustained_lines(worked), worked.model_dump(mode="json"), as_json=as_json)
            if unwritten is not None:
                raise unwritten
            return
        result = measuring.measure(device, cases, options, tell=progress.show)
        result = bench_loading.with_loading(device, cases, result, starts=starts, seed=options.seed, tell=progress.show)
    unwritten = measuring.try_record(results, result)
    places = measuring.profiles(device, cases) if profiled else {}
    printed = measuring.printed(result, places)
    lines = measuring_text.bench_lines(result) + measuring_text.profile_lines(places)
    lines += compilation_text.bench_loading_lines(result)
    _print_lines(lines, printed, as_json=as_json)
    _end_of_bench([case.error for case in result.cases if case.error], unwritten)


def _end_of_bench(failed: Sequence[Any], unwritten: Exception | None) -> NoReturn:
    """Says which cases failed, and ends with the worst of their exit codes."""
    from devices.errors import ERRORS, DeviceError

    for message in dict.fromkeys(error.message for error in failed):
        error = next(error for error in failed if error.message == message)
        _show_details(error.details, at_once=ERRORS.get(error.kind, DeviceError).shows_details)
        click.echo(f"{click.style('Error:', fg='red', bold=True)} {message}", err=True)
    if unwritten is not None:
        raise unwritten
    sys.exit(max((error.exit_code for error in failed), default=0))


@command(main, "convert")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", "targets", multiple=True, type=click.Choice(["litert", "onnxruntime", "openvino"]),
              help="Repeatable; default all that can be reached from the format.")  # fmt: skip
@click.option("--precision", "precisions", multiple=True,
              type=click.Choice(["float32", "float16", "int8", "int8_dynamic", "int8_weights", "int16x8"]),
              help="Repeatable; default the first three, as far as they can be made.")  # fmt: skip
@click.option("--data", "source", help="Samples for int8 and for accuracy: as of eval. Without it, random ones.")
@click.option("--calibration-samples", type=click.IntRange(64), help="How many int8 takes its ranges from.")
@click.option("--out", "out_dir", required=True, type=click.Path(path_type=Path), help="Directory for the files.")
@_describes_model
@_STORE
@_SHARED_STORE
@_JSON
def convert(
    model: Path,
    targets: tuple[str, ...],
    precisions: tuple[str, ...],
    source: str | None,
    calibration_samples: int | None,
    out_dir: Path,
    described: dict[str, Any],
    store: Path,
    shared_store: str | None,
    as_json: bool,
) -> None:
    """Convert MODEL (.keras, SavedModel, .onnx, .tflite, .xml), and verify every file against MODEL itself."""
    from pipeline.adhoc import convert_model
    from pipeline.gates import GateRow
    from pipeline.model_options import description_of
    from pipeline.remote_store import open_store

    with _progress() as progress:
        rows, result = convert_model(
            model,
            out_dir,
            targets=targets,
            precisions=precisions,
            source=source,
            calibration_images=calibration_samples,
            description=description_of(**described),
            store=open_store(store, shared_store),
            tell=progress.show,
        )
    broken = [GateRow(**row) for each in rows for row in each["gates"] if row["passed"] is False]
    failures = [error.message for error in result.failures]
    if as_json:
        click.echo(json.dumps({"model": str(model), "files": rows, "failures": failures}, indent=2))
    else:
        columns = ("file", "target", "precision", "size KiB", "largest difference", "SNR dB", "accuracy", "drop",
                   "gates")  # fmt: skip
        _print_table(f"{model} in {out_dir}", columns, [_converted_cells(row) for row in rows])
    for message in failures:
        click.echo(f"{click.style('Error:', fg='red', bold=True)} {message}", err=True)
    for error in result.failures:
        _show_details(error.details)
    for row in broken:
        click.echo(f"{click.style('Gate failed:', fg='red', bold=True)} {row.sentence()}.", err=True)
    sys.exit(max((error.exit_code for error in result.failures), default=0) or int(bool(broken)))


def _converted_cells(row: dict[str, Any]) -> tuple[str, ...]:
    broken = any(gate["passed"] is False for gate in row["gates"])
    parity = row["parity"]
    return (
        Path(row["path"]).name,
        row["target"],
        row["precision"],
        f"{row['size_bytes'] / 1024:,.1f}",
        f"{parity['max_logit_difference']:.1e}",
        _cell(parity["snr_db"], 1),
        _cell(row["accuracy"], 4),
        _cell(row["accuracy_drop"], 4),
        "failed" if broken else "passed",
    )


@command(main, "compile")
@click.argument("path", metavar="RECIPE_OR_MODEL", type=click.Path(path_type=Path))
@_DEVICE
@click.option(
    "--form",
    "forms",
    multiple=True,
    type=click.Choice(["xnnpack_cache", "ort", "openvino_blob", "vela"]),
    help="Of a recipe repeatable. [default: what suits the model's runtime and the device]",
)
@click.option("--here", is_flag=True, help="Compile on this machine, for any processor; ONNX Runtime alone.")
@click.option(
    "--starts",
    type=click.IntRange(0, 200),
    default=10,
    show_default=True,
    help="Of the compiled form and of the model itself, in turns; 6 or more give an interval.",
)
@click.option("--threads", type=click.IntRange(1, 256), help="Of one inference.  [default: profile's]")
@click.option("--shape", "shapes", multiple=True, metavar="[NAME=]1,N,...", help="Fixes free dimensions.")
@click.option("--out", type=click.Path(path_type=Path), help="Directory for the files.  [default: beside the model]")
@_SET
@_STORE
@_SHARED_STORE
@_RUNS
@_JSON
def compile_command(
    path: Path,
    device_name: str,
    forms: tuple[str, ...],
    here: bool,
    starts: int,
    threads: int | None,
    shapes: tuple[str, ...],
    out: Path | None,
    overrides: tuple[str, ...],
    store: Path,
    shared_store: str | None,
    runs: Path,
    as_json: bool,
) -> None:
    """Compile a MODEL, or all exports of a RECIPE, for a device, and say what that saves at a start.

    A compiled file is bound to the runtime's version and to the processor; edgeship bench takes it, and refuses it
    for a device that it does not fit.
    """
    from devices.profile import load_profile
    from pipeline import compiling
    from pipeline.remote_store import open_store

    asked = compiling.Asked(forms=forms, here=here, starts=starts, threads=threads, shapes=shapes, out=out)
    if path.suffix in (".yaml", ".yml"):
        reports: list[dict[str, Any]] = []
        errors: list[Any] = []
        for recipe in compiling.recipes_to_compile(path, overrides, asked):
            with _watched(recipe, runs) as tracking:
                report, failed = compiling.compile_recipe(
                    recipe, device_name, open_store(store, shared_store), runs / recipe.name, tell=tracking.tell
                )
            reports, errors = [*reports, report], [*errors, *failed]
        lines = [line for report in reports for line in compiling.recipe_lines(report, runs / report["recipe"])]
        _print_lines(lines, reports[0] if len(reports) == 1 else {"runs": reports}, as_json=as_json)
        for error in errors:
            _show_details(error.details)
            click.echo(f"{click.style('Error:', fg='red', bold=True)} {error.message}", err=True)
        sys.exit(max((error.exit_code for error in errors), default=0))
    with _progress() as progress:
        made = compiling.compile_model(path, load_profile(device_name), asked, overrides, tell=progress.show)
    _print_lines(made.lines(), made.to_dict(), as_json=as_json)


@command(main, "eval")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--data", "source", required=True, help="`digits`, a folder, a .tar(.gz|.xz), or .npz.")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="test", show_default=True)
@click.option("--samples", "count", type=click.IntRange(1), help="So many of the split, always the same.")
@click.option("--reference", type=click.Path(path_type=Path), help="Compare with this model's answers on this machine, "
              "such as the float one's; default on a board: the same file.")  # fmt: skip
@_DEVICE
@_describes_model
@_RESULTS
@_STORE
@_SHARED_STORE
@_JSON
def evaluate(
    model: Path,
    source: str,
    split: str,
    count: int | None,
    reference: Path | None,
    device_name: str,
    described: dict[str, Any],
    results: Path,
    store: Path,
    shared_store: str | None,
    as_json: bool,
) -> None:
    """Measure how well MODEL does its task on a data set: accuracy and calibration, or --metric."""
    from devices.profile import load_profile
    from pipeline import measuring, measuring_text
    from pipeline.adhoc import evaluate_model
    from pipeline.model_options import description_of
    from pipeline.remote_store import open_store

    profile = load_profile(device_name)
    with _progress() as progress:
        found = evaluate_model(
            model,
            source,
            profile,
            split=split,
            description=description_of(**described),
            store=open_store(store, shared_store),
            reference=reference,
            count=count,
            tell=progress.show,
        )
    unwritten = measuring.try_append(results, found.record)
    _print_lines(measuring_text.evaluation_lines(found.values), found.values, as_json=as_json)
    if unwritten is not None:
        raise unwritten


@command(main, "inspect")
@click.argument("model", type=click.Path(path_type=Path))
@_JSON
def inspect(model: Path, as_json: bool) -> None:
    """Read MODEL and print its inputs, outputs, operations, tensor types and sizes."""
    from pipeline.targets import inspect_model

    summary = inspect_model(model).to_dict()
    if as_json:
        click.echo(json.dumps(summary, indent=2))
        return
    click.echo(f"{model}: {summary['format']}, {summary['precision']}, {summary['size_bytes']:,} bytes")
    click.echo(f"sha256 {summary['sha256']}")
    if summary["weights_sha256"]:
        click.echo(f"sha256 {summary['weights_sha256']} (.bin)")
    tensors = [(kind[:-1], tensor["name"], tensor["dtype"], str(list(tensor["shape"])))
               for kind in ("inputs", "outputs") for tensor in summary[kind]]  # fmt: skip
    _print_table("", ("", "name", "type", "shape"), tensors)
    _print_table("", ("operation", "count"), [(name, str(count)) for name, count in summary["operations"].items()])
    types = [(name, str(count), f"{summary['weight_bytes'].get(name, 0):,}")
             for name, count in summary["tensor_types"].items()]  # fmt: skip
    _print_table("", ("tensor type", "tensors", "bytes of constants"), types)
    if summary["float_operations"]:
        click.echo(f"In float: {', '.join(summary['float_operations'])}")


@main.group("recipe")
def recipe_group() -> None:
    """Check recipes; print their schema."""


@command(recipe_group, "schema")
def recipe_schema_command() -> None:
    """Print the JSON schema of recipes, for editors that complete YAML."""
    from pipeline.recipe import recipe_schema

    click.echo(json.dumps(recipe_schema(), indent=2))


@command(recipe_group, "show")
@_RECIPE
@_SET
@_JSON
def recipe_show(recipe_path: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check RECIPE and print it with every default filled in; with a matrix, all recipes it expands to."""
    from pipeline.recipe import load_recipes

    recipes = [recipe.model_dump(mode="json") for recipe in load_recipes(recipe_path, overrides)]
    if as_json:
        click.echo(json.dumps(recipes[0] if len(recipes) == 1 else {"recipes": recipes}, indent=2))
        return
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.explicit_start = len(recipes) > 1
    for recipe in recipes:
        yaml.dump(recipe, sys.stdout)


@main.group("models")
def models_group() -> None:
    """The networks that recipes can name."""


@command(models_group, "list")
@click.option("--family", help="Only the networks of this family.")
@_JSON
def models_list(family: str | None, as_json: bool) -> None:
    """List the networks: what they cost for one image, and their published accuracy.

    Memory is the peak of the activations in float32; parameters and multiply-adds are those of 1,000 classes.
    """
    from pipeline.model_tables import LIST_COLUMNS, list_tables

    models = _quiet_models()
    names = [spec.name for spec in models.MODELS.values() if family in (None, spec.family)]
    if not names:
        families = ", ".join(sorted({spec.family for spec in models.MODELS.values()}))
        raise _input_error(f"There is no family {family!r}, expected one of {families}.")
    rows = [models.describe(name) for name in names]
    if as_json:
        click.echo(json.dumps({"models": rows}, indent=2))
        return
    tables, sources = list_tables(rows)
    _print_sections(LIST_COLUMNS, tables)
    for number, source in enumerate(sources, start=1):
        click.echo(textwrap.fill(f"{number:>2}  {source}", 120, subsequent_indent=" " * 4))


_NETWORK_OPTIONS = (
    click.option("--size", type=(int, int), metavar="HEIGHT WIDTH", help="Image size in pixels; default the paper's."),
    click.option("--width", type=float, default=1.0, show_default=True, help="Factor on the number of channels."),
    click.option("--depth", type=float, default=1.0, show_default=True, help="Factor on the number of blocks."),
    click.option("--classes", type=int, help="Number of logits; default the paper's."),
    click.option("--activation", help="The principal nonlinearity, such as relu6; default the paper's."),
    click.option("--squeeze-excite/--no-squeeze-excite", default=None, help="Gates on channels; default the paper's."),
    click.option("--early-stride/--no-early-stride", default=None,
                 help="First strides of the paper, or of the variant for small images; default by the size."),
)  # fmt: skip


def _network_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `models.build`, gathered in one argument."""

    @functools.wraps(function)
    def gathered(
        size: tuple[int, int] | None,
        width: float,
        depth: float,
        classes: int | None,
        activation: str | None,
        squeeze_excite: bool | None,
        early_stride: bool | None,
        **kwargs: Any,
    ) -> Any:
        options = {
            "input_shape": None if size is None else (*size, 3),
            "num_classes": classes,
            "width": width,
            "depth": depth,
            "activation": activation,
            "squeeze_excite": squeeze_excite,
            "early_stride": early_stride,
        }
        return function(options=options, **kwargs)

    for option in reversed(_NETWORK_OPTIONS):
        gathered = option(gathered)
    return gathered


@command(models_group, "show")
@click.argument("name")
@_network_options
@_JSON
def models_show(name: str, options: dict[str, Any], as_json: bool) -> None:
    """Show a network's facts and its layers.

    A layer's memory is what is alive while it runs; a layer without is folded, fused or gone on a board.
    """
    from pipeline.model_tables import LAYER_COLUMNS, fact_lines, layer_rows

    models = _quiet_models()
    with _bad_input():
        facts = models.describe(name, with_layers=True, **_checked_size(models, name, options))
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    _print_pairs(fact_lines(facts))
    _print_table("", LAYER_COLUMNS, layer_rows(facts["layers"]))


@command(models_group, "scale")
@click.argument("family")
@click.option("--phi", type=float, help="A compound coefficient: 0 is the base network, 7 is about EfficientNet-B7.")
@click.option("--multiply-adds", metavar="AMOUNT", help="At most so many, such as 60M or 1.2G.")
@click.option("--parameters", metavar="AMOUNT", help="At most so many, such as 3M.")
@click.option("--size-bytes", metavar="AMOUNT", help="Weights of the file at most, such as 2MB or 2MiB.")
@click.option("--peak-activation-bytes", metavar="AMOUNT", help="Activations at most, such as 512KiB.")
@click.option("--precision", type=click.Choice(["float32", "int8"]), default="int8", show_default=True,
              help="Of the file that bytes are for.")  # fmt: skip
@click.option("--resolution", type=int, help="Side of the image in pixels; default the paper's, scaled by phi.")
@click.option("--classes", type=int, help="Number of logits; default the paper's.")
@_JSON
def models_scale(
    family: str, phi: float | None, precision: Any, resolution: int | None, classes: int | None, as_json: bool,
    **limits: str | None,
) -> None:  # fmt: skip
    """Find the member of FAMILY at a compound coefficient, or the largest that keeps within a budget."""
    from dataclasses import asdict

    from pipeline.model_tables import member_lines

    _quiet_models()
    from models.scaling import Budget, compound_member, fit_budget, parse_amount

    with _bad_input():
        shape = None if resolution is None else (resolution, resolution, 3)
        given = {name: parse_amount(amount) for name, amount in limits.items() if amount is not None}
        if (phi is None) == (not given):
            raise _input_error("Expected either --phi or limits, such as --multiply-adds 60M.")
        if phi is not None:
            member = compound_member(family, phi, input_shape=shape, num_classes=classes, precision=precision)
        else:
            budget = Budget(precision=precision, **given)
            member = fit_budget(family, budget, input_shape=shape, num_classes=classes)
    if as_json:
        click.echo(json.dumps(asdict(member), indent=2))
        return
    _print_pairs(member_lines(asdict(member)))


@command(models_group, "save")
@click.argument("name")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file to write, FILE.keras.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the random weights.")
@_network_options
@_JSON
def models_save(name: str, out: Path, seed: int, options: dict[str, Any], as_json: bool) -> None:
    """Write a network with fresh random weights as a .keras file, to train it anywhere with Keras."""
    from pipeline.network import save_fresh_network

    # OpenVINO compiles a graph for each of the weights that it hands out: 20 s for MobileNetV2, here 0.4 s.
    models = _quiet_models("numpy")
    with _bad_input():
        saved = save_fresh_network(name, out, seed=seed, options=_checked_size(models, name, options))
    if as_json:
        click.echo(json.dumps(saved, indent=2))
        return
    click.echo(f"{saved['path']}: {saved['name']}, {saved['parameters']:,} parameters, {saved['size_bytes']:,} bytes")


def _checked_size(models: Any, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a network, without an image size for one that takes none."""
    spec = models.find(name)
    if options["input_shape"] is not None and spec.input_kind != "image":
        shape = "x".join(map(str, spec.input_shape))
        raise _input_error(f"{name} takes features of the shape {shape}, not images: leave out --size.")
    return options


@contextlib.contextmanager
def _bad_input() -> Iterator[None]:
    """Makes what `models` refuses an error of bad input."""
    try:
        yield
    except ValueError as error:
        raise _input_error(str(error)) from error


def _input_error(message: str) -> Exception:
    from pipeline.errors import InputError

    return InputError(message)


@main.group("devices")
def devices_group() -> None:
    """The boards that models are measured on."""


@command(devices_group, "list")
@_JSON
def devices_list(as_json: bool) -> None:
    """List the device profiles."""
    from devices.profile import list_profiles, load_profile

    profiles = [load_profile(name) for name in list_profiles()]
    if as_json:
        click.echo(json.dumps({"devices": [profile.model_dump(mode="json") for profile in profiles]}, indent=2))
        return
    rows = [(profile.name, profile.transport.kind, profile.latency_label, ", ".join(profile.preference),
             profile.description) for profile in profiles]  # fmt: skip
    _print_table("", ("name", "transport", "latencies", "runtimes", "description"), rows)
    click.echo("A board is looked for under its name; devices doctor NAME says how to tell where yours is.", err=True)


@command(devices_group, "show")
@click.argument("name")
@_JSON
def devices_show(name: str, as_json: bool) -> None:
    """Show a device profile, with the source of each fact."""
    from devices.fact_table import profile_rows
    from devices.profile import load_profile

    profile = load_profile(name)
    if as_json:
        click.echo(json.dumps(profile.model_dump(mode="json"), indent=2))
        return
    _print_table("", ("", "profile", "source"), profile_rows(profile))
    for note in profile.notes:
        click.echo(textwrap.fill(f"- {note}", 120, subsequent_indent="  "))


_HOST = click.option(
    "--host", metavar="[USER@]HOST[:PORT]", help="Where the board is, instead of what the profile says."
)


@command(devices_group, "facts")
@click.argument("name")
@_HOST
@_JSON
def devices_facts(name: str, host: str | None, as_json: bool) -> None:
    """Ask a device what it is, and show where it differs from its profile."""
    from devices.doctor import ask_facts
    from devices.fact_table import compare_facts
    from devices.profile import load_profile

    profile = load_profile(name, host=host)
    facts = ask_facts(profile)
    rows = compare_facts(profile, facts)
    if as_json:
        comparison = [row.to_dict() for row in rows]
        click.echo(json.dumps({"device": profile.name, "facts": facts, "comparison": comparison}, indent=2))
        return
    cells = [(row.fact, row.profile or "-", row.board or "-", "differs" if row.differs else "") for row in rows]
    _print_table("", ("fact", "profile", "board", ""), cells)
    differing = [row.fact for row in rows if row.differs]
    click.echo(f"{profile.name} differs from its profile in: {', '.join(differing) or 'nothing'}.")


@command(devices_group, "doctor")
@click.argument("name")
@_HOST
@_JSON
def devices_doctor(name: str, host: str | None, as_json: bool) -> None:
    """Say what is missing on a device, and the command that mends it; exit code 3 where it can't be used."""
    from devices.doctor import diagnose
    from devices.profile import load_profile

    diagnosis = diagnose(load_profile(name, host=host))
    if as_json:
        click.echo(json.dumps(diagnosis.to_dict(), indent=2))
    colors = {"ok": "green", "warning": "yellow", "problem": "red"}
    for finding in () if as_json else diagnosis.findings:
        state = click.style(f"{finding.state:<9}", fg=colors.get(finding.state))
        click.echo(
            state
            + textwrap.fill(
                f"{finding.check:<14}{finding.message}", 111, subsequent_indent=" " * 23, break_on_hyphens=False
            )
        )
        if finding.mend is not None:
            click.echo(f"{'':<23}mend: {finding.mend}")
    _show_details(diagnosis.details)
    sys.exit(0 if diagnosis.usable else 3)


@devices_group.group("virtual")
def virtual_group() -> None:
    """Virtual boards: Debian for ARM under emulation, with an SSH server on a loopback port."""


_BOARDS = click.argument("boards", nargs=-1, metavar="[arm64|armhf]...")


@command(virtual_group, "build")
@_BOARDS
@click.option("--mirror", envvar="EDGESHIP_DEBIAN_MIRROR", show_envvar=True, help="A Debian mirror.")
def virtual_build(boards: tuple[str, ...], mirror: str | None) -> None:
    """Build the boards (both without a name) in the cache, where they aren't there yet; needs root."""
    from devices.cache import cache_directory
    from devices.virtual.build import build_board
    from devices.virtual.plan import BOARDS, find_board

    cache = cache_directory(os.environ)
    for board in [find_board(name) for name in boards or BOARDS]:
        files = build_board(board, cache, mirror=mirror, tell=lambda line: click.echo(line, err=True))
        click.echo(f"{board.host_name}: {files.directory}")


@command(virtual_group, "start")
@_BOARDS
def virtual_start(boards: tuple[str, ...]) -> None:
    """Start the boards (both without a name) and let them run until they are stopped; needs root."""
    from devices.cache import cache_directory
    from devices.virtual.control import start_board
    from devices.virtual.plan import BOARDS, find_board, login_command

    for board in [find_board(name) for name in boards or BOARDS]:
        running = start_board(board, cache_directory(os.environ))
        click.echo(f"{board.host_name}: {shlex.join(login_command(running.files, running.port))}")


@command(virtual_group, "stop")
def virtual_stop() -> None:
    """End all boards with everything that runs on them."""
    from devices.cache import cache_directory
    from devices.virtual.control import list_built, stop_board

    stopped = [files.directory.name for files in list_built(cache_directory(os.environ)) if stop_board(files)]
    click.echo(f"stopped: {', '.join(stopped) or 'none, for none was running'}")


@command(virtual_group, "status")
@_JSON
def virtual_status(as_json: bool) -> None:
    """Show which boards are built, which run, and how to log in."""
    from devices.cache import cache_directory
    from devices.virtual.control import board_states

    states = board_states(cache_directory(os.environ))
    if as_json:
        click.echo(json.dumps({"boards": states}, indent=2))
        return
    for state in states:
        click.echo(f"{state['board']}: {state['state']}" + (f"; {state['login']}" if state["login"] else ""))


@main.group("store")
def store_group() -> None:
    """The artifact store."""


@command(store_group, "ls")
@_STORE
@_JSON
def store_ls(store: Path, as_json: bool) -> None:
    """List the artifacts: stage, key, size, age, and whether a run uses them."""
    from pipeline.artifacts import ArtifactStore
    from pipeline.store_maintenance import artifact_size, used_keys

    artifact_store = ArtifactStore(store)
    used = used_keys(artifact_store)
    rows: list[dict[str, Any]] = [
        {
            "stage": artifact.manifest.stage,
            "key": artifact.manifest.key,
            "size_bytes": artifact_size(artifact),
            "created": artifact.manifest.created,
            "used": artifact.manifest.key in used,
            "path": str(artifact.directory),
        }
        for artifact in artifact_store.artifacts()
    ]
    if as_json:
        click.echo(json.dumps({"store": str(artifact_store.directory), "artifacts": rows}, indent=2))
        return
    cells = [(row["stage"], row["key"], f"{row['size_bytes'] / 1024:,.0f} KiB", row["created"],
              "yes" if row["used"] else "no") for row in rows]  # fmt: skip
    _print_table(str(artifact_store.directory), ("stage", "key", "size", "created", "used"), cells)


@command(store_group, "gc")
@click.option("--older-than", type=click.FloatRange(0), default=7.0, show_default=True, help="Age in days.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@_STORE
@_JSON
def store_gc(older_than: float, dry_run: bool, store: Path, as_json: bool) -> None:
    """Remove artifacts that no run uses, interrupted work and quarantine."""
    from devices.wording import counted
    from pipeline.artifacts import ArtifactStore
    from pipeline.store_maintenance import collect

    removed = collect(ArtifactStore(store), older_than_s=older_than * 86400, dry_run=dry_run)
    size = sum(leftover.size_bytes for leftover in removed)
    if as_json:
        rows = [{"kind": each.kind, "path": str(each.path), "size_bytes": each.size_bytes} for each in removed]
        click.echo(json.dumps({"dry_run": dry_run, "removed": rows, "size_bytes": size}, indent=2))
        return
    for leftover in removed:
        click.echo(f"{leftover.kind}: {leftover.path.name} ({leftover.size_bytes / 1024:,.0f} KiB)")
    number = counted(len(removed), "directory", "directories")
    click.echo(f"{'Would remove' if dry_run else 'Removed'} {number}, {size / 2**20:,.1f} MiB.")


@main.group("results")
def results_group() -> None:
    """Every result that was measured."""


@command(results_group, "list")
@click.option("--model", "text", help="Only cases whose name holds this text.")
@click.option("--last", type=click.IntRange(1), default=30, show_default=True, help="So many of the newest.")
@_RESULTS
@_JSON
def results_list(text: str | None, last: int, results: Path, as_json: bool) -> None:
    """List the newest results."""
    from pipeline import measuring, measuring_text

    found = measuring.read(results, text, tell=_warn)[-last:]
    if as_json:
        click.echo(json.dumps({"results": [record.model_dump(mode="json") for record in found]}, indent=2))
        return
    _print_table(str(results), measuring_text.RESULT_COLUMNS, measuring_text.result_rows(found))


@command(results_group, "compare")
@click.option("--model", "text", help="Only cases whose name holds this text.")
@click.option("--base", metavar="COMMIT", help="Compare with results of this commit, not of the last other one.")
@click.option("--all", "every", is_flag=True, help="All cases, not only those of the newest run.")
@click.option("--fail-on-slowdown", is_flag=True, help="Exit with 1 where a case is slower.")
@_RESULTS
@_JSON
def results_compare(
    text: str | None, base: str | None, every: bool, fail_on_slowdown: bool, results: Path, as_json: bool
) -> None:
    """Compare the cases of the newest run with the last commit's results on the same machine.

    A verdict needs results of four sessions or more on both sides: edgeship bench --sessions 8.
    """
    from devices.wording import counted
    from pipeline import measuring, measuring_text

    records = measuring.read(results, text, tell=_warn)
    rows = measuring.comparison_rows(records, base, every=every)
    accuracies = measuring.accuracy_rows(records, base, every=every)
    lines = measuring_text.regression_lines(rows) + measuring_text.accuracy_lines(accuracies)
    lines = lines or [measuring_text.NOTHING_TO_COMPARE]
    _print_lines(lines, {"comparisons": rows, "accuracies": accuracies}, as_json=as_json)
    slower = [row["case"] for row in rows if row["verdict"] == "slower"]
    if slower and fail_on_slowdown:
        are = "is" if len(slower) == 1 else "are"
        _fail(f"{len(slower)} of {counted(len(rows), 'case')} {are} slower: {', '.join(slower)}.", 1)


@command(results_group, "export")
@click.option("--csv", "path", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True), required=True,
              help="Where the table goes; - is standard output.")  # fmt: skip
@click.option("--model", "text", help="Only cases whose name holds this text.")
@_RESULTS
def results_export(path: Path, text: str | None, results: Path) -> None:
    """Write the results as a table, one line each."""
    from pipeline import measuring

    table = measuring.csv_of(measuring.read(results, text, tell=_warn))
    with click.open_file(str(path), "w", encoding="utf-8", atomic=str(path) != "-") as stream:
        stream.write(table)


def _warn(message: str) -> None:
    click.echo(f"{click.style('Warning:', fg='yellow', bold=True)} {message}", err=True)


def _print_lines(lines: Sequence[str], values: Mapping[str, Any], *, as_json: bool) -> None:
    """Prints lines of text, or one JSON object instead."""
    click.echo(json.dumps(values, indent=2) if as_json else "\n".join(lines))


def _show_details(details: str, *, at_once: bool = False) -> None:
    """Writes what only `--debug` shows: a traceback, the last words of a process; or what a user needs at once."""
    asked = click.get_current_context().params.get("debug") or os.environ.get("EDGESHIP_DEBUG")
    if details and (at_once or asked):
        click.echo(details, err=True)


def _progress(*, list_epochs: bool = False) -> Any:
    """Returns a live display on a terminal, plain lines elsewhere; both write to standard error."""
    from pipeline.progress import LiveProgress, PlainProgress

    if sys.stderr.isatty() and not os.environ.get("CI"):
        from rich.console import Console

        return LiveProgress(Console(stderr=True), list_epochs=list_epochs)
    return PlainProgress(lambda line: click.echo(line, err=True))


def _fleet_progress() -> Any:
    """Returns a live table on a terminal, plain lines elsewhere; both write to standard error."""
    from pipeline.fleet_text import LiveFleet, PlainFleet

    if sys.stderr.isatty() and not os.environ.get("CI"):
        from rich.console import Console

        return LiveFleet(Console(stderr=True))
    return PlainFleet(lambda line: click.echo(line, err=True))


@contextlib.contextmanager
def _watched(recipe: Any, runs: Path, *, list_epochs: bool = False) -> Iterator[Any]:
    """Shows the progress of a run and tracks its training."""
    from pipeline.tracking.session import TrackingSession

    with (
        _progress(list_epochs=list_epochs) as progress,
        TrackingSession(recipe, runs / recipe.name, progress.show) as tracking,
    ):
        yield tracking


def _print_report(report: dict[str, Any], directory: Path) -> None:
    from devices.wording import counted
    from pipeline.report import TABLE_COLUMNS, summary_lines, table_rows

    devices = [row["device"] for row in report["devices"]]
    if report["artifacts"]:
        for device in devices or [""]:
            mode = next((f" ({row['mode']})" for row in report["devices"] if row["device"] == device), "")
            _print_table(f"{report['recipe']} on {device}{mode}" if device else report["recipe"], TABLE_COLUMNS,
                         table_rows(report, device))  # fmt: skip
    for line in summary_lines(report):
        click.echo(line)
    seconds = sum(row["seconds"] for row in report["stages"])
    cached = sum(row["cached"] for row in report["stages"])
    number = counted(len(report["stages"]), "stage")
    click.echo(f"{number}, {cached} of them cached, {seconds:.1f} s. Report: {directory}/report.md")


def _print_table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", header_style="bold")
    numeric = [all(_is_number(row[index]) for row in rows) for index in range(len(columns))]
    for column, right in zip(columns, numeric, strict=True):
        table.add_column(column, justify="right" if right and rows else "left", overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    width = None if sys.stdout.isatty() else 200
    Console(width=width, highlight=False).print(table)


def _print_sections(columns: tuple[str, ...], sections: Mapping[str, Sequence[tuple[str, ...]]]) -> None:
    """Prints a table of sections under titles; it needs no more than 120 columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 0, 0, 1), pad_edge=False, show_edge=False)
    cells = [row for rows in sections.values() for row in rows]
    for index, column in enumerate(columns):
        numeric = index > 1 and all(_is_number(row[index].rstrip("BGKMikx")) for row in cells)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=index == 0)
    for title, rows in sections.items():
        table.add_row(title, style="bold")
        for first, *rest in rows:
            table.add_row(f"  {first}", *rest)
    Console(width=None if sys.stdout.isatty() else 120, highlight=False).print(table)


def _print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    indent = max(len(name) for name, _ in pairs) + 2
    for name, text in pairs:
        click.echo(textwrap.fill(f"{name:<{indent}}{text}", 120, subsequent_indent=" " * indent))


def _is_number(cell: str) -> bool:
    return not cell.strip("-+0123456789.,–% ") or cell.strip("-") == ""


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _quiet_models(backend: str = "openvino") -> Any:
    """The package `models`, on a Keras backend that starts fast and says little."""
    os.environ["KERAS_BACKEND"] = backend
    import models

    return models


if __name__ == "__main__":
    main()
