"""What is done on each board of a fleet, over its own transport: installing, asking, telling whom to trust."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from devices.address import host_hint
from devices.errors import (
    AgentCrashedError,
    AgentTimeoutError,
    BundleError,
    ConnectionFailedError,
    DeviceBusyError,
    DeviceError,
    HostKeyError,
    LoginRefusedError,
    ReleaseRefusedError,
    RuntimeMissingError,
    StorageFullError,
    TransferFailedError,
)
from devices.fleet import FleetBoard, Verdict
from devices.fleet_rollout import OnStep
from devices.release import ReleaseStatus, install, set_trust, status
from devices.transport_config import SshTransport
from devices.transports.ssh_link import close_link

_Answer = TypeVar("_Answer")

SEND = "send"
"""The step before those of the board: connecting and sending the bundle."""

_REFUSED = (BundleError, StorageFullError, RuntimeMissingError, ReleaseRefusedError)
_BROKEN = (AgentCrashedError, AgentTimeoutError, ConnectionFailedError, TransferFailedError)
_CLOSED = (HostKeyError, LoginRefusedError)


@dataclass
class _Steps:
    """How far a board got.

    Attributes:
        last: The step it was at; empty before the first.
        switched: Whether it had begun to switch.
    """

    last: str = ""
    switched: bool = False

    def note(self, step: str) -> None:
        """It is at a step."""
        self.last, self.switched = step, self.switched or step == "switch"


@dataclass(frozen=True)
class Deployment:
    """A bundle for many boards; called with one of them, it is an `Act` of `devices.fleet_rollout`.

    Attributes:
        bundle: On this machine.
        name: Of its release.
        digest: Of its release.
        dry_run: Do everything but the switch.
    """

    bundle: Path
    name: str
    digest: str
    dry_run: bool = False

    def __call__(self, board: FleetBoard, *, ask: bool, on_step: OnStep) -> Verdict:
        """See `Act`."""
        steps = _Steps()

        def note(step: str) -> None:
            steps.note(step)
            on_step(step)

        on_step(SEND)
        try:
            with connected(board):
                rows = status(board.profile, board.root)[1] if ask and not self.dry_run else []
                known = came_to(next((row for row in rows if row.name == self.name), None), self.digest)
                if known is not None:
                    return known
                told = install(board.profile, board.root, self.bundle, dry_run=self.dry_run, on_step=note)
        except DeviceError as error:
            return verdict_of(board, error, steps.last, switched=steps.switched)
        if self.dry_run:
            return Verdict("tested")
        # What an earlier try of this deployment brought there is in use by this deployment.
        return Verdict("updated" if told["changed"] or ask else "already in use")


def came_to(row: ReleaseStatus | None, digest: str) -> Verdict | None:
    """What an earlier try of a release came to, where the board can tell; None where it is to be tried again.

    Args:
        row: What the board says of that name.
        digest: Of the release.
    """
    if row is None or row.running is not None:
        return None
    if row.current_digest == digest and row.current is not None:
        return Verdict("updated")
    last = row.history[-1] if row.history else {}
    if (last.get("action"), last.get("result")) == ("rollback", "done") and row.previous_digest == digest:
        return Verdict("rolled back", reason=f"{last.get('who', 'somebody')} went back to the release before")
    if (last.get("digest"), last.get("result")) == (digest, "rolled back"):
        return Verdict("rolled back", step=str(last.get("step", "")), reason=str(last.get("reason", "")))
    return None


def verdict_of(board: FleetBoard, error: DeviceError, step: str, *, switched: bool) -> Verdict:
    """What an error means for the fleet.

    Args:
        board: Where it came up.
        error: What the transport or the board said.
        step: The last one that the board told of; empty before the first.
        switched: Whether it had begun to switch.
    """
    reason = _short(board, error, step)
    if isinstance(error, _REFUSED):
        return Verdict("rolled back" if switched else "refused", error.step or step or SEND, reason)
    if isinstance(error, _CLOSED):
        return Verdict("failed", SEND, reason)
    if isinstance(error, DeviceBusyError) or (isinstance(error, ConnectionFailedError) and not step):
        return Verdict("off", SEND, reason, again=True)
    return Verdict("failed", step or SEND, reason, again=isinstance(error, _BROKEN))


@contextlib.contextmanager
def connected(board: FleetBoard) -> Iterator[None]:
    """Ends the connection to a board afterwards: a fleet has more boards than a machine has room for connections."""
    try:
        yield
    finally:
        transport = board.profile.transport
        if isinstance(transport, SshTransport):
            close_link(transport, board.profile.python or "python3")


@dataclass(frozen=True)
class BoardStatus:
    """What one board runs.

    Attributes:
        board: Which.
        releases: Of each name `name`, `current`, `previous`, `target`, `precision`; None where it can't be told.
        reason: Why not.
    """

    board: FleetBoard
    releases: tuple[dict[str, Any], ...] | None
    reason: str = ""


def ask_status(board: FleetBoard) -> BoardStatus:
    """Asks one board what it runs; its history stays there."""
    try:
        with connected(board):
            rows = status(board.profile, board.root)[1]
    except DeviceError as error:
        return BoardStatus(board, None, _short(board, error, ""))
    found = [
        {
            "name": row.name,
            "current": row.current_digest,
            "previous": row.previous_digest,
            "target": (row.current or {}).get("target"),
            "precision": (row.current or {}).get("precision"),
        }
        for row in rows
    ]
    return BoardStatus(board, tuple(found))


@dataclass(frozen=True)
class Trust:
    """Whom boards are to trust; called with one of them, it tells that. See `devices.release.set_trust`."""

    allowed_signers: Path | None = None
    revoked_keys: Path | None = None
    allow_unsigned: bool | None = None
    keep: int | None = None

    def __call__(self, board: FleetBoard) -> tuple[FleetBoard, dict[str, Any] | None, str]:
        """The board, what is set there now (None where it can't be told), and why not."""
        try:
            with connected(board):
                told = set_trust(
                    board.profile,
                    board.root,
                    allowed_signers=self.allowed_signers,
                    revoked_keys=self.revoked_keys,
                    allow_unsigned=self.allow_unsigned,
                    keep=self.keep,
                )
        except DeviceError as error:
            return board, None, _short(board, error, "")
        return board, told, ""


def on_each(boards: Sequence[FleetBoard], act: Callable[[FleetBoard], _Answer], parallel: int) -> list[_Answer]:
    """What `act` gives for each board, in their order; so many work at the same time."""
    pool = ThreadPoolExecutor(parallel, thread_name_prefix="fleet")
    try:
        return list(pool.map(act, boards))
    finally:
        pool.shutdown(cancel_futures=True)


def _short(board: FleetBoard, error: DeviceError, step: str) -> str:
    """The message without what stands beside it anyway: the board, the step, where a single board would be named."""
    text = error.message
    transport = board.profile.transport
    if isinstance(transport, SshTransport):
        text = text.removesuffix(f". {host_hint(board.name, transport.host)}")
    for prefix in (f"{board.name} refuses at the step '{step}': ", f"{board.name} refuses: "):
        text = text.removeprefix(prefix)
    return text.removesuffix(".")
