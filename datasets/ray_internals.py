"""Private names of Ray Data: fixed CPUs for a stream, and an executor that doesn't spin.

Ray Data divides the CPUs of every node among all streams, rounded down: with more streams than CPUs
on a node, each gets none and reads one task at a time. The shares also change whenever a stream
begins or ends. So each stream gets a fixed share here.
"""

import time
from typing import Any

from ray.data import DataContext, ExecutionResources
from ray.data._internal.cluster_autoscaler import ClusterAutoscaler, create_cluster_autoscaler
from ray.data._internal.execution import streaming_executor, streaming_executor_state
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from cluster.ray_internals import check_version

PAUSE_SLICES, PAUSE_SLICE_S = 10, 0.01
SHARE = "thaw_share"
UNLIMITED_BYTES = 2.0**60
"""No limit here: `resource_limits` sets it. Finite, as Ray Data subtracts from it."""


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


class PauseWhileAhead(ExecutionCallback):
    """Let the thread of the streaming executor sleep while blocks wait for the reader.

    Without running tasks it spins from the last task to the last batch, and takes a core and the
    interpreter lock of the training worker. It wakes up when the reader has taken all blocks.
    """

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        for _ in range(PAUSE_SLICES):
            if executor._consumer_idling():
                return
            time.sleep(PAUSE_SLICE_S)


def pause_while_ahead(context: DataContext) -> None:
    """Have the executions of this context use PauseWhileAhead."""
    check_version()
    context.custom_execution_callback_classes.append(PauseWhileAhead)


streaming_executor.create_cluster_autoscaler = choose_autoscaler  # pyright: ignore[reportPrivateImportUsage]
# Ray Data polls for finished tasks every 0.1 s, twice before it starts the next one: a CPU would be
# idle for a fifth of its time, and for half of it with images in memory.
streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = 0.02
