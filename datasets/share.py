"""A fixed share of the CPUs for each stream, instead of Ray Data's division.

Ray Data divides the CPUs of every node among all streams, rounded down: with more streams than CPUs
on a node, each gets none and reads one task at a time. The shares also change whenever a stream
begins or ends.
"""

from dataclasses import dataclass
from typing import Any

from ray.data import DataContext, ExecutionResources
from ray.data._internal.cluster_autoscaler import ClusterAutoscaler, create_cluster_autoscaler
from ray.data._internal.execution import streaming_executor

SHARE = "thaw_share"
UNLIMITED_BYTES = 2.0**60
"""No limit here: `resource_limits` sets it. Finite, as Ray Data subtracts from it."""


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
    """Reports a fixed share as the resources of the cluster."""

    def __init__(self, share: ExecutionResources) -> None:
        self._share = share

    def get_total_resources(self) -> ExecutionResources:
        return self._share

    def try_trigger_scaling(self) -> None:
        """Request no nodes: the workers' are there."""

    def on_executor_shutdown(self) -> None:
        """Nothing to clean up."""


def give_share(context: DataContext, cpus: float) -> None:
    """Limit the data sets made in this context to a number of logical CPUs."""
    share = ExecutionResources(
        cpu=cpus, object_store_memory=UNLIMITED_BYTES, memory=UNLIMITED_BYTES
    )
    context.set_config(SHARE, share)


def choose_autoscaler(topology: Any, resources: Any, context: DataContext, **named: Any) -> Any:
    """Return FixedResources where a share was given, else Ray Data's own autoscaler."""
    share: ExecutionResources | None = context.get_config(SHARE)
    if share is None:
        return create_cluster_autoscaler(topology, resources, context, **named)
    return FixedResources(share)


# Ray is pinned, and test_datasets_epochs tests this.
streaming_executor.create_cluster_autoscaler = choose_autoscaler  # pyright: ignore[reportPrivateImportUsage]
