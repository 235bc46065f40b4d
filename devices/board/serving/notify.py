"""What systemd is told of a service (sd_notify(3)): ready, reloading, stopping, and that it is alive."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Mapping, Optional


class Supervisor:
    """systemd, or nobody where this process was started by hand.

    Args:
        environment: Names the socket and the watchdog's time.
    """

    def __init__(self, environment: Optional[Mapping[str, str]] = None) -> None:
        values = os.environ if environment is None else environment
        path = values.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        own = values.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        text = values.get("WATCHDOG_USEC", "")
        self.watchdog_s: Optional[float] = int(text) / 1e6 if own and text.isdigit() and int(text) else None
        """Within which it must be told that the service is alive; None where nobody waits for that."""

    def tell(self, *lines: str) -> None:
        """Sends lines such as `READY=1`; nothing happens where nobody listens."""
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
            notifier.connect(self._address)
            notifier.sendall("\n".join(lines).encode())
