"""Faults from within: what strikes a worker or a trial, at which moment, and a count of its steps.

The product has no hooks for this. A sabotaged loop goes to the workers in the place of Thaw's, puts
itself between its parts, and calls it.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch

Act = Literal["kill", "exit 137", "stop", "hang", "raise", "nan", ""]
Moment = Literal["start", "batch", "step", "evaluation", "checkpoint"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One fault; JSON-safe, as it goes to a driver by its environment."""

    journal: str
    """A local folder: the steps taken and the strikes done are noted there, by all processes."""
    act: Act = ""
    """Empty: nothing happens, steps are only counted."""
    moment: Moment = "step"
    step: int = 0
    """Optimizer steps taken before the moment; for a checkpoint its own."""
    rank: int = 0
    times: int = 1
    """Strikes in all: whoever is restarted meets the same fault again."""
    pause_s: float = 0.0
    """Rest after each step: a training that is to be struck from outside must last."""
    point: tuple[float, float | None] | None = None
    """Learning rate and clipnorm of the trial that is struck."""


def plan_of(folder: Path, **values: Any) -> Plan:
    return Plan(journal=str(folder / "journal"), **values)


def counting(plan: Plan) -> Plan:
    """The same plan without a fault, for the second session."""
    return replace(plan, act="", pause_s=0.0)


def steps_taken(journal: str | Path) -> list[tuple[str, int, int]]:
    """Every step that was taken, in order: its run's folder, its number, the number of workers."""
    file = Path(journal) / "steps"
    lines = file.read_text().splitlines() if file.exists() else []
    parts = (line.rsplit(" ", 2) for line in lines)
    return [(run, int(step), int(world_size)) for run, step, world_size in parts]


def struck(journal: str | Path) -> list[int]:
    """The processes that the fault struck."""
    return [int(mark.read_text()) for mark in sorted(Path(journal).glob("struck-*"))]


def sabotaged_loop(plan: Plan) -> Callable[[dict[str, Any]], None]:
    """Return a replacement of `train_loop_per_worker` of trainers.launch."""

    def train_loop_per_worker(arguments: dict[str, Any]) -> None:
        import ray.train

        from tests.chaos.sabotage import sabotaged
        from trainers.loop import loop

        context = ray.train.get_context()
        rank, world_size = context.get_world_rank(), context.get_world_size()
        with sabotaged(plan, arguments["config"]["out"], rank, world_size):
            loop.train_loop_per_worker(arguments)

    return train_loop_per_worker


def sabotaged_trial(plan: Plan) -> Callable[..., None]:
    """Return a replacement of `train_trial` of tuning.trial."""

    def train_trial(config: Any, *arguments: Any, **options: Any) -> None:
        from tests.chaos.sabotage import only_for, sabotaged
        from tuning import trial

        with sabotaged(only_for(plan, config), config.out):
            trial.train_trial(config, *arguments, **options)

    return train_trial


def only_for(plan: Plan, config: Any) -> Plan:
    """Return a plan that strikes only the trial it names; it counts the steps of the others."""
    named = plan.point == (config.optim.learning_rate, config.optim.clipnorm)
    return plan if named else replace(plan, act="")


@contextmanager
def sabotaged(plan: Plan, run: str, rank: int = 0, world_size: int = 1) -> Iterator[None]:
    """Strike this process while the body trains, and note each step it took."""
    from cluster.io import storage
    from trainers.feed import Feed
    from trainers.loop import training, validation

    meets = plan.act and plan.rank == rank
    strike = partial(_strike, plan) if meets else lambda *_: None
    take_step, next_batch = training.Training._take_step, Feed.next
    eval_step, write_local = validation.eval_step, storage._write_local

    def take_step_and_note(self: Any, step: int, phase: Any) -> Any:
        if plan.moment == "step" and step == plan.step:
            strike(self)
        metrics = take_step(self, step, phase)
        if rank == 0:
            with (Path(plan.journal) / "steps").open("a") as steps:
                steps.write(f"{run} {step} {world_size}\n")
        time.sleep(plan.pause_s)
        return metrics

    def next_batch_and_strike(self: Any) -> Any:
        batch = next_batch(self)
        if plan.moment == "batch":
            strike()
        return batch

    def eval_step_and_strike(*arguments: Any, **options: Any) -> Any:
        if plan.moment == "evaluation":
            strike()
        return eval_step(*arguments, **options)

    def write_half(path: str, content: bytes) -> None:
        if plan.moment == "checkpoint" and path.endswith(f"{plan.step:08d}/training.pt"):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_bytes(content[: len(content) // 2])
            strike()
        write_local(path, content)

    with ExitStack() as stack:
        for owner, name, ours in (
            (training.Training, "_take_step", take_step_and_note),
            (Feed, "next", next_batch_and_strike),
            (validation, "eval_step", eval_step_and_strike),
            (storage, "_write_local", write_half),
        ):
            stack.enter_context(patch.object(owner, name, ours))
        if plan.moment == "start":
            strike()
        yield


def _strike(plan: Plan, training: Any = None) -> None:
    """Strike, unless it was done often enough: by this process or the one before it."""
    if not _claim(plan):
        return
    match plan.act:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit 137":
            os._exit(137)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "hang":
            threading.Event().wait()
        case "raise":
            raise RuntimeError("chaos: this trial raises")
        case "nan":
            with torch.no_grad():
                next(training._state.model.parameters()).fill_(torch.nan)


def _claim(plan: Plan) -> bool:
    for number in range(plan.times):
        try:
            with (Path(plan.journal) / f"struck-{number}").open("x") as mark:
                mark.write(str(os.getpid()))
        except FileExistsError:
            continue
        return True
    return False
