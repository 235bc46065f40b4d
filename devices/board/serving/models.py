"""Models that are served: so many copies of each as requests may run at once, and the switch to a new release."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import Callable, Dict, Iterator, List, Optional

from ..errors import AgentError, ModelRejected
from ..installed import choose_name, current_digest, read_release
from ..model import BadInput, InstalledModel
from .protocol import DATATYPES
from .wire import HttpError

Tell = Callable[[str], None]
Opener = Callable[[str, str], List[InstalledModel]]
"""Takes the root and a name; returns the loaded copies of the release in use."""

_RETRY = {"Retry-After": "1"}


def load_copies(root: str, name: str, *, workers: int, num_threads: int) -> List[InstalledModel]:
    """Loads the release in use so often and tries each copy once.

    Raises:
        NoRelease: There is none.
        RuntimeMissing: Its runtime is not installed.
        ModelRejected: It can't be served.
    """
    release = read_release(root, choose_name(root, name))
    copies = [InstalledModel(release, num_threads=num_threads) for _ in range(workers)]
    for model in copies:
        for record in model.outputs:
            if record["dtype"] not in DATATYPES:
                raise ModelRejected(
                    f"the output '{record['name']}' of '{name}' is {record['dtype']}; expected numbers: export the "
                    "model without it"
                )
        answers = model.warm_up()
        if is_classifier(model):
            with contextlib.suppress(BadInput):  # of another shape; its tensors can be served
                model.labels_of(answers)
    return copies


def is_classifier(model: InstalledModel) -> bool:
    """Whether the first output tells classes."""
    return model.release.kind != "values"


class Copies:
    """The loaded copies of one release, each used by one request at a time.

    Args:
        models: At least one.
        clock: Seconds.
    """

    def __init__(self, models: List[InstalledModel], clock: Callable[[], float] = time.monotonic) -> None:
        self.model = models[0]
        """For what all copies have in common: release, shapes and types."""
        self._clock = clock
        self._idle: queue.SimpleQueue[InstalledModel] = queue.SimpleQueue()
        self._busy_since: Dict[int, float] = {}
        for model in models:
            self._idle.put(model)

    @contextlib.contextmanager
    def lease(self, timeout_s: float) -> Iterator[InstalledModel]:
        """A copy for one inference.

        Raises:
            HttpError: 503, none became free in time.
        """
        try:
            model = self._idle.get(timeout=timeout_s)
        except queue.Empty:
            raise HttpError(503, "the model is busy; try again later", headers=_RETRY) from None
        self._busy_since[id(model)] = self._clock()
        try:
            yield model
        finally:
            del self._busy_since[id(model)]
            self._idle.put(model)

    def is_busy(self) -> bool:
        """Whether an inference is running."""
        return bool(self._busy_since)

    def longest_busy_s(self) -> float:
        """For how long the slowest inference has been running."""
        now = self._clock()
        return max((now - begun for begun in list(self._busy_since.values())), default=0.0)


class ServedModel:
    """One model under its name, whichever release it is.

    Args:
        root: Where releases lie.
        name: Of the model.
        open_copies: Loads the release in use.
        max_requests: How many may run or wait at once.
        tell: Takes lines for the log.

    Raises:
        AgentError: The release in use can't be served.
    """

    def __init__(self, root: str, name: str, *, open_copies: Opener, max_requests: int, tell: Tell) -> None:
        self._root, self.name, self._open, self._tell = root, name, open_copies, tell
        self._places = threading.BoundedSemaphore(max_requests)
        self._refused: Optional[str] = None
        self._before: Optional[Copies] = None
        self.copies = Copies(open_copies(root, name))
        """Of the release in use. A request takes them once and stays with them, so that it sees one release."""

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place among the requests that run or wait.

        Raises:
            HttpError: 503, all are taken.
        """
        if not self._places.acquire(blocking=False):
            raise HttpError(503, "too many requests are waiting for the model; try again later", headers=_RETRY)
        try:
            yield
        finally:
            self._places.release()

    def refresh(self, *, again: bool = False) -> Optional[bool]:
        """Serves the release in use, if it is another one: loads it beside the old one, then switches.

        Requests that have begun stay with the old release, which leaves the memory after the last of them.

        Args:
            again: Try also a release that was refused before, and that the link has named ever since.

        Returns:
            Whether the switch succeeded; None where there was none to make.
        """
        self._forget_before()
        digest, served = current_digest(self._root, self.name), self.copies.model.release.digest
        if digest == served:
            self._refused = None  # somebody went back; what comes next was put there anew
        if digest is None or digest == served or (digest == self._refused and not again):
            return None
        try:
            copies = Copies(self._open(self._root, self.name))
        except (AgentError, OSError, MemoryError, ValueError) as error:
            self._refused = digest
            self._tell(f"{self.name}: the release {digest} can't be served, {served} is served on: {error}")
            return False
        self._before, self.copies = self.copies, copies
        self._refused = None
        self._tell(f"{self.name}: serves {copies.model.release.digest} instead of {served}")
        return True

    def longest_busy_s(self) -> float:
        """For how long the slowest inference has been running, one of the release before included."""
        self._forget_before()
        before = self._before
        return max(self.copies.longest_busy_s(), before.longest_busy_s() if before is not None else 0.0)

    def _forget_before(self) -> None:
        """Frees the release before, once none of its copies is at work."""
        before = self._before
        if before is not None and not before.is_busy():
            self._before = None
