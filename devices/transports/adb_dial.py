"""Connects to a port of a phone through adb's server and hands the connection to the SSH client that runs this.

The client gives a socket as standard output, takes the connection through it (`ProxyUseFdpass`), and this program
ends: nothing lies between, nothing listens on this machine, nothing is left whatever is killed. What is said to the
server is described in docs/dev/services.md of Android's packages/modules/adb. It imports nothing of Edgeship.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence

PREFIX = "edgeship: adb: "


def main(arguments: Sequence[str]) -> None:
    """Connects and hands over.

    Args:
        arguments: Host and port of adb's server, the phone's serial, the port on the phone, seconds to wait.
    """
    host, port, serial, phone_port, timeout_s = arguments
    try:
        with socket.create_connection((host, int(port)), timeout=float(timeout_s)) as connection:
            _ask(connection, f"host:transport:{serial}")
            try:
                _ask(connection, f"tcp:{phone_port}")
            except _RefusedError as error:
                raise _RefusedError(f"nothing answers on port {phone_port} of the phone ({error})") from error
            connection.settimeout(None)
            with socket.socket(fileno=1) as client:
                socket.send_fds(client, [b"\0"], [connection.fileno()])
                client.detach()
    except (OSError, _RefusedError) as error:
        sys.exit(f"{PREFIX}{error}")


class _RefusedError(Exception):
    """The server, or the phone, does not do what it was asked."""


def _ask(connection: socket.socket, service: str) -> None:
    request = service.encode()
    connection.sendall(b"%04x%s" % (len(request), request))
    answer = _read(connection, 4)
    if answer != b"OKAY":
        reason = _read(connection, int(_read(connection, 4), 16)) if answer == b"FAIL" else answer
        raise _RefusedError(reason.decode(errors="replace"))


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        block = connection.recv(count - len(data))
        if not block:
            raise _RefusedError("adb's server broke the connection")
        data += block
    return data


if __name__ == "__main__":
    main(sys.argv[1:])
