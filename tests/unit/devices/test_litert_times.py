"""What LiteRT's profiler tells, and the reasons where it does not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.board import litert_times
from devices.board.litert_times import NoTimes, find_library, measure_layers, parse_events
from devices.board.profiling import _check_same_plan


def inference(ms: float, *events: tuple[int, str, int, int]) -> dict[str, Any]:
    return {"ms": ms, "events": [[1, "Invoke", 0, 900], *map(list, events), [1, "LiteRT::Run[Buffer sync]", 0, 9]]}


def test_layers_are_medians_in_the_order_of_execution() -> None:
    found = parse_events(
        [
            inference(
                ms,
                (2, "CAST", 0, 5 * factor),
                (8, "Convolution (NHWC, F32) IGEMM", 0, 100 * factor),
                (8, "Add (ND)", 1, 20 * factor),
                (8, "Convolution (NHWC, F32) IGEMM", 0, 300 * factor),
                (2, "HARD_SWISH", 4, 7 * factor),
                (8, "Mean (ND) Reduce", 0, factor),
            )
            for ms, factor in ((0.5, 1), (9.0, 9), (0.6, 2))
        ]
    )
    assert [(kernel["operation"], kernel["where"], kernel["ms"]) for kernel in found.kernels] == [
        ("CAST", "built-in kernel", 0.01),
        ("Convolution", "XNNPACK", 0.2),
        ("Add", "XNNPACK", 0.04),
        ("Convolution", "XNNPACK", 0.6),
        ("HARD_SWISH", "built-in kernel", 0.014),
        ("Mean", "XNNPACK", 0.002),
    ]
    assert found.kernels[0]["name"] == "CAST 0"
    assert found.kernels[3]["name"] == "Convolution (NHWC, F32) IGEMM, number 0 of piece 2"
    assert (found.partitions, found.built_in, found.inference_ms) == (3, ["CAST", "HARD_SWISH"], 0.6)


def test_inferences_that_do_not_agree_have_no_times() -> None:
    with pytest.raises(NoTimes, match="other layers at each"):
        parse_events([inference(1, (8, "Add (ND)", 0, 1)), inference(1, (8, "Multiply (ND)", 0, 1))])
    with pytest.raises(NoTimes, match="no layers"):
        parse_events([inference(1)])


def test_a_graph_that_is_divided_otherwise_has_no_times() -> None:
    layers = [{"operation": "CAST", "where": "built-in kernel"}, {"operation": "CONV_2D", "where": "XNNPACK"}]
    _check_same_plan({"layers": layers, "partitions": 1}, ["CAST"], 1)
    for built_in, partitions in (([], 1), (["CAST"], 2)):
        with pytest.raises(NoTimes, match="divides the graph in another way"):
            _check_same_plan({"layers": layers, "partitions": 1}, built_in, partitions)


def test_what_no_profiler_is_known_of_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoTimes, match=r"tflite-runtime 2\.14\.0 has no profiler that a program can ask"):
        find_library("tflite-runtime", "2.14.0")
    with pytest.raises(NoTimes, match=r"known here of 2\.3, and not of 2\.30\.1"):
        find_library("ai-edge-litert", "2.30.1")
    monkeypatch.setattr(litert_times.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(NoTimes, match="comes without libLiteRt"):
        find_library("ai-edge-litert", "2.3.0")


def ask(path: str = "model.tflite") -> None:
    inputs = [("x", np.zeros(3, np.float32))]
    measure_layers(path, package="ai-edge-litert", version="2.3.0", num_threads=1, count=1, inputs=inputs)


def test_a_library_that_is_another_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library, said in (
        ("libc.so.6", "does not export .* such as LiteRtCreateEnvironment"),
        (str(tmp_path), "status 1"),
    ):
        monkeypatch.setattr(litert_times, "find_library", lambda *_, found=library: found)
        with pytest.raises(NoTimes, match=said):
            ask()


@pytest.mark.parametrize(
    ("program", "said"),
    [("kill -SEGV $$", "ended with signal 11"), ("exec sleep 60", "gave no answer within 0.5 s")],
    ids=["crash", "hang"],
)
def test_a_profiler_that_crashes_or_hangs_is_a_reason(
    program: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(litert_times, "_TIMEOUT_S", 0.5)
    with pytest.raises(NoTimes, match=said):
        ask()


def test_a_model_that_litert_refuses_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"no model")
    with pytest.raises(NoTimes, match="LiteRtCreateModelFromFile ended with status"):
        ask(str(tmp_path / "model.tflite"))
