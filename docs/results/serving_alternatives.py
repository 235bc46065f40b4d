"""The other ways to serve with the standard library, as small as they can be, for `serving.py` to measure.

    python docs/results/serving_alternatives.py http.server|asyncio ROOT NAME

Each answers a POST with the first output's bytes for the input's bytes that are its body; no protocol, no limits, no
checks. That flatters them: what they take beyond bare inference is the least that their kind can take.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from devices.board.model import InstalledModel, open_model

KINDS = ("http.server", "asyncio")


def answer(model: InstalledModel, body: bytes | bytearray) -> bytes:
    """The first output's bytes."""
    feed = model.feeds[0]
    array = np.frombuffer(body, feed.dtype).reshape(feed.shape)
    return model.run([array])[0].tobytes()


def with_http_server(model: InstalledModel) -> None:
    """A thread for each client, heads parsed by `email`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            result = answer(model, body)
            self.send_response(200)
            self.send_header("Content-Length", str(len(result)))
            self.end_headers()
            self.wfile.write(result)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()


async def with_asyncio(model: InstalledModel) -> None:
    """One thread for all clients, one for the model."""
    loop, pool = asyncio.get_running_loop(), ThreadPoolExecutor(1)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.partition("content-length:")[2].split("\r\n")[0])
                result = await loop.run_in_executor(pool, answer, model, await reader.readexactly(length))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(result) + result)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def main() -> None:
    """Serves until it is killed."""
    kind, root, name = sys.argv[1:]
    model = open_model(name, root=root, num_threads=1)
    if kind == "asyncio":
        asyncio.run(with_asyncio(model))
    else:
        with_http_server(model)


if __name__ == "__main__":
    main()
