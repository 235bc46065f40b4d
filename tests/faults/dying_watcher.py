"""A watcher that kills itself at a step, and before that whoever started it."""

from __future__ import annotations

import json
import os
import signal
import sys

from devices.board.release_watcher import Watcher, run_watcher

STEP, PARENT = "EDGESHIP_TEST_DIES_AT", "EDGESHIP_TEST_KILLS_PARENT"


class DyingWatcher(Watcher):
    module = __name__


def on_step(step: str) -> None:
    if step == os.environ.get(STEP):
        if PARENT in os.environ:
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    run_watcher(json.loads(sys.argv[-1]), on_step)
