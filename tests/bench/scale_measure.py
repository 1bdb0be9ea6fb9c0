"""Measure what `tests.bench.scale` computes with: python -m tests.bench.scale_measure [PART ...]

Without a name all parts run, one after the other: about 15 minutes on two cores.
"""

import json
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from ray.data._internal.cluster_autoscaler import base_autoscaling_coordinator as base
from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator

from datasets import read
from datasets.passes.features import count_bytes
from datasets.plan import RowGroups
from datasets.prepare.staging import write_images
from datasets.shards import SHARD_SCHEMA, Manifest, read_manifest, write_manifest
from tests.bench.scale_constants import exponent, write_part
from tests.bench.scale_data import paper_manifest, paper_plan
from tests.bench.scale_ranks import measure_ranks, measure_workers
from tests.bench.scale_s3 import serve_s3
from tests.bench.scale_sweep import measure_mirrors, measure_sweep
from trainers import metrics
from trainers.config import FinetuneConfig, ModelConfig, OptimConfig
from trainers.feed import WorkerContext
from trainers.loop import training_row
from trainers.run import checkpoint
from trainers.run.checkpoint import TrainingProgress
from trainers.run.rows import JsonlTracker, RowReader
from trainers.state import TrainState
from trainers.step import StepSettings, train_step
from tuning.sharing.plan import count_flops

BACKBONE, SIZE_PX, NUM_CLASSES = "resnet50", 224, 196
HALF = (0.5, 0.5, 0.5)


def measure_planner() -> dict[str, Any]:
    """Memory and time of a rank's plan, by images and by ranks that share the work."""
    images = [1_000_000, 10_000_000, 100_000_000]
    peaks, first_s, chunk_s = [], [], []
    for num_images in images:
        manifest = paper_manifest(num_images)
        tracemalloc.start()
        chunks = paper_plan(manifest, rank=0, world_size=1, worker_batch_size=256).chunks()
        next(chunks)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        start = time.perf_counter()
        chunks = paper_plan(manifest, rank=0, world_size=1, worker_batch_size=256).chunks()
        next(chunks)
        first_s.append(time.perf_counter() - start)
        start = time.perf_counter()
        taken = len(list(islice(chunks, 200)))
        chunk_s.append((time.perf_counter() - start) / taken)
    workers, epoch_s, tasks = [1, 8, 64, 512], [], []
    for world_size in workers:  # 51,200 images for every worker
        manifest = paper_manifest(51_200 * world_size)
        start = time.perf_counter()
        plan = paper_plan(manifest, rank=0, world_size=world_size, worker_batch_size=64)
        tasks.append(sum(1 for _ in plan.chunks()))
        epoch_s.append(time.perf_counter() - start)
    return {
        "images": images,
        "peak_bytes": peaks,
        "peak_exponent": exponent(images, peaks),
        "first_chunk_s": first_s,
        "chunk_s": chunk_s,
        "workers": workers,
        "epoch_of_a_worker_s": epoch_s,
        "tasks_of_a_worker": tasks,
        "epoch_exponent": exponent(workers, epoch_s),
    }


def count_kept(manifest: Manifest) -> int:
    """Bytes of the largest part of a manifest in memory: numbers of images, and paths."""
    shards = manifest.split("train").shards
    return sum(
        sys.getsizeof(shard) + sys.getsizeof(shard.row_groups) + sys.getsizeof(shard.path)
        for shard in shards
    )


def measure_manifest() -> dict[str, Any]:
    """Size of manifest.json, and what reading it takes."""
    images = [1_000_000, 10_000_000, 100_000_000]
    sizes, read_s, kept = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for num_images in images:
            write_manifest(folder, paper_manifest(num_images))
            sizes.append(Path(folder, "manifest.json").stat().st_size)
            start = time.perf_counter()
            manifest = read_manifest(folder)
            read_s.append(time.perf_counter() - start)
            kept.append(count_kept(manifest))
    num_groups = len(RowGroups("", paper_manifest(images[-1]).split("train")))
    return {
        "images": images,
        "bytes": sizes,
        "read_s": read_s,
        "kept_bytes": kept,
        "row_groups": num_groups,
        "shards": len(paper_manifest(images[-1]).split("train").shards),
        "bytes_exponent": exponent(images, sizes),
    }


def example_row(stages: list[str]) -> dict[str, Any]:
    """A row of metrics as the loop makes it, of numbers as long as they are."""
    names = [*metrics.TRAIN_SUMS[:-1], *metrics.stage_metrics(stages), "steps"]
    totals = {name: 64 / (3 + number) for number, name in enumerate(names)}
    row = training_row(totals, epoch=7, step=123_456, learning_rate=1e-3 / 3)
    return row | {metrics.PEAK_NORM: 100 / 3}


def measure_rows() -> dict[str, Any]:
    """What a row of metrics.jsonl costs its writer and its readers, after so many rows."""
    row = example_row(["stem", "layer1", "layer2", "layer3", "layer4", "head"])
    counts, log_s, poll_s, written = [100, 1_000, 10_000], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            run = f"{folder}/{count}"
            tracker, reader = JsonlTracker(run), RowReader(run)
            content = b"".join(
                json.dumps(row | {metrics.GLOBAL_STEP: step}).encode() + b"\n"
                for step in range(count)
            )
            Path(run, "metrics.jsonl").write_bytes(content)
            reader.read_new()
            size, logged_s, read_s = len(content), [], []
            for step in range(count, count + 20):  # of which the fastest: disks have other work
                start = time.perf_counter()
                tracker.log(row | {metrics.GLOBAL_STEP: step})
                middle = time.perf_counter()
                assert len(reader.read_new()) == 1
                read_s.append(time.perf_counter() - middle)
                logged_s.append(middle - start)
            log_s.append(min(logged_s))
            poll_s.append(min(read_s))
            written.append((Path(run, "metrics.jsonl").stat().st_size - size) / 20)
    return {
        "row_bytes": len(json.dumps(row)) + 1,
        "rows_before": counts,
        "log_s": log_s,
        "bytes_written_a_row": written,
        "poll_s": poll_s,
        "log_exponent": exponent(counts, log_s),
        "poll_exponent": exponent(counts, poll_s),
    }


def measure_checkpoint() -> dict[str, Any]:
    """Size of a checkpoint by freeze depth, and what the largest takes rank 0."""
    sizes, save_s, write_s = [], [], []
    config = FinetuneConfig(
        data="", model=ModelConfig(backbone=BACKBONE, init="he"), optim=OptimConfig()
    )
    place = WorkerContext(device=torch.device("cpu"), threads=2, reader_cpus=1)
    images, labels = torch.zeros(2, 32, 32, 3, dtype=torch.uint8), torch.zeros(2)
    settings = StepSettings(mean=HALF, std=HALF, optim=config.optim)
    num_stages = 5
    for depth in range(num_stages + 1):
        state = TrainState(config, NUM_CLASSES, place)
        state.initialize()
        state.enter(replace(config, model=replace(config.model, freeze_depth=depth)).phases[0])
        assert state.optimizer is not None
        train_step(state.network, state.optimizer, images, labels, settings=settings)
        contents, taken_s = state.serialize(), []
        for _ in range(5):
            start = time.perf_counter()
            contents = state.serialize()
            taken_s.append(time.perf_counter() - start)
        save_s.append(min(taken_s))  # other work on this machine only adds
        sizes.append(sum(map(len, contents.values())))
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            checkpoint.save(folder, contents, TrainingProgress(global_step=1))
            write_s.append(time.perf_counter() - start)
    return {"bytes": sizes, "serialize_s": save_s, "write_local_s": write_s}


def measure_network() -> dict[str, Any]:
    """Work, gradients and features of ResNet50 by freeze depth: counted, not timed."""
    config = FinetuneConfig(data="", model=ModelConfig(backbone=BACKBONE, init="he"))
    total, by_depth = count_flops(config, [1, 2, 3, 4, 5])
    place = WorkerContext(device=torch.device("cpu"), threads=2, reader_cpus=1)
    state = TrainState(config, NUM_CLASSES, place)
    trained = []
    for depth in range(6):
        state.enter(replace(config, model=replace(config.model, freeze_depth=depth)).phases[0])
        trained.append(sum(p.numel() for p in state.model.parameters() if p.requires_grad))
    return {
        "forward_flops": total,
        "frozen_flops": [0.0, *(by_depth[depth][0] for depth in range(1, 6))],
        "trained_parameters": trained,
        "feature_bytes": [0, *(count_bytes(by_depth[depth][1]) for depth in range(1, 6))],
        "buffers": sum(1 for _ in state.model.buffers()),
    }


def measure_requests() -> dict[str, Any]:
    """Requests to S3 for a row group, the first of its shard and later ones, by moto's log."""
    rows = 64 * 4
    table = pa.table(
        {
            "image": pa.array([b"x" * 20_000] * rows, pa.binary()),
            "label": pa.array([0] * rows, pa.int32()),
            "image_id": pa.array(range(rows), pa.int64()),
            "crc32": pa.array([0] * rows, pa.uint32()),
            "path": pa.array(["train/some_class/photograph.jpg"] * rows),
        },
        schema=SHARD_SCHEMA,
    )
    with serve_s3() as server:
        uri = "s3://thaw/train/part-0.parquet"
        write_images(uri, table, 64)
        counts = []
        for index in range(3):
            before = server.count_requests()
            read.read_group(uri, index, read.COLUMNS)
            counts.append(server.count_requests() - before)
    return {"first_of_a_shard": counts[0], "later": counts[2]}


def measure_coordinator() -> dict[str, Any]:
    """What Ray Data's one coordinator of a cluster takes for the streams of so many workers.

    Its own class, in this process, with the nodes of a cluster on paper: 96 CPUs and 8 workers
    each, two streams a worker. A stream begins with one registration.
    """
    workers, register_s, cpus = [8, 64, 256, 1000], [], []
    for world_size in workers:
        nodes = [
            {
                "Alive": True,
                "NodeID": f"node{number}",
                "Resources": {
                    "CPU": 96.0, "GPU": 8.0, "memory": 1e12, "object_store_memory": 2e11,
                    f"node:10.0.0.{number}": 1.0, "accelerator_type:A100": 1.0,
                },
            }
            for number in range(max(1, world_size // 8))
        ]  # fmt: skip
        actor = coordinator._AutoscalingCoordinatorActor(
            send_resources_request=lambda *a, **k: None, get_cluster_nodes=lambda nodes=nodes: nodes
        )
        names = [f"data-{number}" for number in range(2 * world_size)]
        for name in names[:-1]:
            actor._ongoing_reqs[name] = coordinator.OngoingRequest(
                first_request_time=0.0, requested_resources=[], expiration_time=float("inf"),
                request_remaining=frozenset(base.STANDARD_RESOURCE_TYPES), priority=0,
                reserved_resources={}, requested_label_selectors=[],
                strategy=base.ResourceRequestStrategy.PACK,
            )  # fmt: skip
        start = time.perf_counter()
        actor.request_resources(
            names[-1], [], 180.0, base.STANDARD_RESOURCE_TYPES,
            priority=base.ResourceRequestPriority.MEDIUM,
        )  # fmt: skip
        register_s.append(time.perf_counter() - start)
        reserved = actor.get_reserved_resources(names[-1])
        cpus.append(sum(node.get("CPU", 0.0) for node in reserved.values()))
    return {
        "workers": workers,
        "register_s": register_s,
        "register_exponent": exponent(workers, register_s),
        "cpus_of_a_stream": cpus,
        "fair_cpus_of_a_stream": [96 / 16] * len(workers),
    }


def note_feed() -> dict[str, Any]:
    """What one core decodes and augments: LOG.md and README, `make bench`, stream, two cores."""
    return {"core_images_per_s": 711 / 2}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "feed": note_feed,
    "planner": measure_planner,
    "manifest": measure_manifest,
    "rows": measure_rows,
    "checkpoint": measure_checkpoint,
    "network": measure_network,
    "requests": measure_requests,
    "coordinator": measure_coordinator,
    "ranks": measure_ranks,
    "workers": measure_workers,
    "sweep": measure_sweep,
    "mirrors": measure_mirrors,
}


def main() -> None:
    for name in sys.argv[1:] or PARTS:
        if name not in PARTS:
            raise SystemExit(f"part is {name!r}: choose from {', '.join(PARTS)}")
        began_s = time.monotonic()
        values = PARTS[name]()
        write_part(name, values)
        print(f"{name}: {time.monotonic() - began_s:.0f} s", json.dumps(values, indent=1), sep="\n")


if __name__ == "__main__":
    main()
