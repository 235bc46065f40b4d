"""The process of a release's self-test, see `release_test`: loads the model, answers the golden samples, measures."""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any, Dict, List, Mapping

import numpy as np

from .agent import BoardAgent
from .errors import AgentError, RuntimeMissing
from .jsonlines import Lifeline
from .release_errors import FailedTest, Refusal, Unfit
from .release_form import Form, choose_form, plain_form

NUM_LATENCIES = 400
"""Enough for a 99th percentile, see `devices.latency`."""
MEASURE_S = 10.0


def check_release(directory: str, manifest: Mapping[str, Any], scratch: str, form: Form) -> Dict[str, Any]:
    """See `release_test.run_self_test`; in this process.

    Args:
        directory: Of the release.
        manifest: Of the release.
        scratch: An existing directory for the answers.
        form: Of the model, that is tested.

    Raises:
        FailedTest: It answers differently.
        AgentError: It can't be loaded.
    """
    handlers = BoardAgent().handlers()
    load = {
        "runtime": manifest["target"],
        "path": form.path,
        "num_threads": manifest.get("threads", 1),
        "sha256": form.sha256,
        "weights_sha256": form.companion_sha256,
    }
    handlers["load"](load, _ignore)
    inputs = [
        {"name": each["name"], "path": os.path.join(directory, each["file"]), "transform": each.get("transform")}
        for each in manifest["inputs"]
    ]
    answered = handlers["predict"]({"inputs": inputs, "outputs": scratch}, _ignore)
    worst = _compare(directory, manifest, {each["name"]: each["path"] for each in answered["outputs"]})
    handlers["warm_up"]({"min_count": 5, "min_time_s": 0.0}, _ignore)
    measured = handlers["measure"]({"count": NUM_LATENCIES, "time_s": MEASURE_S}, _ignore)
    latencies_ms = sorted(nanoseconds / 1e6 for nanoseconds in measured["latencies_ns"])
    return {
        "worst": worst,
        "latency_p50_ms": float(np.median(latencies_ms)),
        # By nearest rank: the longest, where there are too few for more.
        "latency_p99_ms": latencies_ms[math.ceil(0.99 * len(latencies_ms)) - 1],
        "num_latencies": len(latencies_ms),
    }


def _compare(directory: str, manifest: Mapping[str, Any], found: Mapping[str, str]) -> float:
    """The largest difference from a golden value, as a share of the golden values' range."""
    wanted: List[Dict[str, Any]] = manifest["outputs"]
    if len(wanted) == 1 and len(found) == 1:
        found = {wanted[0]["name"]: next(iter(found.values()))}
    worst = 0.0
    for each in wanted:
        if each["name"] not in found:
            raise FailedTest(f"the model has the outputs {', '.join(found)}, but {each['name']} is expected")
        golden = np.load(os.path.join(directory, each["file"]), allow_pickle=False)
        answer = np.load(found[each["name"]], allow_pickle=False)
        if not golden.size or answer.shape != golden.shape:
            raise FailedTest(f"{each['name']} has the shape {answer.shape}, its golden values have {golden.shape}")
        limit = manifest["golden_tolerance"] * float(golden.max() - golden.min())
        difference = float(np.abs(answer - golden).max())
        if not difference <= limit:
            raise FailedTest(
                f"the self-test of {manifest['name']} failed: a value of {each['name']} differs by {difference:.4g} "
                f"from its golden value, allowed are {limit:.4g}; the release in use was not changed"
            )
        worst = max(worst, difference / float(golden.max() - golden.min()) if difference else 0.0)
    return worst


def _ignore(event: Dict[str, Any]) -> None:
    """Takes an event and does nothing."""


def _main() -> None:
    Lifeline().hold()
    with open(sys.argv[-1], encoding="utf-8") as stream:
        request = json.load(stream)
    scratch = os.path.dirname(request["answer"])
    directory, manifest = request["directory"], request["manifest"]
    form = (plain_form if request["plain"] else choose_form)(directory, manifest)
    with open(os.path.join(scratch, "form"), "w", encoding="utf-8") as stream:
        json.dump({"name": form.name, "reason": form.reason}, stream)
    answer: Dict[str, Any]
    try:
        answer = check_release(directory, manifest, os.path.join(scratch, "outputs"), form)
    except RuntimeMissing as error:
        answer = {"refused": str(error), "kind": Unfit.kind}
    except Refusal as error:
        answer = {"refused": str(error), "kind": error.kind}
    except (AgentError, OSError, ValueError, LookupError) as error:
        answer = {"refused": f"the self-test failed: {error}", "kind": FailedTest.kind}
    with open(request["answer"], "w", encoding="utf-8") as stream:
        json.dump(answer, stream)


if __name__ == "__main__":
    _main()
