"""Progress of long jobs."""

from collections.abc import Iterable

import pyarrow as pa

from cluster.io.terminal import count


def collect(tables: Iterable[pa.Table], num_images: int, title: str) -> pa.Table:
    """Join tables of a row per image as they arrive, with a progress bar."""
    done: list[pa.Table] = []
    with count(title, num_images, "images") as advance:
        for table in tables:
            done.append(table)
            advance(len(table))
    return pa.concat_tables(done)
