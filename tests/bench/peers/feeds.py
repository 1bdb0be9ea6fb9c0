"""How people feed photographs today, and the limit: what ours is compared with.

Each returns the seconds it took for `num_epochs` epochs of uint8 batches, as a warm process has it.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import ray
import torch
from torch.utils.data import DataLoader, Dataset

from datasets.augment import view
from datasets.policies import build_policy

BATCH_SIZE, SIZE_PX, POLICY = 64, 224, "cars"


class PhotoFolder(Dataset):
    """JPEG files read and decoded by OpenCV, augmented by the same policy in Albumentations."""

    def __init__(self, files: list[str], size_px: int) -> None:
        self._files, self._size_px = files, size_px

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> np.ndarray:
        image_HWC = cv2.imread(self._files[index], cv2.IMREAD_COLOR_RGB)
        return build_policy(POLICY, self._size_px)(image=image_HWC)["image"]


def open_dataloader(
    files: list[str], num_workers: int, *, batch_size: int = BATCH_SIZE, size_px: int = SIZE_PX
) -> DataLoader:
    """Return a shuffled loader whose persistent workers have delivered an epoch already."""
    loader = DataLoader(
        PhotoFolder(files, size_px),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        multiprocessing_context="spawn" if num_workers else None,
        worker_init_fn=_one_thread,
    )
    for _ in loader:
        pass
    return loader


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def time_dataloader(loader: DataLoader, num_epochs: int) -> float:
    start = time.perf_counter()
    for _ in range(num_epochs):
        for _batch in loader:
            pass
    return time.perf_counter() - start


def time_map_batches(data: str) -> float:
    """Seconds for one epoch of `read_parquet().map_batches()`, as Ray's documentation writes it."""

    def transform(batch: Any) -> dict[str, np.ndarray]:
        policy = build_policy(POLICY, SIZE_PX)
        decoded = (
            cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
            for content in batch["image"]
        )
        images = np.stack([policy(image=image_HWC)["image"] for image_HWC in decoded])
        return {"image": images, "label": batch["label"]}

    start = time.perf_counter()
    dataset = ray.data.read_parquet(f"{data}/train", columns=["image", "label"])
    for _batch in dataset.map_batches(transform).iter_torch_batches(batch_size=BATCH_SIZE):
        pass
    return time.perf_counter() - start


@contextmanager
def bare_processes(data: str, num_processes: int) -> Iterator["BareProcesses"]:
    """As many processes as cores that decode and augment as ours does, and send nothing."""
    with get_context("spawn").Pool(num_processes, _load, (data,)) as pool:
        processes = BareProcesses(pool, num_processes)
        processes.time(200)
        yield processes


class BareProcesses:
    def __init__(self, pool, num_processes: int) -> None:
        self._pool, self._num_processes = pool, num_processes

    def time(self, num_images: int) -> float:
        start = time.perf_counter()
        share = num_images // self._num_processes
        self._pool.map(_draw_views, [share] * self._num_processes, chunksize=1)
        return time.perf_counter() - start


_jpegs: list = []


def _load(data: str) -> None:
    for shard in sorted(Path(data, "train").glob("*.parquet")):
        column = pq.read_table(shard)["image"].combine_chunks()
        _jpegs.extend(jpeg.as_buffer() for jpeg in column)


def _draw_views(num_images: int) -> None:
    for number in range(num_images):
        jpeg = _jpegs[number % len(_jpegs)]
        view(jpeg, POLICY, SIZE_PX, seed=0, epoch=number, image_id=number)
