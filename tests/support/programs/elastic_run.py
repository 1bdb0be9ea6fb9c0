"""A training of 1 to 3 workers that loses two of its three nodes: run by test_trainers_elastic.

Its own cluster, since nodes die. What is left of it then evaluates the run, and trains another one
in a single process.

usage: python -m tests.support.programs.elastic_run DATA OUT ALONE
"""

import json
import os
import sys
import threading
import time
from dataclasses import replace

import ray
from ray.cluster_utils import Cluster

from cluster import runtime
from cluster.config import ClusterConfig
from tests.support.nodes import HEAD
from tests.support.small import small_training
from tests.support.training import train_here, train_in_workers
from trainers.config import FinetuneConfig, ModelConfig, OptimConfig, TrackConfig
from trainers.evaluation.evaluate import write_evaluation
from trainers.run.rows import read_rows


def main(data: str, out: str, alone: str) -> None:
    nodes = Cluster(
        initialize_head=True,
        head_node_args={**HEAD, "object_store_memory": 2**29},
    )
    others = [nodes.add_node(num_cpus=2, object_store_memory=2**28) for _ in range(2)]
    runtime.connect(nodes.address, quiet=True)
    config = elastic_config(data, out)

    def lose_two_nodes() -> None:
        while not any(row["global_step"] >= 4 for row in read_rows(out)):
            time.sleep(0.05)
        print("nodes lost at step", read_rows(out)[-1]["global_step"], flush=True)
        for node in others:
            nodes.remove_node(node, allow_graceful=False)

    threading.Thread(target=lose_two_nodes, daemon=True).start()
    end = {
        "global_step": train_in_workers(config)["global_step"],
        "nodes": sum(node["Alive"] for node in ray.nodes()),
        "evaluated": write_evaluation(out, split="val")["num_images"],  # here, whatever trained it
    }
    train_here(replace(config, out=alone, cluster=ClusterConfig()))
    print(json.dumps(end), flush=True)
    os._exit(0)  # the cluster dies with this process


def elastic_config(data: str, out: str) -> FinetuneConfig:
    """4 epochs of 3 steps: 16 images for 3 workers are 5, 5 and 6."""
    return small_training(
        data,
        out,
        epochs=4,
        checkpoint_every_steps=1,
        model=ModelConfig(backbone="resnet50", init="he", freeze_depth=4, freeze_batchnorm=True),
        optim=OptimConfig(optimizer="sgd", learning_rate=1e-3, clipnorm=1.0),
        track=TrackConfig(log_every_steps=1, wandb="off"),
        cluster=ClusterConfig(num_workers=3, min_workers=1, max_failures=5),
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
