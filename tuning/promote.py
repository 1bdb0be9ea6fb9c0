"""Train a sweep's winner as the model to use: longer, on validation images too, with several seeds.

    OUT/seed-0, seed-1, ...   a run folder each
    OUT/promoted.json         written last

Or, to cross-validate it, train it on all folds but one, for each fold:

    OUT/fold-0, fold-1, ...   a run folder each
    OUT/folds.json            written last

The sweep has chosen the config, so validation images may train. The test split chooses nothing: the
weights to use are those of the first seed, not of the seed with the best test accuracy.
"""

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from cluster.io import storage
from cluster.io.errors import UserError, require
from cluster.io.lease import hold_lease
from cluster.io.statistics import CONFIDENCE, Estimate, estimate
from cluster.io.terminal import report
from cluster.io.uris import name_of
from cluster.runtime import connect
from datasets.shards import Manifest, read_manifest
from trainers import metrics
from trainers.commands import follow_training
from trainers.config import FinetuneConfig
from trainers.prepare import Run, SharedImages, prepare_run
from trainers.run import checkpoint
from trainers.run.evaluations import read_evaluation
from trainers.run.folder import read_config, read_result
from trainers.run.rows import epoch_rows
from trainers.tracking.config import sync_command
from tuning.config import PromoteConfig
from tuning.leaderboard import TrialResult, find_winner, read_leaderboard
from tuning.record import MEASURES
from tuning.winner import LONGER, evaluate_once

FOLD_MEASURES = {metrics.VAL_TOP1: "top-1", metrics.VAL_TOP5: "top-5"}
"""The measures that a cross-validation averages over its folds, and their headings."""

logger = logging.getLogger(__name__)


def run_promote(config: PromoteConfig) -> dict[str, Any]:
    """Train and test the seeds or folds that are missing; write, print and return the summary.

    Raises:
        UserError: where no sweep has finished there, none of its trials learned, its data set has
            no test split or no folds, or OUT holds another promotion.
    """
    sweep = storage.absolute(config.sweep, "sweep")
    kind = "folds" if config.folds else "promoted"
    out = storage.absolute(config.out or storage.join(sweep, kind), "out")
    winner = find_promoted(sweep)
    base = read_config(winner.run)
    manifest = read_manifest(base.data, 0 if config.folds else base.fold)
    if not config.folds:
        manifest.split("test")
    trainings = plan_trainings(config, base, sweep, out, num_folds=len(manifest.folds))
    for training in trainings:
        _refuse_other_epochs(training)
    connect(config.address)
    with hold_lease(out):
        commands, images = [], None
        for training in trainings:
            # Of another fold, the same rows are other images.
            run = prepare_run(training, images=images, lends_images=not config.folds)
            if run.memory and not config.folds:
                images = SharedImages(memory=run.memory, ingest=run.ingest)
            commands.append(_train(run))
        summarize_all = _summarize_folds if config.folds else _summarize_seeds
        summary = summarize_all(trainings, winner, sweep, manifest)
        text = json.dumps(summary, indent=1).encode()
        storage.write_bytes(storage.join(out, f"{kind}.json"), text)
    if config.folds:
        print_folds(summary)
        print(f"\nWritten:  {out}/folds.json")
        if "test" in manifest.splits:
            print(f"Promote:  python -m tuning promote --sweep {shlex.quote(sweep)}")
    else:
        print_seeds(summary)
        export = ["python", "-m", "trainers", "export", "--run", summary["run"]]
        print(f"\nPromoted: {out}/promoted.json")
        print(f"Weights:  {summary['weights']}")
        print(f"Export:   {shlex.join([*export, '--out', storage.join(out, 'exported')])}")
    if any(command is not None for command in commands):
        print(f"W&B:      {sync_command(out)}")
    return summary


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
            f"sweep is {sweep!r}: it has no winner, as none of its {len(known[0])} trials is above "
            "what always answering one class reaches; search another space"
        )
    return winner


def plan_trainings(
    config: PromoteConfig, base: FinetuneConfig, sweep: str, out: str, *, num_folds: int
) -> list[FinetuneConfig]:
    """Return a training per seed, on train and val, or per fold: the winner's, but longer.

    Args:
        base: of the winner.

    Raises:
        UserError: where folds are asked for and there are none.
    """
    if base.schedule.early_stopping_epochs is not None:
        logger.warning("schedule.early_stopping_epochs is not used: the last epoch counts")
    base = replace(base, schedule=replace(base.schedule, early_stopping_epochs=None))
    if config.folds:
        require(
            num_folds > 0,
            "folds",
            True,
            f"the data set {base.data} has none; prepare it again with --folds",
        )
        trainings = [replace(base, fold=fold) for fold in range(num_folds)]
        names = [f"fold-{fold}" for fold in range(num_folds)]
    else:
        trainings = [replace(base, seed=seed, train_on="train+val") for seed in range(config.seeds)]
        names = [f"seed-{seed}" for seed in range(config.seeds)]
    return [
        replace(
            training,
            out=storage.join(out, name),
            epochs=config.epochs or LONGER * base.epochs,
            track=replace(
                base.track,
                wandb=config.wandb,
                group=base.track.group or name_of(sweep),
            ),
            cluster=replace(
                base.cluster,
                address=config.address,
                num_workers=config.num_workers,
                min_workers=None,
                device=config.device,
            ),
        )
        for training, name in zip(trainings, names, strict=True)
    ]


def _refuse_other_epochs(training: FinetuneConfig) -> None:
    """Refuse other epochs for a started seed: its learning rate would fall and rise again."""
    if checkpoint.latest_progress(training.out) is not None:
        before = read_config(training.out).epochs
        require(
            training.epochs == before,
            "epochs",
            training.epochs,
            f"{training.out} was promoted with {before}; use the same value to resume it, or "
            "another --out",
        )


def _train(run: Run) -> str | None:
    """Train a seed, unless that is done; return the command that uploads it to W&B."""
    if run.result is not None:
        report(f"{run.config.out} is trained: reusing it")
        return None
    _, command = follow_training(run, job_type="promote")
    return command


def _summarize_folds(
    trainings: Sequence[FinetuneConfig], winner: TrialResult, sweep: str, manifest: Manifest
) -> dict[str, Any]:
    """Return what folds.json holds: the validation after the last epoch, whichever was best."""
    rows = []
    for training, fold in zip(trainings, manifest.folds, strict=True):
        last = epoch_rows(training.out)[-1]
        rows.append(
            {
                "fold": training.fold,
                "run": training.out,
                "num_images": fold.num_images,
                **{name: last[name] for name in FOLD_MEASURES},
                metrics.TOTAL_S: read_result(training.out)[metrics.TOTAL_S],
            }
        )
    first = trainings[0]
    num_images = sum(row["num_images"] for row in rows)
    estimates = {
        name: asdict(estimate([row[name] for row in rows], num_images)) for name in FOLD_MEASURES
    }
    return {
        "sweep": sweep,
        "winner": winner.to_dict(),
        "data": first.data,
        "fingerprint": manifest.fingerprint,
        "epochs": first.epochs,
        "num_images": num_images,
        "confidence": CONFIDENCE,
        "interval": f"t over {len(rows)} folds",
        **estimates,
        "folds": rows,
    }


def _summarize_seeds(
    trainings: Sequence[FinetuneConfig], winner: TrialResult, sweep: str, manifest: Manifest
) -> dict[str, Any]:
    """Test each seed, unless that is done; return what promoted.json holds."""
    assert winner.best_epoch is not None, "a trial that learned has finished an epoch"
    before = read_evaluation(
        winner.run, "test", epoch=winner.best_epoch, fingerprint=manifest.fingerprint
    )
    results = [read_result(training.out) for training in trainings]
    tests = [evaluate_once(training.out) for training in trainings]
    first = trainings[0]
    return {
        "sweep": sweep,
        "winner": winner.to_dict() | {name: before and before[name] for name in MEASURES},
        "data": first.data,
        "fingerprint": manifest.fingerprint,
        "train_on": first.train_on,
        "epochs": first.epochs,
        "run": first.out,
        "weights": f"{results[0]['checkpoint']}/model.safetensors",
        **summarize(tests),
        "seeds": [
            {
                "seed": training.seed,
                "run": training.out,
                **{name: test[name] for name in MEASURES},
                metrics.TOTAL_S: result[metrics.TOTAL_S],
            }
            for training, result, test in zip(trainings, results, tests, strict=True)
        ],
    }


def summarize(tests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return an estimate of each measure, and the kind of its interval.

    Args:
        tests: what `evaluate_once` returned for each seed, on the same images.
    """
    num_images = tests[0]["num_images"]
    estimates = {name: estimate([test[name] for test in tests], num_images) for name in MEASURES}
    return {
        "num_images": num_images,
        "confidence": CONFIDENCE,
        "interval": f"t over {len(tests)} seeds" if len(tests) > 1 else "Wilson over the images",
        **{name: asdict(value) for name, value in estimates.items()},
    }


def print_seeds(summary: dict[str, Any]) -> None:
    """Print a row for each seed, the mean, its interval, and the sweep's winner."""
    estimates = _print_estimates(
        summary, "seed", MEASURES, f"on {summary['num_images']} test images"
    )
    winner = summary["winner"]
    if winner[metrics.TEST_TOP1] is not None:
        above = estimates[0].mean - winner[metrics.TEST_TOP1]
        _print_row(
            "winner",
            [f"{winner[name]:.3f}" for name in MEASURES],
            f"as the sweep left it, after epoch {winner['best_epoch']}: top-1 {above:+.3f} since",
        )


def print_folds(summary: dict[str, Any]) -> None:
    """Print a row for each fold, the mean and its interval."""
    note = f"on {summary['num_images']} images of train and val, each validated once"
    _print_estimates(summary, "fold", FOLD_MEASURES, note)


def _print_estimates(
    summary: dict[str, Any], part: str, measures: Mapping[str, str], note: str
) -> list[Estimate]:
    """Print a row for each seed or fold, the mean and its interval; return the estimates."""
    estimates = [Estimate(**summary[name]) for name in measures]
    print()
    _print_row(part, list(measures.values()), "time")
    for row in summary[f"{part}s"]:
        shares = [f"{row[name]:.3f}" for name in measures]
        _print_row(str(row[part]), shares, f"{row[metrics.TOTAL_S]:.0f} s")
    _print_row("mean", [f"{each.mean:.3f}" for each in estimates], note)
    ranges = [f"{each.low:.3f}-{each.high:.3f}" for each in estimates]
    _print_row(f"{summary['confidence']:.0%}", ranges, summary["interval"])
    return estimates


def _print_row(name: str, shares: Sequence[str], note: str) -> None:
    print(f"{name:<8}" + "".join(f"{share:<13}" for share in shares) + note)
