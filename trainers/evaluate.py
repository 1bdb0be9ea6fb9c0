"""Measure a run's best checkpoint on a split, each image exactly once."""

import json
from dataclasses import replace
from typing import Any

import torch

from datasets import storage
from datasets.shards import read_manifest
from trainers import loop
from trainers.feed import open_feed
from trainers.launch import place_here
from trainers.runs import load_best_model


def evaluate(run: str, *, split: str = "test", data: str | None = None) -> dict[str, Any]:
    """Evaluate a run on a split of its data set, or of `data`; writes RUN/evaluation_SPLIT.json.

    Raises:
        ValueError: where the run has no checkpoint, its classes are not those of the data set, or
            more images are lost than its config allows.
    """
    run = storage.absolute(run, "run")
    config, progress, model = load_best_model(run)
    config = replace(
        config,
        data=storage.absolute(data or config.data, "data"),
        ingest=replace(config.ingest, ingest="stream"),  # each image is read once
    )
    manifest = read_manifest(config.data)
    if progress.classes != manifest.classes:
        raise ValueError(
            f"run is {run!r}: its checkpoint knows {len(progress.classes)} classes "
            f"({progress.classes[0]} ...), the data set {config.data} has {len(manifest.classes)} "
            f"({manifest.classes[0]} ...); evaluate on the data it was trained for"
        )
    place = place_here(config)
    torch.set_num_threads(place.threads)
    model.to(device=place.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    feed = open_feed(config, manifest, place, split=split, num_epochs=1)
    means = loop.evaluate(model, feed, loop.step_settings(config, place.device), place)
    losses = feed.take_losses()
    if (problem := loop.describe_losses(config, feed, losses)) is not None:
        raise ValueError(problem)
    result = {
        f"{split}/top1": means["top1"],
        f"{split}/top5": means["top5"],
        f"{split}/loss": means["loss"],
        "num_images": int(means["count"]),
        "lost": losses,
        "epoch": progress.epoch,
        "data": config.data,
        "fingerprint": manifest.fingerprint,
    }
    text = json.dumps(result, indent=1).encode()
    storage.write_bytes(storage.join(run, f"evaluation_{split}.json"), text)
    return result
