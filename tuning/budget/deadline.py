"""The end of a sweep before its last trial, as its budget is spent or the user stops it in W&B:
trials that run stop, and the sweep ends with what it has.

SWEEP/spent.json            what the sessions have spent so far: the fields of `Spent`
SWEEP/promoted/spent.json   the same of the promotion alone
"""

import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from typing import Any

from ray.tune.experiment import Trial

from cluster.io import storage
from cluster.io.errors import StorageError, UserError
from cluster.io.records import read_object
from cluster.io.terminal import describe_s, report
from tuning.budget.config import Spent
from tuning.search import SessionCallback

END_SHARE = 0.05
"""Of the budget, kept for what follows the trainings where its seconds were not estimated."""
END_MARGIN = 1.25
"""Times the estimate of those seconds, which may be off by a quarter."""
SAVE_BEFORE_S = 15.0
"""Before the end, trainings save a checkpoint with each row of metrics."""
WRITE_EVERY_S, WATCH_EVERY_S = 10.0, 1.0


class BudgetSpent(UserError):
    """A session that has ended, by its budget or by the user in W&B, before its trainings."""


class BudgetClock:
    """Counts the seconds of a sweep's sessions; `end` ends this one.

    Args:
        budget_s: seconds that all of them may take; None for any.
        num_gpus: of the cluster of this session, whose hours count.
        price_per_hour: of that cluster.
    """

    def __init__(
        self,
        out: str,
        budget_s: float | None,
        *,
        num_gpus: int = 0,
        price_per_hour: float | None = None,
    ) -> None:
        self._out, self._started_s, self.budget_s = out, time.monotonic(), budget_s
        self._num_gpus, self._price_per_hour = num_gpus, price_per_hour
        self.before = read_spent(out)
        """Of earlier sessions."""
        end_s = self.before.end_s
        self._end_s = END_SHARE * (budget_s or 0.0) if end_s is None else end_s
        self._promotes_from_s = math.inf
        self.ended_by_user = False

    def keep(self, seconds: float) -> None:
        """Keep time for what follows the trainings, as estimated; at most half of what is left."""
        if self.budget_s is not None:
            self._end_s = min(END_MARGIN * seconds, max(0.0, self.whole_left_s) / 2)

    @property
    def spent_s(self) -> float:
        """Seconds of all sessions, without their promotions."""
        return self.spent().seconds

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

    def spent(self) -> Spent:
        """Return what all sessions have spent so far."""
        before, now_s = self.before, time.monotonic()
        session_s, price = now_s - self._started_s, self._price_per_hour
        promoted_s = max(0.0, now_s - self._promotes_from_s)
        price_per_s = None if price is None else price / 3600
        return Spent(
            seconds=before.seconds + session_s - promoted_s,
            end_s=self._end_s,
            promoted_s=before.promoted_s + promoted_s,
            gpu_s=_add(before.gpu_s, session_s, self._num_gpus),
            cost=_add(before.cost, session_s, price_per_s),
            promoted_gpu_s=_add(before.promoted_gpu_s, promoted_s, self._num_gpus),
            promoted_cost=_add(before.promoted_cost, promoted_s, price_per_s),
        )

    def write(self) -> None:
        """Write spent.json."""
        text = json.dumps(asdict(self.spent())).encode()
        storage.write_bytes(storage.join(self._out, "spent.json"), text)

    @contextmanager
    def counted(self, *, promotes: bool = False) -> Iterator[None]:
        """Write spent.json every WRITE_EVERY_S of a `with` block, as a driver that is killed has
        spent it, and at its end.

        Args:
            promotes: whether a promotion begins here, whose seconds count apart.
        """
        if promotes:
            self._promotes_from_s = time.monotonic()
        is_over = threading.Event()

        def write_often() -> None:
            while True:
                with suppress(StorageError, UserError):  # out of reach: tried again
                    self.write()
                if is_over.wait(WRITE_EVERY_S):
                    return

        writer = threading.Thread(target=write_often, name="budget", daemon=True)
        writer.start()
        try:
            yield
        finally:
            is_over.set()
            writer.join()
            self.write()

    @contextmanager
    def bound(self) -> Iterator[None]:
        """End a `with` block, what comes before the trials, once no time is left; only the main
        thread can be woken.

        Raises:
            BudgetSpent: then.
        """
        if self.left_s <= 0:
            raise BudgetSpent(self._describe_end())
        main = threading.main_thread()
        if threading.current_thread() is not main:
            yield
            return
        is_done, is_cut = threading.Event(), threading.Event()

        def watch() -> None:
            while not is_done.wait(min(WATCH_EVERY_S, max(0.0, self.left_s))):
                if self.left_s <= 0 and main.ident is not None:
                    is_cut.set()
                    signal.pthread_kill(main.ident, signal.SIGINT)
                    return

        watcher = threading.Thread(target=watch, name="deadline", daemon=True)
        # A shell lets commands in the background ignore it.
        handler = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            watcher.start()
            try:
                yield
            finally:
                is_done.set()
                watcher.join()  # may be cut as well
        except KeyboardInterrupt:
            if not is_cut.is_set():
                raise
            raise BudgetSpent(self._describe_end()) from None
        finally:
            signal.signal(signal.SIGINT, handler)

    def _describe_end(self) -> str:
        """Write why there was no trial, in a sentence."""
        if self.ended_by_user or self.budget_s is None:
            return "the sweep was stopped in W&B before its first trial: run it again to resume"
        return (
            f"the budget of {describe_s(self.budget_s)} is spent before the first trial; the "
            "features so far are kept: run the same command with a larger budget to resume"
        )


def _add(before: float | None, seconds: float, per_s: float | None) -> float | None:
    return None if before is None or per_s is None else before + seconds * per_s


def read_spent(out: str) -> Spent:
    """Read what the sessions of a sweep have spent; nothing where it begins."""
    names = [field.name for field in fields(Spent)]
    hints = {**dict.fromkeys(names, float | None), "seconds": float}
    try:
        found = read_object(storage.join(out, "spent.json"), hints)
    except FileNotFoundError:
        return Spent()
    known = {name: found[name] for name in names}
    return Spent(**known | {"promoted_s": known["promoted_s"] or 0.0})


class StopAtDeadline(SessionCallback):
    """Stop Tune as Ctrl-C does once no time is left: its state stays, for a resume."""

    def __init__(self, clock: BudgetClock) -> None:
        self._clock = clock
        self.stopped = False

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if self._clock.left_s <= 0 and not self.stopped:
            self.stopped = True
            reason = "The sweep was stopped in W&B"
            if not self._clock.ended_by_user and self._clock.budget_s is not None:
                reason = f"The budget of {describe_s(self._clock.budget_s)} is spent"
            report(f"{reason}: stopping")
            signal.raise_signal(signal.SIGINT)  # Tune's own handler leaves its loop
