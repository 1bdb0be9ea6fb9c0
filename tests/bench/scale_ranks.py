"""As many ranks as this machine holds: forked processes with the loop's code, and Ray's workers.

A forked rank shares torch with its parent, so 64 of them fit: plan, read, decode, step, metrics,
evaluation, rows and checkpoints are Thaw's own; only Ray's transport of blocks is left out. Every
rank has the same work, so on two cores the time of all grows with their number, and no faster.
"""

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import torch
from ray.cluster_utils import Cluster
from torch import distributed

from cluster import runtime
from datasets import epochs
from datasets.plan import Chunk
from tests.bench.scale_constants import exponent
from tests.conftest import small_training, write_shards
from trainers import launch, loop
from trainers.config import FinetuneConfig, ModelConfig, TrackConfig
from trainers.feed import WorkerContext
from trainers.metrics import Sums
from trainers.run.rows import read_rows

WORKER_BATCH, STEPS_PER_EPOCH, NUM_EPOCHS = 4, 4, 2
RANKS = [1, 2, 4, 8, 16, 32, 64]
RAY_WORKERS = [2, 4, 8, 16]
SPARE_GIB = 6.0
"""Memory to leave to others: more workers are not tried below it."""


def training(folder: str, world_size: int) -> FinetuneConfig:
    """A training of LeNet-5 at 32 px on its own data: the same work for every rank."""
    data = f"{folder}/data-{world_size}"
    num_images = WORKER_BATCH * STEPS_PER_EPOCH * world_size
    write_shards(data, train=num_images, val=WORKER_BATCH * world_size, test=3, row_group_size=16)
    return small_training(
        data,
        f"{folder}/run-{world_size}",
        epochs=NUM_EPOCHS,
        global_batch_size=WORKER_BATCH * world_size,
        model=ModelConfig(backbone="lenet5", init="he"),
        track=TrackConfig(wandb="off", log_every_steps=1),
    )


def measure_ranks() -> dict[str, Any]:
    """Train with 1 to 64 forked ranks; what planning, reducing and reporting cost them."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for world_size in RANKS:
            found.append(train_forked(training(folder, world_size), world_size, folder))
            print(json.dumps(found[-1]), flush=True)
    values = {name: [each[name] for each in found] for name in found[0]}
    return {
        "ranks": RANKS,
        **values,
        "train_exponent": exponent(RANKS, values["train_s"]),
        "reduce_exponent": exponent(RANKS[1:], values["reduce_s"][1:]),
    }


def train_forked(config: FinetuneConfig, world_size: int, folder: str) -> dict[str, Any]:
    """Train on so many ranks in processes of their own; return the medians over ranks."""
    out = Path(folder, f"ranks-{world_size}")
    out.mkdir()
    context = get_context("fork")
    ranks = [
        context.Process(target=_train_rank, args=(config, rank, world_size, out))
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert all(rank.exitcode == 0 for rank in ranks), [rank.exitcode for rank in ranks]
    told = [json.loads(file.read_text()) for file in sorted(out.glob("*.json"))]
    rows = Path(config.out, "metrics.jsonl").stat().st_size
    return {
        **{name: statistics.median(each[name] for each in told) for name in told[0]},
        "rows": len(read_rows(config.out)),
        "row_bytes": rows / len(read_rows(config.out)),
        "files": sum(path.is_file() for path in Path(config.out).rglob("*")),
    }


def _train_rank(config: FinetuneConfig, rank: int, world_size: int, out: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{out}/meet",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=240),
    )
    epochs.join_executions = _read_here
    loop.broadcast_from_rank_zero = _broadcast
    reduces = _time_calls(Sums, "reduce")
    calls, num_bytes = _count_all_reduces()
    place = WorkerContext(
        rank=rank, world_size=world_size, device=torch.device("cpu"), threads=1, reader_cpus=1
    )
    distributed.barrier()
    start = time.perf_counter()
    loop.train(config, place, lambda row: None)
    seconds = time.perf_counter() - start
    told = {
        "train_s": seconds,
        "reduce_s": statistics.median(reduces),
        "all_reduces": calls(),
        "all_reduced_bytes": num_bytes(),
        "private_mib": private_mib(os.getpid()),
    }
    distributed.barrier()
    (out / f"{rank:03d}.json").write_text(json.dumps(told))
    distributed.destroy_process_group()


def _read_here(
    chunks: Iterable[Chunk], execute: Callable[..., Iterator[pa.Table]]
) -> Iterator[pa.Table]:
    """Run read tasks in this process, one when the block before is used up."""
    read: Callable[[Chunk], Iterator[pa.Table]] = execute.keywords["read"]  # pyright: ignore
    for chunk in chunks:
        yield from read(chunk)


def _broadcast(value: Any) -> Any:
    box = [value]
    distributed.broadcast_object_list(box)
    return box[0]


def _time_calls(of: type, name: str) -> list[float]:
    """Have a method add the seconds of each of its calls to the list that is returned."""
    seconds: list[float] = []
    method = getattr(of, name)

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*arguments)
        finally:
            seconds.append(time.perf_counter() - start)

    setattr(of, name, timed)
    return seconds


def _count_all_reduces() -> tuple[Callable[[], int], Callable[[], int]]:
    """Count what Thaw reduces over ranks; the gradients are DDP's own."""
    sizes: list[int] = []
    all_reduce = distributed.all_reduce

    def counted(tensor: torch.Tensor, *arguments: Any) -> Any:
        sizes.append(tensor.numel() * tensor.element_size())
        return all_reduce(tensor, *arguments)

    distributed.all_reduce = counted
    return lambda: len(sizes), lambda: sum(sizes)


def private_mib(pid: int) -> float:
    """Memory that a process shares with nobody, in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return (sizes["Private_Clean"] + sizes["Private_Dirty"]) / 1024


def measure_workers() -> dict[str, Any]:
    """Train by `launch.fit` with more and more workers of Ray Train, while they fit in memory."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for num_workers in RAY_WORKERS:
            needed = found[-1]["all_mib"] * 2 / 1024 if found else 2.0
            if available_gib() < needed + SPARE_GIB:
                print(f"{num_workers} workers would not fit: {available_gib():.1f} GiB are free")
                break
            found.append(_train_with_ray(training(folder, num_workers), num_workers))
            print(json.dumps(found[-1]), flush=True)
    return {name: [each[name] for each in found] for name in found[0]}


def _train_with_ray(config: FinetuneConfig, num_workers: int) -> dict[str, Any]:
    nodes = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": num_workers, "include_dashboard": False, "object_store_memory": 2**29,
        },
    )  # fmt: skip
    peaks: dict[str, list[float]] = {"worker": [], "reader": []}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1.0):
            for kind, title in (("worker", "RayTrainWorker"), ("reader", "ReadEpochs")):
                sizes = [private_mib(pid) for pid in _find(title)]
                if sum(sizes) > sum(peaks[kind]):
                    peaks[kind] = sizes

    try:
        runtime.connect(nodes.address, quiet=True)
        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.perf_counter()
        cluster = replace(config.cluster, num_workers=num_workers, max_failures=0)
        launch.fit(replace(config, cluster=cluster))
        seconds = time.perf_counter() - start
    finally:
        over.set()
        ray.shutdown()
        nodes.shutdown()
    watcher.join()
    epoch_s = [row["time/epoch_s"] for row in read_rows(config.out) if "time/epoch_s" in row]
    return {
        "workers": num_workers,
        "fit_s": seconds,
        "epoch_s": epoch_s[-1],
        "worker_mib": statistics.median(peaks["worker"]),
        "readers": len(peaks["reader"]),
        "reader_mib": statistics.median(peaks["reader"] or [0.0]),
        "all_mib": sum(peaks["worker"]) + sum(peaks["reader"]),
    }


def _find(title: str) -> list[int]:
    """Processes of this user whose title Ray has set to one that holds `title`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if title in (entry / "cmdline").read_text():
                found.append(int(entry.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def available_gib() -> float:
    """Memory that nobody uses."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return sizes["MemAvailable"] / 2**20


def main() -> None:
    """Train with each number of forked ranks; print what it took, a line of JSON for each."""
    with tempfile.TemporaryDirectory() as folder:
        for world_size in map(int, sys.argv[1:]):
            told = train_forked(training(folder, world_size), world_size, folder)
            print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
