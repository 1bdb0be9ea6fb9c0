"""A sweep from its config to its winner."""

import json
import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from typing import Any

from ray.actor import ActorHandle

from cluster.config import ClusterConfig
from cluster.io import storage, terminal
from cluster.io.lease import hold_lease
from cluster.provenance import find_provenance
from cluster.ray_internals import predict_trial_ids
from cluster.runtime import Resources, connect
from cluster.scaling import in_process, plan_workers
from datasets.manifest import Manifest
from trainers import prepare
from trainers.heads.grouping import count_together, stack_key
from trainers.inference.passes import cache_uri
from trainers.networks.precision import choose_precision
from trainers.run.rows import find_mode
from trainers.tracking.config import sync_command
from tuning.budget.deadline import BudgetClock, BudgetSpent, read_spent
from tuning.budget.estimate import as_planned
from tuning.check import check, distinct_depths, facts_of, with_absolute_axes
from tuning.config import TuningConfig
from tuning.ending import close, end_killed, is_closed, is_whole, read_ended
from tuning.heads import train_heads
from tuning.point import training_of
from tuning.record.files import read_sweep_config
from tuning.record.leaderboard import read_leaderboard, remove_leaderboard, write_leaderboard
from tuning.record.record import SweepRecord
from tuning.record.savings import measure_savings
from tuning.record.states import read_trials
from tuning.runner import start_runner
from tuning.shared import Shared, config_of, trains_together
from tuning.sharing.prefixes import BuiltPrefixes, PrefixStore
from tuning.sharing.rounds import start_rounds
from tuning.space import corners, points
from tuning.sweep_plan import SweepPlan, plan_sweep, trains_in_process
from tuning.trials import run_trials
from tuning.wandb.sweep_run import SweepRun


def tune_sweep(config: TuningConfig, *, explain: bool = False) -> dict[str, Any]:
    """Run, resume or reuse the sweep in `config.out`; print and return its answer.

    Args:
        explain: only print what would run, and what sharing would save.

    Returns:
        out, answer (the verdict's text), winner (its row of the leaderboard, or None where no trial
        learned), test (its measures on the test split), combined (the content of combined.json, or
        None), sharing, trials, promoted (the content of promoted.json, or None).

    Raises:
        UserError: where the config is wrong, or OUT has another sweep.
    """
    answer, clock, resources = _sweep(config, explain=explain)
    promoted = None
    if config.promote and answer["winner"] is not None and not clock.ended_by_user:
        from tuning.promotion.promote import promote_winner  # imports the exports

        with _write_alone(answer["out"]), clock.counted(promotes=True):
            left_s = config.budget.left_s(resources.num_gpus, clock.spent())
            promoted = promote_winner(config, left_s)
    return answer | {"promoted": promoted}


def _sweep(config: TuningConfig, *, explain: bool) -> tuple[dict[str, Any], BudgetClock, Resources]:
    """Run, resume or reuse the trials; return the answer, the sweep's clock, and the cluster's
    resources."""
    base = prepare.with_absolute_paths(replace(config.base, out=config.out))
    config = distinct_depths(with_absolute_axes(replace(config, base=base, out=base.out)))
    before, known = read_sweep_config(config.out), read_leaderboard(config.out)
    if before is not None:
        config = as_planned(config, before[0])
    manifest = check(config)

    trials = known[0] if known else []
    is_finished = known is not None and is_whole(config, trials)
    if is_finished:
        terminal.report(
            f"{config.out} has this sweep of {len(trials)} trials, finished: reusing it"
        )
        if explain:
            raise SystemExit(0)
    resources = connect(config.base.cluster.address, quiet=is_finished)
    clock = BudgetClock(
        config.out,
        config.sweep_s(resources.num_gpus, read_spent(config.out)),
        num_gpus=resources.num_gpus,
        price_per_hour=config.budget.price_per_hour,
    )
    config = _with_precision(config, before, resources)
    is_spent = known is not None and not is_finished and clock.left_s <= 0 and not explain
    if is_spent:
        terminal.report(
            f"{config.out} has spent its budget: reusing its {len(trials)} trials; run the same "
            "command with a larger budget to resume"
        )
    if is_finished or is_spent:
        return _reuse(config, manifest, resources, clock), clock, resources
    store = PrefixStore(config, manifest, resources)
    plan = plan_sweep(
        config,
        manifest,
        resources,
        store,
        budget_s=clock.budget_s,
        explain=explain,
        resumes=before is not None,
    )
    for line in plan.describe():
        (print if explain else terminal.report)(line)
    if explain:
        raise SystemExit(0)
    if plan.forecast is not None:
        clock.keep(plan.forecast.estimate(plan.config).end_s)
    with _own(plan.config, manifest, clock) as tracked:
        record, shared = _execute(plan, store, clock)
        return close(record, resources, clock, shared, tracked), clock, resources


def _reuse(
    config: TuningConfig, manifest: Manifest, resources: Resources, clock: BudgetClock
) -> dict[str, Any]:
    """Return the answer of a sweep whose trials have ended; do what its end still lacks."""
    record = read_ended(config)
    if is_closed(record):
        return close(record, resources, clock)
    with _own(config, manifest, clock) as tracked:
        return close(record, resources, clock, tracked=tracked)


@contextmanager
def _own(config: TuningConfig, manifest: Manifest, clock: BudgetClock) -> Iterator[SweepRun]:
    """Be the only writer of the sweep in a `with` block, whose time counts, with its run in W&B."""
    with (
        _write_alone(config.out),
        clock.counted(),
        closing(SweepRun(config, manifest, on_stop=clock.end)) as tracked,
    ):
        yield tracked


def _write_alone(out: str) -> AbstractContextManager[None]:
    """Be the only writer of a sweep's folder in a `with` block."""
    follow = f"follow it with `python -m tuning review --out {shlex.quote(out)}`"
    return hold_lease(out, follow=follow)


def _execute(plan: SweepPlan, store: PrefixStore, clock: BudgetClock) -> tuple[SweepRecord, Shared]:
    """Run the trials and what they share; write the leaderboard, of the trials of earlier sessions
    where no time is left for any."""
    config, manifest = plan.config, plan.manifest
    _write_start(config, manifest)
    built, shared = BuiltPrefixes(), Shared(manifest=manifest)
    try:
        with clock.bound():
            built = store.build(plan.sharing)
            for problem in built.problems:
                print(f"  {problem}: its trials train on images")
            shared = _share(plan, store, built)
    except BudgetSpent:
        trials = end_killed(config, plan.num_trials)
        is_synced = find_mode(config.base.track) == "off"
        if not trials:
            raise
    else:
        shared = replace(shared, rounds=_plan_rounds(plan, shared), save_from_s=clock.save_from_s)
        trials, is_synced = run_trials(plan, shared, clock)
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
    return read_ended(config), shared


def _with_precision(
    config: TuningConfig, before: tuple[TuningConfig, str | None] | None, resources: Resources
) -> TuningConfig:
    """Choose one precision for all trials, and for the features that they share."""
    use_gpu = plan_workers(resources, ClusterConfig(device=config.base.cluster.device)).use_gpu
    recorded = before[0].base.compute if before else None
    compute = choose_precision(config.base.compute, recorded, use_gpu=use_gpu)
    return replace(config, base=replace(config.base, compute=compute))


def _write_start(config: TuningConfig, manifest: Manifest) -> None:
    remove_leaderboard(config.out)  # of an earlier session
    facts = {
        "config.json": facts_of(config, manifest.fingerprint),
        "started.json": find_provenance().to_dict(),
    }
    for name, values in facts.items():
        text = json.dumps(values, indent=1).encode()
        storage.write_bytes(storage.join(config.out, name), text)


def _share(plan: SweepPlan, store: PrefixStore, built: BuiltPrefixes) -> Shared:
    """Collect the work that trials share, and train the heads that deeper ones start from."""
    config = plan.config
    trainings = [training_of(config.base, point) for point in corners(config.space)]
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
    known = {trial.trial_id: trial.point for trial in states.trials} if states else {}
    trial_ids = predict_trial_ids(len(listed), next(iter(known), None))
    trainings = (  # a point that is known counts: an older Thaw may have drawn another
        config_of(config, known.get(trial_id, drawn), trial_id, shared)
        for drawn, trial_id in zip(listed, trial_ids, strict=True)
    )
    planned = [(each, stack_key(each)) for each in trainings if trains_together(each, shared)]
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
