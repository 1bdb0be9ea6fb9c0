"""The run folder: config.json at its start, result.json at its end, and which run may resume."""

import json
from textwrap import shorten
from typing import Any

from torch import Tensor, nn

from cluster.io import storage
from cluster.io.errors import UserError, require
from cluster.io.markers import RESUMABLE, RUN_RESUMABLE, flatten, marked
from cluster.io.records import damaged, read_object
from cluster.io.uris import name_of
from datasets.manifest import Manifest
from trainers import metrics
from trainers.config import FinetuneConfig
from trainers.networks.backbones import build
from trainers.networks.weights.tensors import load_weights
from trainers.run import checkpoint
from trainers.run.checkpoint import TrainingProgress
from trainers.run.ensemble import Ensemble, read_ensemble

_RESULT: dict[str, Any] = {
    "epochs": int,
    "global_step": int,
    "best_epoch": int,
    metrics.VAL_TOP1: float | None,
    metrics.VAL_BEST_TOP1: float | None,
    metrics.TOTAL_S: float,
    "checkpoint": str | None,
    "diverged": str | None,
    "lost": str | None,
}

_OTHERS = {"base": "a sweep", "exported_by": "an export"}
"""A key of config.json in the folders of other commands, and what they are."""

SETTLED_LATER = {"compute.precision": "auto"}
"""Values in the config.json of an older Thaw that say nothing yet."""


def read_result(run: str) -> dict[str, Any]:
    """Read the result of a run that has ended.

    Raises:
        UserError: where it has not ended, or stopped because gradients were not finite or too many
            images could not be read.
    """
    result = find_result(run)
    if result is None:
        raise UserError(f"run is {run!r}: it has not ended; run the same command again to resume")
    if (problem := result["diverged"] or result["lost"]) is not None:
        raise UserError(shorten(problem, 1000))
    return result


def read_config(run: str) -> FinetuneConfig:
    """Read the config a run was started with.

    Raises:
        UserError: where there is no run, or its config does not fit this version of Thaw.
    """
    return _read_config(
        run,
        "run",
        "give the --out of a training, or a training of a sweep: SWEEP/trials/ID, "
        "SWEEP/promoted/seed-0",
    )


def _read_config(run: str, field: str, remedy: str) -> FinetuneConfig:
    uri = storage.join(run, "config.json")
    try:
        values = read_object(uri)
    except FileNotFoundError:
        raise UserError(
            f"{field} is {run!r}: no run folder there (config.json is missing); {remedy}"
        ) from None
    for key, kind in _OTHERS.items():
        if key in values:
            raise UserError(
                f"{field} is {run!r}: the folder of {kind}, not of a training; {remedy}"
            )
    try:
        return FinetuneConfig.from_dict(values)
    except ValueError as error:
        raise damaged(uri, error) from None


def find_config(out: str) -> FinetuneConfig | None:
    """Read the config of a run that `out` may hold; None where it holds none.

    Raises:
        UserError: where another command wrote the folder, and as `read_config`.
    """
    exists = storage.exists(storage.join(out, "config.json"))
    return _read_config(out, "out", "use another --out") if exists else None


def load_best_model(
    run: str, *, ensembles: bool = False
) -> tuple[FinetuneConfig, TrainingProgress, nn.Module]:
    """Return a run's config, its best checkpoint's progress and network, in eval mode on the CPU.

    The best checkpoint has the highest val/top1; where nothing was validated, it is the latest.
    `TrainingProgress.classes` names the outputs.

    Args:
        ensembles: the network may be an Ensemble; `config` is that of its first member.

    Raises:
        UserError: where there is no run, or it has no undamaged checkpoint, or is an ensemble and
            may be none.
    """
    return _build_model(read_config(run), run, *checkpoint.load_best(run), ensembles)


def load_model(run: str, step: int) -> tuple[FinetuneConfig, TrainingProgress, nn.Module]:
    """Return the same of the checkpoint after `step` steps; the network may be an Ensemble.

    Raises:
        UserError: where there is no run, or this process can't read all of the checkpoint.
    """
    return _build_model(read_config(run), run, *checkpoint.load(run, step), ensembles=True)


def _build_model(
    config: FinetuneConfig,
    run: str,
    progress: TrainingProgress,
    weights: dict[str, Tensor],
    ensembles: bool,
) -> tuple[FinetuneConfig, TrainingProgress, nn.Module]:
    backbones = read_ensemble(run)
    if backbones is not None and not ensembles:
        raise UserError(
            f"run is {run!r}: an ensemble of {len(backbones)} networks, which has no stages; give "
            "the run folder of one network"
        )
    num_classes, size_px = len(progress.classes), config.ingest.size_px
    if backbones is None:
        model = build(config.model.backbone, num_classes, size_px)
    else:
        model = Ensemble([build(backbone, num_classes, size_px) for backbone in backbones])
    load_weights(model, weights, checkpoint.folder(run, progress.global_step))
    return config, progress, model.eval()


def require_same_run(
    config: FinetuneConfig,
    started: FinetuneConfig | None,
    manifest: Manifest,
    resume: TrainingProgress | None,
) -> None:
    """Check that a run folder holds no run of another config or data set.

    Args:
        started: of the run in the folder.
        resume: of its latest checkpoint.

    Raises:
        UserError: naming the first field that differs.
    """
    if started is not None:
        before, now = _fixed_fields(started), _fixed_fields(config)
        for field in before:
            require(
                before[field] in (now[field], SETTLED_LATER.get(field, now[field])),
                field,
                now[field],
                f"the run in {config.out} was started with {before[field]!r}; "
                "use the same value to resume it, or another --out",
            )
    if resume is not None and resume.fingerprint != manifest.fingerprint:
        raise UserError(
            f"data is {config.data!r}: it was prepared again since the run in {config.out} "
            "started, and is another data set now; use another --out"
        )


def write_config(config: FinetuneConfig) -> None:
    uri = storage.join(config.out, "config.json")
    storage.write_bytes(uri, json.dumps(config.to_dict(), indent=1).encode())


def remove_result(run: str) -> None:
    """Remove the result of a run that continues: it has not ended any more."""
    storage.delete_file(storage.join(run, "result.json"))


def find_finished(config: FinetuneConfig) -> dict[str, Any] | None:
    """Return result.json of a run that has all its epochs; None where epochs are left.

    Raises:
        UserError: where its gradients were not finite.
    """
    if is_over(config.out):
        result = read_result(config.out)
        if is_done(config, result["epochs"], result["best_epoch"]):
            return result
    return None


def is_done(config: FinetuneConfig, epoch: int, best_epoch: int) -> bool:
    """Whether a run has all its epochs, or stops early after `epoch` of them."""
    patience, last_phase = config.schedule.early_stopping_epochs, config.phases[-1]
    waited = epoch - max(best_epoch, last_phase.start_epoch)
    return epoch >= config.num_epochs or (patience is not None and waited >= patience)


def write_result(
    run: str, progress: TrainingProgress, *, diverged: str | None = None, lost: str | None = None
) -> None:
    """Write result.json: how far the run came, its best checkpoint, and why it stopped early."""
    result = {
        "epochs": progress.epoch,
        "global_step": progress.global_step,
        "best_epoch": progress.best_epoch,
        metrics.VAL_TOP1: progress.val_top1 if progress.validated else None,
        metrics.VAL_BEST_TOP1: progress.best_val_top1 if progress.validated else None,
        metrics.TOTAL_S: progress.total_s,
        "checkpoint": checkpoint.folder(run, progress.best_step) if progress.epoch else None,
        "diverged": diverged,
        "lost": lost,
    }
    storage.write_bytes(storage.join(run, "result.json"), json.dumps(result, indent=1).encode())


def is_over(run: str) -> bool:
    """Whether a run has ended; one that stopped for unreadable images resumes on repaired data."""
    result = find_result(run)
    return result is not None and not result["lost"]


def find_result(run: str) -> dict[str, Any] | None:
    """Read result.json; None where the run has not ended.

    Its checkpoint is the one in this folder, even if the folder was moved.
    """
    try:
        result = read_object(storage.join(run, "result.json"), _RESULT)
    except FileNotFoundError:
        return None
    if (known := result["checkpoint"]) is not None:
        step = checkpoint.step_of(name_of(known))
        if step is None:
            raise damaged(storage.join(run, "result.json"), "its checkpoint is not that of a run")
        result["checkpoint"] = checkpoint.folder(run, step)
    return result


def list_changes(before: FinetuneConfig, now: FinetuneConfig) -> dict[str, tuple[Any, Any]]:
    """Return the fields, which may change when a run is resumed, whose values differ."""
    free = marked(FinetuneConfig, RESUMABLE) | marked(FinetuneConfig, RUN_RESUMABLE)
    old, new = flatten(before.to_dict()), flatten(now.to_dict())
    return {name: (old[name], new[name]) for name in sorted(free) if old[name] != new[name]}


def _fixed_fields(config: FinetuneConfig) -> dict[str, Any]:
    free = marked(FinetuneConfig, RESUMABLE) | marked(FinetuneConfig, RUN_RESUMABLE)
    values = flatten(config.to_dict())
    return {name: value for name, value in values.items() if name not in free}
