"""Images per second of `prepare`, checks included: python -m tests.bench.prepare, `make bench`.

As many photographs as Stanford Cars has, of 224 px: blends of two of `../shared/cars`, so that few
are near duplicates. The first turn only warms up. To compare two commits in turns, give both the
same folder of images: python -m tests.bench.prepare PHOTOS
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from cluster import runtime
from datasets.prepare.config import PrepareConfig
from datasets.prepare.prepare import prepare
from tests.bench.report import ROOT, keep, to_row

CARS = ROOT.parent / "shared" / "cars" / "train"
NUM_IMAGES, NUM_CLASSES, NUM_RUNS = 16_185, 196, 3
TARGET = 1_391
"""Images per second on two cores, before prepare looked at pixels (2026-11-27)."""


def blend_photographs(folder: Path, num_images: int = NUM_IMAGES) -> None:
    """Write blends of two photographs, one of them mirrored, in class folders."""
    rng = np.random.default_rng(0)
    photos = [cv2.imread(str(file)) for file in sorted(CARS.rglob("*.jpg"))]
    pairs = rng.choice(len(photos) ** 2, num_images, replace=False)
    for number, pair in enumerate(pairs):
        one, other = divmod(pair, len(photos))
        image_HWC = cv2.addWeighted(photos[one], 0.5, photos[other][:, ::-1], 0.5, 0)
        path = folder / f"class-{number % NUM_CLASSES:03d}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), image_HWC, [cv2.IMWRITE_JPEG_QUALITY, 80])


def measure(photos: Path) -> list[float]:
    num_images = sum(1 for _ in photos.rglob("*.jpg"))
    rates: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(NUM_RUNS + 1):
            start = time.perf_counter()
            prepare(PrepareConfig(source="folder", root=str(photos), out=f"{folder}/{turn}"))
            rates.append(num_images / (time.perf_counter() - start))
    return rates[1:]


def main() -> None:
    runtime.connect(None)
    if len(sys.argv) > 1:
        rates = measure(Path(sys.argv[1]))
    else:
        assert CARS.is_dir(), f"{CARS} must be there: the benchmark feeds real photographs"
        with tempfile.TemporaryDirectory() as folder:
            blend_photographs(Path(folder))
            rates = measure(Path(folder))
    ours = statistics.median(rates)
    print(f"ingest/prepare_images_per_s: {ours:.0f} of {', '.join(f'{r:.0f}' for r in rates)}")
    if len(sys.argv) == 1:
        row = to_row("ingest/prepare_images_per_s", ours=ours, peer=TARGET, limit=TARGET,
                     target=1.0, num_runs=NUM_RUNS)  # fmt: skip
        keep([row | {"machine": f"{os.cpu_count()} cores"}])


if __name__ == "__main__":
    main()
