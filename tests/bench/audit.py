"""Label errors and images of other things that an audit finds: python -m tests.bench.audit.

Photographs of 20 cars (../shared/cars, train and test) with 5 percent of the labels wrong, by each
of some seeds, and images of other things among them; the features are MobileNetV2's. Prints the
share that the audit found (recall), and the share of those found that are planted (precision).
"""

import argparse
import csv
import shutil
import statistics
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from cluster import runtime
from datasets.prepare.config import PrepareConfig
from datasets.prepare.prepare import prepare
from tests.bench.report import ROOT
from trainers.audit.audit import run_audit
from trainers.audit.config import FeatureAuditConfig

SHARED = ROOT.parent / "shared"
WRONG = 0.05


def copy_cars(out: Path, seed: int) -> tuple[set[str], set[str]]:
    """Write the photographs with wrong labels and other images; return both, as SPLIT/NAME."""
    files = sorted((SHARED / "cars").glob("t*/*/*.jpg"))
    classes = sorted({file.parent.name for file in files})
    rng = np.random.default_rng(seed)
    wrong = set(rng.choice(len(files), round(WRONG * len(files)), replace=False).tolist())
    flipped = set[str]()
    for number, file in enumerate(files):
        label = classes.index(file.parent.name)
        if number in wrong:
            label = (label + int(rng.integers(1, len(classes)))) % len(classes)
            flipped.add(f"{file.parent.parent.name}/{file.name}")
        folder = out / file.parent.parent.name / classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / file.name)
    others = set[str]()
    for number, image in enumerate(open_others()):
        name = f"other-{number}.png"
        image.save(out / "train" / classes[number % len(classes)] / name)
        others.add(f"train/{name}")
    return flipped, others


def open_others() -> list[Image.Image]:
    """Images of no cars, which packages have with them."""
    folder = Path(matplotlib.get_data_path(), "sample_data")
    samples: Any = load_sample_images()
    found = [Image.fromarray(image) for image in samples.images]
    found += [Image.open(file).convert("RGB") for file in sorted(folder.glob("*.[jp][pn]g"))]
    found += [Image.open(file).convert("RGB") for file in sorted((ROOT / "docs").glob("*.png"))]
    bunch: Any = load_digits()
    found += [
        Image.fromarray((255 - 15 * d).astype(np.uint8)).resize((128, 128))
        for d in bunch.images[:3]
    ]
    noise = np.random.default_rng(0).integers(0, 256, (200, 260, 3), np.uint8)
    return [*found, Image.fromarray(noise)]


def read_found(out: Path, reason: str) -> set[str]:
    """Read SPLIT/NAME of the images that a check found."""
    with (out / "findings.csv").open() as stream:
        paths = [Path(r["path"]) for r in csv.DictReader(stream) if r["reason"] == reason]
    return {f"{path.parts[-3]}/{path.name}" for path in paths}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench-audit")
    options = parser.parse_args()
    runtime.connect(None, quiet=True)
    rates: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        folder = options.out.absolute() / f"seed-{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        planted = dict(
            zip(("label error", "other thing"), copy_cars(folder / "photos", seed), strict=True)
        )
        data, out = str(folder / "data"), folder / "audit"
        prepare(PrepareConfig(source="folder", root=str(folder / "photos"), out=data))
        run_audit(
            FeatureAuditConfig(
                data=data, out=str(out), backbone="mobilenet_v2", init="file",
                weights=str(SHARED / "weights" / "mobilenet_v2_imagenet.pth"),
                normalization="half",
            )
        )  # fmt: skip
        for reason, names in planted.items():
            found = read_found(out, reason)
            right = len(found & names)
            rates.setdefault(f"{reason}: recall", []).append(right / len(names))
            rates.setdefault(f"{reason}: precision", []).append(right / max(1, len(found)))
            print(f"seed {seed}: {reason}: {len(names)} planted, {len(found)} found, {right} right")
    for name, values in rates.items():
        print(f"{name} {statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
