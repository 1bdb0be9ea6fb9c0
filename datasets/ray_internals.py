"""Private names of Ray Data: fixed CPUs and memory for a stream, an executor that doesn't poll, no
statistics.

Ray Data divides the CPUs of every node among all streams, rounded down: with more streams than CPUs
on a node, each gets none and reads one task at a time. The shares also change whenever a stream
begins or ends, and a new stream has none for its first second. So each gets a fixed share here.
"""

import atexit
import threading
import time
from functools import cache
from typing import Any

import ray
from ray.data import DataContext, ExecutionResources
from ray.data._internal.cluster_autoscaler import ClusterAutoscaler, create_cluster_autoscaler
from ray.data._internal.execution import backpressure_policy as backpressure
from ray.data._internal.execution import (
    metadata_fetcher,
    streaming_executor,
    streaming_executor_state,
)
from ray.data._internal.execution.streaming_executor import StreamingExecutor
from ray.data._internal.output_buffer import OutputBlockSizeOption
from ray.data._internal.planner import plan_read_op
from ray.data._internal.stats import _StatsManager

from cluster.ray_internals import check_version

NUM_PAUSES, PAUSE_S = 5, 0.02
SHARE, TASK = "thaw_share", "thaw_task_bytes"
STREAM_THREAD, END_TIMEOUT_S = "iter_threaded", 10.0
"""Name of the threads that fetch the blocks of a data set, and how long they may take to end."""
STATISTICS = (
    "register_dataset_to_stats_actor",
    "update_execution_metrics",
    "update_iteration_metrics",
)
"""What sends them."""
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


def end_threads() -> None:
    """Wait for the threads of streams that were closed; call it before Ray disconnects.

    They end some time after their stream. Ray ends a process with exit code 1 if one of them asks
    for a block after that.
    """
    end_s = time.monotonic() + END_TIMEOUT_S
    for thread in threading.enumerate():
        if thread.name == STREAM_THREAD:
            thread.join(max(0.0, end_s - time.monotonic()))


@cache
def end_threads_at_exit() -> None:
    """End them before Ray's own exit function, which was registered earlier."""
    atexit.register(end_threads)


def let_tasks_end(context: DataContext) -> None:
    """Let a task yield all of its blocks without waiting for their reader.

    A task that waits keeps its CPU. Where a worker has one reader's CPU left, its validation would
    wait for that CPU, and the task of the training stream for the validation.
    """
    context._max_num_blocks_in_streaming_gen_buffer = None  # pyright: ignore[reportAttributeAccessIssue]


class FullStore(backpressure.BackpressurePolicy):
    """Starts no task while the blocks made and those of running tasks would fill the store.

    Ray Data doesn't count the blocks of running tasks that never wait for their reader. While the
    first task is slow, the others would fill the store without a limit: all wait for it, in order.
    """

    def can_add_input(self, op: Any) -> bool:
        """Start a task where it fits, or where none runs."""
        num_running = op.num_active_tasks()
        pending = (num_running + 1) * self._data_context.get_config(TASK)
        made = self._resource_manager.get_op_usage(op).object_store_memory
        limit = self._data_context.execution_options.resource_limits.object_store_memory
        return num_running == 0 or made + pending <= limit


def bound_store(context: DataContext, *, store_bytes: float, task_bytes: float) -> None:
    """Limit the bytes of the blocks that data sets made in this context keep at a time."""
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=store_bytes
    )
    context.set_config(TASK, task_bytes)
    context.set_config(
        backpressure.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
        [*backpressure.ENABLED_BACKPRESSURE_POLICIES, FullStore],
    )


def choose_autoscaler(topology: Any, resources: Any, context: DataContext, **named: Any) -> Any:
    """Return FixedResources where a share was given, else Ray Data's own autoscaler."""
    share: ExecutionResources | None = context.get_config(SHARE)
    if share is None:
        return create_cluster_autoscaler(topology, resources, context, **named)
    return FixedResources(share)


class BlockSizes(OutputBlockSizeOption):
    """The sizes of the blocks of a read task."""

    @classmethod
    def of(cls, target_max_block_size: int | None = None, **named: Any) -> Any:
        """Leave blocks as the task yields them where they have no limit; Ray Data joins them."""
        return super().of(
            target_max_block_size, disable_block_shaping=target_max_block_size is None, **named
        )


def step_when_ready(self: StreamingExecutor, topology: Any) -> bool:
    """Wait for a block, the end of a task, or a reader that takes a block; then take a step.

    Ray Data polls 10 times a second while tasks run, three times for each task, and spins while
    none run: CPUs are idle, or taken from the training worker.
    """
    check_version()
    _, output = self._output_node  # pyright: ignore[reportGeneralTypeIssues]
    num_blocks = len(output.output_queue)
    # A task whose blocks Ray Data doesn't read now, as the store is full, is ready all the time.
    tasks = [
        task.get_waitable()
        for op in topology
        if not op._in_task_output_backpressure
        for task in op.get_active_tasks()
    ]
    ready: list[Any] = []
    for _ in range(NUM_PAUSES if tasks or num_blocks else 0):
        if tasks:
            ready, _ = ray.wait(tasks, num_returns=1, timeout=PAUSE_S, fetch_local=False)
        else:
            time.sleep(PAUSE_S)
        if ready or len(output.output_queue) < num_blocks:
            break
    return take_step(self, topology)


class NoGauge:
    """Takes the place of a gauge with a value for each data set."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """As a gauge is made."""

    def set(self, *arguments: Any, **named: Any) -> None:
        """Keep nothing."""


def send_nothing(*arguments: Any, **named: Any) -> None:
    """Take the place of what sends statistics of a data set.

    Each data set has some 200 gauges of its own. Ray's agent on a node keeps them until Prometheus
    reads them, for ever where none does: 1.3 MB for each trial of a sweep that reads images. They
    come by an actor that keeps those of 1,000 data sets. Nothing of ours reads them.
    """


def send_no_statistics() -> None:
    """Let the data sets of this process send none."""
    for name in STATISTICS:
        assert callable(getattr(_StatsManager, name))
        setattr(_StatsManager, name, staticmethod(send_nothing))
    streaming_executor.Gauge = NoGauge  # pyright: ignore[reportPrivateImportUsage]


send_no_statistics()
streaming_executor.create_cluster_autoscaler = choose_autoscaler  # pyright: ignore[reportPrivateImportUsage]
plan_read_op.OutputBlockSizeOption = BlockSizes  # pyright: ignore[reportPrivateImportUsage]
take_step = StreamingExecutor._scheduling_loop_step
StreamingExecutor._scheduling_loop_step = step_when_ready
streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = 0.0
metadata_fetcher._PREFETCH_ON_THREAD = False  # its thread would end a task three steps later
