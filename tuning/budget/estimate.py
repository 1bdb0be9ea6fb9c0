"""How long a sweep will take: a few seconds of real steps, times the work that is planned.

The steps of each freeze depth, the pass through frozen stages and the reading of images are timed
where trainings compute: in this process, or in a Ray task on a cluster that runs elsewhere.
Trainings side by side on CPUs share them, so their times add up.

B images of a batch, S size in pixels.
"""

import random
import time
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import torch

from cluster.io.terminal import describe_s
from cluster.runtime import Resources
from cluster.scaling import compute_once, plan_workers
from datasets.plan import EpochOrder, RowGroups
from datasets.shards import Manifest
from datasets.sources import ShardSource
from trainers.config import FinetuneConfig
from trainers.feed import WorkerContext
from trainers.networks.backbones import build
from trainers.networks.cut import build_prefix
from trainers.networks.folding import fold_batchnorm
from trainers.settings import start_computing, train_settings
from trainers.state import place_model
from trainers.step import to_inputs
from tuning.budget.config import BudgetConfig
from tuning.budget.steps import build_steps, cost_key
from tuning.config import TuningConfig
from tuning.search import count_trials
from tuning.sharing.plan import (
    Key,
    PrefixPlan,
    SharingPlan,
    count_networks,
    prefix_key,
    views_of_splits,
)
from tuning.space import models, training_of

TIMED_S = 1.0
"""Of each kind of step."""
START_S, TRIAL_START_S, WORKERS_START_S = 6.0, 0.3, 6.0
"""Of the processes of a sweep; of a trial in one of them; of a trial's DDP workers. Measured on two
cores (LOG.md, 2026-11-28)."""
NUM_READ, NUM_PASSED = 32, 16
"""Images that are read, and passed through frozen stages."""
MAX_TRIALS = 1000
"""That a budget plans."""
NUM_SIMULATED = 200
"""Random orders of results that ASHA is simulated with."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Seconds per image where trainings compute, on all CPUs of a machine or on one GPU."""

    train_s: dict[Key, float]
    """By network and frozen stages."""
    eval_s: dict[Key, float]
    pass_s: dict[FinetuneConfig, float]
    """Through the deepest frozen stages of a network that are computed once."""
    read_s: float
    """To read and decode, on one CPU."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds of the parts of a sweep."""

    pass_s: float
    trials_s: float
    test_s: float
    num_gpus: int = 0
    price_per_hour: float | None = None
    start_s: float = field(default=START_S)

    @property
    def seconds(self) -> float:
        return self.start_s + self.pass_s + self.trials_s + self.test_s

    def describe(self) -> str:
        """Write the estimate in one line."""
        parts = [f"trials {describe_s(self.trials_s)}"]
        if self.pass_s >= 1:
            parts.insert(0, f"frozen stages {describe_s(self.pass_s)}")
        if self.test_s >= 1:
            parts.append(f"test {describe_s(self.test_s)}")
        line = f"estimate: {describe_s(self.seconds)} ({', '.join(parts)})"
        hours = self.seconds / 3600
        if self.num_gpus:
            line += f", {hours * self.num_gpus:.2g} GPU hours"
        if self.price_per_hour is not None:
            line += f", {hours * self.price_per_hour:.2f} at {self.price_per_hour:g} per hour"
        return line


def measure_rates(
    config: TuningConfig, manifest: Manifest, plan: SharingPlan, resources: Resources
) -> Rates:
    """Time real steps of each network of the space, in this process or in a Ray task."""
    return compute_once(partial(_measure, config, manifest, plan), resources, config.base.cluster)


def _measure(
    config: TuningConfig, manifest: Manifest, plan: SharingPlan, threads: int, use_gpu: bool
) -> Rates:
    start_computing(threads)
    worker = WorkerContext(device=torch.device("cuda" if use_gpu else "cpu"), threads=threads)
    train_s: dict[Key, float] = {}
    eval_s: dict[Key, float] = {}
    known: dict[Any, tuple[float, float]] = {}
    for model in models(config.space):
        training = training_of(config.base, model)
        key, prefix = prefix_key(training), plan.find(training)
        same = cost_key(training), key[1], prefix is None  # weights don't change the cost
        if same not in known:
            known[same] = _time_steps(training, manifest, worker, prefix)
        train_s[key], eval_s[key] = known[same]
    pass_s = {
        network: _time_pass(
            network, manifest, worker, max(p.depth for p in plan.shared if p.network == network)
        )
        for network in dict.fromkeys(prefix.network for prefix in plan.shared)
    }
    read_s = _time_reading(config.base, manifest)
    return Rates(train_s=train_s, eval_s=eval_s, pass_s=pass_s, read_s=read_s)


def measure_epoch_s(config: FinetuneConfig, manifest: Manifest, resources: Resources) -> float:
    """Time real steps of a training on images; return the seconds of one of its epochs."""
    workers = plan_workers(resources, config.cluster)
    machines = max(1, workers.num_workers)
    train_s, eval_s, read_s = compute_once(
        partial(_measure_training, config, manifest), resources, config.cluster
    )
    read_s /= resources.num_cpus / machines
    images = manifest.split(config.train_on).num_images
    seconds = images * _of_image(train_s, read_s, use_gpu=workers.use_gpu)
    if config.validates:
        num_val = manifest.split("val").num_images
        seconds += num_val * _of_image(eval_s, read_s, use_gpu=workers.use_gpu)
    return seconds / machines


def _measure_training(
    config: FinetuneConfig, manifest: Manifest, threads: int, use_gpu: bool
) -> tuple[float, float, float]:
    """Return seconds per image of a training step, of an evaluation step, and of reading."""
    start_computing(threads)
    worker = WorkerContext(device=torch.device("cuda" if use_gpu else "cpu"), threads=threads)
    return *_time_steps(config, manifest, worker, None), _time_reading(config, manifest)


def _of_image(compute_s: float, read_s: float, *, use_gpu: bool) -> float:
    """Return the seconds of an image: GPUs compute while CPUs read."""
    return max(compute_s, read_s) if use_gpu else compute_s + read_s


def _time_steps(
    training: FinetuneConfig,
    manifest: Manifest,
    worker: WorkerContext,
    prefix: PrefixPlan | None,
) -> tuple[float, float]:
    """Return seconds per image of a training step and of an evaluation step."""
    steps = build_steps(training, manifest, worker, prefix)
    train_s, eval_s = _time(steps.train), _time(steps.evaluate)
    return train_s / steps.num_images, eval_s / steps.num_images


def _time(step: Callable[[], torch.Tensor]) -> float:
    """Return the seconds of a step; the first one only warms up."""
    step().cpu()
    times: list[float] = []
    started_s = time.perf_counter()
    while len(times) < 2 or time.perf_counter() - started_s < TIMED_S:
        before_s = time.perf_counter()
        step().cpu()  # waits for the device
        times.append(time.perf_counter() - before_s)
    return fmean(times)


def _time_pass(
    base: FinetuneConfig, manifest: Manifest, worker: WorkerContext, depth: int
) -> float:
    size_px, backbone = base.ingest.size_px, base.model.backbone
    network = build(backbone, len(manifest.classes), size_px).eval()
    prefix = fold_batchnorm(build_prefix(network, backbone, [depth]))
    place_model(prefix, base.compute, worker.device)
    settings = train_settings(base, manifest, worker)
    images = torch.zeros(NUM_PASSED, size_px, size_px, 3, dtype=torch.uint8, device=worker.device)
    dtype = settings.autocast_dtype

    @torch.inference_mode()
    def forward() -> torch.Tensor:
        with torch.autocast(worker.device.type, dtype=dtype, enabled=dtype is not None):
            return prefix(to_inputs(images, settings))[0]

    return _time(forward) / NUM_PASSED


def _time_reading(base: FinetuneConfig, manifest: Manifest) -> float:
    row_groups = RowGroups(base.data, manifest.split("train"))
    order = EpochOrder(row_groups, seed=base.seed, epoch=0, shuffle=False)
    chunk = order.chunk(np.arange(min(NUM_READ, row_groups.num_images)))
    source = ShardSource(ingest=base.ingest, seed=base.seed, train=True)
    for _ in source.read(chunk):  # imports, and the first read of the file
        pass
    started_s = time.perf_counter()
    for _ in source.read(chunk):
        pass
    return (time.perf_counter() - started_s) / chunk.num_images


def plans_trials(config: TuningConfig) -> bool:
    """Whether the budget decides how many trials are drawn."""
    return config.budget != BudgetConfig() and config.trials is None and config.search != "grid"


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

    def describe(self, config: TuningConfig, *, budget_s: float | None) -> list[str]:
        """Write the estimate in lines."""
        found = self.estimate(config)
        lines = [found.describe()]
        if budget_s is not None:
            fits = found.seconds <= budget_s
            rest = "fits" if fits else "trials that have not started when it is spent are left out"
            lines.append(f"budget: {describe_s(budget_s)}; {rest}")
        return lines

    def estimate(self, config: TuningConfig) -> Estimate:
        """Estimate a sweep whose features are not in the cache yet."""
        manifest, plan, rates, resources = self.manifest, self.plan, self.rates, self.resources
        workers = plan_workers(resources, config.base.cluster)
        machines = resources.num_gpus if workers.use_gpu else resources.num_nodes
        read_s = rates.read_s / (resources.num_cpus / machines)

        of_image = partial(_of_image, read_s=read_s, use_gpu=workers.use_gpu)

        sizes = {name: split.num_images for name, split in manifest.splits.items()}
        num_epochs, trials_s = simulate_epochs(config), 0.0
        shared = {(prefix.network, prefix.depth): prefix for prefix in plan.shared}
        for key, number in count_networks(config).items():
            train_s, eval_s = rates.train_s[key], rates.eval_s[key]
            if key not in shared:
                train_s, eval_s = of_image(train_s), of_image(eval_s)
            in_process = config.base.cluster.num_workers == 0 or key in shared
            start_s = TRIAL_START_S if in_process else WORKERS_START_S
            epoch_s = sizes["train"] * train_s + sizes["val"] * eval_s
            trials_s += number * (start_s + num_epochs * epoch_s)
        pass_s = 0.0
        for network, of_network_s in rates.pass_s.items():
            num_views = max(p.num_views for p in plan.shared if p.network == network)
            views = views_of_splits(config, manifest, num_views)
            num_passes = sum(number * sizes[split] for split, number in views.items())
            pass_s += num_passes * of_image(of_network_s)
        tests = config.evaluate_winner and "test" in sizes
        slowest_s = max(
            seconds if key in shared else of_image(seconds) for key, seconds in rates.eval_s.items()
        )
        return Estimate(
            pass_s=pass_s / machines,
            trials_s=trials_s / machines,
            test_s=sizes["test"] * slowest_s / machines if tests else 0.0,
            num_gpus=resources.num_gpus if workers.use_gpu else 0,
            price_per_hour=config.budget.price_per_hour,
        )


def simulate_epochs(config: TuningConfig) -> float:
    """Return the mean epochs of a trial under ASHA, whose results come one after the other: early
    ones have less to be compared with, so more of them continue than one of `reduction_factor`."""
    rungs, num_trials = config.rungs, count_trials(config)
    rng = random.Random(0)
    totals: list[float] = []
    for _ in range(max(1, NUM_SIMULATED // num_trials)):
        seen: list[list[float]] = [[] for _ in rungs]
        for _ in range(num_trials):
            value, epochs = rng.random(), config.base.epochs
            for rung, values in zip(rungs, seen, strict=True):
                share = 100 * (1 - 1 / config.reduction_factor)
                stops = bool(values) and value < np.percentile(values, share)
                values.append(value)
                if stops:
                    epochs = rung
                    break
            totals.append(epochs)
    return fmean(totals)
