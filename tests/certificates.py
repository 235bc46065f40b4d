"""Certificates for tests, made by openssl: an authority, a server and a client that it signed, and a stranger."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path


def make_certificates(directory: Path, *names: str) -> Path:
    """Writes `ca`, `server`, `client` and `stranger`, each as .pem and .key; returns the directory.

    Args:
        directory: It must exist.
        names: Of the server, beside localhost, such as `IP:10.0.0.1`.
    """
    for name, signed_by in (("ca", None), ("server", "ca"), ("client", "ca"), ("stranger", None)):
        signing = () if signed_by is None else ("-CA", f"{signed_by}.pem", "-CAkey", f"{signed_by}.key")
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")
        called = ("-subj", f"/CN={name}", "-addext", f"subjectAltName={','.join(('DNS:localhost', *names))}")
        command = ["openssl", "req", "-x509", *key, "-out", f"{name}.pem", "-days", "2", *called, *signing]
        subprocess.run(command, cwd=directory, check=True, capture_output=True)
    return directory


def client_context(directory: Path, client: str | None) -> ssl.SSLContext:
    """Of a client that trusts the authority and shows a certificate, or none."""
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    if client is not None:
        context.load_cert_chain(directory / f"{client}.pem", directory / f"{client}.key")
    return context
