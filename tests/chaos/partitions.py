"""Networks that fail between nodes that live: each node is in a namespace of its own."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.arena import Arena
from tests.chaos.checks import (
    INTERVAL,
    NUM_STEPS,
    count_lost,
    ensure,
    ensure_same,
    wait_until,
)
from tests.chaos.networks import Network
from tests.chaos.outcomes import Outcome
from tests.chaos.processes import Driver, find_by_name, lives
from tests.chaos.sabotage import Plan, plan_of, steps_taken
from tests.chaos.workers import HANG_TIMEOUT_S
from tests.support.job_server import TokenCluster

HEAD, NODES = 1, (2, 3, 4)
PARTED_S = 30
"""Longer than HANG_TIMEOUT_S; TCP alone outlasts what is shorter."""


@contextmanager
def spread_cluster(arena: Arena) -> Iterator[tuple[Network, TokenCluster]]:
    """Start a head without CPUs and nodes of one, so that workers are on two of three nodes."""
    with (
        Network(1 + len(NODES)) as network,
        arena.cluster(
            num_cpus=0,
            host=network.address(HEAD),
            within=network.within(HEAD),
            options=[f"--node-ip-address={network.address(HEAD)}"],
            GLOO_SOCKET_IFNAME="eth0",  # the name of this machine is an address of its loopback
        ) as cluster,
    ):
        for node in NODES:
            address = f"--node-ip-address={network.address(node)}"
            cluster.add_node(within=network.within(node), options=[address])
        yield network, cluster


def start_training(
    arena: Arena, run: Path, plan: Plan, network: Network, cluster: TokenCluster, step: int
) -> tuple[Driver, dict[int, int]]:
    """Train up to a step; return the driver, and the nodes of the workers by process."""
    command = arena.command(run, "--hang-timeout-s", str(HANG_TIMEOUT_S))
    within = network.within(HEAD)
    driver = arena.start(command, plan, log=run.parent / "log", cluster=cluster, within=within)
    driver.wait_until(lambda: len(steps_taken(plan.journal)) >= step, f"step {step}")
    workers = {pid: network.host_of(pid) for pid in find_by_name(cluster.pids(), "RayTrainWorker")}
    ensure(len(set(workers.values())) == 2, f"workers are on {workers}")
    return driver, workers


def part_two_nodes(arena: Arena, name: str) -> Outcome:
    """Neither of the two workers reaches the other; GCS and driver reach both."""
    folder, straight = arena.new_run(name), arena.straight(shared=False)
    step = arena.draw_step(name)
    plan = plan_of(folder, pause_s=0.3)
    with spread_cluster(arena) as (network, cluster):
        driver, workers = start_training(arena, folder / "run", plan, network, cluster, step)
        with network.parted(*workers.values()):
            time.sleep(PARTED_S)
            ensure(len(steps_taken(plan.journal)) < NUM_STEPS, "it ended without a network")
        driver.succeed()
        ensure(not any(map(lives, workers)), "the workers were not started again")
    ensure_same(folder / "run", straight)
    return Outcome(
        fault=name,
        injected=f"the two nodes with workers lose what they send each other, for {PARTED_S} s "
        f"after step {step}; both reach the head",
        survived=True,
        lost=count_lost(folder / "journal", at_most=2 * INTERVAL),
        seen=f"noticed by hang_timeout_s = {HANG_TIMEOUT_S:.0f}",
    )


def cut_off_node(arena: Arena, name: str) -> Outcome:
    """A node lives on without a network, until the run has gone on without it; then it is back."""
    folder, straight = arena.new_run(name), arena.straight(shared=False)
    step = arena.draw_step(name)
    plan = plan_of(folder, pause_s=1.0)
    with spread_cluster(arena) as (network, cluster):
        driver, workers = start_training(arena, folder / "run", plan, network, cluster, step)
        lost, node = next(iter(workers.items()))
        with network.cut_off(node):
            began_s, known = time.monotonic(), len(steps_taken(plan.journal)) + 1
            driver.wait_until(lambda: len(steps_taken(plan.journal)) > known, "another step")
            cut_s = time.monotonic() - began_s
        wait_until(lambda: not lives(lost), "the end of the worker that was cut off")
        driver.succeed()
    ensure_same(folder / "run", straight)
    return Outcome(
        fault=name,
        injected=f"a node with a worker loses all it sends and is sent after step {step}, until "
        f"the run goes on without it ({cut_s:.0f} s)",
        survived=True,
        lost=count_lost(folder / "journal", at_most=2 * INTERVAL),
        seen="once it reached the head again, its worker ended",
    )


FAULTS = {
    "network between two nodes": part_two_nodes,
    "network of a node": cut_off_node,
}
