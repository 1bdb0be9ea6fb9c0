"""Ingest that feeds a step of a GPU, on several numbers of cores; decoding by nvJPEG.

Ours is a training by Ray Train with one worker over NCCL; its peer a torch DataLoader with a
process per core that feeds the plain step, of the same JPEGs and the same augmentation. The limit
is the step on a batch that is there already.
"""

import logging
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import ray
import torch
import torchvision

from cluster.config import ClusterConfig
from cluster.environment import set_environment
from cluster.runtime import connect
from datasets.config import Ingest, IngestConfig
from datasets.decode import decode
from datasets.prepare.config import PrepareConfig
from datasets.prepare.prepare import prepare
from datasets.synthetic.config import SyntheticConfig
from tests.bench.gpu.sizes import Sizes, find_device, synchronize, time_in_turns
from tests.bench.peers.feeds import POLICY, open_dataloader
from tests.bench.report import to_row
from tests.bench.steps import our_step, plain_step, random_batch, training_of
from trainers import metrics
from trainers.launch import fit
from trainers.prepare import prepare_run
from trainers.run.rows import read_rows
from trainers.worker import WorkerContext

FEED_TARGET, DATALOADER_TARGET, NVJPEG_TARGET = 0.95, 1.0, 1.0
STEPS_OF_DATALOADER = 40
NVJPEG_BATCH = 64


@contextmanager
def ray_on(num_cores: int) -> Iterator[None]:
    """Start Ray without its dashboard, and keep it and our processes on some of the cores; a
    cluster that is connected already is used as it is."""
    if ray.is_initialized():
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:num_cores])
    set_environment()
    try:
        ray.init(
            address="local", include_dashboard=False, num_cpus=num_cores, log_to_driver=False,
            logging_level=logging.WARNING,
        )  # fmt: skip
        yield
    finally:
        ray.shutdown()
        os.sched_setaffinity(0, before)


def write_data(folder: Path, sizes: Sizes) -> str:
    """Prepare rendered cars where there are none yet, and write train as files; return its URI."""
    data, files = str(folder / "cars"), folder / "train"
    if files.is_dir():
        return data
    config = PrepareConfig(
        source="synthetic",
        out=data,
        short_side_px=max(32, sizes.render_px),
        synthetic=SyntheticConfig(
            num_classes=sizes.num_classes,
            train_per_class=sizes.images_per_class,
            test_per_class=1,
            render_px=sizes.render_px,
        ),
    )
    with ray_on(len(os.sched_getaffinity(0))):
        prepare(config)
    for label, jpegs in _jpegs_by_label(data).items():
        of_class = files / f"{label:03d}"
        of_class.mkdir(parents=True)
        for number, jpeg in enumerate(jpegs):
            (of_class / f"{number:05d}.jpg").write_bytes(jpeg)
    return data


def _jpegs_by_label(data: str) -> dict[int, list[bytes]]:
    jpegs: dict[int, list[bytes]] = {}
    for shard in sorted(Path(data, "train").glob("*.parquet")):
        for row in pq.read_table(shard, columns=["image", "label"]).to_pylist():
            jpegs.setdefault(row["label"], []).append(row["image"])
    return jpegs


def list_files(folder: Path) -> list[str]:
    return sorted(str(file) for file in (folder / "train").rglob("*.jpg"))


def bench_ingest(sizes: Sizes, folder: Path) -> Iterator[dict]:
    """Yield a row per number of cores, and one of decoded images in memory on the fewest."""
    available = len(os.sched_getaffinity(0))
    cores = [number for number in sizes.cores if number <= available] or [available]
    if skipped := set(sizes.cores) - set(cores):
        print(f"ingest: {available} cores are here; left out {sorted(skipped)}", flush=True)
    data, limit = write_data(folder, sizes), _resident_rate(sizes)
    for number in cores:
        with ray_on(number):
            peer = _dataloader_rate(list_files(folder), number, sizes)
            kinds: tuple[Ingest, ...] = ("stream", "memory") if number == cores[-1] else ("stream",)
            for kind in kinds:
                out = str(folder / f"{kind}_{number}")
                ours, stall_share = _train(data, out, kind, sizes)
                print(
                    f"{kind} on {number} cores: {ours:.0f} images/s, {stall_share:.1%} of the time "
                    f"waited; DataLoader {peer:.0f}; the step {limit:.0f}",
                    flush=True,
                )
                row = to_row(
                    f"gpu/{kind}_{number}_cores_vs_dataloader",
                    ours=ours,
                    peer=peer,
                    limit=limit,
                    target=DATALOADER_TARGET,
                    num_runs=sizes.epochs - 1,
                )
                yield row | {"stall_share": stall_share}


def _train(data: str, out: str, ingest: Ingest, sizes: Sizes) -> tuple[float, float]:
    """Train by Ray Train; return images/s and the share of time waited for batches."""
    config = replace(
        training_of(
            sizes.backbone,
            global_batch_size=sizes.batch_size,
            epochs=sizes.epochs,
            out=out,
            ingest=IngestConfig(size_px=sizes.size_px, policy=POLICY, ingest=ingest),
            cluster=ClusterConfig(num_workers=sizes.num_workers),
        ),
        data=data,
    )
    fit(prepare_run(config, connect()))
    rows = [row for row in read_rows(out) if metrics.EPOCH_S in row][1:]
    waited_s = sum(row[metrics.WAIT_S] for row in rows)
    return (
        statistics.median(row[metrics.IMAGES_PER_S] for row in rows),
        waited_s / sum(row[metrics.TRAIN_S] for row in rows),
    )


def _resident_rate(sizes: Sizes) -> float:
    device = find_device()
    config = training_of(sizes.backbone, global_batch_size=sizes.batch_size)
    batch = [tensor.to(device) for tensor in random_batch(sizes.batch_size, sizes.size_px, 0)]
    step = our_step(config, WorkerContext(device=device, threads=1))
    return sizes.batch_size / time_in_turns({"": partial(step, *batch)}, sizes, device)[""]


def _dataloader_rate(files: list[str], num_workers: int, sizes: Sizes) -> float:
    """Images/s of the plain step, fed by warm processes."""
    device = find_device()
    config = training_of(sizes.backbone, global_batch_size=sizes.batch_size)
    step = plain_step(config, device, all_reduce=False)
    loader = open_dataloader(
        files,
        num_workers if sizes.loader_workers is None else sizes.loader_workers,
        batch_size=sizes.batch_size,
        size_px=sizes.size_px,
    )
    labels_B = random_batch(sizes.batch_size, 1, 0)[1].to(device)
    num_steps = STEPS_OF_DATALOADER if device.type == "cuda" else 2
    batches = chain.from_iterable(repeat(loader))
    step(next(batches).to(device), labels_B)
    synchronize(device)
    start = time.perf_counter()
    for images_BHWC in islice(batches, num_steps):
        pinned = images_BHWC.pin_memory() if device.type == "cuda" else images_BHWC
        step(pinned.to(device, non_blocking=True), labels_B)
    synchronize(device)
    return num_steps * sizes.batch_size / (time.perf_counter() - start)


def bench_decoding(sizes: Sizes, folder: Path) -> Iterator[dict]:
    """Yield the row of our decoding on all cores against torchvision's, by nvJPEG on a GPU.

    The limit is the faster one.
    """
    write_data(folder, sizes)
    files = list_files(folder)[: sizes.num_decoded]
    jpegs = [Path(file).read_bytes() for file in files]
    encoded = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for jpeg in jpegs]
    device, num_cores = find_device(), len(os.sched_getaffinity(0))

    def decode_by_torchvision() -> None:
        for start in range(0, len(encoded), NVJPEG_BATCH):
            torchvision.io.decode_jpeg(encoded[start : start + NVJPEG_BATCH], device=device)

    with ThreadPoolExecutor(num_cores) as pool:
        seconds = time_in_turns(
            {
                "ours": lambda: list(pool.map(decode, jpegs, chunksize=16)),
                "torchvision": decode_by_torchvision,
            },
            replace(sizes, block_steps=1),
            device,
        )
    ours, theirs = (len(jpegs) / value for value in seconds.values())
    shape = np.asarray(decode(jpegs[0])).shape
    print(
        f"decoding {shape[1]}x{shape[0]}: {ours:.0f} images/s on {num_cores} cores, torchvision "
        f"on {device.type} {theirs:.0f}",
        flush=True,
    )
    row = to_row(
        "gpu/decode_vs_nvjpeg",
        ours=ours,
        peer=theirs,
        limit=max(ours, theirs),
        target=NVJPEG_TARGET,
        num_runs=sizes.num_blocks,
    )
    yield row | {"cores": num_cores, "width_px": shape[1], "height_px": shape[0]}
