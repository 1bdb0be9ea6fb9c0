"""OUT/trials.json: the trials of a sweep and the state of each, kept while it runs."""

import json
import time
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from cluster.gauges import publish
from cluster.io import storage
from cluster.io.records import damaged, read_record
from tuning.point import Point, take_point
from tuning.record.results import KILLED, RUNNING, STATES, TrialResult

WRITE_EVERY_S, WRITING_SHARE = 1.0, 0.1
"""The file is written at most once a second and for this share of the time: it has all trials, and
Tune waits for it."""
_KEYS = ("trial_id", "number", "point", "run", "state", "reason")
"""Of a trial in the file; its metrics are in its run folder."""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """The content of trials.json."""

    num_trials: int
    """Trials that the whole sweep has."""
    updated_at: str
    """UTC, ISO 8601."""
    trials: tuple[TrialResult, ...]

    @property
    def by_id(self) -> dict[str, TrialResult]:
        return {trial.trial_id: trial for trial in self.trials}

    def to_dict(self) -> dict[str, Any]:
        trials = [{key: getattr(trial, key) for key in _KEYS} for trial in self.trials]
        return vars(self) | {"trials": trials}


class TrialStates:
    """Keep trials.json current; a resumed sweep starts from the file."""

    def __init__(self, out: str, *, num_trials: int) -> None:
        self._out, self._num_trials = out, num_trials
        known = read_trials(out)
        self._trials = known.by_id if known else {}
        self._written_s, self._rest_s, self._changed = 0.0, WRITE_EVERY_S, True

    def number_of(self, trial_id: str) -> int:
        """Return a trial's number, which stays when the sweep is resumed, unlike its index among
        Tune's trials."""
        known = self._trials.get(trial_id)
        return known.number if known else 1 + len(self._trials)

    def state_of(self, trial_id: str) -> str | None:
        """Return a trial's state; None for one that has not started."""
        known = self._trials.get(trial_id)
        return known.state if known else None

    def point_of(self, trial_id: str) -> Point | None:
        """Return a trial's point; None for one that has not started."""
        known = self._trials.get(trial_id)
        return known.point if known else None

    def note(self, trial_id: str, *, point: Point, state: str, reason: str | None = None) -> None:
        """Set a trial's state; `flush` writes it."""
        self._trials[trial_id] = TrialResult(
            trial_id=trial_id,
            number=self.number_of(trial_id),
            point=point,
            run=storage.join(self._out, "trials", trial_id),
            state=state,
            reason=reason,
        )
        self._changed = True

    def end(self) -> None:
        """Mark the trials that still run as killed, and write the file."""
        for trial in self._trials.values():
            if trial.state == RUNNING:
                self._trials[trial.trial_id] = replace(trial, state=KILLED)
        self._changed = True
        self.flush(at_once=True)

    def flush(self, *, at_once: bool = False) -> None:
        """Write the file if a trial has changed, not sooner than WRITE_EVERY_S unless `at_once`."""
        began_s = time.monotonic()
        if not self._changed or not (at_once or began_s - self._written_s >= self._rest_s):
            return
        trials = Trials(
            num_trials=self._num_trials,
            updated_at=datetime.now(UTC).isoformat(timespec="seconds"),
            trials=tuple(sorted(self._trials.values(), key=lambda trial: trial.number)),
        )
        storage.write_bytes(trials_uri(self._out), json.dumps(trials.to_dict(), indent=1).encode())
        publish(self._count(), sweep=self._out)
        self._written_s, self._changed = time.monotonic(), False
        self._rest_s = max(WRITE_EVERY_S, (self._written_s - began_s) / WRITING_SHARE)

    def _count(self) -> dict[str, int]:
        """Count the trials by state, for Prometheus."""
        states = Counter(trial.state for trial in self._trials.values())
        left = self._num_trials - sum(states.values()) + states[RUNNING]
        return {f"trials/{state}": states[state] for state in STATES} | {"trials/left": left}


def trials_uri(out: str) -> str:
    return storage.join(out, "trials.json")


def read_trials(out: str) -> Trials | None:
    """Read trials.json; None where there is none, as in the sweep of an older Thaw."""
    uri = trials_uri(out)
    try:
        trials = read_record(uri, Trials)
        for trial in trials.trials:
            take_point(trial.point, "trials.point.")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise error if str(error).startswith(uri) else damaged(uri, error) from None
    return trials
