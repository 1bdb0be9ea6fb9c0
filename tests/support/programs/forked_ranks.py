"""Trains with N forked ranks on the loop's own code, and counts what they reduce and report.

Forked ranks share torch with their parent, so that many fit into memory. Plan, reading, step,
metrics, evaluation, rows and checkpoints are ours; only Ray's transport of blocks is replaced.

usage: python -m tests.support.programs.forked_ranks NUM_RANKS ...
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import distributed

from cluster.scaling import WorkerPlan
from datasets import epochs
from datasets.manifest_file import read_manifest
from datasets.plan import Chunk
from datasets.sources import BatchSource
from tests.support.data import write_shards
from tests.support.small import small_training
from trainers.config import FinetuneConfig, ModelConfig, TrackConfig
from trainers.loop import loop, training
from trainers.prepare import Run
from trainers.run.rows import read_rows
from trainers.worker import WorkerContext

WORKER_BATCH, STEPS_PER_EPOCH, NUM_EPOCHS = 4, 4, 2


def training_config(folder: str, world_size: int) -> FinetuneConfig:
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


def train_forked(config: FinetuneConfig, world_size: int, folder: str) -> dict[str, Any]:
    """Train on `world_size` ranks in processes of their own; return the medians over ranks."""
    out = Path(folder, f"ranks-{world_size}")
    out.mkdir()
    context = get_context("fork")
    workers = WorkerPlan(
        num_workers=world_size,
        cpus_per_worker=1,
        reader_cpus=1,
        threads_per_worker=1,
        use_gpu=False,
    )
    run = Run(config=config, manifest=read_manifest(config.data), workers=workers)
    ranks = [
        context.Process(target=_train_rank, args=(run, rank, world_size, out))
        for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert all(rank.exitcode == 0 for rank in ranks), [rank.exitcode for rank in ranks]
    counts = [json.loads(file.read_text()) for file in sorted(out.glob("*.json"))]
    rows = Path(config.out, "metrics.jsonl").stat().st_size
    return {
        **{name: statistics.median(each[name] for each in counts) for name in counts[0]},
        "rows": len(read_rows(config.out)),
        "row_bytes": rows / len(read_rows(config.out)),
        "files": sum(path.is_file() for path in Path(config.out).rglob("*")),
    }


def _train_rank(run: Run, rank: int, world_size: int, out: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{out}/meet",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=240),
    )
    epochs.join_executions = _read_here
    loop.broadcast_from_rank_zero = training.broadcast_from_rank_zero = _broadcast
    sizes = _record_all_reduces()
    worker = WorkerContext(rank=rank, world_size=world_size, device=torch.device("cpu"), threads=1)
    loop.train(run, worker, lambda row: None)
    counts = {"all_reduces": len(sizes), "all_reduced_bytes": sum(sizes)}
    distributed.barrier()
    (out / f"{rank:03d}.json").write_text(json.dumps(counts))
    distributed.destroy_process_group()


def _read_here(
    chunks: Iterable[Chunk], execute: Callable[..., Iterator[pa.Table]]
) -> Iterator[pa.Table]:
    """Run read tasks in this process, each when the block before is used up."""
    source: BatchSource = execute.keywords["source"]  # pyright: ignore
    for chunk in chunks:
        yield from source.read(chunk)


def _broadcast(value: Any) -> Any:
    box = [value]
    distributed.broadcast_object_list(box)
    return box[0]


def _record_all_reduces() -> list[int]:
    """Record the bytes of each all-reduce that Thaw calls; DDP reduces gradients by itself."""
    sizes: list[int] = []
    all_reduce = distributed.all_reduce

    def recorded(tensor: torch.Tensor, *arguments: Any) -> Any:
        sizes.append(tensor.numel() * tensor.element_size())
        return all_reduce(tensor, *arguments)

    distributed.all_reduce = recorded
    return sizes


def main() -> None:
    """Train with each number of ranks; print the counts, a line of JSON for each."""
    with tempfile.TemporaryDirectory() as folder:
        for world_size in map(int, sys.argv[1:]):
            counts = train_forked(training_config(folder, world_size), world_size, folder)
            print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
