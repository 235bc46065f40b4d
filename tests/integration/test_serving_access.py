"""Who may ask the server of models: tokens and certificates, with plain requests and with a real client."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.board_server import BoardServer, serving
from tests.certificates import client_context, make_certificates
from tests.releases import NAME, put_fake
from tests.served import MODEL, expected, image_of, json_request


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("serving")
    put_fake(scratch / "root", scratch)
    return scratch / "root"


TOKEN = "a-token-of-some-length"  # noqa: S105


def test_a_token(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o600)
    with serving(root, "--host", "0.0.0.0", "--token-file", str(path)) as server:
        for place in ("/v2/health/live", "/metrics", f"{MODEL}/infer", "/nothing"):
            refused = server.ask(place)
            assert refused.status == 401
            assert "WWW-Authenticate" in refused.headers
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert server.ask("/v2/health/live", headers=headers).status == 200
        assert server.ask(f"{MODEL}/infer", json_request(image_of(0)), headers=headers).status == 200
        assert TOKEN not in "".join(server.log)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def test_a_client_certificate(root: Path, certificates: Path) -> None:
    files = [str(certificates / name) for name in ("server.pem", "server.key", "ca.pem")]
    options = ("--certificate", files[0], "--key", files[1], "--client-ca", files[2])
    with serving(root, "--host", "0.0.0.0", *options, tls=client_context(certificates, "client")) as server:
        assert server.url.startswith("https://")
        image = image_of(4)
        answer = server.ask(f"{MODEL}/infer", json_request(image))
        np.testing.assert_allclose(answer.json()["outputs"][0]["data"], expected(root, image)[0], rtol=1e-6)
        for client in (None, "stranger"):
            server.tls = client_context(certificates, client)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                server.ask("/v2/health/live")
        assert b"200 OK" not in server.raw(b"GET /v2/health/live HTTP/1.1\r\nHost: b\r\n\r\n")
        server.tls = client_context(certificates, "client")
        assert server.ask("/v2/health/live").status == 200
        assert server.stop() == 0


@contextlib.contextmanager
def real_client(server: BoardServer, certificates: Path, shown: str | None) -> Iterator[triton.InferenceServerClient]:
    """Over TLS; it trusts the authority and shows a certificate, or none."""
    options = {"ca_certs": str(certificates / "ca.pem")}
    if shown is not None:
        options |= {"certfile": str(certificates / f"{shown}.pem"), "keyfile": str(certificates / f"{shown}.key")}
    made = triton.InferenceServerClient(f"localhost:{server.port}", ssl=True, ssl_options=options)
    try:
        yield made
    finally:
        made.close()


def infer(client: triton.InferenceServerClient, image: np.ndarray, headers: dict[str, str] | None = None) -> np.ndarray:
    tensor = triton.InferInput("image", list(image.shape), "UINT8")
    tensor.set_data_from_numpy(image)
    answers: np.ndarray = client.infer(NAME, [tensor], headers=headers).as_numpy("logits")
    return answers


def test_a_real_client_with_a_certificate(root: Path, certificates: Path) -> None:
    files = [str(certificates / name) for name in ("server.pem", "server.key", "ca.pem")]
    options = ("--certificate", files[0], "--key", files[1], "--client-ca", files[2])
    image = image_of(5)
    with serving(root, "--host", "0.0.0.0", *options) as server:
        with real_client(server, certificates, "client") as client:
            assert client.is_server_ready()
            assert client.get_model_metadata(NAME)["name"] == NAME
            for _ in range(3):
                np.testing.assert_array_equal(infer(client, image), expected(root, image))
        for shown in (None, "stranger"):
            with real_client(server, certificates, shown) as client, pytest.raises((ssl.SSLError, OSError)):
                infer(client, image)
        with real_client(server, certificates, "client") as client:
            assert client.is_server_live()


def test_a_real_client_with_a_token_over_tls(root: Path, certificates: Path, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o600)
    files = ("--certificate", str(certificates / "server.pem"), "--key", str(certificates / "server.key"))
    image, given = image_of(6), {"Authorization": f"Bearer {TOKEN}"}
    options = ("--host", "0.0.0.0", "--token-file", str(path), *files)
    with serving(root, *options) as server, real_client(server, certificates, None) as client:
        assert client.is_server_ready(headers=given)
        np.testing.assert_array_equal(infer(client, image, given), expected(root, image))
        assert not client.is_server_ready()
        for wrong in (None, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Basic {TOKEN}"}):
            with pytest.raises(InferenceServerException, match="expected the header authorization"):
                infer(client, image, wrong)
        np.testing.assert_array_equal(infer(client, image, given), expected(root, image))
