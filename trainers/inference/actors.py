"""The actors that compute networks: how many, with how many threads, and images at a time."""

from collections.abc import Sequence
from dataclasses import replace

from cluster.config import ClusterConfig
from cluster.runtime import Resources
from cluster.scaling import WorkerPlan, plan_workers
from trainers.networks.measure import count_backbone_bytes

CPU_BATCH_SIZE, GPU_BATCH_SIZE = 16, 128
"""Images per forward pass."""
CPU_THREADS = 1
"""Of each actor: threads wait for each other after every layer, and for readers on their cores."""
ACTOR_GIB = 1.5
"""Memory of an actor on a CPU: torch, activations of a batch."""
NETWORK_GIB = 0.25
"""Memory of each further network, beside its weights."""
WEIGHT_COPIES = 2
"""The network, and the one that is compiled or has its BatchNorm folded."""


def plan_actors(
    resources: Resources, cluster: ClusterConfig, backbones: Sequence[str]
) -> WorkerPlan:
    """Plan `cluster.num_workers` actors; by default one per GPU, or without GPUs one for every
    CPU_THREADS CPUs, as many as memory holds.

    Args:
        backbones: of the networks that each of them holds.
    """
    plan = plan_workers(resources, cluster)
    if plan.use_gpu or cluster.num_workers is not None:
        return plan
    weights_gib = sum(map(count_backbone_bytes, backbones)) / 2**30
    actor_gib = ACTOR_GIB + NETWORK_GIB * (len(backbones) - 1) + WEIGHT_COPIES * weights_gib
    num_actors = min(resources.num_cpus / CPU_THREADS, resources.memory_gib / actor_gib)
    num_workers = max(plan.num_workers, int(num_actors))
    return plan_workers(resources, replace(cluster, num_workers=num_workers))
