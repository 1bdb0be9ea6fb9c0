"""Checkpoints: everything a resume needs, whole or not there.

    RUN/checkpoints/epoch-00003/model.safetensors, optimizer.pt
                                progress.json    written last, with size and SHA-256 of the others

A folder without a fitting progress.json is not a checkpoint; a damaged one is passed over for the
one before it, with a warning. Ours rather than Ray Train's, so that trials inside a Tune process
and DDP runs share one format and one rule: the run folder alone resumes, under any driver.
"""

import hashlib
import io
import json
import logging
from dataclasses import asdict, dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import nn
from torch.optim import Optimizer

from datasets import storage

logger = logging.getLogger(__name__)

MODEL, OPTIMIZER, PROGRESS = "model.safetensors", "optimizer.pt", "progress.json"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run has come, and what it found."""

    epoch: int = 0
    """Epochs finished."""
    global_step: int = 0
    """Optimizer steps taken."""
    val_top1: float = -1.0
    """val/top1 at this point."""
    best_val_top1: float = -1.0
    best_epoch: int = 0
    total_s: float = 0.0
    """Seconds of training, over all sittings."""
    classes: tuple[str, ...] = ()
    fingerprint: str = ""
    """Of the data set it was trained on."""
    row: dict[str, Any] = field(default_factory=dict)
    """What was measured in the last epoch, in case the process dies before it is tracked."""
    files: dict[str, dict[str, str | int]] = field(default_factory=dict)
    """Size and SHA-256 of the files beside it."""


def folder(run: str, epoch: int) -> str:
    """URI of the checkpoint after `epoch` epochs."""
    return storage.join(run, "checkpoints", f"epoch-{epoch:05d}")


def save(run: str, model: nn.Module, optimizer: Optimizer, progress: Progress) -> None:
    """Write a checkpoint, then drop all but it, the one before and the best."""
    state = io.BytesIO()
    torch.save(optimizer.state_dict(), state)
    contents = {
        MODEL: safetensors.torch.save({k: v.contiguous() for k, v in model.state_dict().items()}),
        OPTIMIZER: state.getvalue(),
    }
    files = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    target = folder(run, progress.epoch)
    for name, content in contents.items():
        storage.write_bytes(storage.join(target, name), content)
    text = json.dumps({**asdict(progress), "files": files}, indent=1)
    storage.write_bytes(storage.join(target, PROGRESS), text.encode())
    for epoch in _epochs(run):
        if epoch not in (progress.epoch, progress.epoch - 1, progress.best_epoch):
            storage.delete_folder(folder(run, epoch))


def find_latest(run: str) -> int | None:
    """Return the epoch of the newest undamaged checkpoint; None where there is none."""
    return next((epoch for epoch in reversed(_epochs(run)) if _read(run, epoch)), None)


def restore(run: str, epoch: int, model: nn.Module, optimizer: Optimizer) -> Progress:
    """Load the checkpoint after `epoch` epochs.

    Raises:
        FileNotFoundError: where this process doesn't see it whole.
    """
    found = _read(run, epoch)
    if found is None:
        raise FileNotFoundError(f"{folder(run, epoch)} is not whole as seen from this node")
    progress, contents = found
    model.load_state_dict(safetensors.torch.load(contents[MODEL]))
    optimizer.load_state_dict(
        torch.load(io.BytesIO(contents[OPTIMIZER]), weights_only=True, map_location="cpu")
    )
    return progress


def latest_progress(run: str) -> Progress | None:
    """How far the newest checkpoint had come, without loading it; None where there is none."""
    known = (read_progress(run, epoch) for epoch in reversed(_epochs(run)))
    return next((progress for progress in known if progress is not None), None)


def load_best(run: str) -> tuple[Progress, dict[str, torch.Tensor]]:
    """Return progress and weights of the checkpoint with the highest val/top1.

    Raises:
        ValueError: where the run has no undamaged checkpoint.
    """
    whole = [progress for epoch in _epochs(run) if (progress := read_progress(run, epoch))]
    for best in sorted(whole, key=lambda progress: (-progress.val_top1, progress.epoch)):
        if (found := _read(run, best.epoch)) is not None:
            return found[0], safetensors.torch.load(found[1][MODEL])
    raise ValueError(f"run is {run!r}: it has no whole checkpoint; train it first")


def read_progress(run: str, epoch: int) -> Progress | None:
    """Read how far a checkpoint had come; None where its folder is not a whole checkpoint."""
    try:
        values = json.loads(storage.read_bytes(storage.join(folder(run, epoch), PROGRESS)))
        return Progress(**{**values, "classes": tuple(values["classes"])})
    except FileNotFoundError:
        return None  # the process was killed while it wrote this folder
    except (ValueError, TypeError, KeyError) as error:
        logger.warning("%s is damaged (%s): passed over", folder(run, epoch), error)
        return None


def _read(run: str, epoch: int) -> tuple[Progress, dict[str, bytes]] | None:
    progress = read_progress(run, epoch)
    if progress is None:
        return None
    contents: dict[str, bytes] = {}
    for name, facts in progress.files.items():
        try:
            contents[name] = storage.read_bytes(storage.join(folder(run, epoch), name))
        except FileNotFoundError:
            contents[name] = b""
        if hashlib.sha256(contents[name]).hexdigest() != facts["sha256"]:
            logger.warning("%s/%s is damaged: passed over", folder(run, epoch), name)
            return None
    return progress, contents


def _epochs(run: str) -> list[int]:
    names = storage.list_names(storage.join(run, "checkpoints"))
    return sorted(int(name.removeprefix("epoch-")) for name in names if name.startswith("epoch-"))
