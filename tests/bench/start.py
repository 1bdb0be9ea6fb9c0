"""From a command to its result: python -m tests.bench.start, `make bench`.

Seconds until the first optimizer step of ResNet50 on 100 images, beside a plain torch script with a
DataLoader; until a prepared data set, a sweep's first epoch of a head, and `--help`. The page cache
is warm: each is run once before.
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import torch
import torchvision

from tests.bench.report import ROOT, keep
from tests.support.data import draw_image, write_shards

NUM_RUNS = 5
POLL_S = 0.02
NETWORK = "--backbone resnet50 --size-px 64 --wandb off"
TARGETS_S = {"first_step": 6.0, "first_head": 10.0, "prepare": 5.0, "help": 1.5}
PLAIN = """
import torch
from torchvision import datasets, models, transforms
crop = transforms.Compose([transforms.RandomResizedCrop(64), transforms.ToTensor()])
loader = torch.utils.data.DataLoader(
    datasets.ImageFolder({photos!r}, crop), batch_size=32, shuffle=True, num_workers=1)
network = models.resnet50(num_classes=3)
for parameter in network.parameters():
    parameter.requires_grad = False
network.fc = torch.nn.Linear(2048, 3)
optimizer = torch.optim.AdamW(network.fc.parameters())
images_BCHW, labels_B = next(iter(loader))
torch.nn.functional.cross_entropy(network(images_BCHW), labels_B).backward()
optimizer.step()
"""


def time_until(command: list[str], is_done: Callable[[], bool] = lambda: False) -> float:
    """Return the seconds until a command has ended or `is_done`; let it end in any case."""
    start = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not is_done():
            time.sleep(POLL_S)
        seconds = time.monotonic() - start
        if process.wait() != 0:
            raise SystemExit(f"failed: {' '.join(command)}")
    return seconds


def thaw(arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments.split()]


def measure(folder: Path) -> Mapping[str, list[float]]:
    """Time everything in turns; the first turn only warms up."""
    photos, data = folder / "photos", folder / "data"
    for label in range(3):
        (photos / f"class-{label}").mkdir(parents=True)
        for number in range(34):
            path = photos / f"class-{label}" / f"{number}.jpg"
            cv2.imwrite(str(path), draw_image(label, number, 200))
    weights = folder / "resnet50.pth"
    torch.save(torchvision.models.resnet50().state_dict(), weights)
    write_shards(str(data), train=100, val=20, test=20)
    seconds: dict[str, list[float]] = {}
    for turn in range(NUM_RUNS + 1):
        out = folder / str(turn)
        train = f"trainers transfer --data {data} --out {out}/run {NETWORK} --epochs 1 "
        # Without weights there is no head to train alone: all of a random network trains.
        sweep = f"tuning --data {data} --out {out}/sweep {NETWORK} --weights {weights} "
        taken = {
            "first_step": time_until(
                thaw(train + "--init he --global-batch-size 32 --log-every-steps 1"),
                (out / "run" / "metrics.jsonl").exists,
            ),
            "plain_first_step": time_until(
                [sys.executable, "-c", PLAIN.format(photos=str(photos))]
            ),
            "first_head": time_until(
                thaw(
                    sweep + "--inits file --freeze-depths all --learning-rates 1e-3 1e-4 "
                    "--clipnorms none --global-batch-size 32 --search grid --epochs 1"
                ),
                lambda out=out: any((out / "sweep").glob("trials/*/metrics.jsonl")),
            ),
            "prepare": time_until(
                thaw(f"datasets prepare --source folder --root {photos} --out {out}/data")
            ),
            "help": time_until(thaw("trainers --help")),
        }
        for name, value in taken.items():
            seconds.setdefault(name, []).extend([value] if turn else [])
    return seconds


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    plain_s = medians.pop("plain_first_step")
    machine = f"{os.cpu_count()} cores, {platform.machine()}"
    rows = []
    for name, taken_s in medians.items():
        peer_s = plain_s if name == "first_step" else TARGETS_S[name]
        row = {"name": f"start/{name}_s", "ours": taken_s, "peer": peer_s, "unit": "s"}
        row |= {"ratio": peer_s / taken_s, "target": TARGETS_S[name], "runs": NUM_RUNS}
        rows.append({**row, "limit_fraction": TARGETS_S[name] / taken_s, "machine": machine})
        print(f"start/{name}_s: {taken_s:.2f} s, target {TARGETS_S[name]:.1f} s")
    print(f"a plain torch script takes {plain_s:.2f} s to its first step")
    keep(rows)


if __name__ == "__main__":
    main()
