"""Recorded results: a trial is copied where the same training has run before.

CACHE/results/KEY/ID.json   a run and its epochs; KEY hashes all that decides its losses but
                            for the clipnorm

Two trials that differ only in the clipnorm are the same training as long as `clip/peak_norm`, the
largest norm of a tensor's gradient so far, is below either threshold. A copy has the rows,
checkpoints, predictions and result of its origin, names it in `copied_from.json`, and continues
from there where its origin was stopped early.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from typing import Any

from cluster.io import storage
from cluster.io.fields import check_text
from cluster.io.markers import NOT_IN_KEY, leave_out, marked
from cluster.io.records import read_record
from cluster.io.uris import name_of
from trainers.config import FinetuneConfig
from trainers.networks.freezing import adapter_rank, count_frozen, is_head_only
from trainers.run import checkpoint
from trainers.run import predictions as val_predictions
from trainers.run.checkpoint import TrainingProgress, prefix_uri
from trainers.run.folder import find_result, is_over, read_config

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
COPIED = "copied_from.json"


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A run that was recorded."""

    run: str
    num_epochs: int
    clipnorm: float | None
    peak_norm: float
    """Largest norm of a tensor's gradient, before clipping."""
    sha256: str
    """Of its weights: another run may have replaced it in its folder."""

    def __post_init__(self) -> None:
        check_text(self.run, "run")

    def equals(self, clipnorm: float | None) -> bool:
        """Whether a training with this clipnorm takes the same steps."""
        if clipnorm == self.clipnorm:
            return True
        thresholds = (t for t in (clipnorm, self.clipnorm) if t is not None)
        return all(self.peak_norm <= threshold for threshold in thresholds)


def result_key(config: FinetuneConfig, *, fingerprint: str, start_hash: str) -> str:
    """Hash all that decides the losses of a training, but for its clipnorm.

    Args:
        fingerprint: of the data set.
        start_hash: of the tensors it starts from.
    """
    facts = leave_out(config.to_dict(), marked(FinetuneConfig, NOT_IN_KEY))
    if not config.model.drop_path:  # a field that keys of earlier versions lack
        facts["model"].pop("drop_path")
    if adapter_rank(config.model.freeze_depth) is None:
        facts["model"]["freeze_depth"] = count_frozen(config.model)
    if is_head_only(config.model):  # no batch statistics, which are of each worker's own images
        facts["cluster"]["num_workers"] = None
        facts["model"]["freeze_depth"] = "all"
    facts |= {"data": fingerprint, "start": start_hash, "format": FORMAT_VERSION}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def record(folder: str, run: str) -> None:
    """Record a run, finished or stopped early, below CACHE/results/KEY."""
    progress = checkpoint.latest_progress(run)
    if progress is None or not progress.epoch:
        return
    known = RecordedRun(
        run=run,
        num_epochs=progress.epoch,
        clipnorm=read_config(run).optim.clipnorm,
        peak_norm=progress.peak_norm,
        sha256=_weights_hash(progress),
    )
    name = hashlib.sha256(run.encode()).hexdigest()[:16]
    text = json.dumps(vars(known), indent=1).encode()
    storage.write_bytes(storage.join(folder, f"{name}.json"), text)


def find_known(folder: str, config: FinetuneConfig) -> RecordedRun | None:
    """Return the longest recorded run of the same training; None without one.

    A run that has been deleted or changed since is skipped.
    """
    known: list[RecordedRun] = []
    for name in storage.list_names(folder):
        try:
            candidate = read_record(storage.join(folder, name), RecordedRun)
        except ValueError as error:
            logger.warning("%s: skipped", error)
            continue
        if candidate.run != config.out and candidate.equals(config.optim.clipnorm):
            known.append(candidate)
    for candidate in sorted(known, key=lambda k: -k.num_epochs):
        progress = checkpoint.latest_progress(candidate.run)
        if progress is not None and _weights_hash(progress) == candidate.sha256:
            return candidate
    return None


def _weights_hash(progress: TrainingProgress) -> str:
    return str(progress.files[checkpoint.MODEL]["sha256"])


def copy_run(known: RecordedRun, config: FinetuneConfig) -> None:
    """Copy a recorded run into the run folder of `config`."""
    run, target = known.run, config.out
    folders = [f"checkpoints/{name}" for name in storage.list_names(f"{run}/checkpoints")]
    for folder in (*folders, val_predictions.FOLDER):
        source, beside = (storage.join(of, folder) for of in (run, target))
        for file in storage.list_names(source):
            copy_file(storage.join(source, file), storage.join(beside, file))
    progress = checkpoint.latest_progress(run)
    if progress is not None and progress.prefix is not None:
        copy_file(prefix_uri(run, progress.prefix), prefix_uri(target, progress.prefix))
    _write(target, "config.json", config.to_dict())
    _write(target, COPIED, vars(known))
    if is_over(run):
        result = find_result(run)
        assert result is not None, "it is over"
        if (best := result["checkpoint"]) is not None:
            result["checkpoint"] = storage.join(target, "checkpoints", name_of(best))
        _write(target, "result.json", result)
    # Last: a trial without rows has not begun, and is copied again.
    copy_file(storage.join(run, "metrics.jsonl"), storage.join(target, "metrics.jsonl"))


def read_origin(run: str) -> RecordedRun | None:
    """Return the run that a trial was copied from; None for one that was trained."""
    try:
        return read_record(storage.join(run, COPIED), RecordedRun)
    except FileNotFoundError:
        return None


def copy_file(source: str, target: str) -> None:
    """Copy a file, whole or not at all."""
    storage.write_bytes(target, storage.read_bytes(source))


def _write(run: str, name: str, values: dict[str, Any]) -> None:
    storage.write_bytes(storage.join(run, name), json.dumps(values, indent=1).encode())
