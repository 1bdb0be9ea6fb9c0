"""All trials of a sweep by Ray Tune, with their display, states and tracking."""

import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from ray import tune

from cluster.io import terminal
from cluster.io.errors import UserError
from trainers import metrics
from trainers.run.rows import epoch_rows
from trainers.run.stop import STOPPED
from tuning.budget.deadline import BudgetClock, StopAtDeadline
from tuning.config import TuningConfig
from tuning.progress.display import SweepDisplay
from tuning.progress.progress import SweepProgress
from tuning.record.results import CUT, FAILED, FINISHED, KILLED, TrialResult, rank
from tuning.record.states import TrialStates
from tuning.runner import AbortTrainings, EndHeads
from tuning.search import build_tuner, run_folder
from tuning.shared import Shared
from tuning.space import point_of
from tuning.sweep_plan import SweepPlan
from tuning.trial import build_trial


def run_trials(
    plan: SweepPlan, shared: Shared, clock: BudgetClock
) -> tuple[list[TrialResult], bool]:
    """Run the trials by Tune; return them by rank, and whether W&B has all of them.

    Raises:
        SystemExit: where the sweep was stopped before all trials had ended.
    """
    config, num_trials = plan.config, plan.num_trials
    _silence_tune()
    display = SweepDisplay(
        config, plan.manifest, num_trials=num_trials, num_concurrent=plan.num_concurrent
    )
    states = TrialStates(config.out, num_trials=num_trials)
    progress = SweepProgress(config, shared, display, states)
    stop = StopAtDeadline(clock)
    callbacks: list[tune.Callback] = [progress, stop]
    if shared.rounds is not None:
        callbacks.append(EndHeads(config, shared.rounds))
    if shared.runner is not None:
        callbacks.append(AbortTrainings(config, shared.runner))
    trial = build_trial(plan, shared)
    tuner = build_tuner(
        config, trial, callbacks, num_concurrent=plan.num_concurrent, rounds=shared.rounds
    )
    with terminal.show(display.draw), warnings.catch_warnings(), _keeping_sigint_handler():
        # Optuna keeps the first of two results of a step: right for a trial that is resumed.
        warnings.filterwarnings("ignore", "The reported value is ignored", UserWarning)
        try:
            results = tuner.fit()
        finally:
            is_synced = progress.close()
    started = [*_started(config, results, progress, states)]
    ended = [trial for trial in started if trial.state != CUT]
    if len(ended) < num_trials and not stop.stopped:
        print(
            f"Stopped with {len(ended)} of {num_trials} trials done; run the same command again to "
            "resume"
        )
        raise SystemExit(130)
    if not started:
        _refuse_no_trials(clock)
    trials = rank(
        started,
        epochs=config.base.epochs,
        class_counts=plan.manifest.split("val").class_counts,
    )
    return trials, is_synced


@contextmanager
def _keeping_sigint_handler() -> Iterator[None]:
    """Take back Ctrl-C at the end of a `with` block: Tune's handler stays, and would only log."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def _silence_tune() -> None:
    # Run folders have the metrics; Tune need not write them again.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # a table of its own, even at verbose=0
    # Our own lines say how trials end; tracebacks are in their error.txt.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


def _refuse_no_trials(clock: BudgetClock) -> NoReturn:
    if clock.ended_by_user:
        print("Stopped before a trial had begun; run the same command again")
        raise SystemExit(130)
    raise UserError(
        "budget is spent before a trial has finished an epoch: run the same command with a larger "
        "one to resume"
    )


def _started(
    config: TuningConfig, results: tune.ResultGrid, progress: SweepProgress, states: TrialStates
) -> Iterator[TrialResult]:
    """Yield the trials that have an epoch, of this session or an earlier one, or have failed.

    Tune takes a trial whose process was still starting for one that has ended, and forgets which
    ones an earlier session has cut.
    """
    for number, trial_id in enumerate(progress.trial_ids):
        result, state = results[number], states.state_of(trial_id)
        run = run_folder(config, trial_id)
        if result.error is None and not epoch_rows(run):
            continue
        if state is None and metrics.EPOCH not in (result.metrics or {}):
            continue  # its head has trained ahead of it
        if trial_id in progress.cut or state == KILLED:
            state = CUT
        elif state != STOPPED:
            state = FINISHED if result.error is None else FAILED
        point = states.point_of(trial_id) or point_of(result.config or {})  # of an older Thaw
        yield TrialResult(trial_id=trial_id, point=point, run=run, state=state)
