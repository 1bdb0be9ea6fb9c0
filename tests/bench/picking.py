"""Labels that picking saves: python -m tests.bench.picking --seeds 3.

../shared/cars: 5 labelled photographs of each of 20 classes, then 20 more a round, picked at
random, by uncertainty or by diversity among the others. A linear classifier on the frozen features
of an ImageNet MobileNetV2 learns from the labelled ones and is tested on the test photographs.
Prints accuracies, and the share of labels with which each way has the accuracy of random picking.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from tests.bench.report import ROOT
from tests.bench.unknown import CARS, SIZE_PX, WEIGHTS, compute
from trainers.config import FinetuneConfig, IngestConfig, ModelConfig
from trainers.inference.picks import rank
from trainers.inference.predict import to_predictions
from trainers.inference.probe import fit_linear
from trainers.networks.backbones import build
from trainers.networks.weights.initialization import initialize

START, STEP, STRENGTH = 5, 20, 1.0
WAYS = ("random", "uncertainty", "diversity")
BUDGETS = (200, 300, 400, 500)


def compute_features(file: Path) -> dict[str, np.ndarray]:
    """Return features and labels of the photographs, computed once."""
    found: dict[str, np.ndarray] = dict(np.load(file)) if file.exists() else {}
    config = FinetuneConfig(
        data="",
        ingest=IngestConfig(size_px=SIZE_PX),
        model=ModelConfig(
            backbone="mobilenet_v2", init="file", weights=str(WEIGHTS), normalization="half"
        ),
    )
    model = build("mobilenet_v2", 1000, SIZE_PX)
    initialize(model, config.model, seed=0)
    names = sorted(folder.name for folder in (CARS / "train").iterdir())
    for split in ("train", "test"):
        if split in found:
            continue
        files = sorted((CARS / split).rglob("*.jpg"))
        found[split] = compute(model.eval(), config, files)[1].numpy()
        found[f"{split}/labels"] = np.array([names.index(f.parent.name) for f in files])
        np.savez_compressed(file, **found)  # pyright: ignore[reportArgumentType]
    return found


def follow(found: dict[str, np.ndarray], way: str, seed: int, most: int) -> dict[int, float]:
    """Return test accuracy by the number of labels."""
    labels_N, rng = found["train/labels"], np.random.default_rng(seed)
    classes = tuple(map(str, np.unique(labels_N)))
    known = np.concatenate(
        [
            rng.permutation(np.flatnonzero(labels_N == label))[:START]
            for label in np.unique(labels_N)
        ]
    ).tolist()
    accuracy: dict[int, float] = {}
    while True:
        probe = fit_linear(found["train"][known], labels_N[known], strength=STRENGTH)
        accuracy[len(known)] = float((probe.predict(found["test"]) == found["test/labels"]).mean())
        rest_N = np.setdiff1d(np.arange(len(labels_N)), known)
        if len(known) + STEP > min(most, len(labels_N)):
            return accuracy
        if way == "random":
            known += rng.choice(rest_N, STEP, replace=False).tolist()
            continue
        logits_NK = torch.tensor(probe.predict_log_proba(found["train"][rest_N]).astype(np.float32))
        outputs = torch.cat([logits_NK, torch.tensor(found["train"][rest_N])], 1)
        table = pa.table(to_predictions(outputs, classes=classes, top_k=2))
        picked = rank(table, "uncertainty" if way == "uncertainty" else "diversity", STEP)
        known += rest_N[picked].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--most", type=int, default=500, help="labels")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench-picking.npz")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found = compute_features(options.out)
    curves = {
        way: [follow(found, way, seed, options.most) for seed in range(options.seeds)]
        for way in WAYS
    }
    means = {
        way: {n: float(np.mean([curve[n] for curve in of_way])) for n in of_way[0]}
        for way, of_way in curves.items()
    }
    print("labels  " + "  ".join(f"{way:>11}" for way in WAYS))
    for labels in list(means["random"])[::2]:
        print(f"{labels:6}  " + "  ".join(f"{means[way][labels]:11.3f}" for way in WAYS))
    for budget in (budget for budget in BUDGETS if budget in means["random"]):
        goal = means["random"][budget]
        for way in WAYS[1:]:
            needed = next((n for n, top1 in means[way].items() if top1 >= goal), None)
            share = "not reached" if needed is None else f"{needed} ({needed / budget:.0%})"
            print(f"random with {budget}: {goal:.3f}; {way}: {share}")


if __name__ == "__main__":
    main()
