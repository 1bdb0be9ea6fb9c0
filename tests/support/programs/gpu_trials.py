"""A sweep whose trials share Ray's logical GPUs; test_tuning_gpu_memory runs it as a program.

usage: python -m tests.support.programs.gpu_trials DATA OUT
"""

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from cluster import runtime
from datasets.manifest_file import read_manifest
from tests.support.nodes import HEAD
from tests.support.small import small_training
from trainers.config import ClusterConfig, FinetuneConfig, ModelConfig, TrackConfig
from trainers.run.rows import epoch_rows
from tuning import trial
from tuning.budget import gpu_memory
from tuning.budget.deadline import BudgetClock
from tuning.config import SpaceConfig, TuningConfig
from tuning.search import run_folder
from tuning.shared import Shared
from tuning.sharing.prefixes import PrefixStore
from tuning.sweep_plan import plan_sweep
from tuning.trials import run_trials

NUM_GPUS, PER_GPU = 2, 2
NUM_TRIALS = NUM_GPUS * PER_GPU
START_TIMEOUT_S = 120
train_trial = trial.train_trial


def train_side_by_side(config: FinetuneConfig, shared: Shared, **options: Any) -> None:
    """Write which part of which GPU a trial has, and train once as many have started as fit."""
    (gpu,), out = ray.get_gpu_ids(), Path(config.out)
    assigned = ray.get_runtime_context().get_assigned_resources()
    share = max(amount for name, amount in assigned.items() if name.startswith("GPU"))
    out.mkdir(parents=True)
    (out / "gpu").write_text(f"{gpu} {share:g}")
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while len([*out.parent.glob("*/gpu")]) < NUM_TRIALS:
        assert time.monotonic() < deadline_s, "trials wait for each other's GPU"
        time.sleep(0.1)
    train_trial(config, shared, **options)


def main(data: str, out: str) -> None:
    nodes = Cluster(
        initialize_head=True,
        head_node_args={
            **HEAD,
            "num_cpus": NUM_TRIALS,
            "num_gpus": NUM_GPUS,
            "object_store_memory": 2**29,
        },
    )
    runtime.connect(nodes.address, quiet=True)
    gpu_memory.read_memory = lambda: (1.2 * 2**30, 2 * 2**30)  # two trials fit, three don't
    trial.train_trial = train_side_by_side
    base = small_training(
        data,
        out,
        epochs=1,
        model=ModelConfig(backbone="lenet5", init="he"),
        track=TrackConfig(wandb="off"),
        cluster=ClusterConfig(num_workers=0),
    )
    space = SpaceConfig(
        learning_rates=tuple(1e-3 * number for number in range(1, NUM_TRIALS + 1)),
        clipnorms=(None,),
        inits=("he",),
    )
    config = TuningConfig(base=base, space=space, out=out, search="grid", share=False)
    manifest, resources = read_manifest(data), runtime.find_resources()
    plan = plan_sweep(config, manifest, resources, PrefixStore(config, manifest, resources))
    assert plan.gpus == "fractional GPUs: 2 trials on each; steps take 0.8 of 2.0 GiB", plan.gpus

    trials, _ = run_trials(plan, Shared(manifest=manifest), BudgetClock(out, None))

    folders = [run_folder(config, each.trial_id) for each in trials]
    found = [Path(folder, "gpu").read_text().split() for folder in folders]
    assert Counter(gpu for gpu, _ in found) == {"0": PER_GPU, "1": PER_GPU}, found
    assert {share for _, share in found} == {"0.5"}, found
    assert all(len(epoch_rows(folder)) == 1 for folder in folders)
    print(f"{len(trials)} trials side by side", flush=True)
    ray.shutdown()
    nodes.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
