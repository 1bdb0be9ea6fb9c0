"""Train a sweep's winner as the model to use: longer, on validation images too, with several seeds.

    OUT/length/               a run folder that shows how many epochs the winner needs
    OUT/winner.json           the trial that is promoted; written first
    OUT/seed-0, seed-1, ...   a run folder each; seed-0-288px the last epochs on larger images
    OUT/exported/             the network to use, with its model card
    OUT/promoted.json
    OUT/review.html           the sweep's page, with the promotion; written last

Or, to cross-validate it, train it on all folds but one, for each fold:

    OUT/fold-0, fold-1, ...   a run folder each
    OUT/folds.json            written last

The sweep has chosen the config, so validation images may train. The test split chooses nothing: the
weights to use are those of the first seed, not of the seed with the best test accuracy.
"""

import json
import shlex
from dataclasses import replace
from typing import Any

from cluster.io import storage
from cluster.io.errors import UserError, require
from cluster.io.lease import hold_lease
from cluster.runtime import connect
from datasets.manifest import Manifest
from datasets.manifest_file import read_manifest
from trainers.config import FinetuneConfig
from trainers.prepare import prepare_run
from trainers.run.folder import read_config
from trainers.run.rows import find_mode
from trainers.tracking.config import sync_command
from trainers.tracking.where import require_settings
from tuning.budget.deadline import read_spent
from tuning.config import TuningConfig
from tuning.promotion.config import PromoteConfig
from tuning.promotion.folds import summarize_folds
from tuning.promotion.printing import print_folds, print_seeds
from tuning.promotion.resolution import choose_size
from tuning.promotion.seeds import Promotion
from tuning.promotion.summary import write_summary
from tuning.promotion.trainings import plan_trainings, refuse_other_epochs, train
from tuning.record.files import MEASURES, promotion_uri, read_promoted_id
from tuning.record.leaderboard import read_leaderboard
from tuning.record.results import TrialResult, find_winner


def run_promote(config: PromoteConfig) -> dict[str, Any]:
    """Train and test the seeds or folds that are missing; write, print and return the summary.

    Raises:
        UserError: where no sweep has finished there, none of its trials learned, its data set has
            no test split or no folds, or OUT holds another promotion.
    """
    sweep = storage.absolute(config.sweep, "sweep")
    winner = find_promoted(sweep)
    default = storage.join(sweep, "folds") if config.folds else promotion_uri(sweep, winner)
    out = storage.absolute(config.out or default, "out")
    base = read_config(winner.run)
    require_settings(replace(base.track, wandb=config.wandb))
    manifest = read_manifest(base.data, 0 if config.folds else base.fold)
    run = _cross_validate if config.folds else _train_seeds
    summary, commands = run(config, winner, base, manifest, sweep, out)
    if any(command is not None for command in commands):
        print(f"W&B:      {sync_command(out)}")
    return summary


def _cross_validate(
    config: PromoteConfig,
    winner: TrialResult,
    base: FinetuneConfig,
    manifest: Manifest,
    sweep: str,
    out: str,
) -> tuple[dict[str, Any], list[str | None]]:
    """Train the winner on all folds but one, for each fold; return the summary, and the commands
    that upload what W&B lacks."""
    folds = plan_trainings(config, base, sweep, out, num_folds=len(manifest.folds))
    refuse_other_epochs(folds)
    connect(config.address)
    with hold_lease(out):
        # Of another fold, the same rows are other images.
        commands = [train(prepare_run(training)) for training in folds]
        summary = summarize_folds(folds, winner, sweep, manifest)
        write_summary(out, config, summary)
    print_folds(summary)
    print(f"\nWritten:  {out}/folds.json")
    if "test" in manifest.splits:
        print(f"Promote:  python -m tuning promote --sweep {shlex.quote(sweep)}")
    return summary, commands


def _train_seeds(
    config: PromoteConfig,
    winner: TrialResult,
    base: FinetuneConfig,
    manifest: Manifest,
    sweep: str,
    out: str,
) -> tuple[dict[str, Any], list[str | None]]:
    """Train the winner with several seeds and export the first; return the same."""
    require(
        "test" in manifest.splits,
        "sweep",
        sweep,
        "its data set has no test split to test the winner on; "
        + ("cross-validate it with --folds, or " if manifest.folds else "")
        + "sweep data that was prepared with --test-root or a folder test/",
    )
    choose_size(base, config.last_size_px)
    mode = find_mode(replace(base.track, wandb=config.wandb))
    require(
        config.registry is None or mode == "online",
        "registry",
        config.registry,
        f"W&B is {mode}: set WANDB_API_KEY or log in, or leave it out",
    )
    if config.epochs is not None:
        refuse_other_epochs(plan_trainings(config, base, sweep, out))
    resources = connect(config.address)
    with hold_lease(out):
        _claim(out, winner)
        promotion = Promotion(config, winner, base, manifest, resources, sweep, out)
        summary, commands = promotion.run()
        registered = None
        if config.registry is not None:
            registered = register(config.registry, config, summary, out)
    print_seeds(summary)
    for line in promotion.notes:
        print(line)
    print(f"\nPromoted: {out}/promoted.json")
    print(f"Weights:  {summary['weights']}")
    print(f"Exported: {summary['exported']}, with a model card")
    print(f"Review:   {summary['review']}")
    if registered is not None:
        print(f"Registry: {registered}")
    return summary, commands


def promote_winner(sweep: TuningConfig, left_s: float | None) -> dict[str, Any]:
    """Promote the winner of a sweep that has ended, where and as the sweep's trials trained.

    Args:
        left_s: of the sweep's budget; None without one.
    """
    cluster, budget = sweep.base.cluster, None
    if left_s is not None:  # beside what earlier sessions of this promotion have spent
        spent = read_spent(promotion_uri(sweep.out, find_promoted(sweep.out)))
        budget = f"{max(1.0, spent.seconds + left_s):.0f}s"
    return run_promote(
        PromoteConfig(
            sweep=sweep.out,
            budget=budget,
            num_workers=cluster.num_workers,
            device=cluster.device,
            address=cluster.address,
            wandb=sweep.base.track.wandb,
        )
    )


def _claim(out: str, winner: TrialResult) -> None:
    """Write which trial is promoted in a folder.

    Raises:
        UserError: where it is another one's.
    """
    known = read_promoted_id(out)
    require(
        known in (None, winner.trial_id),
        "out",
        out,
        f"trial {known} was promoted there, and {winner.trial_id} won: use another --out",
    )
    facts = json.dumps(winner.to_dict(), indent=1).encode()
    storage.write_bytes(storage.join(out, "winner.json"), facts)


def register(collection: str, config: PromoteConfig, summary: dict[str, Any], out: str) -> str:
    """Link the exported network to a collection of W&B's registry; return a line about it."""
    from trainers.tracking.registry import collection_path, link_model  # imports wandb

    alias = config.registry_alias
    is_linked = link_model(
        out,
        summary["exported"],
        summary["run"],
        collection=collection,
        alias=alias,
        metadata={name: summary[name]["mean"] for name in MEASURES},
    )
    if not is_linked:
        return "not linked; run the same command again"
    return f"{collection_path(collection)}:{alias}"


def find_promoted(sweep: str) -> TrialResult:
    """Return the winner of a finished sweep.

    Raises:
        UserError: where there is none.
    """
    known = read_leaderboard(sweep)
    if known is None:
        raise UserError(
            f"sweep is {sweep!r}: no finished sweep there (leaderboard.json is missing); give the "
            "--out of a `python -m tuning` that ended"
        )
    winner = find_winner(known[0])
    if winner is None:
        raise UserError(
            f"sweep is {sweep!r}: it has no winner, as none of its {len(known[0])} trials is "
            "better than always predicting one class; search another space"
        )
    return winner
