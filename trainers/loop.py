"""The training loop: the same on every rank, in a Ray Train worker or in a Tune trial's process."""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train.collective import broadcast_from_rank_zero
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from datasets import storage
from datasets.shards import read_manifest
from trainers import checkpoint, metrics
from trainers.backbones import build
from trainers.checkpoint import Progress
from trainers.config import NORMALIZATIONS, FinetuneConfig
from trainers.feed import Feed, Place, open_feed
from trainers.freezing import freeze, resolve_depth, train_mode
from trainers.initializers import initialize
from trainers.optim import build_optimizer, learning_rate_at, set_learning_rate
from trainers.step import StepSettings, eval_step, train_step
from trainers.tracking import JsonlTracker

logger = logging.getLogger(__name__)

MAX_NAMES = 20
"""Lost images that a row of metrics names; it counts them all."""
Report = Callable[[dict[str, Any]], None]


def train_loop_per_worker(arguments: dict[str, Any]) -> None:
    """Run `train` as a Ray Train worker; `arguments` are what `launch.fit` sends."""
    context = ray.train.get_context()
    place = Place(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        device=ray.train.torch.get_device(),
        **arguments["place"],
    )
    train(FinetuneConfig.from_dict(arguments["config"]), place, ray.train.report)


def train(config: FinetuneConfig, place: Place, report: Report) -> None:
    """Train until `config.epochs`, from the run folder's latest checkpoint where it has one.

    After each epoch: evaluate, checkpoint, log, report. The last act of rank 0 is result.json,
    which also says why a run stopped early: a loss that was no longer finite, or more images lost
    than `ingest.max_bad_fraction`; the last good checkpoint then stays.
    """
    torch.set_num_threads(place.threads)
    manifest = read_manifest(config.data)
    epoch = find_checkpoint(config.out, place)
    model = build_model(config, len(manifest.classes), place.device, fresh=epoch is None)
    optimizer = build_optimizer(model, config.optim)
    if epoch is not None:
        progress = checkpoint.restore(config.out, epoch, model, optimizer)
    else:
        progress = Progress(classes=manifest.classes, fingerprint=manifest.fingerprint)
    network = DistributedDataParallel(model) if place.world_size > 1 else model
    settings = step_settings(config, place.device)
    val_feed = open_feed(config, manifest, place, split="val", start_epoch=progress.epoch)
    train_feed = open_feed(config, manifest, place, split="train", start_epoch=progress.epoch)
    tracker = JsonlTracker(config.out, last_row=progress.row) if place.rank == 0 else None

    while progress.epoch < config.epochs:
        started, waited_s = time.perf_counter(), train_feed.wait_s
        # Seeded per epoch and rank, so that a resumed epoch drops out the same units.
        torch.manual_seed(hash((config.seed, progress.epoch, place.rank)))
        train_mode(network, config.model)
        row = train_epoch(
            network, optimizer, train_feed, config, settings, place, progress, tracker
        )
        train_s = time.perf_counter() - started
        losses = train_feed.take_losses() if row[metrics.LOST_IMAGES] else []
        diverged, lost = describe_divergence(row), describe_losses(config, train_feed, losses)
        if diverged or lost:
            if tracker:
                write_result(config.out, progress, diverged=diverged, lost=lost)
            return
        val = evaluate(model, val_feed, settings, place)
        losses_val = val_feed.take_losses() if val["lost"] else []
        if (lost := describe_losses(config, val_feed, losses_val)) is not None:
            if tracker:
                write_result(config.out, progress, lost=lost)
            return
        epoch_s = time.perf_counter() - started
        progress = advance(progress, row[metrics.GLOBAL_STEP], val["top1"], epoch_s)
        row |= {
            metrics.VAL_LOSS: val["loss"],
            metrics.VAL_TOP1: val["top1"],
            metrics.VAL_TOP5: val["top5"],
            metrics.VAL_BEST_TOP1: progress.best_val_top1,
            metrics.EPOCH_S: epoch_s,
            metrics.TRAIN_S: train_s,
            metrics.TOTAL_S: progress.total_s,
            metrics.FIRST_BATCH_S: train_feed.first_batch_s,
            metrics.WAIT_S: train_feed.wait_s - waited_s,
            metrics.LOST_IMAGES: len(losses) + len(losses_val),
            metrics.LOST_NAMES: [*losses, *losses_val][:MAX_NAMES],
            metrics.IMAGES_PER_S: train_feed.batches_per_epoch * config.global_batch_size / train_s,
        }
        if tracker:
            checkpoint.save(config.out, model, optimizer, replace(progress, row=row))
            tracker.log(row)
        report(row)

    if tracker:
        write_result(config.out, progress)


def find_checkpoint(run: str, place: Place) -> int | None:
    """Return the epoch that all ranks resume from, as rank 0 sees it; None to start anew."""
    epoch = checkpoint.find_latest(run) if place.rank == 0 else None
    return broadcast_from_rank_zero(epoch) if place.world_size > 1 else epoch


def build_model(
    config: FinetuneConfig, num_classes: int, device: torch.device, *, fresh: bool
) -> nn.Module:
    """Build the network on its device: frozen, channels last, initialized where it starts fresh."""
    model = build(config.model.backbone, num_classes)
    if fresh:
        report = initialize(model, config.model, seed=config.seed)
        if report.missing or report.unexpected:
            logger.warning("weights miss %s and have %s besides", report.missing, report.unexpected)
    freeze(model, config.model.backbone, resolve_depth(config.model))
    model.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model


def step_settings(config: FinetuneConfig, device: torch.device) -> StepSettings:
    """Collect what a step needs to know; bfloat16 on GPUs."""
    mean, std = NORMALIZATIONS[config.model.normalization]
    return StepSettings(
        mean=mean,
        std=std,
        label_smoothing=config.label_smoothing,
        autocast_dtype=torch.bfloat16 if device.type == "cuda" else None,
        optim=config.optim,
    )


def train_epoch(
    network: nn.Module,
    optimizer: Optimizer,
    feed: Feed,
    config: FinetuneConfig,
    settings: StepSettings,
    place: Place,
    progress: Progress,
    tracker: JsonlTracker | None,
) -> dict[str, Any]:
    """Train one epoch, logging on the way; return its training metrics over all ranks.

    Ends early where more images are lost than the config allows.
    """
    sums = metrics.Sums(metrics.TRAIN_SUMS, place.device)
    step, last_step = progress.global_step, progress.global_step + feed.batches_per_epoch
    while True:
        rate = learning_rate_at(
            step, config.optim, config.schedule, feed.batches_per_epoch, config.epochs
        )
        set_learning_rate(optimizer, rate)
        sums.add(train_step(network, optimizer, *feed.next(), settings=settings))
        step += 1
        if step == last_step or step % config.track.log_every_steps == 0:
            means = metrics.reduce(sums, place.world_size)
            row = {
                metrics.EPOCH: progress.epoch + 1,
                metrics.GLOBAL_STEP: step,
                metrics.TRAIN_LOSS: means["loss"],
                metrics.TRAIN_TOP1: means["top1"],
                metrics.LEARNING_RATE: rate,
                metrics.GRAD_NORM: means[metrics.GRAD_NORM],
                metrics.CLIPPED_SHARE: means[metrics.CLIPPED_SHARE],
                metrics.LOST_IMAGES: int(means["lost"]),
            }
            if step == last_step or too_many_lost(config, feed, row[metrics.LOST_IMAGES]):
                return row
            if tracker:
                tracker.log(row)


def evaluate(
    model: nn.Module, feed: Feed, settings: StepSettings, place: Place
) -> dict[str, float]:
    """Measure the model on each image of the feed's split once, over all ranks.

    Returns:
        Means `loss` (nats), `top1`, `top5`, the `count` of images and of those `lost`.
    """
    model.eval()
    sums = metrics.Sums(metrics.EVAL_SUMS, place.device)
    for _ in range(feed.batches_per_epoch):
        sums.add(eval_step(model, *feed.next(), settings=settings))
    return metrics.reduce(sums, place.world_size)


def advance(progress: Progress, global_step: int, val_top1: float, epoch_s: float) -> Progress:
    """Return the progress after one more epoch."""
    epoch = progress.epoch + 1
    better = val_top1 > progress.best_val_top1
    return replace(
        progress,
        epoch=epoch,
        global_step=global_step,
        val_top1=val_top1,
        best_val_top1=val_top1 if better else progress.best_val_top1,
        best_epoch=epoch if better else progress.best_epoch,
        total_s=progress.total_s + epoch_s,
    )


def too_many_lost(config: FinetuneConfig, feed: Feed, num_lost: int) -> bool:
    return num_lost > config.ingest.max_bad_fraction * feed.num_images


def describe_losses(config: FinetuneConfig, feed: Feed, losses: list[str]) -> str | None:
    """Warn of the images lost in an epoch; return why the run stops where they are too many."""
    if not losses:
        return None
    told = f"{len(losses)} of {feed.num_images} {feed.split} images could not be had: {losses[0]}"
    if too_many_lost(config, feed, len(losses)):
        return (
            f"ingest.max_bad_fraction is {config.ingest.max_bad_fraction}: {told} ...; repair or "
            "prepare the data again, or allow more with --max-bad-fraction"
        )
    logger.warning("%s%s", told, " ..." if len(losses) > 1 else "")
    return None


def describe_divergence(row: dict[str, Any]) -> str | None:
    if math.isfinite(row[metrics.TRAIN_LOSS]):
        return None
    return (
        f"train/loss is {row[metrics.TRAIN_LOSS]} in epoch {row[metrics.EPOCH]}: lower "
        "optim.learning_rate or clip gradients, with another --out; the last good checkpoint stays"
    )


def write_result(
    run: str, progress: Progress, *, diverged: str | None = None, lost: str | None = None
) -> None:
    """Write result.json: the run is over, why if it failed, and where its best weights lie."""
    result = {
        "epochs": progress.epoch,
        "global_step": progress.global_step,
        "best_epoch": progress.best_epoch,
        metrics.VAL_TOP1: progress.val_top1,
        metrics.VAL_BEST_TOP1: progress.best_val_top1,
        metrics.TOTAL_S: progress.total_s,
        "checkpoint": checkpoint.folder(run, progress.best_epoch),
        "diverged": diverged,
        "lost": lost,
    }
    storage.write_bytes(storage.join(run, "result.json"), json.dumps(result, indent=1).encode())
