"""The winner trained with several seeds, tested and exported, within a budget.

Before the epochs are planned, time is kept for what follows the trainings: each seed's test, the
exports and the page.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from cluster.io import storage
from cluster.io.errors import UserError
from cluster.io.records import read_object
from cluster.io.terminal import describe_s, report
from cluster.runtime import Resources
from datasets.manifest import Manifest
from trainers import metrics
from trainers.config import FinetuneConfig
from trainers.export.config import ExportConfig
from trainers.export.export import export
from trainers.export.folder import CARD
from trainers.export.formats import require_onnx
from trainers.prepare import Run, SharedImages, prepare_run
from trainers.run.folder import read_result
from tuning.budget.config import parse_duration_s
from tuning.budget.deadline import BudgetClock, BudgetSpent
from tuning.budget.estimate import TRIAL_START_S, WORKERS_START_S
from tuning.budget.rates import TrainingSeconds, measure_training
from tuning.promotion.config import PromoteConfig
from tuning.promotion.length import describe_length, fit_epochs, train_until_flat
from tuning.promotion.resolution import (
    LAST_SHARE,
    Resolution,
    choose_size,
    compare,
    continue_larger,
)
from tuning.promotion.summary import summarize_seeds, write_summary
from tuning.promotion.trainings import count_longest, find_epochs, plan_trainings, train
from tuning.record.record import SweepRecord
from tuning.record.results import TrialResult
from tuning.review.page import render_page
from tuning.winner import evaluate_once

PLANNED_SHARE = 0.8
"""Of the time that is left for trainings: their estimate may be a quarter too short."""
RESOLUTION_SHARE = 0.2
"""Of that time, at most, to try larger images."""
EXPORT_S, PAGE_S = 15.0, 6.0
"""Of the exports, and of the page with its pictures: about the 24 s by which a promotion of
MobileNetV2 had taken longer than its trainings (LOG.md, 2026-11-29); not measured one by one."""


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
        self._clock.keep(EXPORT_S + PAGE_S)
        self._commands: list[str | None] = []
        self._has_trained = False
        self.notes: list[str] = []
        """Lines about what was measured or left out."""

    def run(self) -> tuple[dict[str, Any], list[str | None]]:
        """Return the summary, and the commands that upload to W&B."""
        with self._clock.counted():
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
            write_summary(self._out, self._config, summary)
            record = replace(SweepRecord.read(self._sweep), promoted=summary)
            storage.write_bytes(summary["review"], render_page(record))
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
            seconds = larger.epochs * self._measure(larger).epoch_s
            if seconds > RESOLUTION_SHARE * self._clock.left_s:
                self.notes.append(f"Images:   the budget is too short to try {size_px} px")
                return None
        self._fit(prepare_run(larger))
        return compare(self._winner, larger)

    def _count_epochs(self, larger_px: int | None) -> int:
        """Return the epochs of each seed: as given, as begun, as many as the budget allows, or as
        many as the winner needs."""
        if self._config.epochs is not None:
            return self._config.epochs
        longest = count_longest(self._base, self._sweep)
        (first, *_) = self._plan(longest)
        if (known := find_epochs(first.out)) is not None:
            return known
        measured = train_until_flat(first, self._base, self._out)
        if self._clock.budget_s is not None and find_epochs(measured.out) is None:
            fits = self._fit_budget(first, larger_px, longest=longest)
            if fits is not None:
                return fits
        self._fit(prepare_run(measured))
        epochs, line = describe_length(measured)
        self.notes.append(f"Epochs:   {line}")
        return epochs

    def _fit_budget(
        self, training: FinetuneConfig, larger_px: int | None, *, longest: int
    ) -> int | None:
        """Return the epochs that fit; None where there is time for the longest trainings of all
        seeds and for one more, which shows how many are needed.

        Raises:
            BudgetSpent: where no time is left for any.
        """
        found, seeds = self._measure(training), self._config.seeds
        larger = ((larger_px or 0) / self._base.ingest.size_px) ** 2
        start_s = WORKERS_START_S if self._config.num_workers != 0 else TRIAL_START_S
        epoch_s = found.epoch_s * (1 + LAST_SHARE * larger)
        fixed_s = start_s * (2 if larger_px else 1) + found.test_s * max(1.0, larger)
        if (left_s := self._clock.left_s) <= 0:
            raise BudgetSpent(
                f"the budget of {describe_s(self._clock.budget_s or 0.0)} is spent before the "
                "first seed: run the same command with a larger budget to resume"
            )
        fit = partial(
            fit_epochs,
            PLANNED_SHARE * left_s,
            epoch_s=epoch_s,
            fixed_s=fixed_s,
            shortest=self._base.epochs,
            longest=longest,
        )
        if fit(seeds=seeds + 1) == longest:
            return None
        epochs = fit(seeds=seeds)
        each_s = epochs * epoch_s + fixed_s
        report(
            f"Budget: {epochs} epochs of each seed, {describe_s(each_s)} estimated with its test; "
            f"{describe_s(EXPORT_S + PAGE_S)} for exports and page"
        )
        return epochs

    def _measure(self, training: FinetuneConfig) -> TrainingSeconds:
        return measure_training(training, self._manifest, self._resources)

    def _train(
        self, trainings: Sequence[FinetuneConfig], larger_px: int | None
    ) -> list[FinetuneConfig]:
        """Train and test the seeds that the budget has time for, the first in any case; return
        their last parts."""
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
            started_s = time.monotonic()
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
            self._calibrate(final.out, larger_px)
            evaluate_once(final.out, device=self._config.device)
            finals.append(final)
            slowest_s = max(slowest_s, seconds, time.monotonic() - started_s)
        return finals

    def _calibrate(self, run: str, larger_px: int | None) -> None:
        """Give a seed the calibration of the training most like it that left the validation images
        out."""
        from trainers.evaluation.calibrate import lend_calibration  # imports scikit-learn

        like = storage.join(self._out, "length" if larger_px is None else "resolution")
        origin = like if find_epochs(like) is not None else self._winner.run
        lend_calibration(origin, run, device=self._config.device)

    def _fit(self, run: Run) -> None:
        self._has_trained |= run.result is None
        self._commands.append(train(run))

    def _export(self, run: str) -> str:
        """Export the network to use and its model card, unless that is done; return the folder."""
        config = ExportConfig(run=run, out=storage.join(self._out, "exported"))
        card, before = storage.join(config.out, CARD), storage.join(self._out, "promoted.json")
        is_same = storage.exists(before) and read_object(before, {"run": str})["run"] == run
        if is_same and not self._has_trained and storage.exists(card):
            return config.out
        try:
            require_onnx()
        except UserError as error:
            report(str(error), warning=True)
            formats = tuple(name for name in config.formats if name != "onnx")
            config = replace(config, formats=formats)
        storage.delete_file(card)  # without it the next call exports again
        export(config)
        return config.out
