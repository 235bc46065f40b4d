"""A board that answers SSH."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from pathlib import Path

from devices.address import host_hint
from devices.errors import AgentCrashedError, ConnectionFailedError, LoginRefusedError
from devices.profile import DeviceProfile
from devices.transport_config import AdbTransport, SshTransport
from devices.transports.process_agent import ProcessAgent
from devices.transports.ssh_agent import SshAgent, explain_crash, ship_agent
from devices.transports.ssh_environment import prepare_environment
from devices.transports.ssh_files import companions, fetch, send_together
from devices.transports.ssh_link import shared_link, ssh_environment


class SshDevice:
    """Files are sent under their digests; an agent is a process there, in an environment made for it.

    All devices of this process with the same transport share one connection, which is made at the first need and
    ends with the program. While an agent lives, or a file is sent, other users of the board wait.

    Args:
        profile: With an ssh transport, or an adb transport whose serial is known.
    """

    def __init__(self, profile: DeviceProfile) -> None:
        if not isinstance(profile.transport, SshTransport | AdbTransport):
            raise TypeError(f"device '{profile.name}' has the transport '{profile.transport.kind}', expected 'ssh'")
        self._profile = profile
        self._link = shared_link(profile.transport, profile.python or "python3")

    def put(self, local_path: str) -> str:
        """See `Transport`."""
        path = Path(local_path)
        with self._explained(), self._link.hold():
            return send_together(self._link, companions(path) or (path,))[path.name]

    def get(self, device_path: str, local_path: str) -> None:
        """See `Transport`."""
        with self._explained(), self._link.hold():
            fetch(self._link, device_path, Path(local_path))

    def start_agent(self, *, releases_only: bool = False) -> SshAgent:
        """See `Transport`."""
        link = self._link
        with self._explained(), contextlib.ExitStack() as stack:
            stack.enter_context(link.hold())
            packages = "" if releases_only else prepare_environment(link, self._profile)
            remote = [link.python, "-I", ship_agent(link), link.board["lifeline"], packages]
            remote += ["release_agent"] if releases_only else []
            command = shlex.join(remote)
            try:
                agent = ProcessAgent(link.command(remote), env=ssh_environment(), device=self._profile.name)
            except AgentCrashedError as error:
                raise explain_crash(error, link, command) from error
            return SshAgent(agent, link, command, stack.pop_all())

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Adds to the error of a board that was never found how to tell where it is, where nobody has told that."""
        try:
            yield
        except ConnectionFailedError as error:
            transport = self._profile.transport
            if not isinstance(transport, SshTransport) or transport.host != self._profile.name:
                raise
            if self._link.reached or isinstance(error, LoginRefusedError):
                raise
            hint = host_hint(self._profile.name, transport.host)
            raise type(error)(f"{error.message}. {hint}", details=error.details) from error
