"""A hundred head-only trials against one: python -m tests.bench.heads [--epochs 30] [--no-pruning].

The features are drawn: 6,890 images of 1,280 values, 196 classes. Timed from the start of Tune to
the end of the last trial, in a warm cluster; a pruned trial costs what ASHA leaves of it.
"""

import argparse
import os
import platform
import tempfile
import time
from dataclasses import replace

import numpy as np
import ray
import torch

from cluster.runtime import connect
from cluster.scaling import in_process
from datasets.manifest import Manifest
from datasets.manifest_file import read_manifest
from datasets.passes.features import ArraySource, FeatureArrays
from tests.bench.report import keep
from tests.support.data import write_images_of
from trainers.config import ComputeConfig, FinetuneConfig, ModelConfig, TrackConfig
from trainers.networks.backbones import build, find
from trainers.prepare import PrefixFeatures
from tuning import run
from tuning.budget.deadline import BudgetClock
from tuning.config import SpaceConfig, TuningConfig
from tuning.shared import Shared
from tuning.sharing.keys import prefix_key
from tuning.sweep_plan import SweepPlan
from tuning.trials import run_trials

NUM_TRIALS, NUM_FEATURES, NUM_CLASSES = 100, 1280, 196
SIZES = {"train": 6890, "val": 1254}
LIMIT = 3.0
"""Times the seconds of one trial."""


def draw_features(manifest: Manifest, split: str) -> ArraySource:
    """Draw features around a centre per class, so far apart that a head has about 0.6 top-1.

    As a head on features of MobileNetV2 has, on all classes of Stanford Cars (README.md).
    """
    counts = manifest.split(split).class_counts
    labels_N = np.arange(sum(counts)) % NUM_CLASSES  # as `write_images_of` is given them
    centres = np.random.default_rng(0).normal(0, 0.165, (NUM_CLASSES, NUM_FEATURES))
    noise = np.random.default_rng(len(split)).normal(0, 1, (len(labels_N), NUM_FEATURES))
    features = (centres[labels_N] + noise).clip(min=0).astype(np.float16)
    arrays = FeatureArrays(features, labels_N.astype(np.int64), np.arange(len(labels_N)), {})
    return ArraySource(arrays=(ray.put(arrays),), bytes_per_image=2 * NUM_FEATURES)


def time_trials(config: TuningConfig, shared: Shared) -> tuple[float, float, float]:
    """Run the trials of a sweep; return their seconds, those of training, and the best val/top1."""
    resources = connect(quiet=True)
    num_trials = len(config.space.learning_rates)
    plan = SweepPlan(
        config=config,
        manifest=shared.manifest,
        resources=resources,
        num_trials=num_trials,
        num_concurrent=min(int(resources.num_cpus), num_trials),
    )
    started = time.perf_counter()
    shared = replace(shared, rounds=run._plan_rounds(plan, shared))
    trials, _ = run_trials(plan, shared, BudgetClock(config.out, None))
    seconds = time.perf_counter() - started
    epochs = sum(trial.num_epochs for trial in trials)
    print(
        f"{num_trials} trials: {seconds:.1f} s, {epochs} epochs, "
        f"{sum(trial.seconds for trial in trials):.1f} s of training; best val/top1 "
        f"{trials[0].val_top1}",
        flush=True,
    )
    return seconds, sum(trial.seconds for trial in trials), trials[0].val_top1 or 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--trials", type=int, default=NUM_TRIALS)
    parser.add_argument("--no-pruning", action="store_true", help="every trial has all epochs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        connect()
        data, weights = f"{folder}/data", f"{folder}/weights.pth"
        images = {
            split: [(i % NUM_CLASSES, np.zeros((8, 8, 3), np.uint8)) for i in range(size)]
            for split, size in SIZES.items()
        }
        write_images_of(data, images, classes=NUM_CLASSES, row_group_size=64)
        torch.save(build("mobilenet_v2", NUM_CLASSES).state_dict(), weights)
        manifest = read_manifest(data)
        depth = len(find("mobilenet_v2").stages)
        sources = {split: draw_features(manifest, split) for split in SIZES}
        prefix = PrefixFeatures(depth=depth, sources=dict(sources), tensors="none.safetensors")
        base = FinetuneConfig(
            data=data,
            epochs=options.epochs,
            model=ModelConfig(backbone="mobilenet_v2", init="file", weights=weights),
            track=TrackConfig(wandb="off"),
            compute=ComputeConfig(precision="fp32"),
        )
        base = replace(base, cluster=in_process(base.cluster))
        head = replace(base, model=replace(base.model, freeze_depth="all"))
        steps = np.random.default_rng(0).permutation(options.trials)  # as a random search has them
        rates = tuple(1e-4 * 1.05**step for step in steps.tolist())
        found = {}
        for name, some in (("warm", rates[:2]), ("one", rates[50:51] or rates[:1]), ("all", rates)):
            config = TuningConfig(
                base=base,
                space=SpaceConfig(
                    freeze_depths=("all",), learning_rates=some, clipnorms=(None,), inits=("file",)
                ),
                search="grid",
                grace_epochs=options.epochs if options.no_pruning else 1,
                out=f"{folder}/{name}",
            )
            if name == "warm":
                config = replace(config, base=replace(base, epochs=1))
            shared = Shared(manifest=manifest, prefixes={prefix_key(head): prefix})
            found[name] = time_trials(config, shared)
    one_s, all_s = found["one"][0], found["all"][0]
    ratio = all_s / one_s
    print(f"{options.trials} trials take {ratio:.2f} times the time of one; limit {LIMIT}")
    name = "sweep/heads_together" + ("_without_pruning" if options.no_pruning else "")
    keep(
        [
            {
                "name": name,
                "ours": all_s,
                "peer": one_s,
                "unit": "s",
                "ratio": ratio,
                "target": LIMIT,
                "limit_fraction": LIMIT / ratio,
                "runs": 1,
                "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            }
        ]
    )


if __name__ == "__main__":
    main()
