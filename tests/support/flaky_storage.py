"""`flaky://`: fsspec's file system in memory, whose reads fail as a test says."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, repeat

import fsspec
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem


class FlakyFileSystem(MemoryFileSystem):
    protocol = "flaky"
    errors: Iterator[Exception | None] = iter(())
    """Of the reads of content to come."""

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def _open(self, path, mode="rb", **options):
        return _FlakyFile(super()._open(path, mode, **options).getvalue())


class _FlakyFile(MemoryFile):
    def __init__(self, content: bytes) -> None:
        super().__init__(None, None, content)

    def read(self, *size):
        if (error := next(FlakyFileSystem.errors, None)) is not None:
            raise error
        return super().read(*size)

    def close(self) -> None:
        """Nothing is written."""


fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)


def put(path: str, content: bytes) -> None:
    fsspec.filesystem("flaky").pipe_file(path, content)


@contextmanager
def failing(error: Exception, num_failures: int | None = None, *, after: int = 0) -> Iterator[None]:
    """Raise an error in reads of content, in all of them by default, `after` those that work."""
    ill = repeat(error) if num_failures is None else repeat(error, num_failures)
    FlakyFileSystem.errors = chain(repeat(None, after), ill)
    try:
        yield
    finally:
        FlakyFileSystem.errors = iter(())
