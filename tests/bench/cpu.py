"""Networks on this machine's CPUs against plain torch: python -m tests.bench.cpu, or `make bench`.

A training step (all parameters, 224 px, 32 images), inference, and evaluation against the rate of
the feature builder. A step is also compared with torch's in the same precision, layout and memory
settings (`step_vs_bare`): what telemetry costs, and what gradients of depthwise convolutions gain.
Each side has processes of its own, as memory settings belong to a process; they take turns, and
medians over the turns are reported. Ours has the precision that `auto` is here. Plain is the loop
of PyTorch's tutorials: float32, contiguous, all threads in one process.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from ray.data.extensions import ArrowTensorArray

from cluster import runtime
from cluster.config import ClusterConfig
from cluster.memory_allocator import ALLOCATOR_ENV
from datasets.config import IngestConfig
from datasets.manifest_file import read_manifest
from datasets.prepare.config import PrepareConfig
from datasets.prepare.prepare import prepare
from tests.bench.report import ROOT, report, to_row
from tests.bench.steps import NUM_CLASSES, our_step, plain_step, random_batch, training_of
from trainers.config import ComputeConfig, FinetuneConfig, ModelConfig
from trainers.evaluation.split import SplitPredictor, predict_split
from trainers.inference.actors import CPU_THREADS, plan_actors
from trainers.inference.inference import Network
from trainers.inference.passes import plan_entries, run_pass
from trainers.inference.prefix import open_frozen
from trainers.networks.backbones import build, find
from trainers.networks.precision import choose_precision
from trainers.step.settings import start_computing
from trainers.worker import WorkerContext

SIZE_PX, BATCH_SIZE, BLOCK_IMAGES = 224, 32, 128
NUM_CPUS = os.cpu_count() or 1
CPU = torch.device("cpu")
PLAIN = ComputeConfig(precision="fp32", channels_last=False)
NUM_TURNS = 5
TARGETS = {
    "train/cpu_step_vs_plain_resnet50": (2.0, 1.3),
    "train/cpu_step_vs_plain_mobilenet_v2": (2.0, 1.8),
    "train/step_vs_bare_mobilenet_v2": (1.2, 0.98),
    "train/step_vs_bare_mobilenet_v3_large": (1.3, 0.98),
    "train/step_vs_bare_efficientnet_b0": (1.3, 0.98),
    "infer/cpu_vs_plain_resnet50": (2.5, 1.3),
    "infer/cpu_vs_plain_mobilenet_v2": (4.0, 1.8),
    "evaluate/vs_features": (0.9, 0.9),
}
"""On CPUs with bfloat16, and on others."""
Work = Callable[[], int]
"""Computes something; returns the number of images."""


def open_our_step(backbone: str) -> Work:
    start_computing(NUM_CPUS)
    config = training_of(backbone, compute=choose_precision(ComputeConfig(), use_gpu=False))
    return _over_batches(our_step(config, WorkerContext(device=CPU, threads=NUM_CPUS)))


def open_plain_step(backbone: str) -> Work:
    torch.set_num_threads(NUM_CPUS)
    config = training_of(backbone, compute=PLAIN)
    return _over_batches(plain_step(config, CPU, all_reduce=False))


def open_bare_step(backbone: str) -> Work:
    """The plain loop with our settings: no telemetry of clipping, finite checks or metrics."""
    start_computing(NUM_CPUS)
    config = training_of(backbone, compute=choose_precision(ComputeConfig(), use_gpu=False))
    return _over_batches(plain_step(config, CPU, all_reduce=False))


def _over_batches(step: Callable[[torch.Tensor, torch.Tensor], object]) -> Work:
    batch = random_batch(BATCH_SIZE, SIZE_PX, seed=0)

    def work() -> int:
        step(*batch)
        return BATCH_SIZE

    return work


def open_our_inference(backbone: str) -> Work:
    config = FinetuneConfig(
        data="",
        model=ModelConfig(backbone=backbone, init="he"),
        compute=choose_precision(ComputeConfig(), use_gpu=False),
    )
    network = Network(
        model=build(backbone, NUM_CLASSES).eval(), config=config, classes=(), origin=""
    )
    predictor = SplitPredictor(
        load=lambda: network,
        tta=False,
        threads=CPU_THREADS,
        use_gpu=False,
        compiled=True,
        index_K=np.arange(NUM_CLASSES),
        describe=None,
    )
    images_BHWC, labels_B = random_batch(BLOCK_IMAGES, SIZE_PX, seed=0)
    rows = pa.array(range(BLOCK_IMAGES))
    block = pa.table(
        {
            "image": ArrowTensorArray.from_numpy(images_BHWC.numpy()),
            "label": labels_B.numpy(),
            "row": rows,
            "image_id": rows,
            "read_error": pa.nulls(BLOCK_IMAGES, pa.string()),
        }
    )
    return lambda: len(predictor(block))


def open_plain_inference(backbone: str) -> Work:
    torch.set_num_threads(NUM_CPUS)
    model = build(backbone, NUM_CLASSES).eval()
    images_BCHW = torch.rand(BATCH_SIZE, 3, SIZE_PX, SIZE_PX)

    @torch.inference_mode()
    def work() -> int:
        model(images_BCHW)
        return BATCH_SIZE

    return work


def _serve(pipe: Any, open_work: Callable[[str], Work], backbone: str) -> None:
    """Work for as many seconds as asked; answer with images/s."""
    work = open_work(backbone)
    work()
    pipe.send(0.0)
    while (seconds := pipe.recv()) is not None:
        start, num_images = time.perf_counter(), work()
        while time.perf_counter() - start < seconds:
            num_images += work()
        pipe.send(num_images / (time.perf_counter() - start))


@contextmanager
def processes(
    open_work: Callable[[str], Work], backbone: str, num: int, environment: dict[str, str]
) -> Iterator[Callable[[float], float]]:
    """Start processes of one side; yield what lets them all work, and returns their images/s."""
    context = get_context("spawn")
    pipes, started = [], []
    before = dict(os.environ)
    os.environ.update(environment)
    for _ in range(num):
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, open_work, backbone))
        process.start()
        pipes.append(here)
        started.append(process)
    os.environ.clear()
    os.environ.update(before)
    for pipe in pipes:
        pipe.recv()

    def measure(seconds: float) -> float:
        for pipe in pipes:
            pipe.send(seconds)
        return sum(pipe.recv() for pipe in pipes)

    yield measure
    for pipe, process in zip(pipes, started, strict=True):
        pipe.send(None)
        process.join()


def compare(
    name: str, backbone: str, sides: dict[str, tuple[Callable[[str], Work], int]], seconds: float
) -> dict:
    """Let `ours` and `plain` take turns; return the row."""
    (our, num_ours), (plain, num_plain) = sides["ours"], sides["plain"]
    rates: dict[str, list[float]] = {"ours": [], "plain": []}
    with (
        processes(our, backbone, num_ours, ALLOCATOR_ENV) as ours,
        processes(plain, backbone, num_plain, {}) as theirs,
    ):
        for _ in range(NUM_TURNS):
            rates["ours"].append(ours(seconds))
            rates["plain"].append(theirs(seconds))
    name = f"{name}_{backbone}"
    print(name, {side: [round(rate) for rate in of_side] for side, of_side in rates.items()})
    return _row(name, rates["ours"], rates["plain"])


def _row(name: str, ours: list[float], peer: list[float]) -> dict:
    has_bf16 = choose_precision(ComputeConfig(), use_gpu=False).precision == "bf16"
    median = statistics.median(ours)
    return to_row(
        name,
        ours=median,
        peer=statistics.median(peer),
        limit=max(*ours, *peer),
        target=TARGETS[name][0 if has_bf16 else 1],
        num_runs=len(ours),
    )


def compare_evaluation(folder: str) -> dict:
    """Evaluate the test photographs, and compute their features of the same network."""
    shared = ROOT.parent / "shared"
    runtime.connect(None, quiet=True)
    prepare(
        PrepareConfig(source="folder", root=str(shared / "cars" / "test"), out=f"{folder}/cars",
                      val_fraction=0.05)
    )  # fmt: skip
    manifest = read_manifest(f"{folder}/cars")
    resources = runtime.find_resources()
    plan = plan_actors(resources, ClusterConfig(), ["mobilenet_v2"])
    config = FinetuneConfig(
        data=f"{folder}/cars",
        ingest=IngestConfig(policy="none"),
        model=ModelConfig(
            backbone="mobilenet_v2",
            init="file",
            weights=str(shared / "weights" / "mobilenet_v2_imagenet.pth"),
            normalization="half",
        ),
        compute=choose_precision(ComputeConfig(), use_gpu=plan.use_gpu),
    )
    frozen = open_frozen(config, len(manifest.classes))
    network = Network(model=frozen.model, config=config, classes=manifest.classes, origin="")
    num_images = manifest.split("train").num_images
    depth = len(find("mobilenet_v2").stages)
    rates: dict[str, list[float]] = {"ours": [], "features": []}
    for turn in range(3):
        start = time.perf_counter()
        predict_split(network, manifest, "train", index_K=np.arange(len(manifest.classes)))
        rates["ours"].append(num_images / (time.perf_counter() - start))
        entries = plan_entries(
            frozen, depth, output=0, shape=frozen.shapes([depth])[0],
            num_views={"train": 1},
            manifest=manifest, cache=f"{folder}/cache-{turn}", use_gpu=plan.use_gpu,
        )  # fmt: skip
        built = run_pass([(frozen, [depth])], entries, manifest=manifest, plan=plan)
        assert built.num_images == num_images
        rates["features"].append(built.num_images / built.seconds)
    print("evaluate", {name: [round(rate) for rate in of_side] for name, of_side in rates.items()})
    return _row("evaluate/vs_features", rates["ours"], rates["features"])


def main() -> None:
    for backbone in ("mobilenet_v2", "resnet50"):
        step = {"ours": (open_our_step, 1), "plain": (open_plain_step, 1)}
        report([compare("train/cpu_step_vs_plain", backbone, step, seconds=4.0)])
        inference = {
            "ours": (open_our_inference, max(1, NUM_CPUS // CPU_THREADS)),
            "plain": (open_plain_inference, 1),
        }
        report([compare("infer/cpu_vs_plain", backbone, inference, seconds=3.0)])
    bare = {"ours": (open_our_step, 1), "plain": (open_bare_step, 1)}
    for backbone in ("mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0"):
        report([compare("train/step_vs_bare", backbone, bare, seconds=4.0)])
    with tempfile.TemporaryDirectory() as folder:
        report([compare_evaluation(folder)])


if __name__ == "__main__":
    main()
