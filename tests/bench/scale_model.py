"""What a training, and a sweep, of a size ask of a cluster: arithmetic over measured constants.

Freeze depths are those of ResNet50, 0 (nothing frozen) to 5 (head only). A step on a worker costs
forward + 2 x forward of what trains; an all-reduce of B bytes over n nodes sends 2 (n - 1) / n B
through each node's network cards, whatever its shape, and a tree of them takes 2 log2(n) hops.
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf, log2, sqrt
from typing import Any

from tests.bench.scale_data import count_reads, paper_manifest

DEPTHS = range(6)
FROZEN = ("nothing", "stem", "to layer1", "to layer2", "to layer3", "to layer4: head only")
BUCKET_BYTES = 25 * 2**20
"""DDP's default: gradients are reduced in buckets of it, while the backward pass goes on."""
PAPER_IMAGES = 2_012_345
"""Enough to count reads by planning: they depend on the batch, not on the number of images. And
no multiple of anything, as data sets are."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size, and what this machine can't measure: every number an option, none a fact of Thaw.

    python -m tests.bench.scale --gpus 64 --images 5e6
    """

    gpus: int = 1000
    """Workers of one training."""
    images: float = 100e6
    """Training images."""
    epochs: int = 10
    worker_batch_size: int = 64
    """Images of a step on a GPU."""
    image_kb: float = 110
    """kB of a prepared image: a photograph of 640x480 (README)."""
    interleave: int = 8
    """`--interleave`: lanes of the plan."""
    task_images: int = 256
    row_group_size: int = 64
    """Of `prepare`."""
    log_every_steps: int = 20
    checkpoint_every_steps: int = 500
    trials: int = 1000
    """Of a sweep, a GPU each."""
    gpus_per_node: int = 8
    node_cpus: int = 96
    """AWS p4d.24xlarge: 8 A100, 96 vCPUs (its EC2 deep dive)."""
    gpu_images_per_s: float = 2470
    """ResNet50 trained whole in mixed precision on one A100 (NVIDIA DeepLearningExamples,
    ResNet50 v1.5 for PyTorch)."""
    network_gbps: float = 400
    """Of a node, to other nodes (p4d: EFA)."""
    nvlink_gbps: float = 2400
    """Of a GPU, inside a node (A100: 600 GB/s in both directions together)."""
    hop_us: float = 20
    """Of a message between nodes: assumed."""
    gets_per_s: float = 5500
    """GET or HEAD requests a prefix of S3 takes (S3 performance guidelines)."""
    prefixes: int = 1
    """Prefixes, or partitions S3 has made, that the shards lie under."""
    write_mb_per_s: float = 90
    """Of one process to object storage: assumed, one connection's."""
    gpu_hours_per_failure: float = 50_676
    """16,384 GPUs, 54 days, 419 unexpected interruptions (The Llama 3 Herd of Models)."""

    @property
    def nodes(self) -> int:
        return ceil(self.gpus / self.gpus_per_node)

    @property
    def global_batch(self) -> int:
        return self.gpus * self.worker_batch_size

    @property
    def steps_per_epoch(self) -> int:
        return int(self.images // self.global_batch)


@dataclass(frozen=True)
class Step:
    """A training step at a freeze depth."""

    scale: Scale
    constants: dict[str, dict[str, Any]]
    depth: int

    @cached_property
    def gradient_bytes(self) -> float:
        return 4.0 * self.constants["network"]["trained_parameters"][self.depth]

    @cached_property
    def _shares(self) -> tuple[float, float]:
        """Of the whole network's training step: all of this one, and its backward pass."""
        total = self.constants["network"]["forward_flops"]
        frozen = self.constants["network"]["frozen_flops"][self.depth]
        rest = total - frozen
        return (frozen + 3 * rest) / (3 * total), 2 * rest / (3 * total)

    @cached_property
    def compute_s(self) -> float:
        return self._shares[0] * self.scale.worker_batch_size / self.scale.gpu_images_per_s

    @cached_property
    def backward_s(self) -> float:
        return self._shares[1] * self.scale.worker_batch_size / self.scale.gpu_images_per_s

    @cached_property
    def wire_bytes(self) -> float:
        """What a node sends for a step, or a GPU where there is one node."""
        peers = self.scale.nodes if self.scale.nodes > 1 else self.scale.gpus
        return 2 * (peers - 1) / peers * self.gradient_bytes

    @cached_property
    def all_reduce_s(self) -> float:
        scale = self.scale
        local = min(scale.gpus, scale.gpus_per_node)
        inside_s = 2 * (local - 1) / local * self.gradient_bytes * 8 / (scale.nvlink_gbps * 1e9)
        if scale.nodes == 1:
            return inside_s
        hops = self.buckets * 2 * ceil(log2(scale.nodes))
        across_s = self.wire_bytes * 8 / (scale.network_gbps * 1e9)
        return inside_s + across_s + hops * scale.hop_us * 1e-6

    @property
    def buckets(self) -> int:
        return ceil(self.gradient_bytes / BUCKET_BYTES)

    @cached_property
    def exposed_s(self) -> float:
        """What the backward pass does not hide: the last bucket, and what is longer than it."""
        return max(self.all_reduce_s - self.backward_s, self.all_reduce_s / self.buckets)

    @property
    def step_s(self) -> float:
        return self.compute_s + self.exposed_s

    @property
    def share(self) -> float:
        """Of a step that waits for the network."""
        return self.exposed_s / self.step_s

    @property
    def images_per_s(self) -> float:
        """Of all GPUs, were they fed."""
        return self.scale.global_batch / self.step_s

    @property
    def fed_images_per_s(self) -> float:
        """What the CPUs of all nodes decode and augment; a worker keeps one of them."""
        cores = (self.scale.node_cpus / self.scale.gpus_per_node - 1) * self.scale.gpus
        return cores * self.constants["feed"]["core_images_per_s"]


@dataclass(frozen=True)
class Feeding:
    """What the readers of a training whose network trains whole ask of storage and of Ray."""

    scale: Scale
    constants: dict[str, dict[str, Any]]
    images_per_s: float

    @cached_property
    def reads_per_image(self) -> float:
        scale = self.scale
        return count_reads(
            paper_manifest(
                PAPER_IMAGES + 40 * scale.global_batch, row_group_size=scale.row_group_size
            ),
            world_size=scale.gpus,
            worker_batch_size=scale.worker_batch_size,
            interleave=scale.interleave,
            task_images=scale.task_images,
        )

    @property
    def read_gb_per_s(self) -> float:
        return self.images_per_s * self.reads_per_image * self.scale.image_kb * 1e3 / 1e9

    @property
    def requests_per_s(self) -> float:
        """A row group's, the footer of its shard included: of so many shards none is kept."""
        groups_per_s = self.images_per_s * self.reads_per_image / self.scale.row_group_size
        return groups_per_s * self.constants["requests"]["first_of_a_shard"]

    @property
    def cores_per_gpu(self) -> float:
        return self.images_per_s / self.scale.gpus / self.constants["feed"]["core_images_per_s"]


@dataclass(frozen=True)
class Keeping:
    """Checkpoints and rows of metrics."""

    scale: Scale
    constants: dict[str, dict[str, Any]]
    step_s: float

    @property
    def checkpoint_bytes(self) -> float:
        return self.constants["checkpoint"]["bytes"][0]

    @property
    def stall_s(self) -> float:
        """All ranks wait while rank 0 copies its state; writing goes on beside the training."""
        return self.constants["checkpoint"]["serialize_s"][0]

    @property
    def write_s(self) -> float:
        return self.checkpoint_bytes / (self.scale.write_mb_per_s * 1e6)

    @property
    def interval_s(self) -> float:
        return self.scale.checkpoint_every_steps * self.step_s

    @property
    def overhead(self) -> float:
        """Share of the time that checkpoints take: the next one waits for the one before."""
        return (self.stall_s + max(0.0, self.write_s - self.interval_s)) / self.interval_s

    @property
    def mtbf_s(self) -> float:
        return self.scale.gpu_hours_per_failure / self.scale.gpus * 3600

    @property
    def best_interval_s(self) -> float:
        """Young 1974: where what a failure loses costs as much as the checkpoints."""
        return sqrt(2 * self.stall_s * self.mtbf_s)

    @property
    def best_interval_steps(self) -> int:
        return max(1, int(round(self.best_interval_s / self.step_s, -2)))

    @property
    def num_rows(self) -> int:
        return self.scale.epochs * self.scale.steps_per_epoch // self.scale.log_every_steps

    @property
    def rows_per_s(self) -> float:
        return 1 / (self.scale.log_every_steps * self.step_s)

    @property
    def rows_bytes(self) -> float:
        return self.num_rows * self.constants["rows"]["row_bytes"]

    @property
    def rewritten_bytes(self) -> float:
        """What rewriting the file for every row would write: the square of their number."""
        return self.rows_bytes * self.num_rows / 2


def first_size(breaks: Any, *, largest: int = 100_000) -> float:
    """Return the smallest number of GPUs for which `breaks` holds; inf where none does."""
    low, high = 0, 1
    while not breaks(high):
        low, high = high, 2 * high
        if high > largest:
            return inf
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if breaks(middle) else (middle, high)
    return high
