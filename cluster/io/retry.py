"""Call again after an error that passes: storage that is busy, a server that restarts."""

import time
from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import TypeVar

T = TypeVar("T")


def retry(
    call: Callable[[], T],
    passes: Callable[[Exception], bool],
    pauses_s: Iterable[float],
    *,
    note: Callable[[], None] = lambda: None,
) -> T:
    """Return what `call` returns; where it raises, wait for the next pause and call again.

    Args:
        passes: Whether an error may pass; any other is raised at once.
        note: Called before each pause.
    """
    for pause_s in pauses_s:
        try:
            return call()
        except Exception as error:
            if not passes(error):
                raise
        note()
        time.sleep(pause_s)
    return call()


def doubling(
    first_s: float, *, times: float = inf, max_s: float = inf, within_s: float = inf
) -> Iterator[float]:
    """Yield pauses, each twice as long as the one before, until `within_s` are over."""
    began_s, pause_s, num_yielded = time.monotonic(), first_s, 0
    while num_yielded < times and time.monotonic() - began_s <= within_s:
        yield min(pause_s, max_s)
        pause_s, num_yielded = 2 * pause_s, num_yielded + 1
