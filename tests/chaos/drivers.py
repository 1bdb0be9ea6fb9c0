"""Drivers that die, start twice or lose W&B's service, and how many failures a run survives before
it gives up."""

import os
import signal

from tests.chaos.arena import Arena
from tests.chaos.checks import (
    INTERVAL,
    NUM_STEPS,
    STEPS_PER_EPOCH,
    count_lost,
    ensure,
    ensure_same,
    wait_until,
)
from tests.chaos.outcomes import Outcome
from tests.chaos.processes import descendants, find_by_name
from tests.chaos.sabotage import counting, plan_of, steps_taken, struck
from tests.support.small import living_workers
from tests.support.wandb.files import read_history
from trainers.run.rows import read_rows

BUDGET = 2


def end_driver(arena: Arena, name: str, by: signal.Signals) -> Outcome:
    """End a driver in mid-epoch, and give the same command again."""
    folder = arena.new_run(name)
    step = arena.draw_step(name)
    plan = plan_of(folder, pause_s=0.3)
    run = folder / "run"
    command = [*arena.command(run), "--wandb", "offline"]
    first = arena.start(command, plan, log=folder / "first.log")
    first.wait_until(lambda: len(steps_taken(plan.journal)) >= step, f"step {step}")
    known_steps = [row["global_step"] for row in read_rows(str(run))]
    first.process.send_signal(by)
    code = first.wait()
    seen = ""
    if by == signal.SIGTERM:
        ensure(code == 128 + by, f"exit code {code}: {first.tail()}")
        (offline,) = (run / "wandb").glob("offline-run-*")
        kept = [row["global_step"] for row in read_history(offline) if "train/loss" in row]
        # Workers train on while the driver leaves; the next session logs that to W&B.
        ensure(kept[: len(known_steps)] == known_steps, f"W&B has {kept} of rows {known_steps}")
        seen = f"exit code {code}; W&B has all {len(known_steps)} rows that were there"
    arena.start(command, counting(plan), log=folder / "second.log").succeed()
    ensure_same(run, arena.straight())
    lost = count_lost(folder / "journal", at_most=2 * INTERVAL)
    injected = f"{by.name} after step {step}, then the same command"
    return Outcome(fault=name, injected=injected, survived=True, lost=lost, seen=seen)


def kill_driver(arena: Arena, name: str) -> Outcome:
    return end_driver(arena, name, signal.SIGKILL)


def terminate_driver(arena: Arena, name: str) -> Outcome:
    return end_driver(arena, name, signal.SIGTERM)


def start_twice(arena: Arena, name: str) -> Outcome:
    """Give a command that runs a second time; then kill the first driver, and give it again."""
    folder = arena.new_run(name)
    step = arena.draw_step(name)
    plan = plan_of(folder, pause_s=1.0)
    command = arena.command(folder / "run")
    first = arena.start(command, plan, log=folder / "first.log")
    first.wait_until(lambda: len(steps_taken(plan.journal)) >= STEPS_PER_EPOCH, "an epoch")
    seen = arena.start(command, counting(plan), log=folder / "second.log").sentence()
    ensure(f"process {first.process.pid} on" in seen and "writes there since" in seen, seen)
    first.wait_until(lambda: len(steps_taken(plan.journal)) >= step, f"step {step}")
    first.process.kill()
    first.wait()
    arena.start(command, counting(plan), log=folder / "third.log").succeed()
    ensure_same(folder / "run", arena.straight())
    lost = count_lost(folder / "journal", at_most=2 * INTERVAL)
    injected = "the same command twice; SIGKILL of the first driver, then the command again"
    return Outcome(fault=name, injected=injected, survived=True, lost=lost, seen=seen)


def spend_budget(arena: Arena, name: str, num_failures: int) -> Outcome:
    """Kill workers at one step again and again, with a budget of `BUDGET` failures."""
    folder = arena.new_run(name)
    step = arena.draw_step(name)
    plan = plan_of(folder, act="kill", step=step, times=num_failures, rank=1)
    command = arena.command(folder / "run", "--max-failures", str(BUDGET))
    driver = arena.start(command, plan, log=folder / "first.log")
    injected = f"{num_failures} kills before step {step + 1}, max_failures = {BUDGET}"
    if num_failures <= BUDGET:
        driver.succeed()
        ensure(len(struck(plan.journal)) == num_failures, "not every fault happened")
        seen = "all survived"
    else:
        seen = driver.sentence()
        ensure(f"cluster.max_failures is {BUDGET}" in seen, f"it says {seen!r}")
        ensure(len(struck(plan.journal)) == BUDGET + 1, f"struck {struck(plan.journal)}")
        ensure(len(steps_taken(plan.journal)) < NUM_STEPS, "it went on")
        wait_until(lambda: not living_workers(), "the end of the workers", timeout_s=30)
        arena.start(command, counting(plan), log=folder / "second.log").succeed()
    ensure_same(folder / "run", arena.straight())
    lost = count_lost(folder / "journal", at_most=2 * INTERVAL * num_failures)
    return Outcome(fault=name, injected=injected, survived=True, lost=lost, seen=seen)


def keep_budget(arena: Arena, name: str) -> Outcome:
    return spend_budget(arena, name, BUDGET)


def exceed_budget(arena: Arena, name: str) -> Outcome:
    return spend_budget(arena, name, BUDGET + 1)


def kill_wandb(arena: Arena, name: str) -> Outcome:
    """Kill wandb-core, which the driver has started, as the kernel does where memory is short."""
    folder, straight = arena.new_run(name), arena.straight(shared=False)
    step = arena.draw_step(name)
    plan, run = plan_of(folder, pause_s=0.3), folder / "run"
    command = [*arena.command(run), "--wandb", "offline"]
    driver = arena.start(command, plan, log=folder / "log", shared=False)

    def find_core() -> list[int]:
        return find_by_name(descendants(driver.process.pid), "wandb-core")

    driver.wait_until(
        lambda: len(steps_taken(plan.journal)) >= step and find_core(), f"step {step}"
    )
    for pid in find_core():
        os.kill(pid, signal.SIGKILL)
    driver.succeed()
    ensure("Traceback" not in driver.printed, f"a traceback: {driver.tail()}")
    ensure("W&B's service process died" in driver.printed, f"it does not say so: {driver.tail()}")
    ensure_same(run, straight)
    (offline,) = (run / "wandb").glob("offline-run-*")
    rows = [row["global_step"] for row in read_rows(str(run))]
    logged = [row["global_step"] for row in read_history(offline) if "train/loss" in row]
    ensure(logged == rows, f"W&B has {logged} of rows {rows}")
    return Outcome(
        fault=name,
        injected=f"SIGKILL of wandb-core after step {step}",
        survived=True,
        lost=count_lost(folder / "journal", at_most=0),
        seen=f"W&B has all {len(rows)} rows in one offline run",
    )


FAULTS = {
    "driver SIGKILL": kill_driver,
    "driver SIGTERM": terminate_driver,
    "two drivers, one folder": start_twice,
    "failure budget kept": keep_budget,
    "failure budget exceeded": exceed_budget,
    "W&B's service SIGKILL": kill_wandb,
}
