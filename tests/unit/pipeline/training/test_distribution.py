"""How processes find out that they train together; the training itself is in tests/integration/test_many_devices.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.training.config import TrainConfig
from pipeline.training.distribution import (
    COORDINATOR,
    DEFAULT_TIMEOUT_S,
    PROCESS,
    PROCESSES,
    TIMEOUT,
    Cluster,
    Distribution,
    broadcast,
    cluster_error,
    read_cluster,
    set_up,
    share_directory,
)

WHOLE = {COORDINATOR: "10.0.0.1:1234", PROCESSES: "4", PROCESS: "2"}


def test_alone() -> None:
    for values in ({}, {PROCESSES: ""}, {PROCESSES: "1"}, {PROCESSES: "1", PROCESS: "0", COORDINATOR: "host:1"}):
        assert read_cluster(values) == Cluster()
    assert Cluster().is_primary
    assert Distribution().is_primary


def test_one_of_many() -> None:
    assert read_cluster(WHOLE) == Cluster("10.0.0.1:1234", 4, 2, DEFAULT_TIMEOUT_S)
    assert not read_cluster(WHOLE).is_primary
    assert read_cluster({**WHOLE, TIMEOUT: "7"}).timeout_s == 7
    assert read_cluster({**WHOLE, COORDINATOR: "[::1]:80"}).coordinator == "[::1]:80"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({COORDINATOR: ""}, f"{PROCESSES}, {PROCESS} are set, but {COORDINATOR} is not"),
        ({PROCESS: ""}, f"but {PROCESS} is not"),
        ({PROCESSES: "", COORDINATOR: ""}, f"{PROCESSES} is None: expected a whole number from 1"),
        ({PROCESSES: "two"}, f"{PROCESSES} is 'two': expected a whole number from 1"),
        ({PROCESSES: "0"}, f"{PROCESSES} is '0'"),
        ({PROCESSES: "1"}, "number the processes from 0 to 0"),
        ({PROCESS: "-1"}, f"{PROCESS} is '-1': expected a whole number from 0"),
        ({PROCESS: "4"}, "number the processes from 0 to 3"),
        ({COORDINATOR: "10.0.0.1"}, "expected host:port"),
        ({COORDINATOR: ":80"}, "expected host:port"),
        ({COORDINATOR: "host:99999"}, "expected host:port"),
        ({TIMEOUT: "soon"}, f"{TIMEOUT} is 'soon'"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_cluster({**WHOLE, **changes})
    assert message in caught.value.message


def test_only_jax_spreads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set_up(TrainConfig(), "tensorflow") == Distribution()
    assert set_up(TrainConfig(devices=1), "torch") == Distribution()
    with pytest.raises(InputError, match=r"train.devices is 2, but train.backend is tensorflow.*train.backend to jax"):
        set_up(TrainConfig(devices=2), "tensorflow")
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{PROCESSES} is 4, but train.backend is torch"):
        set_up(TrainConfig(), "torch")


def test_alone_there_is_nothing_to_share(tmp_path: Path) -> None:
    assert broadcast(Distribution(), b"mine") == b"mine"
    share_directory(Distribution(), tmp_path / "none")
    assert not (tmp_path / "none").exists()


# What JAX 0.10 wrote when process 0 was killed, and when process 1 never came.
LOST = """\
F1122 13:49:26.168214   27046 client.h:80] Terminating process because the JAX distributed service detected fatal \
errors. This most likely indicates that another task died; see the other task logs for more details. absl::Status: \
UNAVAILABLE: Failed to send RPC to coordination service.
Additional GRPC error information from remote target coordination_service while calling \
/xla.coordination.CoordinationService/PollForError:
"""
NEVER_CAME = """\
F1122 13:50:10.910052   27460 client.h:80] Terminating process because the JAX distributed service detected fatal \
errors. This most likely indicates that another task died; see the other task logs for more details. absl::Status: \
DEADLINE_EXCEEDED: Deadline Exceeded

RPC: /xla.coordination.CoordinationService/RegisterTask
"""


GLOO = "UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:538] Read error [127.0.0.1]:12169: \
Connection reset by peer"


def test_what_jax_says_of_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    for words in (LOST, GLOO):
        lost = cluster_error(words)
        assert lost is not None
        assert "Process 2 of 4 ended because another one" in lost.message
        assert "go on from the last checkpoint of process 0" in lost.message
    never_came = cluster_error(NEVER_CAME)
    assert never_came is not None
    assert f"waited {DEFAULT_TIMEOUT_S} s at 10.0.0.1:1234" in never_came.message
    assert cluster_error("[Gloo] Rank 0 is connected to 1 peer ranks. Segmentation fault") is None
    monkeypatch.delenv(COORDINATOR)
    monkeypatch.setenv(PROCESSES, "1")
    monkeypatch.setenv(PROCESS, "0")
    assert cluster_error(LOST) is None, "alone it is something else"
