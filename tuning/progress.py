"""What the driver does while trials run: one line per result, and every trial's mirror in W&B.

The driver outlives pruned and killed workers, so it alone knows how a trial ended.
"""

import time
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from datasets import storage
from trainers import metrics
from trainers.config import FinetuneConfig
from trainers.mirror import CLOSE_TIMEOUT_S, TRIAL, RunMirror
from tuning.config import TuningConfig
from tuning.reuse import read_origin, record
from tuning.search import STATE_FOLDER, point_of
from tuning.space import describe
from tuning.trial import Shared, config_of


class Progress(tune.Callback):
    """Print the trials' progress and keep their mirrors."""

    def __init__(self, config: TuningConfig, shared: Shared, *, num_trials: int) -> None:
        self._config, self._shared, self._num_trials = config, shared, num_trials
        self._started_s = time.monotonic()
        self._best_top1 = 0.0
        self._mirrors: dict[str, RunMirror] = {}
        self._ended_mirrors: list[RunMirror] = []
        self.trial_ids: list[str] = []
        """Of all trials of the sweep, in the order of Tune's results; known at the end."""
        self.num_cut = 0
        """Trials that were running when the sweep was stopped."""

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        if trial.trial_id in self._mirrors:  # a retry goes on in the same run
            return
        config = self._training(trial)
        self._mirrors[trial.trial_id] = RunMirror(
            config,
            name=f"{_number(trials, trial)} {describe(point_of(trial.config))}",
            group=self._config.group,
            job_type=TRIAL,
        )
        self._print(trials, trial, "started")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        top1 = result[metrics.VAL_TOP1]
        self._best_top1 = max(self._best_top1, top1)
        self._print(
            trials,
            trial,
            f"epoch {result[metrics.EPOCH]}/{self._config.base.epochs}  "
            f"val/top1 {top1:.3f}  (best {self._best_top1:.3f})",
        )

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        training = self._training(trial)
        if (folder := self._shared.results_of(training)) is not None:
            record(folder, training.out)
        num_epochs = (trial.last_result or {}).get(metrics.EPOCH, self._config.base.epochs)
        if num_epochs < self._config.base.epochs:
            self._print(trials, trial, f"pruned after epoch {num_epochs}")
            self._finish(trial.trial_id, "pruned")
        else:
            origin = read_origin(training.out)
            known = f", copied: {origin.run} is the same training" if origin else ""
            self._print(trials, trial, f"finished{known}")
            self._finish(trial.trial_id, "finished")

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        where = storage.join(self._config.out, STATE_FOLDER, trial.trial_id, "error.txt")
        self._print(trials, trial, f"failed: {_last_line(trial.error_file)}, see {where}")
        self._finish(trial.trial_id, "failed")

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self.trial_ids = [trial.trial_id for trial in trials]
        self.num_cut = len(self._mirrors)

    def close(self) -> bool:
        """End what is still running as killed, and return whether W&B has all, once it has."""
        for trial_id in list(self._mirrors):
            self._finish(trial_id, "killed")
        deadline_s = time.monotonic() + CLOSE_TIMEOUT_S  # one for all of them
        commands = [
            mirror.close(timeout_s=max(0.0, deadline_s - time.monotonic()))
            for mirror in self._ended_mirrors
        ]
        return all(command is None for command in commands)

    def _training(self, trial: Trial) -> FinetuneConfig:
        return config_of(self._config, point_of(trial.config), trial.trial_id, self._shared)

    def _finish(self, trial_id: str, state: str) -> None:
        mirror = self._mirrors.pop(trial_id)
        mirror.finish(state)
        self._ended_mirrors.append(mirror)

    def _print(self, trials: list[Trial], trial: Trial, news: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._started_s), 60)
        print(
            f"[{minutes}:{seconds:02d}] trial {_number(trials, trial)}/{self._num_trials} "
            f"{describe(point_of(trial.config))}  {news}",
            flush=True,
        )


def _number(trials: list[Trial], trial: Trial) -> int:
    return 1 + next(i for i, other in enumerate(trials) if other.trial_id == trial.trial_id)


def _last_line(error_file: str | None) -> str:
    """The line of a traceback that says what went wrong."""
    lines = Path(error_file).read_text().splitlines() if error_file else []
    return next((line for line in reversed(lines) if line.strip()), "no traceback was kept")
