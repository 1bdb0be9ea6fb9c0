"""Twelve networks compared in one command: python -m tests.bench.backbones, `make bench`.

`advise --backbones` with the 20 classes of ../shared/cars, eleven networks with random weights and
one with real ones, which must win. Its pass over the images is compared with the sum of the
networks' bare forward passes, in as many processes.
"""

import multiprocessing
import tempfile
import time
from dataclasses import replace

import numpy as np
import ray

from cluster.runtime import connect
from datasets.manifest_file import read_manifest
from datasets.prepare.config import PrepareConfig
from datasets.prepare.prepare import prepare
from tests.bench.report import ROOT, report, to_row
from trainers.config import FinetuneConfig
from trainers.inference import passes
from trainers.inference.actors import plan_actors
from trainers.inference.compiled import is_compiled
from trainers.inference.prefix import PrefixActor, open_frozen
from trainers.networks.backbones import find
from trainers.networks.precision import choose_precision
from tuning.advice.advise import run_advise
from tuning.advice.candidates import plan_candidates
from tuning.advice.config import AdviseConfig

SHARED = ROOT.parent / "shared"
RANDOM = (
    "resnet18", "resnet50", "efficientnet_b0", "mobilenet_v1", "densenet121", "convnext_atto",
    "vit_tiny_patch16_224", "regnetx_002", "mobilenetv4_conv_small", "fastvit_t8", "mobilevit_xxs",
)  # fmt: skip
REAL = f"mobilenet_v2={SHARED}/weights/mobilenet_v2_imagenet.pth@half"
TARGET = 1 / 1.2
"""Of the bare forward passes' rate."""
NUM_IMAGES = 96
"""In each bare process."""


def compute_bare(
    training: FinetuneConfig, num_classes: int, seconds: multiprocessing.Queue
) -> None:
    """Put the seconds of a network's forward passes over NUM_IMAGES images, as an actor's."""
    frozen = open_frozen(training, num_classes, pooled=True)
    depths = range(1, len(find(training.model.backbone).stages) + 1)
    ray.get = lambda network: network  # no cluster: the actor gets the network itself
    compiled = is_compiled(training, use_gpu=False)
    actor = PrefixActor([(frozen, depths, compiled)], threads=1, use_gpu=False)  # pyright: ignore
    size_px = training.ingest.size_px
    images_NSSC = np.zeros((NUM_IMAGES, size_px, size_px, 3), np.uint8)
    actor(images_NSSC[:16])
    start_s = time.monotonic()
    actor(images_NSSC)
    seconds.put(time.monotonic() - start_s)


def measure_bare(trainings: list[FinetuneConfig], num_classes: int, num_processes: int) -> float:
    """Return the images a second of all networks one after the other, in some processes."""
    context = multiprocessing.get_context("spawn")
    total_s = 0.0
    for training in trainings:
        compute = choose_precision(training.compute, use_gpu=False)
        queue = context.Queue()
        arguments = (replace(training, compute=compute), num_classes, queue)
        processes = [
            context.Process(target=compute_bare, args=arguments) for _ in range(num_processes)
        ]
        for process in processes:
            process.start()
        total_s += max(queue.get() for _ in processes)
        for process in processes:
            process.join()
    return num_processes * NUM_IMAGES / total_s


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        cars, data = SHARED / "cars", f"{folder}/cars"
        connected = connect(quiet=True)
        prepare(
            PrepareConfig(source="folder", root=f"{cars}/train", test_root=f"{cars}/test", out=data)
        )
        config = AdviseConfig(
            data=data,
            out=f"{folder}/advice",
            backbones=(*(f"{name}=he" for name in RANDOM), REAL),
        )
        rates: list[float] = []
        run_pass = passes.run_pass

        def run_and_time(*arguments: object, **options: object) -> object:
            built = run_pass(*arguments, **options)  # pyright: ignore
            rates.append(built.num_images / built.seconds)
            return built

        passes.run_pass = run_and_time  # pyright: ignore
        ranking = run_advise(config)["networks"]
        assert ranking[0]["init"] == "file", "the network with real weights must win"
        training = passes.build_training(config, config.out)
        trainings = [each.training for each in plan_candidates(config.backbones, training)]
        num_actors = plan_actors(
            connected, training.cluster, [each.model.backbone for each in trainings]
        ).num_workers
        bare = measure_bare(trainings, len(read_manifest(data).classes), num_actors)
    (rate,) = rates
    report(
        [
            to_row(
                "advise/backbones_vs_forward",
                ours=rate,
                peer=bare,
                limit=bare,
                target=TARGET,
                num_runs=1,
            )
        ]
    )


if __name__ == "__main__":
    main()
