"""The service beside the session it holds: python -m tests.bench.serving --run runs/tuned.

Photographs of ../shared/cars (the test split) are sent by some clients at once, each with
--images in a request, and the same photographs are decoded and computed by the same ONNX session in
this process, in batches of as many, with the same number of threads. Prints images/s and p99, and
the time of one photograph where nothing else is asked.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np

from cluster import runtime
from tests.bench.unknown import CARS
from trainers.serving.config import ServeConfig
from trainers.serving.model import Answerer, export_for_service
from trainers.serving.serve import serving
from trainers.serving.uploads import Upload, decode

PORT = 8123
NUM_ALONE = 100


def run_load(
    send: Callable[[Sequence[Path]], None], files: list[Path], images: int, clients: int
) -> tuple[float, float]:
    """Return images/s, and the 99th percentile of a request's time in milliseconds."""
    groups = [files[at : at + images] for at in range(0, len(files), images)]

    def timed(group: Sequence[Path]) -> float:
        started = time.perf_counter()
        send(group)
        return time.perf_counter() - started

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        times = list(pool.map(timed, groups))
    return len(files) / (time.perf_counter() - started), float(np.percentile(times, 99) * 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True)
    parser.add_argument("--images", type=int, default=8, help="in a request")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--photographs", type=int, default=817, help="in a round")
    options = parser.parse_args()
    files = sorted((CARS / "test").rglob("*.jpg"))[: options.photographs]
    config = ServeConfig(run=options.run, port=PORT, max_batch_size=options.images)
    answerer = Answerer(export_for_service(options.run), config)
    runtime.connect(None, quiet=True)
    with serving(config) as url, httpx.Client(base_url=url, timeout=60) as client:
        compare(options, files, client, answerer)


def compare(
    options: argparse.Namespace, files: list[Path], client: httpx.Client, answerer: Answerer
) -> None:
    """Print how fast the service is, and how fast the session alone."""
    size_px = answerer.exported.size_px

    def ask(group: Sequence[Path]) -> None:
        parts = [("images", (file.name, file.read_bytes())) for file in group]
        assert len(client.post("/predict", files=parts).raise_for_status().json()["answers"])

    def compute(group: Sequence[Path]) -> None:
        views = [decode(Upload(file.name, file.read_bytes()), size_px) for file in group]
        for logits_K in answerer.compute(np.stack(views)):
            answerer.answer(logits_K)

    for send in (ask, compute):
        send(files[: options.images])  # warm
    print("round  service: images/s  p99 ms  session: images/s  p99 ms  ratio")
    ratios = []
    for number in range(options.rounds):
        ours = run_load(ask, files, options.images, options.clients)
        direct = run_load(compute, files, options.images, 1)
        ratios.append(ours[0] / direct[0])
        print(
            f"{number:5}  {ours[0]:17.0f}  {ours[1]:6.0f}  {direct[0]:17.0f}  {direct[1]:6.0f}  "
            f"{ratios[-1]:.2f}",
            flush=True,
        )
    print(f"median ratio {np.median(ratios):.2f}")
    for name, send in (("service", ask), ("session", compute)):
        times = run_load(send, files[:NUM_ALONE], 1, 1)
        print(f"one photograph at a time, {name}: {1000 / times[0]:.1f} ms, p99 {times[1]:.1f} ms")


if __name__ == "__main__":
    main()
