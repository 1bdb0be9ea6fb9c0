"""Rates of a training's steps, measured on real ones: seconds per image."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from cluster.runtime import Resources
from cluster.scaling import compute_once, plan_workers
from datasets.manifest import Manifest
from datasets.plan import EpochOrder, RowGroups
from datasets.sources import ShardSource
from trainers.config import FinetuneConfig
from trainers.inference.compiled import is_compiled
from trainers.inference.forward import ForwardPass
from trainers.networks.backbones import build
from trainers.networks.cut import build_prefix
from trainers.step.settings import start_computing
from trainers.worker import WorkerContext
from tuning.budget.steps import build_steps, cost_key
from tuning.config import TuningConfig
from tuning.point import training_of
from tuning.sharing.keys import Key, prefix_key
from tuning.sharing.plan import PrefixPlan, SharingPlan
from tuning.space import corners

NUM_WARM_UP, LEAST_TIMED, TIMED_S = 2, 3, 1.0
"""Of each kind of step."""
NUM_READ, NUM_PASSED = 32, 16
"""Images that are read, and passed through frozen stages."""


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

    def find(self, key: Key) -> tuple[float, float]:
        """Return train_s and eval_s of a network; where it was not timed, as one of its fields is
        drawn from a range, those of the one that is most like it."""

        def difference(known: Key) -> tuple[bool, int, int, bool]:
            network, depth = known
            return (
                network.model.backbone != key[0].model.backbone,
                abs(depth - key[1]),
                abs(network.ingest.size_px - key[0].ingest.size_px),
                known != key,
            )

        like = min(self.train_s, key=difference)
        return self.train_s[like], self.eval_s[like]


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
    for point in corners(config.space):
        training = training_of(config.base, point)
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


@dataclass(frozen=True, kw_only=True)
class TrainingSeconds:
    """Seconds of the parts of a training on images."""

    epoch_s: float
    test_s: float
    """Of an evaluation on the test split; 0 where there is none."""


def measure_training(
    config: FinetuneConfig, manifest: Manifest, resources: Resources
) -> TrainingSeconds:
    """Time real steps of a training on images."""
    workers = plan_workers(resources, config.cluster)
    machines = max(1, workers.num_workers)
    train_s, eval_s, read_s = compute_once(
        partial(_measure_training, config, manifest), resources, config.cluster
    )
    read_s /= resources.num_cpus / machines
    sizes = {name: split.num_images for name, split in manifest.splits.items()}
    eval_s = of_image(eval_s, read_s, use_gpu=workers.use_gpu)
    seconds = manifest.split(config.train_on).num_images * of_image(
        train_s, read_s, use_gpu=workers.use_gpu
    )
    if config.validates:
        seconds += sizes["val"] * eval_s
    return TrainingSeconds(
        epoch_s=seconds / machines, test_s=sizes.get("test", 0) * eval_s / machines
    )


def _measure_training(
    config: FinetuneConfig, manifest: Manifest, threads: int, use_gpu: bool
) -> tuple[float, float, float]:
    """Return seconds per image of a training step, of an evaluation step, and of reading."""
    start_computing(threads)
    worker = WorkerContext(device=torch.device("cuda" if use_gpu else "cpu"), threads=threads)
    return *_time_steps(config, manifest, worker, None), _time_reading(config, manifest)


def of_image(compute_s: float, read_s: float, *, use_gpu: bool) -> float:
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
    """Return the median seconds of a step, after those that warm up: one that is held up by another
    process, or by memory that is taken for the first time, may take ten times as long."""
    for _ in range(NUM_WARM_UP):
        step().cpu()
    times: list[float] = []
    started_s = time.perf_counter()
    while len(times) < LEAST_TIMED or time.perf_counter() - started_s < TIMED_S:
        before_s = time.perf_counter()
        step().cpu()  # waits for the device
        times.append(time.perf_counter() - before_s)
    return median(times)


def _time_pass(
    base: FinetuneConfig, manifest: Manifest, worker: WorkerContext, depth: int
) -> float:
    size_px, backbone = base.ingest.size_px, base.model.backbone
    network = build(backbone, len(manifest.classes), size_px).eval()
    use_gpu = worker.device.type == "cuda"
    compute = ForwardPass(
        build_prefix(network, backbone, [depth]),
        base,
        threads=worker.threads,
        use_gpu=use_gpu,
        compiled=is_compiled(base, use_gpu=use_gpu),
    )
    images_NHWC = torch.zeros(NUM_PASSED, size_px, size_px, 3, dtype=torch.uint8)
    return _time(lambda: compute(images_NHWC)[0]) / NUM_PASSED


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
