"""Train a sweep's winner as the model to use: longer, on validation images too, with several seeds.

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
import logging
import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from cluster.io import storage
from cluster.io.errors import UserError, require
from cluster.io.lease import hold_lease
from cluster.io.records import read_object
from cluster.io.statistics import CONFIDENCE, estimate
from cluster.io.terminal import describe_s, report
from cluster.io.uris import name_of
from cluster.runtime import Resources, connect
from datasets.shards import Manifest, read_manifest
from trainers import metrics
from trainers.commands import follow_training
from trainers.config import FinetuneConfig
from trainers.export.config import ExportConfig
from trainers.export.export import export
from trainers.export.formats import require_onnx
from trainers.prepare import Run, SharedImages, prepare_run
from trainers.run import checkpoint
from trainers.run.evaluations import read_evaluation
from trainers.run.folder import read_config, read_result
from trainers.tracking.config import sync_command
from tuning.budget.config import parse_duration_s
from tuning.budget.deadline import BudgetClock
from tuning.budget.estimate import measure_epoch_s
from tuning.config import PromoteConfig
from tuning.leaderboard import TrialResult, find_winner, read_leaderboard
from tuning.promotion.folds import summarize_folds
from tuning.promotion.printing import print_folds, print_seeds
from tuning.promotion.resolution import (
    LAST_SHARE,
    Resolution,
    choose_size,
    compare,
    continue_larger,
)
from tuning.record import MEASURES, SweepRecord
from tuning.review.page import render_page
from tuning.winner import LONGER, evaluate_once

PLANNED_SHARE = 0.8
"""Of a budget, for the epochs of the seeds; exports and pages take some of the rest."""
RESOLUTION_SHARE = 0.2
"""Of a budget, at most, to try larger images."""

logger = logging.getLogger(__name__)


def run_promote(config: PromoteConfig) -> dict[str, Any]:
    """Train and test the seeds or folds that are missing; write, print and return the summary.

    Raises:
        UserError: where no sweep has finished there, none of its trials learned, its data set has
            no test split or no folds, or OUT holds another promotion.
    """
    sweep = storage.absolute(config.sweep, "sweep")
    out = storage.absolute(config.out or storage.join(sweep, config.kind), "out")
    winner = find_promoted(sweep)
    base = read_config(winner.run)
    manifest = read_manifest(base.data, 0 if config.folds else base.fold)
    if config.folds:
        folds = plan_trainings(config, base, sweep, out, num_folds=len(manifest.folds))
        _refuse_other_epochs(folds)
        connect(config.address)
        with hold_lease(out):
            # Of another fold, the same rows are other images.
            commands = [train(prepare_run(training)) for training in folds]
            summary = summarize_folds(folds, winner, sweep, manifest)
            _write(out, config, summary)
        print_folds(summary)
        print(f"\nWritten:  {out}/folds.json")
        if "test" in manifest.splits:
            print(f"Promote:  python -m tuning promote --sweep {shlex.quote(sweep)}")
    else:
        manifest.split("test")
        choose_size(base, config.last_size_px)
        if config.epochs is not None or config.budget is None:
            _refuse_other_epochs(plan_trainings(config, base, sweep, out))
        resources = connect(config.address)
        with hold_lease(out):
            promotion = Promotion(config, winner, base, manifest, resources, sweep, out)
            summary, commands = promotion.run()
        print_seeds(summary)
        for line in promotion.notes:
            print(line)
        print(f"\nPromoted: {out}/promoted.json")
        print(f"Weights:  {summary['weights']}")
        print(f"Exported: {summary['exported']}, with a model card")
        print(f"Review:   {summary['review']}")
    if any(command is not None for command in commands):
        print(f"W&B:      {sync_command(out)}")
    return summary


def _write(out: str, config: PromoteConfig, summary: dict[str, Any]) -> None:
    text = json.dumps(summary, indent=1).encode()
    storage.write_bytes(storage.join(out, f"{config.kind}.json"), text)


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
    config: PromoteConfig, base: FinetuneConfig, sweep: str, out: str, *, num_folds: int = 0
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


def _refuse_other_epochs(trainings: Sequence[FinetuneConfig]) -> None:
    """Refuse other epochs for a started run: its learning rate would fall and rise again."""
    for training in trainings:
        before = find_epochs(training.out)
        require(
            before in (None, training.epochs),
            "epochs",
            training.epochs,
            f"{training.out} was promoted with {before}; use the same value to resume it, or "
            "another --out",
        )


def find_epochs(run: str) -> int | None:
    """Return the epochs of a run that was started; None where it wasn't."""
    return read_config(run).epochs if checkpoint.latest_progress(run) is not None else None


def train(run: Run) -> str | None:
    """Train, unless that is done; return the command that uploads it to W&B."""
    if run.result is not None:
        report(f"{run.config.out} is trained: reusing it")
        return None
    _, command = follow_training(run, job_type="promote")
    return command


def fit_epochs(left_s: float, *, epoch_s: float, seeds: int, shortest: int, longest: int) -> int:
    """Return the epochs of each seed that a budget allows: as many as fit for all seeds, up to
    `longest`; where that is below `shortest`, fewer seeds have so many."""
    for number in range(seeds, 0, -1):
        if (epochs := int(left_s / number / epoch_s)) >= shortest:
            return min(epochs, longest)
    return max(1, int(left_s / epoch_s))


class Promotion:
    """Trains, tests, exports and reviews the seeds, within the budget."""

    def __init__(
        self,
        config: PromoteConfig,
        winner: TrialResult,
        base: FinetuneConfig,
        manifest: Manifest,
        resources: Resources,
        sweep: str,
        out: str,
    ) -> None:
        budget_s = None if config.budget is None else parse_duration_s("budget", config.budget)
        self._config, self._winner, self._base = config, winner, base
        self._manifest, self._resources = manifest, resources
        self._sweep, self._out = sweep, out
        self._clock = BudgetClock(out, budget_s)
        self._commands: list[str | None] = []
        self._has_trained = False
        self.notes: list[str] = []
        """Lines about what was measured or left out."""

    def run(self) -> tuple[dict[str, Any], list[str | None]]:
        """Return the summary, and the commands that upload to W&B."""
        try:
            resolution, larger_px = self._choose_resolution(), None
            if resolution is not None:
                self.notes.append(f"Images:   {resolution.describe()}")
                larger_px = resolution.size_px if resolution.is_better else None
            trainings = self._plan(self._count_epochs(larger_px))
            finals = self._train(trainings, larger_px)
            trained = trainings[: len(finals)]
            summary = summarize_seeds(
                trained, finals, self._winner, self._sweep, self._manifest
            ) | {
                "resolution": resolution and asdict(resolution) | {"used": resolution.is_better},
                "exported": self._export(finals[0].out),
                "review": storage.join(self._out, "review.html"),
            }
            _write(self._out, self._config, summary)
            page = render_page(SweepRecord.read(self._sweep))
            storage.write_bytes(summary["review"], page)
        finally:
            self._clock.write()
        return summary, self._commands

    def _plan(self, epochs: int) -> list[FinetuneConfig]:
        config = replace(self._config, epochs=epochs)
        return plan_trainings(config, self._base, self._sweep, self._out)

    def _choose_resolution(self) -> Resolution | None:
        """Train the winner a little further on larger images, and compare."""
        size_px = choose_size(self._base, self._config.last_size_px)
        if size_px is None:
            return None
        (first, *_) = self._plan(self._base.epochs)
        beside = replace(first, train_on=self._base.train_on, seed=self._base.seed)
        larger = continue_larger(
            beside, self._winner.run, size_px, storage.join(self._out, "resolution")
        )
        if find_epochs(larger.out) is None and self._clock.budget_s is not None:
            seconds = larger.epochs * measure_epoch_s(larger, self._manifest, self._resources)
            if seconds > RESOLUTION_SHARE * self._clock.left_s:
                self.notes.append(f"Images:   the budget is too short to try {size_px} px")
                return None
        self._fit(prepare_run(larger))
        return compare(self._winner, larger)

    def _count_epochs(self, larger_px: int | None) -> int:
        """Return the epochs of each seed: as given, as begun, or as many as the budget allows."""
        longest = LONGER * self._base.epochs
        if self._config.epochs is not None or self._clock.budget_s is None:
            return self._config.epochs or longest
        (first, *_) = self._plan(longest)
        if (known := find_epochs(first.out)) is not None:
            return known
        epoch_s = measure_epoch_s(first, self._manifest, self._resources)
        size_px = self._base.ingest.size_px
        last = LAST_SHARE * ((larger_px or 0) / size_px) ** 2  # epochs on larger images for each
        epochs = fit_epochs(
            PLANNED_SHARE * self._clock.left_s,
            epoch_s=(1 + last) * epoch_s,
            seeds=self._config.seeds,
            shortest=self._base.epochs,
            longest=longest,
        )
        report(f"Budget: {epochs} epochs of each seed, {describe_s(epochs * epoch_s)} estimated")
        return epochs

    def _train(
        self, trainings: Sequence[FinetuneConfig], larger_px: int | None
    ) -> list[FinetuneConfig]:
        """Train the seeds that the budget has time for, the first in any case; return their last
        parts."""
        finals: list[FinetuneConfig] = []
        images, slowest_s = None, 0.0
        for training in trainings:
            is_begun = find_epochs(training.out) is not None
            if finals and not is_begun and slowest_s > self._clock.left_s:
                self.notes.append(
                    f"Budget:   {len(finals)} of {len(trainings)} seeds; run the same command with "
                    "a larger budget for the others"
                )
                break
            run = prepare_run(training, images=images, lends_images=True)
            if run.memory:
                images = SharedImages(memory=run.memory, ingest=run.ingest)
            self._fit(run)
            final, seconds = training, read_result(training.out)[metrics.TOTAL_S]
            if larger_px is not None:
                final = continue_larger(
                    training, training.out, larger_px, f"{training.out}-{larger_px}px"
                )
                self._fit(prepare_run(final))
                seconds += read_result(final.out)[metrics.TOTAL_S]
            finals.append(final)
            slowest_s = max(slowest_s, seconds)
        return finals

    def _fit(self, run: Run) -> None:
        self._has_trained |= run.result is None
        self._commands.append(train(run))

    def _export(self, run: str) -> str:
        """Export the network to use and its model card, unless that is done; return the folder."""
        config = ExportConfig(run=run, out=storage.join(self._out, "exported"))
        before = storage.join(self._out, "promoted.json")
        is_same = storage.exists(before) and read_object(before, {"run": str})["run"] == run
        if is_same and not self._has_trained and storage.exists(f"{config.out}/README.md"):
            return config.out
        try:
            require_onnx()
        except UserError as error:
            report(str(error), warning=True)
            formats = tuple(name for name in config.formats if name != "onnx")
            config = replace(config, formats=formats)
        export(config)
        return config.out


def summarize_seeds(
    trainings: Sequence[FinetuneConfig],
    finals: Sequence[FinetuneConfig],
    winner: TrialResult,
    sweep: str,
    manifest: Manifest,
) -> dict[str, Any]:
    """Test each seed, unless that is done; return what promoted.json holds.

    Args:
        finals: the last part of each training, or the training itself.
    """
    assert winner.best_epoch is not None, "a trial that learned has finished an epoch"
    before = read_evaluation(
        winner.run, "test", epoch=winner.best_epoch, fingerprint=manifest.fingerprint
    )
    tests = [evaluate_once(final.out) for final in finals]
    first, final = trainings[0], finals[0]
    return {
        "sweep": sweep,
        "winner": winner.to_dict() | {name: before and before[name] for name in MEASURES},
        "data": first.data,
        "fingerprint": manifest.fingerprint,
        "train_on": first.train_on,
        "epochs": first.epochs,
        "run": final.out,
        "weights": f"{read_result(final.out)['checkpoint']}/model.safetensors",
        **summarize(tests),
        "seeds": [
            {
                "seed": training.seed,
                "run": final.out,
                **{name: test[name] for name in MEASURES},
                metrics.TOTAL_S: sum(
                    read_result(run)[metrics.TOTAL_S] for run in {training.out, final.out}
                ),
            }
            for training, final, test in zip(trainings, finals, tests, strict=True)
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
