"""A sweep from its config to its winner."""

import json
import logging
import os
import shlex
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from ray import tune
from ray.actor import ActorHandle

from cluster.config import ClusterConfig
from cluster.io import storage, terminal
from cluster.io.errors import UserError
from cluster.io.lease import hold_lease
from cluster.provenance import find_provenance
from cluster.ray_internals import predict_trial_ids
from cluster.runtime import Resources, connect
from cluster.scaling import in_process, plan_workers
from datasets.shards import Manifest
from trainers import metrics, prepare
from trainers.evaluation.measures import Measures
from trainers.heads.stack import count_together, stack_key
from trainers.inference.passes import cache_uri
from trainers.networks.precision import choose_precision
from trainers.run.folder import read_config
from trainers.run.stop import STOPPED
from trainers.tracking.config import sync_command
from tuning.budget.deadline import BudgetClock, StopAtDeadline
from tuning.budget.estimate import plans_trials
from tuning.check import check, distinct_depths, facts_of, with_absolute_axes
from tuning.combine.combinations import combined_uri, describe_combinations
from tuning.combine.combine import combine
from tuning.config import TuningConfig
from tuning.heads import train_heads
from tuning.leaderboard import (
    CUT,
    FAILED,
    FINISHED,
    TrialResult,
    print_leaderboard,
    rank,
    read_leaderboard,
    write_leaderboard,
)
from tuning.progress import SweepProgress
from tuning.record import SweepRecord, read_sweep_config
from tuning.runner import AbortTrainings, EndHeads, start_runner
from tuning.search import build_tuner, count_trials, run_folder
from tuning.sharing.prefixes import BuiltPrefixes, PrefixStore
from tuning.sharing.rounds import start_rounds
from tuning.sharing.savings import measure_savings
from tuning.space import models, point_of, points, training_of
from tuning.states import TrialStates, read_trials
from tuning.sweep_display import SweepDisplay
from tuning.sweep_plan import SweepPlan, plan_sweep, trains_in_process
from tuning.trial import Shared, build_trial, config_of, trains_together
from tuning.verdict import judge
from tuning.wandb.sweep_run import SweepRun
from tuning.winner import evaluate_once, train_longer


def tune_sweep(config: TuningConfig, *, explain: bool = False) -> dict[str, Any]:
    """Run, resume or reuse the sweep in `config.out`; print and return its answer.

    Args:
        explain: only print what would run, and what sharing would save.

    Returns:
        out, answer (the verdict's text), winner (its row of the leaderboard, or None where no trial
        learned), test (its measures on the test split), combined (the content of combined.json, or
        None), sharing, trials.

    Raises:
        UserError: where the config is wrong, or OUT has another sweep.
    """
    base = prepare.with_absolute_paths(replace(config.base, out=config.out))
    config = distinct_depths(with_absolute_axes(replace(config, base=base, out=base.out)))
    before, known = read_sweep_config(config.out), read_leaderboard(config.out)
    if before is not None and plans_trials(config):
        config = replace(config, trials=before[0].trials)
    manifest = check(config)

    def reuse(config: TuningConfig, resources: Resources, clock: BudgetClock) -> dict[str, Any]:
        return _close(_read_record(_with_precision(config, before, resources)), resources, clock)

    if known is not None and is_whole(config, known[0]):
        terminal.report(
            f"{config.out} has this sweep of {len(known[0])} trials, finished: reusing it"
        )
        resources = connect(config.base.cluster.address, quiet=True)
        clock = BudgetClock(config.out, config.budget.seconds(resources.num_gpus))
        return reuse(config, resources, clock)
    resources = connect(config.base.cluster.address)
    clock = BudgetClock(config.out, config.budget.seconds(resources.num_gpus))
    if known is not None and clock.left_s <= 0 and not explain:
        terminal.report(
            f"{config.out} has spent its budget: reusing its {len(known[0])} trials; run the same "
            "command with a larger budget to resume"
        )
        return reuse(config, resources, clock)
    config = _with_precision(config, before, resources)
    store = PrefixStore(config, manifest, resources)
    plan = plan_sweep(config, manifest, resources, store, budget_s=clock.budget_s, explain=explain)
    for line in plan.describe():
        (print if explain else terminal.report)(line)
    if explain:
        raise SystemExit(0)
    if plan.forecast is not None:
        clock.keep(plan.forecast.estimate(plan.config).end_s)
    follow = f"follow it with `python -m tuning review --out {shlex.quote(config.out)}`"
    with (
        hold_lease(config.out, follow=follow),
        closing(SweepRun(plan.config, manifest, on_stop=clock.end)) as tracked,
    ):
        record, shared = _execute(plan, store, clock)
        return _close(record, resources, clock, shared, tracked)


def _execute(plan: SweepPlan, store: PrefixStore, clock: BudgetClock) -> tuple[SweepRecord, Shared]:
    """Run the trials and what they share; write the leaderboard."""
    config, manifest = plan.config, plan.manifest
    _write_start(config, manifest)
    built = store.build(plan.sharing)
    for problem in built.problems:
        print(f"  {problem}: its trials train on images")
    shared = _share(plan, store, built)
    shared = replace(shared, rounds=_plan_rounds(plan, shared), save_from_s=clock.save_from_s)
    try:
        trials, is_synced = _run_trials(plan, shared, clock)
    finally:
        clock.write()
    with_prefix = (
        row for row in trials if shared.prefix_of(training_of(config.base, row.point)) is not None
    )
    savings = measure_savings(
        plan.sharing,
        built,
        trials,
        on_features=[row.trial_id for row in with_prefix],
        images_per_epoch=sum(manifest.split(split).num_images for split in ("train", "val")),
    )
    sync = [] if is_synced else [sync_command(config.out)]
    write_leaderboard(
        config.out,
        trials,
        config.base,
        sync=sync,
        sharing=savings.to_dict(),
        ended_by_user=clock.ended_by_user,
    )
    return _read_record(config), shared


def _with_precision(
    config: TuningConfig, before: tuple[TuningConfig, str | None] | None, resources: Resources
) -> TuningConfig:
    """Choose one precision for all trials, and for the features that they share."""
    use_gpu = plan_workers(resources, ClusterConfig(device=config.base.cluster.device)).use_gpu
    recorded = before[0].base.compute if before else None
    compute = choose_precision(config.base.compute, recorded, use_gpu=use_gpu)
    return replace(config, base=replace(config.base, compute=compute))


def _write_start(config: TuningConfig, manifest: Manifest) -> None:
    facts = {
        "config.json": facts_of(config, manifest.fingerprint),
        "started.json": find_provenance().to_dict(),
    }
    for name, values in facts.items():
        text = json.dumps(values, indent=1).encode()
        storage.write_bytes(storage.join(config.out, name), text)


def _run_trials(
    plan: SweepPlan, shared: Shared, clock: BudgetClock
) -> tuple[list[TrialResult], bool]:
    """Run the trials by Tune; return them by rank, and whether W&B has all of them.

    Raises:
        SystemExit: where the sweep was stopped before all trials had ended.
    """
    config, num_trials = plan.config, plan.num_trials
    # Run folders have the metrics; Tune need not write them again.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # a table of its own, even at verbose=0
    # Our own lines say how trials end; tracebacks are in their error.txt.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
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
    with terminal.show(display.draw), warnings.catch_warnings():
        # Optuna keeps the first of two results of a step: right for a trial that is resumed.
        warnings.filterwarnings("ignore", "The reported value is ignored", UserWarning)
        try:
            results = tuner.fit()
        finally:
            is_synced = progress.close()
    num_ended = results.num_terminated + results.num_errors - len(progress.cut)
    if num_ended < num_trials and not stop.stopped:
        print(
            f"Stopped with {num_ended} of {num_trials} trials done; run the same command again to "
            "resume"
        )
        raise SystemExit(130)
    ended = [*_ended(config, results, progress.trial_ids, progress.cut, states)]
    if not ended and clock.ended_by_user:
        print("Stopped before a trial had begun; run the same command again")
        raise SystemExit(130)
    if not ended:
        raise UserError(
            "budget is spent before a trial has finished an epoch: run the same command with a "
            "larger one to resume"
        )
    trials = rank(
        ended,
        epochs=config.base.epochs,
        class_counts=plan.manifest.split("val").class_counts,
    )
    return trials, is_synced


def _share(plan: SweepPlan, store: PrefixStore, built: BuiltPrefixes) -> Shared:
    """Collect the work that trials share, and train the heads that deeper ones start from."""
    config = plan.config
    trainings = [training_of(config.base, model) for model in models(config.space)]
    shared = Shared(manifest=plan.manifest, prefixes=dict(built.prefixes))
    shared = shared.with_images(trainings, plan.ingest)
    if config.share:
        shared = replace(
            shared,
            results=storage.join(cache_uri(config.out, config.cache), "results"),
            starts=store.start_hashes(),
        )
    if config.head_first:
        shared = replace(shared, heads=train_heads(config, shared))
    if not all(map(trains_in_process, trainings)):
        shared = replace(shared, runner=start_runner())
    return shared


def _plan_rounds(plan: SweepPlan, shared: Shared) -> ActorHandle | None:
    """Plan which head-only trials train together; None where none can, all run at once, or Optuna
    draws them one after the other."""
    config = plan.config
    if config.search == "optuna":
        return None
    listed = points(config.space, config.search, config.trials, config.seed)
    states = read_trials(config.out)
    known = states.trials[0].trial_id if states and states.trials else None
    planned = [
        (training, stack_key(training))
        for point, trial_id in zip(listed, predict_trial_ids(len(listed), known), strict=True)
        if trains_together(training := config_of(config, point, trial_id, shared), shared)
    ]
    use_gpu = plan_workers(plan.resources, in_process(config.base.cluster)).use_gpu
    num_batches = plan.num_concurrent
    if use_gpu:  # one large batch keeps a GPU busier than several small ones
        num_batches = min(num_batches, plan.resources.num_gpus)
    if len(planned) <= num_batches:
        return None
    return start_rounds(
        config,
        planned,
        max_together=count_together(planned[0][0], len(plan.manifest.classes), use_gpu=use_gpu),
        num_concurrent=num_batches,
    )


def _ended(
    config: TuningConfig,
    results: tune.ResultGrid,
    trial_ids: Sequence[str],
    cut: Collection[str],
    states: TrialStates,
) -> Iterator[TrialResult]:
    for number, trial_id in enumerate(trial_ids):
        result = results[number]
        if result.config is None:  # the budget ended before it had begun
            continue
        state = CUT if trial_id in cut else FINISHED if result.error is None else FAILED
        yield TrialResult(
            trial_id=trial_id,
            point=point_of(result.config),
            run=run_folder(config, trial_id),
            state=STOPPED if states.state_of(trial_id) == STOPPED else state,
        )


def _read_record(config: TuningConfig) -> SweepRecord:
    """Read the record of a sweep that has ended."""
    return replace(SweepRecord.read(config.out), config=config)


def is_whole(config: TuningConfig, trials: Sequence[TrialResult]) -> bool:
    """Whether a leaderboard has all trials of its sweep, none of them to be tried again."""
    return len(trials) >= count_trials(config) and all(
        row.state not in (FAILED, CUT) for row in trials
    )


def describe_cut(record: SweepRecord) -> str | None:
    """Write which trials the end of the sweep has cut in one line; None where it has cut none."""
    num_cut = sum(row.state == CUT for row in record.trials)
    num_missing = record.num_trials - len(record.trials)
    if not num_cut and not num_missing:
        return None
    why, how = (
        ("Stopped:      in W&B", "again")
        if record.ended_by_user
        else ("Budget:       spent", "with a larger budget")
    )
    return (
        f"{why}; {num_cut} trials were stopped, and {num_missing} of {record.num_trials} not "
        f"started; run the same command {how} to resume"
    )


def _close(
    record: SweepRecord,
    resources: Resources,
    clock: BudgetClock,
    shared: Shared | None = None,
    tracked: SweepRun | None = None,
) -> dict[str, Any]:
    """Test the winner and print the answer; then combine the best trials, and log to W&B.

    Args:
        shared: of a sweep that has just ended.
        tracked: its run.
    """
    config, winner = record.config, record.winner
    has_test = record.manifest is not None and "test" in record.manifest.splits
    if winner and config.evaluate_winner and has_test and record.test is None:
        prefix = shared and shared.prefix_of(read_config(winner.run))
        evaluate_once(winner.run, prefix=prefix, on_measured=partial(_print_answer, record))
        record = replace(record)  # which reads the test
    else:
        _print_answer(record)
    combined = None
    if record.manifest is not None and config.combine:
        combined = combine(
            record.out, record.trials, record.manifest, resources, left_s=clock.whole_left_s
        )
    for found in combined.kept if combined and has_test and config.evaluate_winner else ():
        evaluate_once(combined_uri(record.out, found.kind))
    for line in describe_combinations(record.out, combined) if combined else ():
        print(f"Combined:     {line}")
    if tracked is not None and (command := tracked.log(record)) is not None:
        record = replace(record, sync=[command])
    for command in record.sync:
        print(f"Sync W&B:     {command}")
    return {
        "out": record.out,
        "answer": judge(record).text,
        "winner": winner.to_dict() if winner else None,
        "test": record.test,
        "combined": asdict(combined) if combined else None,
        "sharing": record.savings.to_dict(),
        "trials": [row.to_dict() for row in record.trials],
    }


def _print_answer(record: SweepRecord, measures: Measures | None = None) -> None:
    """Print the leaderboard, the answer and the next commands.

    Args:
        measures: of the winner on the test split, where they are not in the record yet.
    """
    test = record.test
    if measures is not None:
        test = {f"test/{name}": value for name, value in measures.means().items()}
        test["num_images"] = measures.num_images
    out, winner, verdict = record.out, record.winner, judge(record)
    print()
    print_leaderboard(record.trials, record.base)
    print(f"\nAnswer:       {verdict.text}")
    print(f"Leaderboard:  {out}/leaderboard.json, leaderboard.csv")
    print(f"Review:       python -m tuning review --out {shlex.quote(out)}")
    if winner is not None:
        print(f"Winner:       {winner.run}")
        if test is not None:
            print(
                f"Test split:   top-1 {test[metrics.TEST_TOP1]:.3f}, "
                f"top-5 {test[metrics.TEST_TOP5]:.3f} on {test['num_images']} images, evaluated "
                "once, for the winner only"
            )
        print(f"Train longer: {train_longer(winner, out)}")
        if record.manifest is not None and "test" in record.manifest.splits:
            print(f"Promote:      python -m tuning promote --sweep {shlex.quote(out)}")
    if record.advice is not None:
        print(f"Advice:       {record.advice}")
    if (line := describe_cut(record)) is not None:
        print(line)
    for line in record.savings.describe():
        print(f"Shared:       {line}")
