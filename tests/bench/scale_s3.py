"""An S3 server on loopback that counts the requests it gets."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import boto3

from cluster.io import storage
from tests.support import s3_server

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
    with (
        tempfile.NamedTemporaryFile() as log,
        s3_server.serve_s3(Path(log.name)) as port,
        patch.dict(os.environ, s3_server.environment(port)),
    ):
        storage._open_bucket.cache_clear()
        boto3.client("s3").create_bucket(
            Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
        )
        try:
            yield CountingServer(Path(log.name))
        finally:
            storage._open_bucket.cache_clear()
