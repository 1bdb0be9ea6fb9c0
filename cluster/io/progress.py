"""What long jobs tell while they run."""

from collections.abc import Iterable

import pyarrow as pa

from cluster.io.terminal import count


def collect(tables: Iterable[pa.Table], num_images: int, what: str) -> pa.Table:
    """Join tables of a row per image as they come, telling how far they are.

    Args:
        what: is done, such as `Preparing images`.
    """
    done: list[pa.Table] = []
    with count(what, num_images, "images") as advance:
        for table in tables:
            done.append(table)
            advance(len(table))
    return pa.concat_tables(done)
