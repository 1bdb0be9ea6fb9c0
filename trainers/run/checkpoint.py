"""Checkpoints: everything a resume needs, whole or absent.

    RUN/checkpoints/step-00000063/model.safetensors   the weights to use
                                  training.pt         what else a resume needs
                                  progress.json       written last, with size and SHA-256 of them

A folder without a valid progress.json is not a checkpoint. A damaged checkpoint is skipped with a
warning, and the one before it is used. Not Ray Train's format, so that trials inside a Tune process
and DDP runs share one: a resume needs only the run folder, under any driver.
"""

import hashlib
import json
import logging
import math
import re
from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter
from typing import Any, NamedTuple

from torch import Tensor

from cluster.io import fields, storage
from cluster.io.errors import UserError
from cluster.io.records import read_object
from cluster.io.uris import parent_of
from trainers.networks.transformers.lora import merge
from trainers.networks.weights.tensors import parse_safetensors

logger = logging.getLogger(__name__)

MODEL, PROGRESS = "model.safetensors", "progress.json"


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """How far a run has come."""

    epoch: int = 0
    """Epochs finished."""
    global_step: int = 0
    """Optimizer steps taken."""
    val_top1: float = -1.0
    """val/top1 after the last finished epoch; below zero where nothing was validated."""
    best_val_top1: float = -1.0
    best_epoch: int = 0
    best_step: int = 0
    """global_step at the end of that epoch."""
    total_s: float = 0.0
    """Seconds of training, across restarts."""
    classes: tuple[str, ...] = ()
    fingerprint: str = ""
    """Of the data set."""
    row: dict[str, Any] = field(default_factory=dict)
    """The last row of metrics, in case the process dies before it is written."""
    totals: dict[str, float] = field(default_factory=dict)
    """Sums of the epoch in progress over all ranks; empty between epochs."""
    peak_norm: float = 0.0
    """Largest norm of a tensor's gradient so far."""
    unreadable: tuple[str, ...] = ()
    """Names of the first unreadable images of the epoch in progress; `totals` counts them all."""
    prefix: str | None = None
    """Name of the file with the frozen tensors, which all trials of a sweep share: it is
    SWEEP/prefixes/NAME where the run is SWEEP/trials/RUN. None where model.safetensors has all."""
    files: dict[str, dict[str, str | int]] = field(default_factory=dict)
    """Size and SHA-256 of the files beside it."""

    def __post_init__(self) -> None:
        for name in (*self.files, *([] if self.prefix is None else [self.prefix])):
            storage.require_name("files or prefix", name)

    @property
    def is_between_epochs(self) -> bool:
        """Whether val/top1 was measured with these weights."""
        return not self.totals

    @property
    def trained_epoch(self) -> int:
        """The epoch, counted from 0, whose phase the optimizer belongs to."""
        return self.epoch - self.is_between_epochs

    @property
    def validated(self) -> bool:
        return self.val_top1 >= 0

    @property
    def sort_key(self) -> tuple[float, int]:
        """Larger is better: the higher val/top1, then the earlier epoch; the later epoch where
        nothing is validated."""
        return self.val_top1, -self.epoch if self.validated else self.epoch

    def after_epoch(
        self, *, global_step: int, val_top1: float | None, total_s: float, peak_norm: float
    ) -> "TrainingProgress":
        """Return the progress after one more epoch; an epoch without a val/top1 is the best."""
        epoch, better = self.epoch + 1, val_top1 is None or val_top1 > self.best_val_top1
        val_top1 = self.val_top1 if val_top1 is None else val_top1
        return replace(
            self,
            epoch=epoch,
            global_step=global_step,
            val_top1=val_top1,
            best_val_top1=val_top1 if better else self.best_val_top1,
            best_epoch=epoch if better else self.best_epoch,
            best_step=global_step if better else self.best_step,
            total_s=total_s,
            peak_norm=peak_norm,
            totals={},
            unreadable=(),
        )


class Checkpoint(NamedTuple):
    progress: TrainingProgress
    contents: dict[str, bytes]
    """Of the files beside progress.json."""


def folder(run: str, step: int) -> str:
    """URI of the checkpoint after `step` optimizer steps."""
    return storage.join(run, "checkpoints", f"step-{step:08d}")


def save(run: str, contents: dict[str, bytes], progress: TrainingProgress) -> None:
    """Write a checkpoint, then delete all others but the one before and the best."""
    files = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    target, before = folder(run, progress.global_step), _steps(run)
    for name, content in contents.items():
        storage.write_bytes(storage.join(target, name), content)
    text = json.dumps({**asdict(progress), "files": files}, indent=1)
    storage.write_bytes(storage.join(target, PROGRESS), text.encode())
    older = (step for step in reversed(before) if step < progress.global_step)
    fallback = next((step for step in older if read_progress(run, step)), None)
    kept = (progress.global_step, progress.best_step, fallback)
    for step in before:
        if step not in kept:
            storage.delete_folder(folder(run, step))


def read_latest(run: str) -> Checkpoint | None:
    """Read the newest undamaged checkpoint; None where there is none."""
    found = (_read(run, step) for step in reversed(_steps(run)))
    return next((checkpoint for checkpoint in found if checkpoint is not None), None)


def read(run: str, step: int) -> Checkpoint:
    """Read the checkpoint after `step` steps.

    Raises:
        UserError: where this process can't read all of it.
    """
    found = _read(run, step)
    if found is None:
        raise UserError(
            f"out is {run!r}: {folder(run, step)} is incomplete as seen from this node; use "
            "storage that all nodes share"
        )
    return found


def latest_progress(run: str) -> TrainingProgress | None:
    """Read the newest checkpoint's progress, not its weights; None where there is none."""
    known = (read_progress(run, step) for step in reversed(_steps(run)))
    return next((progress for progress in known if progress is not None), None)


def load_best(run: str) -> tuple[TrainingProgress, dict[str, Tensor]]:
    """Read progress and weights, adapters merged, of the checkpoint with the highest val/top1; of
    the latest where nothing was validated.

    Raises:
        UserError: where the run has no undamaged checkpoint.
    """
    known = [progress for step in _steps(run) if (progress := read_progress(run, step))]
    whole = [progress for progress in known if progress.is_between_epochs]
    for best in sorted(whole, key=attrgetter("sort_key"), reverse=True):
        if (found := _read(run, best.global_step)) is not None:
            return found.progress, _parse_weights(run, found)
    raise UserError(f"run is {run!r}: it has no whole checkpoint of an epoch; train it first")


def load(run: str, step: int) -> tuple[TrainingProgress, dict[str, Tensor]]:
    """Read progress and weights, adapters merged, of the checkpoint after `step` steps.

    Raises:
        UserError: where this process can't read all of it.
    """
    found = read(run, step)
    return found.progress, _parse_weights(run, found)


def _parse_weights(run: str, found: Checkpoint) -> dict[str, Tensor]:
    file = storage.join(folder(run, found.progress.global_step), MODEL)
    weights = merge(parse_safetensors(found.contents[MODEL], file))
    return weights | (read_prefix(run, found.progress) or {})


def prefix_uri(run: str, name: str) -> str:
    """Return the URI of a trial's frozen tensors."""
    return storage.join(parent_of(parent_of(run)), "prefixes", name)


def read_prefix(run: str, progress: TrainingProgress) -> dict[str, Tensor] | None:
    """Read the frozen tensors that are not in a checkpoint; None where all are.

    Raises:
        UserError: where the file was deleted.
    """
    if progress.prefix is None:
        return None
    uri = prefix_uri(run, progress.prefix)
    try:
        return parse_safetensors(storage.read_bytes(uri), uri)
    except FileNotFoundError:
        raise UserError(
            f"run is {run!r}: {uri} is missing, which holds the frozen tensors of the sweep's "
            "trials; move a sweep as a whole, or `python -m trainers export` a trial"
        ) from None


def read_progress(run: str, step: int) -> TrainingProgress | None:
    """Read a checkpoint's progress; None where the folder is incomplete or damaged."""
    try:
        values = read_object(storage.join(folder(run, step), PROGRESS))
        unknown = {"peak_norm": math.inf}  # not measured by an older Thaw
        if "losses" in values:  # its name in an older Thaw
            values["unreadable"] = values.pop("losses")
        progress = fields.build(TrainingProgress, unknown | values)
    except FileNotFoundError:
        return None  # the process was killed while writing the folder
    except ValueError as error:
        logger.warning("%s is damaged (%s): skipped", folder(run, step), error)
        return None
    if progress.global_step != step:
        logger.warning("%s is that of step %d: skipped", folder(run, step), step)
        return None
    return progress


def _read(run: str, step: int) -> Checkpoint | None:
    progress = read_progress(run, step)
    if progress is None:
        return None
    contents: dict[str, bytes] = {}
    for name, facts in progress.files.items():
        try:
            contents[name] = storage.read_bytes(storage.join(folder(run, step), name))
        except FileNotFoundError:
            contents[name] = b""
        if hashlib.sha256(contents[name]).hexdigest() != facts.get("sha256"):
            logger.warning("%s/%s is damaged: skipped", folder(run, step), name)
            return None
    return Checkpoint(progress, contents)


def _steps(run: str) -> list[int]:
    names = storage.list_names(storage.join(run, "checkpoints"))
    return sorted(step for name in names if (step := step_of(name)) is not None)


def step_of(name: str) -> int | None:
    """Return the step in the name of a checkpoint's folder; None for another folder's."""
    found = re.fullmatch(r"step-(\d{8,18})", name, re.ASCII)
    return int(found[1]) if found else None
