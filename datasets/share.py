"""The CPUs a stream may read with: its training's share, not what Ray Data finds for it.

Ray Data asks an actor of the cluster, which divides the CPUs of every node among all streams there
are, rounded down: with more streams than a node has CPUs, each has none and reads one task at a
time. And it computes this anew for each stream that begins or ends.
"""

from dataclasses import dataclass
from typing import Any

from ray.data import DataContext, ExecutionResources
from ray.data._internal.cluster_autoscaler import ClusterAutoscaler, create_cluster_autoscaler
from ray.data._internal.execution import streaming_executor

SHARE = "thaw_share"
UNLIMITED_BYTES = 2.0**60
"""Bytes; `resource_limits` says how many. Finite, as Ray Data subtracts."""


@dataclass(frozen=True, kw_only=True)
class ReadLimits:
    """What a stream of batches may use of the cluster."""

    task_cpus: float = 1.0
    """Logical CPUs of each of its read tasks."""
    stream_cpus: float | None = None
    """Logical CPUs of all its read tasks together, where `store_bytes` is given as well; default:
    as Ray Data divides those of the cluster."""
    store_bytes: float | None = None
    """Object store that it may fill ahead of its reader."""


class FixedResources(ClusterAutoscaler):
    """What stands where Ray Data would ask."""

    def __init__(self, share: ExecutionResources) -> None:
        self._share = share

    def get_total_resources(self) -> ExecutionResources:
        return self._share

    def try_trigger_scaling(self) -> None:
        """Ask for no more nodes: those of the workers are there."""

    def on_executor_shutdown(self) -> None:
        """Leave nothing behind."""


def give_share(context: DataContext, cpus: float) -> None:
    """Have the data sets made in this context read with so many logical CPUs."""
    share = ExecutionResources(
        cpu=cpus, object_store_memory=UNLIMITED_BYTES, memory=UNLIMITED_BYTES
    )
    context.set_config(SHARE, share)


def choose_autoscaler(topology: Any, resources: Any, context: DataContext, **named: Any) -> Any:
    """Take the place of Ray Data's own choice where a share was given."""
    share: ExecutionResources | None = context.get_config(SHARE)
    if share is None:
        return create_cluster_autoscaler(topology, resources, context, **named)
    return FixedResources(share)


# Ray is pinned, and test_datasets_epochs holds this.
streaming_executor.create_cluster_autoscaler = choose_autoscaler  # pyright: ignore[reportPrivateImportUsage]
