"""Bad model files, and wishes that a board can't fulfil: one clear message, the right exit code, no traceback."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.outcomes import assert_one_message

HERE_PROFILE = """\
name: here
description: This machine with the fake runtime.
runtimes: {fake: ""}
preference: [fake]
transport: {kind: local}
latency_label: measured
"""


def write_fake_model(path: Path, behaviour: str) -> None:
    with path.open("wb") as stream:
        np.savez(
            stream,
            weights=np.zeros((192, 3), np.float32),
            bias=np.zeros(3, np.float32),
            shape=np.array([8, 8, 3]),
            kind=np.array("float32"),
            behaviour=np.array(behaviour),
        )


FAKE_BENCH = ("bench", "model.fake", "--min-count", "10", "--min-time", "0", "--precision", "0", "--device")


@dataclass(frozen=True)
class Fault:
    behaviour: str
    code: int
    says: str


@pytest.mark.parametrize("device", ["fake", "./here.yaml"], ids=["fake-device", "real-process"])
@pytest.mark.parametrize(
    "fault",
    [
        Fault("crash", 3, "SIGSEGV"),
        Fault("crash_on_infer", 3, "SIGSEGV"),
        Fault("reject", 2, "refuses"),
        Fault("unheard-of", 2, "unknown"),
    ],
    ids=lambda fault: fault.behaviour,
)
def test_a_model_that_harms_the_runtime(workplace: Any, fault: Fault, device: str) -> None:
    (workplace.directory / "here.yaml").write_text(HERE_PROFILE)
    write_fake_model(workplace.directory / "model.fake", fault.behaviour)
    write_fake_model(workplace.directory / "good.fake", "ok")

    outcome = workplace.edgeship(*FAKE_BENCH, device, "good.fake", "--json")

    assert_one_message(outcome, fault.code, fault.says, "model.fake")
    cases = {case["id"]: case for case in outcome.json()["cases"]}
    bad, good = cases["model.fake"], cases["good.fake"]
    assert bad["latency_ms"] is None
    assert good["latency_ms"]["count"] >= 10


def test_details_are_shown_on_request(workplace: Any) -> None:
    (workplace.directory / "here.yaml").write_text(HERE_PROFILE)
    write_fake_model(workplace.directory / "model.fake", "reject")

    outcome = workplace.edgeship(*FAKE_BENCH, "./here.yaml", "--json", "--debug")

    assert outcome.code == 2
    assert "Traceback" in outcome.stderr
    assert "Traceback" not in outcome.stdout


@dataclass(frozen=True)
class Wish:
    id: str
    options: tuple[str, ...]
    says: tuple[str, ...]


WISHES = (
    Wish("cores", ("--cores", "0-4000"), ("the cores asked for are 0-4000, but ", "this process may run on")),
    Wish("name-of-cores", ("--cores", "bgi"), ("there are no cores 'bgi'; expected a list such as 0-3",)),
    Wish("governor", ("--governor", "tortoise"), ("Error: the governor can't be set to 'tortoise'",)),
    Wish("image", ("--image", "tiny.npz"), ("Error: the image tiny.npz can't be used: ", "Expected a picture")),
)


@pytest.mark.parametrize("wish", WISHES, ids=lambda wish: wish.id)
def test_what_only_the_board_can_refuse(workplace: Any, wish: Wish) -> None:
    (workplace.directory / "here.yaml").write_text(HERE_PROFILE)
    for name in ("model.fake", "good.fake"):
        write_fake_model(workplace.directory / name, "ok")

    outcome = workplace.edgeship(*FAKE_BENCH, "./here.yaml", "good.fake", *wish.options)

    assert_one_message(outcome, 2, *wish.says)
    assert "refuses" not in outcome.stderr
    assert "\n: " not in outcome.stderr


def tflite(content: bytes) -> bytes:
    return struct.pack("<I", 24) + b"TFL3" + content


def random_bytes(count: int) -> bytes:
    return np.random.default_rng(count).integers(0, 256, count).astype(np.uint8).tobytes()


def truncated_zip() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, weights=np.zeros((192, 3), np.float32))
    return stream.getvalue()[:200]


CORRUPT: dict[str, Callable[[], bytes]] = {
    "empty.tflite": lambda: b"",
    "random.tflite": lambda: random_bytes(5000),
    "headed.tflite": lambda: tflite(random_bytes(5000)),
    "zeros.tflite": lambda: tflite(bytes(5000)),
    "empty.onnx": lambda: b"",
    "random.onnx": lambda: random_bytes(5000),
    "text.onnx": lambda: b"not a model",
    "empty.xml": lambda: b"",
    "random.xml": lambda: random_bytes(5000),
    "other.xml": lambda: b"<html><body/></html>",
    "half.xml": lambda: b'<?xml version="1.0"?><net name="x" version="11"><layers><layer id="0"',
    "bomb.xml": lambda: b'<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><net>&b;</net>',
    "half.fake": truncated_zip,
}


@pytest.mark.parametrize("name", CORRUPT)
def test_a_corrupt_model_file(workplace: Any, name: str) -> None:
    """In one process for all three commands, as starting one takes longest."""
    (workplace.directory / name).write_bytes(CORRUPT[name]())
    code = (
        "import subprocess, sys\n"
        "from pipeline.cli import main\n"
        "codes = []\n"
        "for arguments in (['inspect'], ['bench'], ['eval', '--data', 'tiny.npz']):\n"
        "    try:\n        main([*arguments, sys.argv[1]])\n"
        "    except SystemExit as end:\n        codes.append(end.code)\n"
        "print(codes)\n"
    )

    outcome = workplace.python(code, name)

    assert outcome.stdout == "[2, 2, 2]\n", outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert "Unexpected" not in outcome.stderr
    messages = [line for line in outcome.stderr.splitlines() if line.startswith("Error:")]
    assert len(messages) == 3
    assert all(name in message for message in messages)
    assert workplace.artifacts() == []


@pytest.mark.slow
def test_a_model_that_does_not_fit_the_data(finished: Any) -> None:
    write_fake_model(finished.directory / "model.fake", "ok")
    arguments = ("eval", "model.fake", "--device", "fake", "--data")
    with np.load(finished.directory / "tiny.npz") as arrays:
        labels = np.arange(len(arrays["labels"])) % 4
        np.savez(finished.directory / "four.npz", images=arrays["images"], labels=labels)

    assert_one_message(finished.edgeship(*arguments, "four.npz"), 2, "3 logits", "4 classes")
    assert_one_message(finished.edgeship(*arguments, "gone.npz"), 2, "gone.npz")
    assert_one_message(finished.edgeship(*arguments, "gone-folder"), 2, "gone-folder")
    assert finished.edgeship(*arguments, "tiny.npz").code == 0
