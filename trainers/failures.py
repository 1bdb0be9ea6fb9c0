"""Hangs and failures of workers, explained in one sentence; a bug keeps its traceback.

Ray Train sends an error without the line that raised it; THAW_TRACEBACK=1 shows that line.
"""

import faulthandler
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from os import environ
from typing import Any

import ray.exceptions
import ray.train
import torch

from cluster.config import ClusterConfig
from cluster.entry import explain_node_error
from cluster.io.errors import StorageError, UserError
from trainers.config import FinetuneConfig
from trainers.worker import WorkerContext

HANG_VARS = ("RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S", "RAY_TRAIN_COLLECTIVE_TIMEOUT_S")
"""Read by Ray Train: timeouts of a worker's health check, and of a barrier of Ray's."""
STDERR = 2
PEER_ERRORS = "Gloo", "gloo", "NCCL", "Connection closed by peer", "Connection reset by peer"
"""In the error of a rank whose peer died: not the cause."""


@contextmanager
def noticing_hangs(timeout_s: float) -> Iterator[None]:
    """Have Ray Train fail a worker that hangs; the user's own settings win."""
    ours = [name for name in HANG_VARS if name not in environ]
    environ.update(dict.fromkeys(ours, str(timeout_s)))
    try:
        yield
    finally:
        for name in ours:
            environ.pop(name, None)


class Watchdog:
    """Ends this process with exit code 1, and every thread's traceback on stderr, once `timeout_s`
    have passed since the last call of `live`. None never ends it.

    Uses Python's faulthandler, which needs no lock that a hang may hold.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s and min(timeout_s, threading.TIMEOUT_MAX)
        self._armed_at = -math.inf
        self.live()

    def live(self) -> None:
        """Start the timeout again."""
        now = time.monotonic()
        if self._timeout_s and now - self._armed_at > self._timeout_s / 100:  # each starts a thread
            faulthandler.dump_traceback_later(self._timeout_s, exit=True, file=STDERR)
            self._armed_at = now

    def rest(self) -> None:
        """Stop the timeout until the next call of `live`."""
        faulthandler.cancel_dump_traceback_later()
        self._armed_at = -math.inf

    close = rest


class EndOnUserError(ray.train.UserCallback):
    """Ends a training at the first error of the user's in a worker: a restart would meet it
    again."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, UserError):
                raise UserError(_text(error)) from error


@contextmanager
def explaining_gpu_memory(config: FinetuneConfig, worker: WorkerContext) -> Iterator[None]:
    """Raise the user's error where the memory of a worker's GPU runs out."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(_describe_gpu_memory(config, worker)) from error


def _describe_gpu_memory(config: FinetuneConfig, worker: WorkerContext) -> str:
    num_images = math.ceil(config.global_batch_size / worker.world_size)
    num_parts = config.compute.accumulation_steps
    at_a_time = math.ceil(num_images / num_parts)
    remedies = ["more workers", "a smaller batch", "a smaller ingest.size_px"]
    if at_a_time > 1:
        remedies.insert(0, f"--accumulation-steps {min(2 * num_parts, num_images)}")
    return (
        f"global_batch_size is {config.global_batch_size}: the memory of a GPU ran out, where a "
        f"worker trains {config.model.backbone} on {at_a_time} images of {config.ingest.size_px} "
        f"px at a time; use {', '.join(remedies[:-1])} or {remedies[-1]}"
    )


def explain_failure(
    error: ray.train.TrainingFailedError, cluster: ClusterConfig, run: str
) -> str | None:
    """Return why workers failed more than `max_failures` times; None where a bug is the cause."""
    if isinstance(error, ray.train.ControllerError):
        if isinstance(error.controller_failure, UserError):  # of EndOnUserError
            return (
                f"{error.controller_failure} (a worker of the run in {run}); then run the same "
                "command again to resume"
            )
        if not type(error.controller_failure).__name__.startswith("WorkerGroupStartup"):
            return None
        return (
            f"cluster.num_workers is {cluster.num_workers}: the cluster did not start so many in "
            "time; look at `ray status`, ask for fewer, or start with fewer by --min-workers; "
            "run the same command again to resume"
        )
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    reasons = {rank: _explain(failure) for rank, failure in failures.items()}
    if not reasons or None in reasons.values():
        return None
    # A peer's "connection closed" is a consequence of the failure that explains more.
    rank = min(reasons, key=lambda rank: (_is_peer_error(failures[rank]), rank))
    return (
        f"{reasons[rank]} (worker {rank} of the run in {run}; cluster.max_failures is "
        f"{cluster.max_failures}, and this was failure {cluster.max_failures + 1}); "
        "run the same command again to resume from the latest checkpoint"
    )


def _explain(failure: Exception) -> str | None:
    if isinstance(failure, UserError | StorageError):
        return _text(failure)
    if (lacking := explain_node_error(failure)) is not None:
        return lacking
    died = getattr(failure, "health_check_failure", failure)
    if isinstance(died, ray.exceptions.RayActorError):
        return (
            "a worker died: it was killed, ran out of memory, hung for cluster.hang_timeout_s, or "
            "its node died"
        )
    if type(failure).__name__.endswith("TimeoutError"):
        return "a worker hangs: it no longer responds"
    return "a worker lost its peers" if _is_peer_error(failure) else None


def _text(failure: Exception) -> str:
    """Ray raises a task's error as one of its own class, whose text is a traceback."""
    return str(getattr(failure, "cause", failure))


def _is_peer_error(failure: Exception) -> bool:
    return isinstance(failure, RuntimeError) and any(word in str(failure) for word in PEER_ERRORS)
