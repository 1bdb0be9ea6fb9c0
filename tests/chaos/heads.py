"""A GCS that dies and comes back, with its tables in Redis, under a training and a sweep."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.chaos import sweeps
from tests.chaos.arena import Arena
from tests.chaos.checks import (
    NUM_STEPS,
    count_lost,
    ensure,
    ensure_same,
    wait_until,
)
from tests.chaos.outcomes import Outcome
from tests.chaos.processes import find_by_name, find_free_port, lives
from tests.chaos.sabotage import plan_of, steps_taken
from tests.support.job_server import TokenCluster

DOWN_S = 10
"""From the end of the GCS to the start of the next one."""


@contextmanager
def redis(folder: Path) -> Iterator[dict[str, str]]:
    """Run a Redis server; yields the variables with which a head keeps its tables there."""
    port = find_free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with (folder / "redis.log").open("wb") as log:
        command = ["redis-server", *options]
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: _answers(port), "Redis", timeout_s=30)
        yield {
            "RAY_REDIS_ADDRESS": f"127.0.0.1:{port}",
            "RAY_external_storage_namespace": "chaos",
        }
    finally:
        server.terminate()
        server.wait()


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def restart_gcs(cluster: TokenCluster) -> None:
    """SIGKILL a cluster's GCS, and start it again as it was started: the token is in its
    environment."""
    (pid,) = find_by_name(cluster.pids(), "gcs/gcs_server")
    process = Path(f"/proc/{pid}")
    command = process.joinpath("cmdline").read_bytes().split(b"\0")[:-1]
    variables = process.joinpath("environ").read_bytes().split(b"\0")[:-1]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not lives(pid), "the end of the GCS", timeout_s=30)
    time.sleep(DOWN_S)
    subprocess.Popen(
        command,
        env={name: value for name, _, value in (one.partition(b"=") for one in variables)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def restart_under_training(arena: Arena, name: str) -> Outcome:
    folder, straight = arena.new_run(name), arena.straight(shared=False)
    step = arena.draw_step(name)
    plan = plan_of(folder, pause_s=2.0)
    command = arena.command(folder / "run", "--max-failures", "0")
    with redis(folder) as variables, arena.cluster(**variables) as cluster:
        driver = arena.start(command, plan, log=folder / "log", cluster=cluster)
        driver.wait_until(lambda: len(steps_taken(plan.journal)) >= step, f"step {step}")
        restart_gcs(cluster)
        meanwhile = len(steps_taken(plan.journal)) - step
        ensure(step + meanwhile < NUM_STEPS, "it ended without a GCS")
        driver.succeed()
    ensure_same(folder / "run", straight)
    return Outcome(
        fault=name,
        injected=f"SIGKILL of the GCS after step {step}, started again {DOWN_S} s later with its "
        "tables in Redis",
        survived=True,
        lost=count_lost(folder / "journal", at_most=0),
        seen=f"{meanwhile} steps without a GCS; max_failures = 0 was not touched",
    )


def restart_under_sweep(arena: Arena, name: str) -> Outcome:
    folder, _ = arena.new_run(name), sweeps.straight_sweep(arena)
    num_before = arena.draw(name).randrange(2, sweeps.NUM_TRIALS - 2)
    plan, out = plan_of(folder, pause_s=0.05), folder / "sweep"
    with redis(folder) as variables, arena.cluster(**variables) as cluster:
        command = sweeps.command(arena, out)
        driver = arena.start(command, plan, log=folder / "log", cluster=cluster)
        driver.wait_until(
            lambda: len(sweeps.finished_trials(out)) >= num_before, f"trial {num_before}"
        )
        restart_gcs(cluster)
        num_after = len(sweeps.finished_trials(out))
        ensure(num_after < sweeps.NUM_TRIALS, "it ended without a GCS")
        driver.succeed()
    sweeps.ensure_others_right(arena, sweeps.read_sweep(folder))
    lost = sweeps.count_twice(folder / "journal")
    total = sweeps.NUM_TRIALS * sweeps.NUM_STEPS
    return Outcome(
        fault=name,
        injected=f"SIGKILL of the GCS after {num_before} of {sweeps.NUM_TRIALS} trials, started "
        f"again {DOWN_S} s later with its tables in Redis",
        survived=True,
        lost=f"{lost} of {total} steps; no trial",
        seen=f"{num_after - num_before} trials ended without a GCS",
    )


FAULTS = {
    "GCS restarted under a training": restart_under_training,
    "GCS restarted under a sweep": restart_under_sweep,
}
