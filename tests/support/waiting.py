"""Wait for what other processes do."""

import time
from collections.abc import Callable


def comes(condition: Callable[[], object], timeout_s: float) -> bool:
    """Wait until a condition holds; return whether it did within the time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(0.02)
    return True


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 60) -> None:
    assert comes(condition, timeout_s), f"{what}: never came"
