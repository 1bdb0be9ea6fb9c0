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
from trainers.tracking import RunMirror
from tuning.config import TuningConfig
from tuning.reuse import read_origin, record
from tuning.search import STATE_FOLDER, point_of
from tuning.space import describe
from tuning.states import FAILED, FINISHED, PRUNED, RUNNING, TrialStates
from tuning.trial import Shared, config_of


class Progress(tune.Callback):
    """Print the trials' progress and keep their mirrors."""

    def __init__(self, config: TuningConfig, shared: Shared, *, num_trials: int) -> None:
        self._config, self._shared, self._num_trials = config, shared, num_trials
        self._started_s = time.monotonic()
        self._best_top1 = 0.0
        self._mirrors: dict[str, RunMirror] = {}
        self._states = TrialStates(config.out, num_trials=num_trials)
        self.trial_ids: list[str] = []
        """Of all trials of the sweep, in the order of Tune's results; known at the end."""
        self.num_cut = 0
        """Trials that were running when the sweep was stopped."""
        self.sync_commands: set[str] = set()
        """What uploads the offline runs to W&B."""

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        if trial.trial_id in self._mirrors:  # a retry goes on in the same run
            return
        self._note(trials, trial, RUNNING)
        config = self._training(trial)
        mirror = RunMirror(
            config.out,
            track=config.track,
            name=f"{_number(trials, trial)} {describe(point_of(trial.config))}",
            group=config.track.group or self._config.out.rstrip("/").rsplit("/", 1)[-1],
            job_type="trial",
            config=config.to_dict(),
        )
        self._mirrors[trial.trial_id] = mirror
        if (command := mirror.sync_command()) is not None:
            self.sync_commands.add(command.replace(trial.trial_id, "*"))
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
        self._mirrors[trial.trial_id].sync()

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._states.flush()

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        training = self._training(trial)
        if (folder := self._shared.results_of(training)) is not None:
            record(folder, training.out)
        num_epochs = (trial.last_result or {}).get(metrics.EPOCH, self._config.base.epochs)
        if num_epochs < self._config.base.epochs:
            self._print(trials, trial, f"pruned after epoch {num_epochs}")
            self._finish(trial, "pruned")
            self._note(trials, trial, PRUNED)
        else:
            origin = read_origin(training.out)
            known = f", copied: {origin.run} is the same training" if origin else ""
            self._print(trials, trial, f"finished{known}")
            self._finish(trial, "finished")
            self._note(trials, trial, FINISHED)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        where = storage.join(self._config.out, STATE_FOLDER, trial.trial_id, "error.txt")
        reason = _last_line(trial.error_file)
        self._print(trials, trial, f"failed: {reason}, see {where}")
        self._finish(trial, "failed")
        self._note(trials, trial, FAILED, reason)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self.trial_ids = [trial.trial_id for trial in trials]
        self.num_cut = len(self._mirrors)
        self._states.end()
        for mirror in self._mirrors.values():
            mirror.finish("killed")
        self._mirrors.clear()

    def _training(self, trial: Trial) -> FinetuneConfig:
        return config_of(self._config, point_of(trial.config), trial.trial_id, self._shared)

    def _finish(self, trial: Trial, state: str) -> None:
        self._mirrors.pop(trial.trial_id).finish(state)

    def _note(
        self, trials: list[Trial], trial: Trial, state: str, reason: str | None = None
    ) -> None:
        self._states.note(
            trial.trial_id,
            number=_number(trials, trial),
            point=point_of(trial.config),
            state=state,
            reason=reason,
        )

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
