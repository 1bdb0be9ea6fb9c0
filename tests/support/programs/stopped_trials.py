"""Trials of DDP workers, each stopped by Tune in mid-training, as ASHA would.

test_tuning_run runs one of two workers on its cluster, and one or two of one worker as a program on
2 CPUs without dashboard: a worker that is left would leave too little CPU for the next trial's.

usage: python -m tests.support.programs.stopped_trials DATA OUT NUM_TRIALS
"""

import sys
import time

import ray
import ray.tune
from ray.cluster_utils import Cluster

from cluster import runtime
from datasets.manifest_file import read_manifest
from tests.support.nodes import HEAD
from tests.support.small import living_workers, small_training
from trainers.config import ClusterConfig, ModelConfig, TrackConfig
from trainers.run.rows import epoch_rows
from tuning.config import SpaceConfig, TuningConfig
from tuning.runner import AbortTrainings, start_runner
from tuning.search import run_folder
from tuning.shared import Shared
from tuning.space import points
from tuning.sweep_plan import SweepPlan
from tuning.trial import build_trial

NUM_EPOCHS = 500
"""Without a stop, a training takes minutes."""
FREED_S = 20
"""Within so many seconds of the sweep's end no worker lives, and every CPU is free."""


def stop_trials(data: str, out: str, *rates: float, num_workers: int) -> float:
    """Stop one of each learning rate after its first epoch, one after the other; return the seconds
    until nothing of them is left."""
    base = small_training(
        data,
        out,
        epochs=NUM_EPOCHS,
        model=ModelConfig(backbone="lenet5", init="he"),
        track=TrackConfig(wandb="off"),
        cluster=ClusterConfig(num_workers=num_workers),
    )
    space = SpaceConfig(learning_rates=rates, clipnorms=(None,), inits=("he",))
    config = TuningConfig(base=base, space=space, out=out)
    runner = start_runner()
    plan = SweepPlan(
        config=config,
        manifest=read_manifest(data),
        resources=runtime.find_resources(),
        num_trials=len(rates),
        num_concurrent=1,
        num_workers=num_workers,
    )
    trial = build_trial(plan, Shared(manifest=plan.manifest, runner=runner))
    tuner = ray.tune.Tuner(
        trial,
        param_space={"point": ray.tune.grid_search(points(space, "grid", None, 0))},
        tune_config=ray.tune.TuneConfig(max_concurrent_trials=1, reuse_actors=True),
        run_config=ray.tune.RunConfig(
            storage_path=out,
            stop={"epoch": 1},
            verbose=0,
            name="tune",
            callbacks=[AbortTrainings(config, runner)],
        ),
    )
    results = [result.metrics for result in tuner.fit() if result.metrics]
    started_s = time.monotonic()

    assert [result["epoch"] for result in results] == [1] * len(rates)
    assert len({result["pid"] for result in results}) == 1, "one process ran them all"
    runs = [run_folder(config, result["trial_id"]) for result in results]
    assert all(1 <= len(epoch_rows(run)) < NUM_EPOCHS for run in runs)
    while living_workers() or free_cpus() < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < started_s + FREED_S, (living_workers(), ray.available_resources())
        time.sleep(0.2)
    return time.monotonic() - started_s


def free_cpus() -> float:
    return ray.available_resources().get("CPU", 0.0)  # Ray leaves out what is used up


def main(data: str, out: str, num_trials: str) -> None:
    nodes = Cluster(
        initialize_head=True,
        head_node_args={**HEAD, "object_store_memory": 2**29},
    )
    runtime.connect(nodes.address, quiet=True)
    freed_s = stop_trials(data, out, *(1e-3, 1e-4)[: int(num_trials)], num_workers=1)
    print(f"freed after {freed_s:.1f} s", flush=True)
    ray.shutdown()
    nodes.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
