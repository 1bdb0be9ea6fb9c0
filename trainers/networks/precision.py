"""The precision that `compute.precision auto` stands for, by what computes: GPUs or CPUs."""

from dataclasses import replace

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.ray_internals import list_gpu_generations
from trainers.config import ComputeConfig

AMPERE = 8
"""Major compute capability of NVIDIA's first GPUs with instructions for bfloat16."""


def choose_precision(
    config: ComputeConfig, before: ComputeConfig | None = None, *, use_gpu: bool
) -> ComputeConfig:
    """Replace `auto`: bfloat16 where the GPUs, or CPUs, of all nodes have instructions for it.

    Args:
        use_gpu: GPUs compute.
        before: of the run or sweep that is resumed, which keeps its precision.
    """
    if config.precision != "auto":
        return config
    if before is None:
        precision = "bf16" if _nodes_compute_bf16(use_gpu) else "fp32"
    elif before.precision == "auto":  # of an older Thaw, which recorded it so
        precision = "bf16" if use_gpu else "fp32"
    else:
        precision = before.precision
    return replace(config, precision=precision)


def inference_precision(config: ComputeConfig, *, use_gpu: bool) -> ComputeConfig:
    """Return how a trained network is computed: in mixed precision only where that is fast."""
    if config.precision == "bf16" or (not use_gpu and config.precision != "fp32"):
        config = replace(config, precision="auto")
    return choose_precision(config, use_gpu=use_gpu)


def computes_bf16(use_gpu: bool) -> bool:
    """Return whether the GPUs (NVIDIA's since Ampere) or CPUs (avx512_bf16, AMX, Arm's) of this
    machine have instructions for bfloat16, and torch uses them; it emulates them on others.

    GPUs that are not known, as AMD's, are taken to have them.
    """
    if use_gpu:
        return all(generation >= AMPERE for generation in list_gpu_generations())
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(bool(has) for name, has in capabilities.items() if name.endswith("bf16"))


def _nodes_compute_bf16(use_gpu: bool) -> bool:
    """Return whether the GPUs, or CPUs, of all nodes that take work compute bfloat16.

    One slow node would hold up the others, and trials of a sweep are compared with each other. This
    machine is asked here, others by a task, whose process ends with it: readers need no torch. Such
    a task reserves no GPU, which may be busy.
    """
    if not ray.is_initialized():
        return computes_bf16(use_gpu)
    here = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    machines = {
        node["NodeManagerHostname"]: node_id
        for node_id, node in nodes.items()
        if node["Resources"].get("GPU" if use_gpu else "CPU")
    }
    ask = ray.remote(num_cpus=0, max_calls=1)(computes_bf16)
    own = machines.pop(nodes[here]["NodeManagerHostname"], None)
    answers = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(
            use_gpu
        )
        for node_id in machines.values()
    ]
    return (own is None or computes_bf16(use_gpu)) and all(ray.get(answers))
