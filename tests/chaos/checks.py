"""What a run must look like after a fault, and what it cost."""

from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch

from tests.chaos.sabotage import steps_taken
from tests.support.waiting import comes
from trainers.run import checkpoint
from trainers.run.rows import read_rows

NUM_STEPS, STEPS_PER_EPOCH, INTERVAL = 18, 6, 4
"""Of every training here: 3 epochs of 6 batches of 8; each epoch's end is a checkpoint as well."""
PAUSE_S = 0.1
"""After each step of a run that is struck from within: a checkpoint is written meanwhile."""
TIMEOUT_S = 240


class Unfit(AssertionError):
    """What a fault left behind is not what it must be."""


def ensure(condition: object, why: str) -> None:
    if not condition:
        raise Unfit(why)


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
    ensure(comes(condition, timeout_s), f"{what} never came")


def ensure_same(run: str | Path, straight: str, *, rel: float = 0.0) -> None:
    """Check that a run ended as the straight one did: losses, validation and weights, bit by bit
    unless `rel` allows for another order of summation."""
    rows, expected = read_rows(str(run)), read_rows(straight)
    steps = [row["global_step"] for row in rows]
    ensure(steps == [row["global_step"] for row in expected], f"rows of steps {steps}")
    for name in ("train/loss", "val/loss"):
        ours, theirs = ([row[name] for row in each if name in row] for each in (rows, expected))
        ensure(len(ours) == len(theirs), f"{len(ours)} of {len(theirs)} {name}")
        for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            ensure(abs(a - b) <= rel * abs(b), f"{name} {step}: {a} instead of {b}")
    if rel == 0:
        last = f"{checkpoint.folder(str(run), NUM_STEPS)}/model.safetensors"
        weights = safetensors.torch.load_file(last)
        for name, tensor in safetensors.torch.load_file(
            f"{checkpoint.folder(straight, NUM_STEPS)}/model.safetensors"
        ).items():
            ensure(torch.equal(tensor, weights[name]), f"{name} differs")


def count_lost(journal: Path, *, at_most: int, total: int = NUM_STEPS) -> str:
    """Say how many steps were taken twice, and check that there are no more than may be."""
    taken = steps_taken(journal)
    steps = {step for _, step, _ in taken}
    ensure(steps == set(range(total)), f"steps {sorted(steps)} were taken")
    lost = len(taken) - total
    ensure(lost <= at_most, f"{lost} steps were taken twice, {at_most} may be")
    return f"{lost} of {total} steps"
