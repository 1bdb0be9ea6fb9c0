"""OUT/trials.json: which trials a sweep has, and how far each is, kept while it runs."""

import json
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from cluster.io import storage
from cluster.io.fields import take_object
from cluster.io.records import damaged, read_record
from tuning.leaderboard import KILLED, RUNNING, TrialResult
from tuning.space import POINT, Point

WRITE_EVERY_S, WRITING_SHARE = 1.0, 0.1
"""The file is written not more than once a second, and at most for this part of the time: it holds
all trials, and Tune waits."""
_KEYS = ("trial_id", "number", "point", "run", "state", "reason")
"""Of a trial in the file; its metrics are in its run folder."""


@dataclass(frozen=True, kw_only=True)
class Trials:
    """What trials.json holds."""

    num_trials: int
    """Those that will run, in all."""
    updated_at: str
    """UTC, ISO 8601."""
    trials: tuple[TrialResult, ...]

    def to_dict(self) -> dict[str, Any]:
        trials = [{key: getattr(trial, key) for key in _KEYS} for trial in self.trials]
        return vars(self) | {"trials": trials}


class TrialStates:
    """Keep trials.json current; a sweep that is resumed goes on with what the file says."""

    def __init__(self, out: str, *, num_trials: int) -> None:
        self._out, self._num_trials = out, num_trials
        known = read_trials(out)
        self._trials = {trial.trial_id: trial for trial in known.trials} if known else {}
        self._written_s, self._rest_s, self._changed = 0.0, WRITE_EVERY_S, True

    def number_of(self, trial_id: str) -> int:
        """Return a trial's number. It keeps it when a sweep is resumed, unlike its place among
        Tune's trials."""
        known = self._trials.get(trial_id)
        return known.number if known else 1 + len(self._trials)

    def note(self, trial_id: str, *, point: Point, state: str, reason: str | None = None) -> None:
        """Note how a trial is now; `flush` writes it."""
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
        """Write that no trial runs any more: those that did were killed."""
        for trial in self._trials.values():
            if trial.state == RUNNING:
                self._trials[trial.trial_id] = replace(trial, state=KILLED)
        self._changed = True
        self.flush(at_once=True)

    def flush(self, *, at_once: bool = False) -> None:
        """Write what has changed, whole; unless `at_once`, not sooner than WRITE_EVERY_S says."""
        began_s = time.monotonic()
        if not self._changed or not (at_once or began_s - self._written_s >= self._rest_s):
            return
        trials = Trials(
            num_trials=self._num_trials,
            updated_at=datetime.now(UTC).isoformat(timespec="seconds"),
            trials=tuple(sorted(self._trials.values(), key=lambda trial: trial.number)),
        )
        storage.write_bytes(trials_uri(self._out), json.dumps(trials.to_dict(), indent=1).encode())
        self._written_s, self._changed = time.monotonic(), False
        self._rest_s = max(WRITE_EVERY_S, (self._written_s - began_s) / WRITING_SHARE)


def trials_uri(out: str) -> str:
    return storage.join(out, "trials.json")


def read_trials(out: str) -> Trials | None:
    """Read trials.json; None where there is none, as in the sweep of an older Thaw."""
    uri = trials_uri(out)
    try:
        trials = read_record(uri, Trials)
        for trial in trials.trials:
            take_object(trial.point, POINT, "trials.point.")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise error if str(error).startswith(uri) else damaged(uri, error) from None
    return trials
