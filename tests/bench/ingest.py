"""Ours against what people use, on this machine: python -m tests.bench.ingest, or `make bench`.

Two data sets: photographs of 640x480 of about 100 kB, and `../shared/cars` as it is (224 px crops,
10 kB). Every round measures all of them one after the other, so that noise hits all; medians are
reported. DataLoader and bare processes are warm when the clock starts; ours starts a new stream, so
its first batch counts. Writes bench.json.
"""

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import ray

from cluster import runtime
from datasets.config import IngestConfig
from datasets.epochs import stream
from datasets.manifest_file import read_manifest
from datasets.memory import open_memory
from datasets.plan import plan_epochs
from datasets.prepare.config import PrepareConfig
from datasets.prepare.prepare import prepare
from datasets.sources import MemorySource, ShardSource
from tests.bench.peers.feeds import (
    BATCH_SIZE,
    POLICY,
    SIZE_PX,
    bare_processes,
    open_dataloader,
    time_dataloader,
    time_map_batches,
)
from tests.bench.report import ROOT, report, to_row

CARS = ROOT.parent / "shared" / "cars" / "train"
NUM_EPOCHS, NUM_ROUNDS = 8, 5
TARGETS = {"memory_vs_dataloader": 2.5, "stream_vs_dataloader": 1.3, "stream_vs_map_batches": 3.0,
           "stream_vs_limit": 0.85}  # fmt: skip


@dataclass
class Stream:
    """What one stream of ours did."""

    images_per_s: float
    first_batch_s: float
    gap_s: float
    """Median wait for the first batch of an epoch."""
    step_s: float
    """Median wait for any other batch."""


def enlarge_photographs(folder: Path) -> None:
    """Write the cars at 640x480 with a little noise: about 100 kB each, as a camera's would be."""
    rng = np.random.default_rng(0)
    for file in sorted(CARS.rglob("*.jpg")):
        image_HWC = cv2.imread(str(file))
        assert image_HWC is not None, file
        image_HWC = cv2.resize(image_HWC, (640, 480), interpolation=cv2.INTER_CUBIC)
        noisy = np.clip(image_HWC + rng.normal(0, 6, image_HWC.shape), 0, 255).astype(np.uint8)
        out = folder / file.parent.name / file.name
        out.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(out), noisy, [cv2.IMWRITE_JPEG_QUALITY, 93])


def run_stream(data: str, *, remember: bool, seed: int, pace_s: float = 0.0) -> Stream:
    """Stream NUM_EPOCHS epochs; the reader rests `pace_s` after every batch."""
    manifest = read_manifest(data)
    ingest = IngestConfig(policy=POLICY, size_px=SIZE_PX)
    memory = open_memory(manifest, shared=False)["train"] if remember else None
    if memory:  # a training opens it before its workers start
        ray.get(memory.index.find.remote(np.zeros(1, int)))
    start = time.perf_counter()
    plan = plan_epochs(data, manifest, ingest, split="train", num_epochs=NUM_EPOCHS,
                       global_batch_size=BATCH_SIZE, seed=seed, train=True)  # fmt: skip
    waits, asked = [], time.perf_counter()
    facts = {"ingest": ingest, "seed": seed, "train": True}
    source = MemorySource(**facts, memory=memory) if memory else ShardSource(**facts)
    for _batch in stream(plan, source):
        waits.append(time.perf_counter() - asked)
        time.sleep(pace_s)
        asked = time.perf_counter()
    seconds = time.perf_counter() - start
    per_epoch = plan.batches_per_epoch
    return Stream(
        images_per_s=len(waits) * BATCH_SIZE / seconds,
        first_batch_s=waits[0],
        gap_s=statistics.median(waits[per_epoch::per_epoch]),
        step_s=statistics.median(wait for n, wait in enumerate(waits) if n % per_epoch),
    )


def private_mib() -> dict[str, float]:
    """Private memory of this process and of the largest reader, in MiB; the store is shared."""
    peaks: dict[str, float] = {"driver": 0, "reader": 0}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            title = (status.parent / "cmdline").read_text()
        except OSError:  # the process has ended meanwhile
            continue
        kind = "driver" if status.parent.name == str(os.getpid()) else "reader"
        if kind == "driver" or title.startswith("ray::"):
            peak = float(lines.get("RssAnon", "0").split()[0]) / 1024
            peaks[kind] = max(peaks[kind], peak)
    return peaks


def bench(name: str, photos: Path, data: str) -> list[dict]:
    """Measure one data set and return its rows of bench.json."""
    num_cpus = os.cpu_count() or 1
    files = sorted(str(file) for file in photos.rglob("*.jpg"))
    num_train = read_manifest(data).split("train").num_images
    rates: dict[str, list[float]] = {}
    streams: list[Stream] = []
    loader = open_dataloader(files, num_cpus)
    run_stream(data, remember=False, seed=0)  # starts the reader processes
    with bare_processes(data, num_cpus) as bare:
        for seed in range(1, NUM_ROUNDS + 1):
            streams.append(run_stream(data, remember=False, seed=seed))
            measured = {
                "dataloader": NUM_EPOCHS * len(loader) * BATCH_SIZE
                / time_dataloader(loader, NUM_EPOCHS),
                "stream": streams[-1].images_per_s,
                "memory": run_stream(data, remember=True, seed=seed).images_per_s,
                "map_batches": num_train / time_map_batches(data),
                "limit": NUM_EPOCHS * num_train / bare.time(NUM_EPOCHS * num_train),
            }  # fmt: skip
            for key, rate in measured.items():
                rates.setdefault(key, []).append(rate)
            print(name, {key: round(rate) for key, rate in measured.items()}, flush=True)
    paced = run_stream(
        data, remember=False, seed=99, pace_s=1.5 * BATCH_SIZE / min(rates["stream"])
    )
    median = {key: statistics.median(values) for key, values in rates.items()}
    print(
        f"{name}: first batch {statistics.median(s.first_batch_s for s in streams):.2f} s; with a "
        f"reader that takes 1.5 times as long, the first batch of an epoch waits "
        f"{1e3 * paced.gap_s:.1f} ms and any other {1e3 * paced.step_s:.1f} ms; "
        f"private memory {private_mib()} MiB"
    )
    rows = []
    for measure, target in TARGETS.items():
        ours, peer = (median[side] for side in measure.split("_vs_"))
        rows.append(
            to_row(
                f"ingest/{measure}" + ("" if name == "photos_640" else f"_{name}"),
                ours=ours, peer=peer, limit=median["limit"], target=target, num_runs=NUM_ROUNDS,
            )
        )  # fmt: skip
    return rows


def main() -> None:
    assert CARS.is_dir(), f"{CARS} must be there: the benchmark feeds real photographs"
    runtime.connect(None)
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder, "photos")
        enlarge_photographs(photos)
        for name, source in (("photos_640", photos), ("cars", CARS)):
            data = str(Path(folder, name))
            prepare(PrepareConfig(source="folder", root=str(source), out=data, short_side_px=480,
                                  val_fraction=0.05))  # fmt: skip
            rows += bench(name, source, data)
    report(rows)


if __name__ == "__main__":
    main()
