"""How long the threads of torch on a CPU spin while they wait (standard library only)."""

import os

SPIN_ENV = {"GOMP_SPINCOUNT": "20000"}
"""For processes that are about to start. GNU OpenMP's own is 300,000 turns of a loop: a thread that
waits keeps the core that another thread, or another process, needs. Beside one busy process on two
cores MobileNetV2 trains at 9 images/s, and at 5 with that. Alone on the machine there is no
difference (LOG.md, 2026-11-29)."""


def spin_briefly() -> None:
    """Set it for this process, before it imports torch; what the user set, wins."""
    os.environ.update({**SPIN_ENV, **os.environ})
