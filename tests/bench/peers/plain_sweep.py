"""A trial as Ray's documentation writes it: Tune, a TorchTrainer per trial, Ray Data per trial."""

import os
import time
from functools import partial
from typing import Any

import cv2
import numpy as np
import ray
import ray.data
import ray.train
import ray.train.torch
import ray.tune
import torch
import torch.nn.functional as F
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from torch import nn
from torchvision.models import mobilenet_v2

from datasets.config import Policy
from datasets.policies import build_policy

BATCH_SIZE, SIZE_PX, NUM_CLASSES = 32, 224, 20


def decode(policy: Policy, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    transform = build_policy(policy, SIZE_PX)
    images = [
        transform(image=cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB))["image"]
        for jpeg in batch["image"]
    ]
    return {"image": np.stack(images), "label": batch["label"]}


def open_split(data: str, split: str, policy: Policy) -> ray.data.Dataset:
    shards = ray.data.read_parquet(f"{data}/{split}", columns=["image", "label"])
    transform: Any = partial(decode, policy)
    return shards.map_batches(transform, batch_size=64)


def loop(config: dict[str, Any]) -> None:
    """Train with the first children of `features` frozen, as many as config says."""
    torch.set_num_threads(2)
    model = mobilenet_v2()
    model.load_state_dict(torch.load(config["weights"], weights_only=True))
    model.classifier[1] = nn.Linear(1280, NUM_CLASSES)
    frozen = list(model.features)[: config["num_frozen"]]
    for child in frozen:
        child.requires_grad_(False)
    model = ray.train.torch.prepare_model(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=config["learning_rate"])

    def batches(split: str, shuffle: int | None):
        shard = ray.train.get_dataset_shard(split)
        assert shard is not None, split
        for batch in shard.iter_torch_batches(
            batch_size=BATCH_SIZE, local_shuffle_buffer_size=shuffle
        ):
            images_BCHW = batch["image"].permute(0, 3, 1, 2).float() / 127.5 - 1
            yield images_BCHW, batch["label"].long()

    for epoch in range(config["epochs"]):
        started = time.perf_counter()
        model.train()
        for child in frozen:
            child.eval()
        for images_BCHW, labels_B in batches("train", 256):
            optimizer.zero_grad()
            F.cross_entropy(model(images_BCHW), labels_B).backward()
            optimizer.step()
        model.eval()
        correct = count = 0
        with torch.no_grad():
            for images_BCHW, labels_B in batches("val", None):
                correct += int((model(images_BCHW).argmax(1) == labels_B).sum())
                count += len(labels_B)
        seconds = time.perf_counter() - started
        ray.train.report({"epoch": epoch + 1, "val": correct / count, "epoch_s": seconds})


def run_trials(
    points: list[dict[str, Any]], *, data: str, weights: str, epochs: int, folder: str
) -> list[dict[str, Any]]:
    """Run plain trials one at a time; returns seconds outside and inside epochs, and accuracy."""

    def trial(config: dict[str, Any]) -> None:
        TorchTrainer(
            loop,
            train_loop_config=config,
            scaling_config=ray.train.ScalingConfig(
                num_workers=1, resources_per_worker={"CPU": 0.5}
            ),
            datasets={
                "train": open_split(data, "train", "light"),
                "val": open_split(data, "val", "none"),
            },
            run_config=ray.train.RunConfig(
                storage_path=f"{folder}/train", callbacks=[TuneReportCallback()]
            ),
        ).fit()

    # Our sweeps switch these off, and metrics come from them.
    os.environ.pop("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", None)
    results = []
    for point in points:
        started = time.perf_counter()
        grid = ray.tune.Tuner(
            ray.tune.with_resources(trial, {"cpu": 0.01}),
            param_space={**point, "weights": weights, "epochs": epochs},
            run_config=ray.tune.RunConfig(storage_path=f"{folder}/tune", verbose=0),
        ).fit()
        wall_s = time.perf_counter() - started
        frame: Any = grid[0].metrics_dataframe
        assert grid[0].error is None and frame is not None, grid[0].error
        epoch_s = float(frame["epoch_s"].median())
        results.append(
            {
                "start_s": wall_s - float(frame["epoch_s"].sum()),
                "epoch_s": epoch_s,
                "val": [float(value) for value in frame["val"]],
            }
        )
        print(f"plain trial {point}: {results[-1]}", flush=True)
    return results
