"""Nodes that are lost, announced or not, and a cluster that is lost whole."""

import os
import time
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import ray
import ray.train
from ray.core.generated.autoscaler_pb2 import DrainNodeReason

from tests.chaos.arena import Arena
from tests.chaos.checks import (
    INTERVAL,
    STEPS_PER_EPOCH,
    count_lost,
    ensure,
    ensure_same,
    wait_until,
)
from tests.chaos.outcomes import Outcome
from tests.chaos.processes import meanwhile
from tests.chaos.sabotage import counting, plan_of, steps_taken

NOTICE_S = 8
"""From the notice of a preemption to the end of the node; clouds give 30 to 120."""
POLL_S = 3
"""Until Ray Train has seen that the deadline is over: it looks every 2 s."""
WORKERS_TOLERANCE = 1e-3
"""Two workers add up their gradients in another order than one does."""


def find_node_to_remove(arena: Arena) -> Any:
    """Return a node that is not the head and has a worker of the training."""
    from ray._private.state import actors

    hosts = {
        actor["Address"]["NodeID"]
        for actor in actors(actor_state_name="ALIVE").values()
        if "TrainWorker" in actor["ActorClassName"]
    }
    chosen = [node for node in arena.nodes.worker_nodes if node.node_id in hosts]
    ensure(chosen, "both workers are on the head")
    return chosen[0]


def kill_raylet(arena: Arena, name: str) -> Outcome:
    folder = arena.new_run(name)
    step = arena.draw_step(name)
    plan = plan_of(folder, pause_s=0.3)

    def kill() -> None:
        wait_until(lambda: len(steps_taken(plan.journal)) >= step, f"step {step}")
        arena.nodes.remove_node(find_node_to_remove(arena), allow_graceful=False)

    with meanwhile(kill):
        arena.fit(arena.config(folder / "run", "--max-failures", "1"), plan)
    arena.add_node()
    ensure_same(folder / "run", arena.straight())
    lost = count_lost(folder / "journal", at_most=2 * INTERVAL)
    injected = f"SIGKILL of a node's raylet and of all it ran, after step {step}"
    return Outcome(fault=name, injected=injected, survived=True, lost=lost)


def preempt(arena: Arena, name: str) -> Outcome:
    """The loop hears of it and keeps a checkpoint with every row, so that the end costs little."""
    folder = arena.new_run(name)
    step = arena.draw(name).randrange(2, STEPS_PER_EPOCH)
    plan = plan_of(folder, pause_s=1.0)

    def announce_and_kill() -> None:
        wait_until(lambda: len(steps_taken(plan.journal)) >= step, f"step {step}")
        chosen = find_node_to_remove(arena)
        client = ray._raylet.GcsClient(address=arena.nodes.address)
        deadline_ms = int((time.time() + NOTICE_S) * 1000)
        accepted, refusal = client.drain_node(
            chosen.node_id,
            DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "chaos",
            deadline_ms,
        )
        ensure(accepted, f"the notice was refused: {refusal}")
        time.sleep(NOTICE_S + POLL_S)
        arena.nodes.remove_node(chosen, allow_graceful=False)

    config = arena.config(folder / "run", "--max-failures", "0")
    config = replace(config, checkpoint_every_steps=500)
    with (
        patch.dict(os.environ, {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}),
        meanwhile(announce_and_kill),
    ):
        arena.fit(config, plan)
    arena.add_node()
    ensure_same(folder / "run", arena.straight())
    lost = count_lost(folder / "journal", at_most=2)
    return Outcome(
        fault=name,
        injected=f"drain with reason PREEMPTION after step {step}, {NOTICE_S} s ahead; then the "
        "node is killed; other checkpoints after epochs only",
        survived=True,
        lost=lost,
        seen="max_failures = 0 was not touched",
    )


def shrink_and_grow(arena: Arena, name: str) -> Outcome:
    folder = arena.new_run(name)
    plan = plan_of(folder, pause_s=1.5)
    arena.nodes.remove_node(
        next(iter(arena.nodes.worker_nodes))
    )  # a spare node would take the place

    def sizes() -> list[int]:
        taken = [world_size for _, _, world_size in steps_taken(plan.journal)]
        return [size for at, size in enumerate(taken) if at == 0 or size != taken[at - 1]]

    def lose_and_add() -> None:
        wait_until(lambda: len(steps_taken(plan.journal)) >= 3, "step 3")
        arena.nodes.remove_node(find_node_to_remove(arena), allow_graceful=False)
        wait_until(lambda: sizes()[-1] == 1, "a step of one worker")
        arena.add_node()

    resizing = partial(ray.train.ScalingConfig, elastic_resize_monitor_interval_s=3.0)
    config = arena.config(folder / "run", "--max-failures", "3", "--min-workers", "1")
    with (
        patch.object(ray.train, "ScalingConfig", resizing),
        meanwhile(lose_and_add),
    ):
        arena.fit(config, plan)
    arena.add_node()
    ensure(sizes() == [2, 1, 2], f"workers: {sizes()}")
    ensure_same(folder / "run", arena.straight(), rel=WORKERS_TOLERANCE)
    lost = count_lost(folder / "journal", at_most=4 * INTERVAL)
    return Outcome(
        fault=name,
        injected="one of two nodes killed, another one added later",
        survived=True,
        lost=lost,
        seen=f"losses within {WORKERS_TOLERANCE:g}",
    )


def lose_cluster(arena: Arena, name: str) -> Outcome:
    folder = arena.new_run(name)
    step = arena.draw_step(name)
    plan = plan_of(folder, pause_s=0.3)
    command = arena.command(folder / "run")
    first = arena.start(command, plan, log=folder / "first.log", shared=False)
    first.wait_until(lambda: len(steps_taken(plan.journal)) >= step, f"step {step}")
    num_processes = first.kill_all()
    arena.start(command, counting(plan), log=folder / "second.log", shared=False).succeed()
    ensure_same(folder / "run", arena.straight(shared=False))
    lost = count_lost(folder / "journal", at_most=2 * INTERVAL)
    injected = (
        f"SIGKILL of driver, GCS, raylet and workers ({num_processes} processes) after step "
        f"{step}; the same command on a new cluster"
    )
    return Outcome(fault=name, injected=injected, survived=True, lost=lost)


FAULTS = {
    "raylet SIGKILL in mid-epoch": kill_raylet,
    "preemption notice": preempt,
    "elastic 2 -> 1 -> 2 workers": shrink_and_grow,
    "cluster lost whole": lose_cluster,
}
