"""What long jobs tell while they run."""

import time
from collections.abc import Iterable

import pyarrow as pa

SHOW_EVERY_S = 5.0


def collect(tables: Iterable[pa.Table], num_images: int) -> pa.Table:
    """Join tables of a row per image, as they come, and print how far they are now and then."""
    done: list[pa.Table] = []
    started_s = shown_s = time.monotonic()
    for table in tables:
        done.append(table)
        now_s = time.monotonic()
        if now_s - shown_s >= SHOW_EVERY_S:
            shown_s = now_s
            num_done = sum(map(len, done))
            rate = num_done / (now_s - started_s)
            print(f"{num_done} of {num_images} images, {rate:.0f} images/s", flush=True)
    return pa.concat_tables(done)
