"""The end of a sweep before its last trial, as its budget is spent or the user stops it in W&B:
trials that run stop, and the sweep ends with what it has.

SWEEP/spent.json    seconds of the sessions so far, those that the last one kept for its end, and
                    those of promotions
"""

import json
import signal
import time
from typing import Any

from ray.tune.experiment import Trial

from cluster.io import storage
from cluster.io.records import read_object
from cluster.io.terminal import describe_s, report
from tuning.search import SessionCallback

END_SHARE = 0.05
"""Of the budget, kept for what follows the trainings where its seconds were not estimated."""
END_MARGIN = 1.25
"""Times the estimate of those seconds, which may be off by a quarter."""
SAVE_BEFORE_S = 15.0
"""Before the end, trainings save a checkpoint with each row of metrics."""
WRITE_EVERY_S = 10.0


class BudgetClock:
    """Counts the seconds of a sweep's sessions; `end` ends this one.

    Args:
        budget_s: seconds that all of them may take; None for any.
    """

    def __init__(self, out: str, budget_s: float | None) -> None:
        self._out, self._started_s, self.budget_s = out, time.monotonic(), budget_s
        self._before_s, end_s, self.promoted_s = _read_spent(out)
        self._end_s = END_SHARE * (budget_s or 0.0) if end_s is None else end_s
        self._written_s = self._started_s
        self.ended_by_user = False

    def keep(self, seconds: float) -> None:
        """Keep time for what follows the trainings, as estimated; at most half of what is left."""
        if self.budget_s is not None:
            self._end_s = min(END_MARGIN * seconds, max(0.0, self.whole_left_s) / 2)

    @property
    def spent_s(self) -> float:
        """Seconds of all sessions, without their promotions: `promoted_s`."""
        return self._before_s + time.monotonic() - self._started_s

    @property
    def save_from_s(self) -> float | None:
        """When trainings begin to save what they have, in seconds since 1970, as processes of other
        machines share no other clock; None without a budget."""
        return None if self.budget_s is None else time.time() + self.left_s - SAVE_BEFORE_S

    @property
    def left_s(self) -> float:
        """Seconds left for trainings."""
        if self.ended_by_user:
            return 0.0
        if self.budget_s is None:
            return float("inf")
        return self.whole_left_s - self._end_s

    @property
    def whole_left_s(self) -> float:
        """Seconds left, with those that are kept for what follows the trainings."""
        return float("inf") if self.budget_s is None else self.budget_s - self.spent_s

    def end(self) -> None:
        """End the session, as the user wants; may be called by another thread."""
        self.ended_by_user = True

    def write(self, *, promoted_s: float = 0.0) -> None:
        """Write spent.json.

        Args:
            promoted_s: seconds of this session that a promotion took.
        """
        self._written_s = time.monotonic()
        facts = {
            "seconds": self.spent_s - promoted_s,
            "end_s": self._end_s,
            "promoted_s": self.promoted_s + promoted_s,
        }
        storage.write_bytes(storage.join(self._out, "spent.json"), json.dumps(facts).encode())

    def write_often(self) -> None:
        """Write it again, not sooner than WRITE_EVERY_S: a driver that is killed has spent it."""
        if time.monotonic() - self._written_s >= WRITE_EVERY_S:
            self.write()


def _read_spent(out: str) -> tuple[float, float | None, float]:
    """Read the seconds that a sweep has taken, those that were kept for its end, and those of its
    promotions; of a sweep that begins 0, None and 0."""
    hints = {"seconds": float, "end_s": float | None, "promoted_s": float | None}
    try:
        found = read_object(storage.join(out, "spent.json"), hints)
    except FileNotFoundError:
        return 0.0, None, 0.0
    return found["seconds"], found["end_s"], found["promoted_s"] or 0.0


class StopAtDeadline(SessionCallback):
    """Stop Tune as Ctrl-C does once no time is left: its state stays, for a resume."""

    def __init__(self, clock: BudgetClock) -> None:
        self._clock = clock
        self.stopped = False

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._clock.write_often()
        if self._clock.left_s <= 0 and not self.stopped:
            self.stopped = True
            reason = "The sweep was stopped in W&B"
            if not self._clock.ended_by_user and self._clock.budget_s is not None:
                reason = f"The budget of {describe_s(self._clock.budget_s)} is spent"
            report(f"{reason}: stopping")
            signal.raise_signal(signal.SIGINT)  # Tune's own handler leaves its loop
