"""An S3 server on loopback that counts the requests it gets."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3

from datasets import storage

BUCKET = "thaw"


class CountingServer:
    """moto's server; its log has a line for every request."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def count_requests(self) -> int:
        return self._log.read_text().count(f"/{BUCKET}/")


@contextmanager
def serve_s3() -> Iterator[CountingServer]:
    """Serve an empty bucket, and point this process' S3 clients at it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {
        "AWS_ACCESS_KEY_ID": "thaw",
        "AWS_SECRET_ACCESS_KEY": "thaw",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    before = {name: os.environ.get(name) for name in environment}
    with tempfile.NamedTemporaryFile() as log:
        program = str(Path(sys.executable).parent / "moto_server")
        server = subprocess.Popen(
            [program, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            os.environ.update(environment)
            storage._open_bucket.cache_clear()
            _wait_for(server, port)
            boto3.client("s3").create_bucket(
                Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
            )
            yield CountingServer(Path(log.name))
        finally:
            server.terminate()
            server.wait()
            storage._open_bucket.cache_clear()
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    deadline_s = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert server.poll() is None and time.monotonic() < deadline_s, "moto did not start"
            time.sleep(0.1)
