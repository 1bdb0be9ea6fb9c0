"""Train from the command line: check, connect, train, print progress and the result."""

import shlex
from dataclasses import replace
from functools import partial
from typing import Any

from cluster.io import storage, terminal
from cluster.io.errors import UserError
from cluster.io.lease import hold_lease
from cluster.io.uris import name_of
from trainers import launch, metrics
from trainers.config import FinetuneConfig
from trainers.meter import Meter, describe_waits
from trainers.prepare import Run, prepare_run
from trainers.resume import describe_changes
from trainers.run.folder import find_config
from trainers.run.rows import read_rows
from trainers.run.stop import StoppedByUser, request_stop
from trainers.tracking.mirror import RunMirror, follow
from trainers.tracking.where import describe_tracking, require_settings, require_tags


def run_training(config: FinetuneConfig) -> None:
    """Check, connect, train; print progress, the result and the next command."""
    if not config.data:
        raise UserError("data is '': give --data URI of a prepared data set")
    require_tags(config.track)
    require_settings(config.track)
    run = prepare_run(config)
    result, sync = follow_training(run, job_type="train")
    if result["epochs"] < config.num_epochs:
        patience = config.schedule.early_stopping_epochs
        print(f"Stopped early: val/top1 was not higher for {patience} epochs")
    if config.validates:
        print(f"Best val/top1 {result[metrics.VAL_BEST_TOP1]:.4f} in epoch {result['best_epoch']}")
        from trainers.evaluation.calibrate import calibrate  # imports scikit-learn

        print(calibrate(config.out, run.manifest, device=config.cluster.device))
    if (waits := describe_waits(read_rows(config.out))) is not None:
        print(f"No step:  {waits}")
    print(f"Weights:  {result['checkpoint']}/model.safetensors")
    command = f"python -m trainers evaluate --run {shlex.quote(config.out)}"
    if "test" in run.manifest.splits:
        print(f"Test it:  {command}")
    elif config.validates:  # there is no test split
        print(f"Measures: {command} --split val")
    if sync:
        print(f"W&B:      {sync}")


def follow_training(run: Run, *, job_type: str) -> tuple[dict[str, Any], str | None]:
    """Train as the only writer of the run folder; print progress and mirror it in W&B.

    Returns:
        result.json, and the command that uploads an offline run.

    Raises:
        UserError: where another process trains there; and as `launch.fit`.
        StoppedByUser: where the run was stopped in W&B.
    """
    rows = shlex.quote(storage.join(run.config.out, "metrics.jsonl"))
    with hold_lease(run.config.out, follow=f"follow it with `tail -f {rows}`"):
        return _follow_training(run, job_type)


def _follow_training(run: Run, job_type: str) -> tuple[dict[str, Any], str | None]:
    config, manifest = run.config, run.manifest
    num_images = manifest.split(config.train_on).num_images
    terminal.report(
        f"Training {config.model.backbone} ({config.model.init}, {describe_phases(config)}) on "
        f"{num_images} images of {len(manifest.classes)} classes -> {config.out}"
    )
    terminal.report(f"Ingest: {run.ingest}; precision: {config.compute.precision}")
    terminal.report(f"Tracking: {describe_tracking(config.track)}")
    for line in describe_changes(run):
        terminal.report(line, warning=True)
    name = name_of(config.out)
    mirror = RunMirror(
        _trained_config(run),
        manifest,
        name=name,
        group=config.track.group,
        job_type=job_type,
        on_stop=partial(request_stop, config.out),
    )
    meter = Meter(config, manifest)

    def show_row(row: dict[str, Any]) -> None:
        meter.update([row])
        show(row, config.num_epochs)

    try:
        with terminal.show(meter.draw), follow(config.out, mirror, show_row):
            result = launch.fit(run)
    except StoppedByUser:
        print("Stopped in W&B: run the same command again to resume")
        raise
    return result, mirror.close()


def _trained_config(run: Run) -> FinetuneConfig:
    """Return the config that a run trains with, or that a finished one was trained with."""
    config = run.config
    if run.result is None or (trained := find_config(config.out)) is None:
        return config
    return replace(trained, out=config.out, track=config.track)


def describe_phases(config: FinetuneConfig) -> str:
    """Write how deep each phase freezes: `freeze depth all for 4 epochs, then -2 for 6`."""
    first, *later = config.phases
    if not later:
        return f"freeze depth {first.freeze_depth}"
    parts = [f"freeze depth {first.freeze_depth} for {first.num_epochs} epochs"]
    parts += [f"{phase.freeze_depth} for {phase.num_epochs}" for phase in later]
    return ", then ".join(parts)


def show(row: dict[str, Any], num_epochs: int) -> None:
    """Print a line for a row of metrics.jsonl."""
    line = (
        f"epoch {row[metrics.EPOCH]}/{num_epochs}  step {row[metrics.GLOBAL_STEP]}  "
        f"train loss {row[metrics.TRAIN_LOSS]:.4f} top-1 {row[metrics.TRAIN_TOP1]:.3f}"
    )
    if metrics.VAL_TOP1 in row:
        line += (
            f"  val loss {row[metrics.VAL_LOSS]:.4f} top-1 {row[metrics.VAL_TOP1]:.3f} "
            f"(best {row[metrics.VAL_BEST_TOP1]:.3f})"
        )
    if metrics.EPOCH_S in row:
        line += (
            f"  {row[metrics.IMAGES_PER_S]:.0f} images/s, "
            f"waited {row[metrics.WAIT_S]:.1f} of {row[metrics.EPOCH_S]:.1f} s"
        )
        if row[metrics.UNREADABLE_IMAGES]:
            first = row[metrics.UNREADABLE_NAMES][0]
            line += f", {row[metrics.UNREADABLE_IMAGES]} unreadable images: {first}"
    terminal.report(line, warning=bool(row.get(metrics.UNREADABLE_IMAGES)))
