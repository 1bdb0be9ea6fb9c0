"""Workers that die or hang, on the shared cluster: DDP over gloo, two of them."""

from dataclasses import replace
from functools import partial
from typing import Any

from tests.chaos.arena import Arena
from tests.chaos.checks import (
    INTERVAL,
    NUM_STEPS,
    PAUSE_S,
    STEPS_PER_EPOCH,
    count_lost,
    ensure,
    ensure_same,
)
from tests.chaos.outcomes import Outcome
from tests.chaos.processes import lives
from tests.chaos.sabotage import plan_of, struck

HANG_TIMEOUT_S = 20.0
"""Two busy cores may take some seconds for a first batch."""
MOMENTS: dict[str, dict[str, Any]] = {
    "at its start": {"moment": "start"},
    "at its first batch": {"moment": "batch"},
    "in mid-epoch": {"moment": "step", "steps": range(STEPS_PER_EPOCH + 1, 2 * STEPS_PER_EPOCH)},
    "in evaluation": {"moment": "evaluation"},
    "writing a checkpoint": {"moment": "checkpoint", "steps": (8, 12, 16), "ranks": (0,)},
    "at its last step": {"moment": "step", "steps": (NUM_STEPS - 1,)},
}


def strike_worker(arena: Arena, name: str, act: str, at: dict[str, Any], **changes: Any) -> Outcome:
    """Train with a worker that is struck once, and compare with the straight run."""
    dice, folder = arena.draw(name), arena.new_run(name)
    rank, step = dice.choice(at.get("ranks", (0, 1))), dice.choice(at.get("steps", (0,)))
    plan = plan_of(folder, act=act, moment=at["moment"], step=step, rank=rank, pause_s=PAUSE_S)
    config = arena.config(folder / "run", "--max-failures", "1")
    arena.fit(replace(config, cluster=replace(config.cluster, **changes)), plan)
    ensure(len(struck(plan.journal)) == 1, "the fault did not happen")
    ensure(not lives(struck(plan.journal)[0]), "what was struck still lives")
    ensure_same(folder / "run", arena.straight())
    lost = count_lost(folder / "journal", at_most=2 * INTERVAL)
    when = f" before step {step + 1}" if at["moment"] == "step" else ""
    when = f" of step {step}, half of it there" if at["moment"] == "checkpoint" else when
    return Outcome(fault=name, injected=f"{act} of rank {rank}{when}", survived=True, lost=lost)


def kill_worker(arena: Arena, name: str, at: dict[str, Any]) -> Outcome:
    return strike_worker(arena, name, "kill", at)


def exit_as_if_out_of_memory(arena: Arena, name: str) -> Outcome:
    return strike_worker(arena, name, "exit 137", MOMENTS["in mid-epoch"])


def hang(arena: Arena, name: str) -> Outcome:
    outcome = strike_worker(
        arena, name, "stop", MOMENTS["in mid-epoch"], hang_timeout_s=HANG_TIMEOUT_S
    )
    return replace(outcome, seen=f"noticed by hang_timeout_s = {HANG_TIMEOUT_S:.0f}")


FAULTS = {
    **{f"worker SIGKILL {moment}": partial(kill_worker, at=at) for moment, at in MOMENTS.items()},
    "worker exit 137": exit_as_if_out_of_memory,
    "worker SIGSTOP": hang,
}
