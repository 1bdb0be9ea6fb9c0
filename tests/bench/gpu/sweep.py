"""A sweep of heads on one GPU, its features computed once, against the plain torch loop.

The plain loop feeds a frozen network by a DataLoader in every epoch of every trial, as torch's
tutorial of transfer learning does; one epoch is measured, and trials are extrapolated from it.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from cluster.runtime import connect
from datasets.config import IngestConfig
from datasets.manifest_file import read_manifest
from tests.bench.gpu.ingest import list_files, ray_on, write_data
from tests.bench.gpu.sizes import Sizes, find_device, synchronize
from tests.bench.peers.feeds import open_dataloader
from tests.bench.report import to_row
from trainers.config import NORMALIZATIONS, ComputeConfig, FinetuneConfig, ModelConfig, TrackConfig
from trainers.inference.actors import GPU_BATCH_SIZE
from trainers.networks.backbones import build, find
from trainers.step.state import place_model
from tuning.config import SpaceConfig, TuningConfig
from tuning.run import tune_sweep

SWEEP_TARGET, FEATURES_TARGET = 20.0, 1.0


def bench_sweep(sizes: Sizes, folder: Path) -> Iterator[dict]:
    """Yield the rows of a head-only sweep and of its features."""
    num_cores = len(os.sched_getaffinity(0))
    weights = folder / "weights.pth"
    torch.save(build(sizes.sweep_backbone, sizes.num_classes).state_dict(), weights)
    data = write_data(folder, sizes)
    with ray_on(num_cores):
        connect()
        plain_rate, resident_rate = time_plain_epoch(sizes, list_files(folder), num_cores)
        config = TuningConfig(
            base=FinetuneConfig(
                data=data,
                epochs=sizes.sweep_epochs,
                global_batch_size=min(32, sizes.batch_size),
                ingest=IngestConfig(policy="light", size_px=sizes.size_px),
                model=ModelConfig(backbone=sizes.sweep_backbone, init="file", weights=str(weights)),
                track=TrackConfig(wandb="off"),
            ),
            space=SpaceConfig(
                freeze_depths=("all",),
                learning_rates=tuple(1e-3 * 1.2**step for step in range(sizes.num_trials)),
                clipnorms=(None,),
                inits=("file",),
            ),
            out=str(folder / "sweep"),
            cache=str(folder / "cache"),
            search="grid",
            grace_epochs=sizes.sweep_epochs,
            evaluate_winner=False,
            combine=False,
        )
        started = time.perf_counter()
        answer = tune_sweep(config)
        ours_s = time.perf_counter() - started
    sharing, trials = answer["sharing"], answer["trials"]
    manifest = read_manifest(data)
    per_epoch = sum(manifest.split(split).num_images for split in ("train", "val"))
    plain_s = len(trials) * sizes.sweep_epochs * per_epoch / plain_rate
    features_rate = sharing["num_computed"] / sharing["computed_s"]
    limit_s = sum(row["seconds"] for row in trials) + sharing["computed_s"]
    print(
        f"{len(trials)} trials in {ours_s:.1f} s, {sharing['computed_s']:.1f} s of it for "
        f"{sharing['num_computed']} features; the plain loop {plain_s:.0f} s, at {plain_rate:.0f} "
        f"images/s",
        flush=True,
    )
    yield to_row(
        "gpu/features_vs_plain",
        ours=features_rate,
        peer=plain_rate,
        limit=resident_rate,
        target=FEATURES_TARGET,
        num_runs=1,
    )
    row = to_row(
        "gpu/sweep_head_only_vs_plain",
        ours=len(trials) / ours_s,
        peer=len(trials) / plain_s,
        limit=len(trials) / min(limit_s, ours_s),
        target=SWEEP_TARGET,
        num_runs=1,
    )
    yield row | {"num_trials": len(trials), "ours_s": ours_s, "plain_s": plain_s}


def time_plain_epoch(sizes: Sizes, files: list[str], num_workers: int) -> tuple[float, float]:
    """Return images/s of an epoch of the plain loop, and of its frozen network by itself."""
    device = find_device()
    model = build(sizes.sweep_backbone, sizes.num_classes).eval().requires_grad_(False)
    head = model.get_submodule(find(sizes.sweep_backbone).head).requires_grad_(True)
    place_model(model, ComputeConfig(), device)
    optimizer = torch.optim.Adam(head.parameters())
    mean_C, std_C = (torch.tensor(values, device=device) for values in NORMALIZATIONS["imagenet"])
    loader = open_dataloader(
        files,
        num_workers if sizes.loader_workers is None else sizes.loader_workers,
        batch_size=min(GPU_BATCH_SIZE, sizes.batch_size),
        size_px=sizes.size_px,
    )

    def step(images_BHWC: torch.Tensor) -> None:
        images_BCHW = ((images_BHWC.float() / 255 - mean_C) / std_C).permute(0, 3, 1, 2)
        labels_B = torch.zeros(len(images_BHWC), dtype=torch.long, device=device)
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            loss = F.cross_entropy(model(images_BCHW), labels_B)
        loss.backward()
        optimizer.step()

    def run(batches: list[torch.Tensor] | torch.utils.data.DataLoader) -> float:
        synchronize(device)
        start, num_images = time.perf_counter(), 0
        for images_BHWC in batches:
            step(images_BHWC.to(device, non_blocking=True))
            num_images += len(images_BHWC)
        synchronize(device)
        return num_images / (time.perf_counter() - start)

    resident = [next(iter(loader)).to(device)] * 8
    run(resident)  # warms up
    return run(loader), run(resident)
