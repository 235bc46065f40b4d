"""Releases on eight boards at once, each behind an OpenSSH server of its own."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from devices import release
from devices.errors import BundleError
from devices.profile import DeviceProfile
from devices.transport_config import SshTransport
from devices.transports.ssh_link import close_links
from tests.bundles import make_bundle, make_key, opened, signer_line
from tests.openssh_server import SSHD, OpenSshServer, serve

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(SSHD is None, reason="no OpenSSH server on this machine (Debian: openssh-server)"),
]

NUM_BOARDS = 8
ROOT = Path("~/releases")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[OpenSshServer]]:
    directory = tmp_path_factory.mktemp("boards")
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(serve(directory / str(number))) for number in range(NUM_BOARDS)]
        close_links()


def profile_of(server: OpenSshServer, number: int) -> DeviceProfile:
    """With this machine's Python and the fake runtime."""
    return DeviceProfile(
        name=f"board-{number}",
        description="A board of the test.",
        python=sys.executable,
        runtimes={"fake": ""},
        preference=("fake",),
        transport=SshTransport(**server.transport()),
        latency_label="simulated",
    )


def test_eight_boards_at_once(servers: list[OpenSshServer], tmp_path: Path) -> None:
    """All but one trust the key; that one refuses, and keeps nothing of it."""
    key, stranger = make_key(tmp_path / "key"), make_key(tmp_path / "stranger")
    signers = {name: tmp_path / name for name in ("known", "unknown")}
    signers["known"].write_text(signer_line(key))
    signers["unknown"].write_text(signer_line(stranger))
    bundles = [make_bundle(tmp_path / f"{seed}.edgeship", seed, key=key) for seed in (1, 2)]
    digests = [opened(bundle).digest for bundle in bundles]
    together = threading.Barrier(NUM_BOARDS)

    def work(number: int) -> list[str]:
        profile = profile_of(servers[number], number)
        known = "unknown" if number == 3 else "known"
        assert release.set_trust(profile, ROOT, allowed_signers=signers[known])["signers"] == 1
        found = []
        for bundle in bundles:
            together.wait(300)
            try:
                told = release.install(profile, ROOT, bundle)
            except BundleError as error:
                found.append(str(error))
            else:
                assert told["changed"]
                found.append(told["digest"])
        return found

    with ThreadPoolExecutor(NUM_BOARDS) as pool:
        results = list(pool.map(work, range(NUM_BOARDS)))
    for number, (server, found) in enumerate(zip(servers, results, strict=True)):
        _, rows = release.status(profile_of(server, number), ROOT)
        home = server.home / "releases" / "net"
        if number == 3:
            assert all("unknown to the board" in message for message in found)
            assert rows == []
            assert not home.exists()
            continue
        assert found == digests
        (row,) = rows
        assert (row.current_digest, row.previous_digest) == (digests[1], digests[0])
        assert json.loads((home / "current" / "release.json").read_text()) == opened(bundles[1]).manifest
        assert [(entry["action"], entry["result"]) for entry in row.history] == [("install", "done")] * 2
