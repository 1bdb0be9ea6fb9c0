"""Sweeps of eight trials: one of them is struck, or the driver dies between two of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.chaos.arena import Arena
from tests.chaos.checks import Unfit, ensure
from tests.chaos.outcomes import Outcome
from tests.chaos.sabotage import Plan, counting, plan_of, steps_taken, struck
from tests.chaos.workers import HANG_TIMEOUT_S
from trainers.run.rows import read_rows
from tuning.axes.axis import CLIPNORM, LEARNING_RATE
from tuning.record.results import FINISHED
from tuning.record.states import read_trials

RATES, CLIPNORMS = (3e-3, 1e-3, 3e-4, 1e-4), (None, 1.0)
NUM_TRIALS = len(RATES) * len(CLIPNORMS)
NUM_EPOCHS, STEPS_PER_EPOCH = 3, 6
NUM_STEPS = NUM_EPOCHS * STEPS_PER_EPOCH
Sweep = dict[tuple[float, float | None], dict[str, Any]]
"""A leaderboard's rows by point."""


def command(arena: Arena, out: Path, *more: str) -> list[str]:
    """Each trial in a process, every one to its last epoch."""
    return [
        *("tuning", "transfer", "--data", arena.data, "--out", str(out), "--backbone", "lenet5"),
        *(
            "--inits",
            "he",
            "--freeze-depths",
            "0",
            "--learning-rates",
            *map(str, RATES),
            "--clipnorms",
            "none",
            "1.0",
        ),
        *("--search", "grid", "--epochs", str(NUM_EPOCHS), "--grace-epochs", str(NUM_EPOCHS)),
        *("--global-batch-size", "8", "--size-px", "32", "--policy", "light", "--no-share"),
        *("--num-workers", "0", "--wandb", "off", *more),
    ]


def run_sweep(arena: Arena, folder: Path, plan: Plan, *more: str) -> str:
    """Run a sweep to its end; return what it printed."""
    driver = arena.start(
        command(arena, folder / "sweep", *more), plan, log=folder / "sweep.log", shared=False
    )
    driver.succeed()
    return driver.printed


def read_sweep(folder: Path) -> Sweep:
    """Read a leaderboard; a point that is missing or occurs twice is a mistake."""
    board = json.loads((folder / "sweep" / "leaderboard.json").read_text())
    rows = {(row[LEARNING_RATE], row[CLIPNORM]): row for row in board["trials"]}
    ensure(len(board["trials"]) == len(rows) == NUM_TRIALS, f"{len(board['trials'])} trials")
    return rows


def straight_sweep(arena: Arena) -> Sweep:
    """The same sweep, undisturbed."""
    folder = arena.folder / "straight-sweep"
    if not (folder / "sweep" / "leaderboard.json").exists():
        folder = arena.new_run("straight-sweep")
        run_sweep(arena, folder, plan_of(folder))
    return read_sweep(folder)


def measured(run: str) -> list[tuple[float, ...]]:
    """What a trial has measured, epoch by epoch, bit by bit."""
    return [
        (row["global_step"], row["train/loss"], row.get("val/loss", -1.0)) for row in read_rows(run)
    ]


def ensure_others_right(arena: Arena, found: Sweep, *, but: object = None) -> None:
    for point, row in straight_sweep(arena).items():
        if point == but:
            continue
        ensure(found[point]["state"] == FINISHED, f"{point} is {found[point]['state']}")
        ensure(measured(found[point]["run"]) == measured(row["run"]), f"{point} differs")


def finished_trials(out: Path) -> list[str]:
    """Ids of the trials of a sweep that have ended."""
    known = read_trials(str(out))
    return [trial.trial_id for trial in known.trials if trial.state == FINISHED] if known else []


def count_twice(journal: Path) -> int:
    """Steps taken twice, over all trials."""
    taken = steps_taken(journal)
    return len(taken) - len({(run, step) for run, step, _ in taken})


def strike_trial(
    arena: Arena,
    name: str,
    act: Any,
    check: Callable[[dict[str, Any], str], str],
    *more: str,
    times: int = 1,
) -> Outcome:
    """Strike one trial of eight; `check` looks at its row and what was printed."""
    straight_sweep(arena)
    dice, folder = arena.draw(name), arena.new_run(name)
    point = dice.choice([(rate, clipnorm) for rate in RATES for clipnorm in CLIPNORMS])
    step = dice.randrange(STEPS_PER_EPOCH + 1, NUM_STEPS)
    plan = plan_of(folder, act=act, step=step, times=times, point=point)
    printed = run_sweep(arena, folder, plan, *more)
    ensure(struck(plan.journal), "the fault did not happen")
    found = read_sweep(folder)
    seen = check(found[point], printed)
    ensure_others_right(arena, found, but=None if act in ("kill", "hang") else point)
    lost = count_twice(folder / "journal")
    return Outcome(
        fault=name,
        injected=f"{act} before step {step + 1} of the trial lr={point[0]:g} clip={point[1]}",
        survived=True,
        lost=f"{lost} of {NUM_TRIALS * NUM_STEPS} steps; no other trial",
        seen=seen,
    )


def let_trial_raise(arena: Arena, name: str) -> Outcome:
    """Tried again once, as `max_failures` of a sweep says, and then given up."""

    def check(row: dict[str, Any], printed: str) -> str:
        ensure(row["state"] == "failed", f"it is {row['state']}")
        ensure("chaos: this trial raises" in printed, "its reason is not printed")
        return "failed with its reason, 7 right"

    return strike_trial(arena, name, "raise", check, times=9)


def let_trial_diverge(arena: Arena, name: str) -> Outcome:
    def check(row: dict[str, Any], printed: str) -> str:
        ensure(row["state"] == "failed", f"it is {row['state']}")
        ensure("gradients are not finite from step" in printed, "its reason is not printed")
        return "failed with the step named, 7 right"

    return strike_trial(arena, name, "nan", check)


def kill_trial(arena: Arena, name: str) -> Outcome:
    def check(row: dict[str, Any], printed: str) -> str:
        return "tried again from its checkpoint, 8 right"

    return strike_trial(arena, name, "kill", check)


def let_trial_hang(arena: Arena, name: str) -> Outcome:
    def check(row: dict[str, Any], printed: str) -> str:
        return f"noticed by hang_timeout_s = {HANG_TIMEOUT_S:.0f}, tried again, 8 right"

    return strike_trial(arena, name, "hang", check, "--hang-timeout-s", str(HANG_TIMEOUT_S))


def kill_sweep_driver(arena: Arena, name: str) -> Outcome:
    straight_sweep(arena)
    folder = arena.new_run(name)
    num_before = arena.draw(name).randrange(2, NUM_TRIALS - 2)
    plan, out = plan_of(folder, pause_s=0.05), folder / "sweep"
    driver = arena.start(command(arena, out), plan, log=folder / "first.log", shared=False)
    driver.wait_until(lambda: len(finished_trials(out)) >= num_before, f"trial {num_before}")
    driver.kill_all()
    before, num_taken = finished_trials(out), len(steps_taken(plan.journal))
    printed = run_sweep(arena, folder, counting(plan))
    ensure("resuming" in printed, "it did not resume")
    found = read_sweep(folder)
    ensure_others_right(arena, found)
    ids = [row["trial_id"] for row in found.values()]
    ensure(len(set(ids)) == NUM_TRIALS and set(before) <= set(ids), f"trials {ids}")
    again = [run for run, _, _ in steps_taken(plan.journal)[num_taken:]]
    twice = [trial for trial in before if any(run.endswith(trial) for run in again)]
    if twice:
        raise Unfit(f"{len(twice)} trials that had ended were trained again")
    lost = count_twice(folder / "journal")
    return Outcome(
        fault=name,
        injected=f"SIGKILL of driver and cluster after {len(before)} of {NUM_TRIALS} trials, "
        "then the same command",
        survived=True,
        lost=f"{lost} of {NUM_TRIALS * NUM_STEPS} steps; none of {len(before)} trials",
        seen=f"{NUM_TRIALS} trials, each once",
    )


FAULTS = {
    "trial of 8 that raises": let_trial_raise,
    "trial of 8 that turns NaN": let_trial_diverge,
    "trial of 8 SIGKILLed": kill_trial,
    "trial of 8 that hangs": let_trial_hang,
    "sweep driver SIGKILL": kill_sweep_driver,
}
