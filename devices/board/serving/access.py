"""Who may ask the server: anybody on this machine; from elsewhere only with a token or a client certificate."""

from __future__ import annotations

import hmac
import ipaddress
import os
import socket
import ssl
import stat
from typing import Any, Mapping, NamedTuple, Optional

from ..errors import AgentError
from .wire import HttpError

_MIN_TOKEN_LENGTH = 16
_MAX_TOKEN_LENGTH = 4096


class AccessRefused(AgentError):
    """The server must not start like this; the message says what is missing."""


class Access(NamedTuple):
    """What a client needs.

    Attributes:
        token: That each request carries, or None.
        tls: Of the connection, with whether a certificate of the client is asked for; None for plain HTTP.
    """

    token: Optional[bytes]
    tls: Optional[ssl.SSLContext]

    def check(self, headers: Mapping[str, str]) -> None:
        """Refuses a request without the token, in the same time wherever a wrong one differs.

        Raises:
            HttpError: 401.
        """
        if self.token is None:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(given.strip().encode("latin-1", "replace"), self.token)
        if scheme.lower() != "bearer" or not same:
            raise HttpError(401, "expected the header authorization: Bearer and the token", headers=_CHALLENGE)


_CHALLENGE = {"WWW-Authenticate": "Bearer"}


def make_access(
    host: str,
    *,
    token_file: Optional[str] = None,
    certificate: Optional[str] = None,
    key: Optional[str] = None,
    client_ca: Optional[str] = None,
) -> Access:
    """What clients of a server on that address need.

    Args:
        host: Name or address that the server listens on.
        token_file: Holds the token, at least 16 characters; others must not be able to read it.
        certificate: Of the server, PEM; then the connection is TLS.
        key: Of that certificate; in the same file where it is left out.
        client_ca: PEM; clients must then show a certificate that it signed.

    Raises:
        AccessRefused: The server can be reached from elsewhere and would let anybody in, or a file can't be used.
    """
    if (key or client_ca) and not certificate:
        raise AccessRefused("a key or a client CA is given without the server's certificate; give --certificate")
    if token_file is None and client_ca is None and not is_loopback(host):
        raise AccessRefused(
            f"{host} can be reached from other machines; give --token-file, or --certificate with --client-ca, or "
            "listen on 127.0.0.1"
        )
    token = None if token_file is None else _read_token(token_file)
    return Access(token, None if certificate is None else _tls(certificate, key, client_ca))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there.

    Raises:
        AccessRefused: The name can't be found.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise AccessRefused(f"the address {host!r} can't be found: {error}") from error
    addresses: list[Any] = [each[4][0] for each in found]
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in addresses)


def _read_token(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            token = stream.read(_MAX_TOKEN_LENGTH + 1).strip()
    except OSError as error:
        raise AccessRefused(f"the token file {path} can't be read: {error}") from error
    if stat.S_ISREG(mode) and mode & stat.S_IRWXO:
        raise AccessRefused(f"others may read or write the token file {path}; take their rights: chmod o= {path}")
    printable = all(0x21 <= byte <= 0x7E for byte in token)
    if not printable or not _MIN_TOKEN_LENGTH <= len(token) <= _MAX_TOKEN_LENGTH:
        raise AccessRefused(
            f"the token file {path} holds no token; expected one line of {_MIN_TOKEN_LENGTH} or more characters "
            "without spaces, such as `openssl rand -hex 32` gives"
        )
    return token


def _tls(certificate: str, key: Optional[str], client_ca: Optional[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # or it would ask on the terminal
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise AccessRefused(f"the certificate, its key or the client CA can't be used: {error}") from error
    return context
