"""Package, sign, verify, deploy and roll back a real model, here and over SSH, from the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from tests.bundles import make_key, signer_line
from tests.ssh_server import SshServer, serve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no OpenSSH client on this machine"),
]

ROOT = Path(__file__).parents[2]

RECIPE = """\
name: own-net
data: {source: digits, size: [16, 16]}
model:
  path: net.onnx
  inputs: [{name: x, layout: NCHW, scale: 0.0078, offset: -1.0, shape: [1, 3, 16, 16]}]
export: {targets: [onnxruntime], precisions: [float32]}
benchmark: {min_count: 10, min_time_s: 0, warm_up_time_s: 0}
"""


@dataclass(frozen=True)
class Place:
    directory: Path
    server: SshServer

    def edgeship(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", *arguments],
            cwd=self.directory,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(self.directory)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr[-3000:]
        assert "Traceback" not in done.stderr
        return done

    def told(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.edgeship(*arguments, "--json").stdout)
        return found


def write_network(path: Path, seed: int) -> None:
    from onnx import TensorProto, helper, numpy_helper, save

    random = np.random.default_rng(seed)

    def constant(name: str, *shape: int) -> Any:
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 100.0
        values = random.standard_normal(shape).astype(np.float32) * np.float32(np.sqrt(2 / fan_in))
        return numpy_helper.from_array(values, name)

    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 10])],
        [constant("w", 8, 3, 3, 3), constant("b", 8), constant("m", 8, 10)],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("releases")
    (directory / "net.yaml").write_text(RECIPE)
    key = make_key(directory / "key")
    make_key(directory / "stranger")
    (directory / "signers").write_text(signer_line(key, "builder@example.org", 'namespaces="edgeship-release"'))
    with serve(directory / "board") as server:
        profile = {
            "name": "board",
            "description": "A board of the test.",
            "python": sys.executable,
            "runtimes": {"onnxruntime": "onnxruntime>=1"},
            "preference": ["onnxruntime"],
            "transport": server.transport(),
            "latency_label": "measured",
        }
        YAML().dump(profile, directory / "board.yaml")
        yield Place(directory, server)


@pytest.fixture(scope="module")
def bundles(place: Place) -> dict[str, dict[str, Any]]:
    """Two networks, each in a bundle for the board; both are signed."""
    found = {}
    for number, name in enumerate(("one", "two")):
        write_network(place.directory / "net.onnx", number)
        arguments = ("net.yaml", "--device", "board.yaml", "--sign", "key", "-o", f"{name}.edgeship")
        found[name] = place.told("package", *arguments)
        assert found[name]["signed"]
        again = place.told("package", *arguments[:-1], "again.edgeship")
        assert again["digest"] == found[name]["digest"]
        again_bytes = (place.directory / "again.edgeship").read_bytes()
        assert again_bytes == (place.directory / f"{name}.edgeship").read_bytes()
    return found


def test_a_bundle_tells_what_it_is(place: Place, bundles: dict[str, dict[str, Any]]) -> None:
    told = place.told("verify", "one.edgeship", "--allowed-signers", "signers", "--identity", "builder@example.org")
    assert told["signed_by"] == "builder@example.org"
    assert told["self_test"]["worst"] < 1e-4
    assert told["self_test"]["num_latencies"] > 10
    subprocess.run(
        ["tar", "-xf", place.directory / "one.edgeship", "-C", place.directory, "--one-top-level=x"], check=True
    )
    directory = place.directory / "x"
    release = json.loads((directory / "release.json").read_text())
    assert release == bundles["one"]["release"] == told["release"]
    assert (directory / "labels.txt").read_text().split() == [str(label) for label in range(10)]
    assert json.loads((directory / "signature.json").read_text()) == release["signature"]
    lineage = json.loads((directory / "lineage.json").read_text())
    assert {each["stage"] for each in lineage} >= {"data", "model", "calibrate", "export", "verify"}
    keys = {each["key"] for each in lineage}
    assert all(set(each["inputs"].values()) <= keys for each in lineage), "the lineage has a gap"
    assert {"onnx", "onnxruntime"} <= {
        line.split("|")[1].strip() for line in (directory / "LICENSES.md").read_text().splitlines() if "|" in line
    }
    assert "own-net" in (directory / "MODEL_CARD.md").read_text()


def test_what_verify_refuses(place: Place, bundles: dict[str, dict[str, Any]]) -> None:
    data = bytearray((place.directory / "one.edgeship").read_bytes())
    data[len(data) // 2] ^= 1
    (place.directory / "damaged.edgeship").write_bytes(data)
    (place.directory / "others").write_text(signer_line(place.directory / "stranger"))
    for arguments in (
        ("damaged.edgeship",),
        ("none.edgeship",),
        ("net.onnx",),
        ("one.edgeship", "--allowed-signers", "others"),
        ("one.edgeship", "--allowed-signers", "signers", "--identity", "somebody@example.org"),
        ("one.edgeship", "--allowed-signers", "signers", "--revoked-keys", "key.pub"),
        ("one.edgeship", "--identity", "builder@example.org"),
    ):
        assert "Error" in place.edgeship("verify", *arguments, code=2).stderr


def test_over_ssh(place: Place, bundles: dict[str, dict[str, Any]]) -> None:
    board = ("--device", "board.yaml")
    refused = place.edgeship("deploy", "one.edgeship", *board, code=2)
    assert "trusts nobody" in refused.stderr
    told = place.told("trust", *board, "--allowed-signers", "signers")
    assert told == {"settings": {"allow_unsigned": False, "keep": 5}, "signers": 1}
    tried = place.told("deploy", "one.edgeship", *board, "--dry-run")
    assert not tried["changed"]
    assert tried["measured"]["latency_p50_ms"] > 0
    home = place.server.home / ".local" / "share" / "edgeship" / "own-net"
    assert not home.exists()
    for name in ("one", "two"):
        deployed = place.told("deploy", f"{name}.edgeship", *board)
        assert deployed["changed"]
        assert deployed["signed_by"] == "builder@example.org"
        assert not place.told("deploy", f"{name}.edgeship", *board)["changed"]
        assert json.loads((home / "current" / "release.json").read_text()) == bundles[name]["release"]
    place.edgeship("package", "net.yaml", *board, "-o", "unsigned.edgeship")
    assert "not signed" in place.edgeship("deploy", "unsigned.edgeship", *board, code=2).stderr
    assert place.told("rollback", "own-net", *board)["current"] == bundles["one"]["digest"]
    (row,) = place.told("status", *board)["releases"]
    assert (row["current_digest"], row["previous_digest"]) == (bundles["one"]["digest"], bundles["two"]["digest"])
    assert [(each["action"], each["result"]) for each in row["history"]] == [
        ("install", "done"),
        ("install", "done"),
        ("install", "refused"),
        ("rollback", "done"),
    ]
    assert row["history"][0]["who"].partition("@")[2]
    assert "not signed" in place.edgeship("status", *board, "--history").stdout
    signed = place.told("deploy", "net.yaml", *board, "--sign", "key")  # straight from the recipe
    assert signed["changed"]


def test_a_service_is_watched_over_ssh(place: Place, bundles: dict[str, dict[str, Any]]) -> None:
    """Of a board of its own, which is not well with the second release."""
    place.told("trust", "--device", "board.yaml", "--root", "watched", "--allowed-signers", "signers")
    board = ("--device", "board.yaml", "--root", "watched")
    assert "no service is set" in place.edgeship("service", *board).stdout
    assert "no program" in place.edgeship("service", *board, "--check", "no-such-program", code=2).stderr
    assert "one of the two" in place.edgeship("service", *board, "--off", "--watch", "1", code=2).stderr
    bad = bundles["two"]["digest"]
    script = f'test "$EDGESHIP_RELEASE" != {bad} || {{ echo no frames >&2; exit 7; }}'
    times = ("--come-up", "5", "--watch", "0.5")
    told = place.told("service", *board, "--check", f"sh -c '{script}'", "--restart", "true", *times)
    assert told["all"]["check"][1:] == ["-c", script]
    assert "watched for 0.5 s at" in place.edgeship("service", *board).stdout
    deployed = place.edgeship("deploy", "one.edgeship", *board)
    assert "board: watch" in deployed.stderr
    assert "its service watched for 0.5 s" in deployed.stdout
    failed = place.edgeship("deploy", "two.edgeship", *board, code=3)
    assert "no frames" in failed.stderr
    assert f"{bundles['one']['digest']}, is in use again" in " ".join(failed.stderr.split())
    (row,) = place.told("status", *board)["releases"]
    assert (row["current_digest"], row["held"]) == (bundles["one"]["digest"], False)
    assert row["history"][-1]["result"] == "rolled back"
    assert place.told("service", *board, "--off") == {"all": None, "models": {}}
    assert place.told("deploy", "two.edgeship", *board)["watched_s"] is None
    place.told("service", *board, "--check", f"sh -c '{script}'", "--come-up", "1")
    place.edgeship("deploy", "one.edgeship", *board)
    assert "stays in use" in " ".join(place.edgeship("rollback", "own-net", *board, code=3).stderr.split())
    assert place.told("status", *board)["releases"][0]["current_digest"] == bad


def test_here(place: Place, bundles: dict[str, dict[str, Any]]) -> None:
    assert place.told("deploy", "one.edgeship", "--root", "root")["changed"]
    settings = json.loads((place.directory / "root" / ".board" / "settings.json").read_text())
    assert settings["allow_unsigned"] is True
    place.told("trust", "--root", "root", "--signed-only", "--allowed-signers", "signers", "--revoked-keys", "key.pub")
    assert "revoked" in place.edgeship("deploy", "two.edgeship", "--root", "root", code=2).stderr


def test_asking_whom_a_device_trusts_changes_nothing(place: Place, bundles: dict[str, dict[str, Any]]) -> None:
    asked = place.told("trust", "--root", "fresh")
    assert asked == {"settings": {"allow_unsigned": True, "keep": 5}, "signers": 0}
    assert not (place.directory / "fresh" / ".board").exists()
    kept = place.told("trust", "--root", "fresh", "--keep", "3")
    assert kept["settings"] == {"allow_unsigned": True, "keep": 3}, "how many are kept says nothing of whom to trust"
    place.edgeship("package", "net.yaml", "--device", "local", "-o", "here.edgeship")
    assert place.told("deploy", "here.edgeship", "--root", "fresh", "--dry-run")["measured"]
    assert place.told("deploy", "here.edgeship", "--root", "fresh")["changed"]
    (place.directory / "nobody").write_text("")
    assert place.told("trust", "--root", "fresh", "--allowed-signers", "nobody", "--signed-only")["signers"] == 0
    assert "not signed" in place.edgeship("deploy", "here.edgeship", "--root", "fresh", code=2).stderr
    assert place.told("deploy", "here.edgeship", "--root", "new", "--dry-run")["measured"], "as it would be deployed"
    assert not (place.directory / "new" / ".board").exists()


def test_an_artifact_by_name(place: Place) -> None:
    told = place.told("package", "net.yaml", "--device", "board.yaml", "--artifact", "onnxruntime/float32")
    assert Path(told["path"]) == Path("runs/own-net/own-net-board.edgeship")
    assert "no verified artifact" in place.edgeship(
        "package", "net.yaml", "--device", "board.yaml", "--artifact", "litert/int8", code=2
    ).stderr  # fmt: skip
