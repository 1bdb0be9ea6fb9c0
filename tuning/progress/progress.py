"""Tune callback of the driver: the display, trials.json and each trial's mirror in W&B.

The driver outlives pruned and killed workers, so it records how each trial ended.
"""

import importlib
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial

from cluster.io import storage
from cluster.io.errors import UserError
from trainers import metrics
from trainers.config import FinetuneConfig
from trainers.run.stop import STOPPED
from trainers.tracking.mirror import TRIAL, RunMirror
from trainers.tracking.thread import CLOSE_TIMEOUT_S
from tuning.config import TuningConfig
from tuning.point import describe
from tuning.progress.display import SweepDisplay
from tuning.record.results import FAILED, FINISHED, KILLED, PRUNED, RUNNING
from tuning.record.states import TrialStates
from tuning.search import STATE_FOLDER, SessionCallback
from tuning.shared import Shared, config_of
from tuning.sharing.reuse import read_origin, record
from tuning.space import point_of

EVALUATION = "trainers.evaluation.evaluate"


class SweepProgress(SessionCallback):
    """Update the display, the mirrors and trials.json."""

    def __init__(
        self, config: TuningConfig, shared: Shared, display: SweepDisplay, states: TrialStates
    ) -> None:
        self._config, self._shared, self._display = config, shared, display
        self._states = states
        self._mirrors: dict[str, RunMirror] = {}
        self._ended_mirrors: list[RunMirror] = []
        self._stops: set[str] = set()
        """Ids of trials that were stopped in W&B, by threads of W&B."""
        self._num_ended: int | None = None
        self._imports: threading.Thread | None = None
        self.trial_ids: list[str] = []
        """Of all trials, in the order of Tune's results; set at the end."""
        self.cut: set[str] = set()
        """Ids of trials that were running when the sweep was stopped."""

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        if trial.trial_id in self._mirrors:  # a retry continues the same run
            return
        self._note(trial, RUNNING)
        trial.max_failures = self._config.max_failures  # an earlier session may have had another
        config = self._training(trial)
        self._mirrors[trial.trial_id] = RunMirror(
            config,
            self._shared.manifest,
            name=f"{self._states.number_of(trial.trial_id)} {describe(point_of(trial.config))}",
            group=self._config.group,
            job_type=TRIAL,
            on_stop=partial(self._stops.add, trial.trial_id),
        )
        if self._num_ended is None:  # counted once: the others end in this session
            self._num_ended = sum(other.is_finished() for other in trials)
        self._display.start(
            trial.trial_id,
            self._states.number_of(trial.trial_id),
            point_of(trial.config),
            config.out,
            num_ended=self._num_ended,
        )

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self._display.report(trial.trial_id, result)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        for trial in trials if self._stops else ():
            # A trial in its last epoch ends by itself: stopped there, it could not write its end.
            epoch = (trial.last_result or {}).get(metrics.EPOCH, 0)
            if trial.trial_id in self._stops and epoch < self._config.base.epochs - 1:
                trial.stopping_criterion = {metrics.EPOCH: 0.0}  # at its next result
        self._states.flush()

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        if self._imports is None and self._config.evaluate_winner:
            # The winner's test needs scikit-learn and Matplotlib: seconds, while others train.
            self._imports = threading.Thread(
                target=importlib.import_module, args=(EVALUATION,), daemon=True
            )
            self._imports.start()
        training = self._training(trial)
        if (folder := self._shared.results_of(training)) is not None:
            record(folder, training.out)
        num_epochs = (trial.last_result or {}).get(metrics.EPOCH, self._config.base.epochs)
        if num_epochs < self._config.base.epochs and trial.trial_id in self._stops:
            self._end(trial, STOPPED, f"{STOPPED} after epoch {num_epochs}")
            return
        if num_epochs < self._config.base.epochs:
            self._end(trial, PRUNED, f"pruned after epoch {num_epochs}")
            return
        origin = read_origin(training.out)
        copied = f", copied: {origin.run} is the same training" if origin else ""
        self._end(trial, FINISHED, f"finished{copied}")

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        if trial.trial_id not in self._mirrors:  # its process did not even start
            self.on_trial_start(iteration, trials, trial)
        where = storage.join(self._config.out, STATE_FOLDER, trial.trial_id, "error.txt")
        reason = _last_line(trial.error_file)
        self._end(trial, FAILED, f"failed: {reason}, see {where}", reason)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self.trial_ids = [trial.trial_id for trial in trials]
        self.cut = set(self._mirrors)
        self._states.end()

    def close(self) -> bool:
        """Mark running trials as killed, wait for W&B, and return whether it has everything."""
        for trial_id in list(self._mirrors):
            self._finish(trial_id, KILLED)
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S  # one for all of them
        commands = [
            mirror.close(timeout_s=max(0.0, deadline_s - time.monotonic()))
            for mirror in self._ended_mirrors
        ]
        return all(command is None for command in commands)

    def _training(self, trial: Trial) -> FinetuneConfig:
        return config_of(self._config, point_of(trial.config), trial.trial_id, self._shared)

    def _end(self, trial: Trial, state: str, event: str, reason: str | None = None) -> None:
        self._display.end(trial.trial_id, event, failed=state == FAILED)
        self._finish(trial.trial_id, state)
        self._note(trial, state, reason)

    def _finish(self, trial_id: str, state: str) -> None:
        mirror = self._mirrors.pop(trial_id)
        mirror.finish(state)
        self._ended_mirrors.append(mirror)
        self._num_ended = 1 + (self._num_ended or 0)

    def _note(self, trial: Trial, state: str, reason: str | None = None) -> None:
        point = point_of(trial.config)
        self._states.note(trial.trial_id, point=point, state=state, reason=reason)


def _last_line(error_file: str | None) -> str:
    """Return the last line of a traceback; of the user's error, its sentence."""
    lines = Path(error_file).read_text().splitlines() if error_file else []
    last = next((line for line in reversed(lines) if line.strip()), "no traceback was kept")
    return last.removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")
