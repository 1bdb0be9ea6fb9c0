"""How long a sweep will take: a few seconds of real steps, times the work that is planned.

The steps of each freeze depth, the pass through frozen stages and the reading of images are timed
where trainings compute: in this process, or in a Ray task on a cluster that runs elsewhere.
Trainings side by side on CPUs share them, so their times add up.
"""

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from functools import partial

from cluster.io.terminal import describe_s
from cluster.runtime import Resources
from cluster.scaling import plan_workers
from datasets.manifest import Manifest
from trainers.config import PRETRAINED
from trainers.heads.grouping import can_stack
from trainers.networks.freezing import is_head_only
from tuning.budget.config import BudgetConfig
from tuning.budget.rates import Rates, measure_rates, of_image
from tuning.config import MAX_MEMBERS, NUM_STATISTICS, SHARES, TuningConfig, fit_warmup
from tuning.point import training_of
from tuning.search import count_trials
from tuning.sharing.asha import simulate_epochs
from tuning.sharing.keys import Key, count_networks, prefix_key
from tuning.sharing.plan import SharingPlan, views_of_splits
from tuning.space import models

START_S, TRIAL_START_S, WORKERS_START_S = 6.0, 0.3, 6.0
"""Of the processes of a sweep; of a trial in one of them; of a trial's DDP workers. Measured on two
cores (LOG.md, 2026-11-28)."""
MIN_EPOCHS = 3
"""Of a trial that a budget shortens."""
MAX_TRIALS = 1000
"""That a budget plans."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds of the parts of a sweep."""

    pass_s: float
    trials_s: float
    test_s: float
    combine_s: float = 0.0
    num_gpus: int = 0
    price_per_hour: float | None = None
    start_s: float = field(default=START_S)

    @property
    def seconds(self) -> float:
        return self.start_s + self.pass_s + self.trials_s + self.end_s

    @property
    def end_s(self) -> float:
        """Seconds after the last trial."""
        return self.test_s + self.combine_s

    def describe(self) -> str:
        """Write the estimate in one line."""
        parts = [f"trials {describe_s(self.trials_s)}"]
        if self.pass_s >= 1:
            parts.insert(0, f"frozen stages {describe_s(self.pass_s)}")
        if self.test_s >= 1:
            parts.append(f"test {describe_s(self.test_s)}")
        if self.combine_s >= 1:
            parts.append(f"combining {describe_s(self.combine_s)}")
        line = f"estimate: {describe_s(self.seconds)} ({', '.join(parts)})"
        hours = self.seconds / 3600
        if self.num_gpus:
            line += f", {hours * self.num_gpus:.2g} GPU hours"
        if self.price_per_hour is not None:
            line += f", {hours * self.price_per_hour:.2f} at {self.price_per_hour:g} per hour"
        return line


def plans_trials(config: TuningConfig) -> bool:
    """Whether the budget decides how many trials are drawn."""
    return config.budget != BudgetConfig() and config.trials is None and config.search != "grid"


def with_epochs(config: TuningConfig, epochs: int) -> TuningConfig:
    """Return the sweep with trials of so many epochs."""
    warmup = fit_warmup(config.base.schedule.warmup_epochs, epochs)
    schedule = replace(config.base.schedule, warmup_epochs=warmup)
    return replace(config, base=replace(config.base, epochs=epochs, schedule=schedule))


def as_planned(config: TuningConfig, before: TuningConfig) -> TuningConfig:
    """Return a sweep with the trials and epochs that it began with, with a budget or without."""
    if config.trials is None and config.search != "grid":
        config = replace(config, trials=before.trials)
        if config.full_epochs is not None and config.full_epochs == before.full_epochs:
            config = with_epochs(config, before.base.epochs)
    return config


def measure_forecast(
    config: TuningConfig, manifest: Manifest, plan: SharingPlan, resources: Resources
) -> "Forecast":
    """Time real steps, and return what estimates sweeps from them."""
    return Forecast(
        manifest=manifest,
        plan=plan,
        rates=measure_rates(config, manifest, plan, resources),
        resources=resources,
    )


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Estimates sweeps of any number of trials from rates that were measured once."""

    manifest: Manifest
    plan: SharingPlan
    rates: Rates
    resources: Resources

    def fit_trials(self, config: TuningConfig, budget_s: float) -> int:
        """Return how many trials a budget allows: one at least, no point twice."""
        most = count_trials(replace(config, trials=MAX_TRIALS))
        allowed = bisect_right(
            range(1, most + 1),
            budget_s,
            key=lambda number: self.estimate(replace(config, trials=number)).seconds,
        )
        return max(1, allowed)

    def fit(self, config: TuningConfig, budget_s: float) -> TuningConfig:
        """Return the sweep that a budget allows: as many trials as fit, and shorter ones where
        these are fewer than the networks and freeze depths of the space."""
        wanted = min(len(models(config.space)), count_trials(replace(config, trials=MAX_TRIALS)))
        shortest = config.base.epochs
        if config.full_epochs is not None:
            shortest = min(shortest, MIN_EPOCHS)
        fitting, trials = config, self.fit_trials(config, budget_s)
        while trials < wanted and fitting.base.epochs > shortest:
            fitting = with_epochs(config, fitting.base.epochs - 1)
            trials = self.fit_trials(fitting, budget_s)
        return replace(fitting, trials=trials)

    def describe(self, config: TuningConfig, *, budget_s: float | None) -> list[str]:
        """Write the estimate in lines."""
        found = self.estimate(config)
        lines = [found.describe()]
        if config.full_epochs not in (None, config.base.epochs):
            lines.append(
                f"epochs: {config.base.epochs} in place of {config.full_epochs}, as the budget has "
                "no time for longer trials of each network and freeze depth; --epochs sets them"
            )
        if budget_s is not None:
            rest = "trials that have not started when it is spent are left out"
            if found.seconds <= budget_s:
                rest = "fits"
            elif found.start_s + found.pass_s >= budget_s:
                rest = "too short: it is spent before the first trial starts"
            lines.append(f"budget: {describe_s(budget_s)}; {rest}")
            if config.promote:
                lines.append("promotion: in the rest of the whole budget")
        return lines

    def estimate(self, config: TuningConfig) -> Estimate:
        """Estimate a sweep; a pass computes the features that are not in the cache yet."""
        manifest, plan, rates, resources = self.manifest, self.plan, self.rates, self.resources
        workers = plan_workers(resources, config.base.cluster)
        machines = resources.num_gpus if workers.use_gpu else resources.num_nodes
        read_s = rates.read_s / (resources.num_cpus / machines)

        whole_s = partial(of_image, read_s=read_s, use_gpu=workers.use_gpu)

        sizes = {name: split.num_images for name, split in manifest.splits.items()}
        alone, together = simulate_epochs(config), simulate_epochs(config, together=True)
        trials_s = 0.0
        shared = {(prefix.network, prefix.depth) for prefix in plan.shared}
        stacked = shared & find_stackable(config)
        for key, number in count_networks(config).items():
            train_s, eval_s = rates.find(key)
            if key not in shared:
                train_s, eval_s = whole_s(train_s), whole_s(eval_s)
            in_process = config.base.cluster.num_workers == 0 or key in shared
            start_s = TRIAL_START_S if in_process else WORKERS_START_S
            epoch_s = sizes["train"] * train_s + sizes["val"] * eval_s
            num_epochs = together if key in stacked else alone
            trials_s += number * (start_s + num_epochs * epoch_s)
        pass_s = 0.0
        for network, of_network_s in rates.pass_s.items():
            prefixes = [prefix for prefix in plan.shared if prefix.network == network]
            views = views_of_splits(config, manifest, max(each.num_views for each in prefixes))
            num_passes = sum(number * sizes[split] for split, number in views.items())
            missing_share = max(prefix.missing_share for prefix in prefixes)
            pass_s += missing_share * num_passes * whole_s(of_network_s)
        tests = config.evaluate_winner and "test" in sizes
        slowest_s = max(
            seconds if key in shared else whole_s(seconds) for key, seconds in rates.eval_s.items()
        )
        return Estimate(
            pass_s=pass_s / machines,
            trials_s=trials_s / machines,
            test_s=sizes["test"] * slowest_s / machines if tests else 0.0,
            combine_s=self._estimate_combining(config, read_s) if config.combine else 0.0,
            num_gpus=resources.num_gpus if workers.use_gpu else 0,
            price_per_hour=config.budget.price_per_hour,
        )

    def _estimate_combining(self, config: TuningConfig, read_s: float) -> float:
        """Return the seconds of the networks that `combine` tries, in one process: all on the
        validation images, those of mixed weights on images of BatchNorm statistics as well."""
        trainings = [training_of(config.base, point) for point in models(config.space)]
        thaws = [not is_head_only(each.model) for each in trainings]
        starts = any(
            thawed and each.model.init in PRETRAINED
            for thawed, each in zip(thaws, trainings, strict=True)
        )
        num_members = min(MAX_MEMBERS, count_trials(config))
        num_mixed = num_members - 1 + (len(SHARES) if starts else 0)
        if not num_mixed:
            return 0.0
        num_val = self.manifest.split("val").num_images
        num_statistics = min(NUM_STATISTICS, self.manifest.split("train").num_images)
        num_statistics *= any(thaws)
        network_s = max(self.rates.eval_s.values())
        frozen_s = max(self.rates.pass_s.values(), default=0.0)
        if len({network for network, _ in self.rates.eval_s}) > 1:  # no stages in common
            network_s, frozen_s = network_s + frozen_s, 0.0
        num_images = (num_members + num_mixed) * num_val + num_mixed * num_statistics
        return num_images * network_s + (num_val + num_statistics) * (read_s + frozen_s)


def find_stackable(config: TuningConfig) -> set[Key]:
    """Return the networks whose heads train together where they have features."""
    if config.search == "optuna":
        return set()
    trainings = [training_of(config.base, point) for point in models(config.space)]
    heads = (each for each in trainings if is_head_only(each.model) and can_stack(each))
    return {prefix_key(head) for head in heads}
