"""An S3 server on loopback (moto), and a proxy before it that can be ill or slow."""

import http.client
import math
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.support.nodes import free_ports

SECRET = "hush-this-is-secret"
UNAVAILABLE = (
    b"<?xml version='1.0' encoding='UTF-8'?>"
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
PIECE = 8192
"""Bytes that a slow proxy passes at once."""
NOT_PASSED_ON = ("connection", "content-length", "expect", "server", "transfer-encoding")


def environment(port: int) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "thaw",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }


@contextmanager
def serve_s3(log: Path) -> Iterator[int]:
    """Run moto's server on a free port, which is yielded."""
    (port,) = free_ports(1)
    command = [str(Path(sys.executable).parent / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline_s = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                assert server.poll() is None and time.monotonic() < deadline_s, log.read_text()
                time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait()


class Proxy:
    """Passes requests on to a port, and answers a share of them with 503 itself.

    Args:
        seed: of which requests are refused.
    """

    share = 0.0
    """Of the requests that are answered with 503: 0 none, 1 all."""
    num_refused = 0
    bytes_per_s = math.inf
    """Of all bodies together, in both directions."""
    num_bytes = 0

    def __init__(self, port: int, seed: int) -> None:
        self.target, self._dice, self._lock = port, random.Random(seed), threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.port = self._server.server_address[1]
        self._free_s = time.monotonic()

    def pace(self, num_bytes: int) -> None:
        """Wait until so many bytes are through."""
        with self._lock:
            self.num_bytes += num_bytes
            self._free_s = max(self._free_s, time.monotonic()) + num_bytes / self.bytes_per_s
            free_s = self._free_s
        time.sleep(max(0.0, free_s - time.monotonic()))

    def refuses(self) -> bool:
        with self._lock:
            refused = self._dice.random() < self.share
            self.num_refused += refused
        return refused

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def answer(self) -> None:
        body = self._read()
        if self.proxy.refuses():
            self._send(503, {"Content-Type": "application/xml"}, UNAVAILABLE)
            return
        passed = {k: v for k, v in self.headers.items() if k.lower() not in NOT_PASSED_ON}
        target = http.client.HTTPConnection("127.0.0.1", self.proxy.target)
        target.request(self.command, self.path, body, passed | {"Content-Length": str(len(body))})
        answer = target.getresponse()
        self._send(answer.status, dict(answer.getheaders()), answer.read())
        target.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # names of http.server

    def _read(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self._take(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self._take(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            continue  # a trailer
        return body

    def _take(self, size: int) -> bytes:
        body = b""
        while len(body) < size:
            piece = self.rfile.read(min(PIECE, size - len(body)))
            if not piece:
                break  # the client has left
            body += piece
            self.proxy.pace(len(piece))
        return body

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        length = headers.get("Content-Length", "0")
        for name, value in headers.items():
            if name.lower() not in NOT_PASSED_ON:
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        for start in range(0, len(body) if self.command != "HEAD" else 0, PIECE):
            piece = body[start : start + PIECE]
            self.proxy.pace(len(piece))
            self.wfile.write(piece)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: what it refused is counted."""
