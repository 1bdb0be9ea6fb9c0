"""Scores that tell cars of classes never seen: python -m tests.bench.unknown --seeds 2.

By each seed, 5 of the 20 classes of ../shared/cars are left out; the recipe `finetune` trains
MobileNetV2 at 224 px on the other 15. Prints the area under the ROC curve of each score: test
images of the 15 classes against all photographs of the 5. What is in --out is kept: a command that
was stopped resumes.
"""

import argparse
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp, softmax
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from cluster import runtime
from cluster.scaling import in_process
from datasets.config import IngestConfig
from datasets.passes.inference import open_view
from datasets.prepare.config import PrepareConfig
from datasets.prepare.prepare import prepare
from tests.bench.report import ROOT
from tests.support.training import train_here
from trainers.config import FinetuneConfig, TrackConfig
from trainers.networks.backbones import find
from trainers.recipes import RECIPES
from trainers.run.folder import load_best_model
from trainers.step.settings import prepare_inference
from trainers.step.step import predict

CARS = ROOT.parent / "shared" / "cars"
WEIGHTS = ROOT.parent / "shared" / "weights" / "mobilenet_v2_imagenet.pth"
LEFT_OUT = 5
Score = Callable[[np.ndarray], np.ndarray]
SIZE_PX = 224


def training_of(out: Path, recipe: str) -> FinetuneConfig:
    config = RECIPES[recipe]
    return replace(
        config,
        data=str(out / "data"),
        out=str(out / recipe),
        ingest=IngestConfig(size_px=SIZE_PX, policy="light"),
        model=replace(
            config.model,
            backbone="mobilenet_v2",
            init="file",
            weights=str(WEIGHTS),
            normalization="half",
        ),
        track=TrackConfig(wandb="off"),
        cluster=in_process(config.cluster),
    )


def split_classes(out: Path, seed: int) -> None:
    """Prepare the photographs of 15 classes, and put those of the others beside them."""
    names = sorted(folder.name for folder in (CARS / "train").iterdir())
    unknown = set(np.random.default_rng(seed).choice(names, LEFT_OUT, replace=False).tolist())
    for split in ("train", "test"):
        for name in names:
            folder = out / "unknown" / split if name in unknown else out / "known" / split
            shutil.copytree(CARS / split / name, folder / name)
    prepare(
        PrepareConfig(
            source="folder",
            root=str(out / "known" / "train"),
            test_root=str(out / "known" / "test"),
            out=str(out / "data"),
        )
    )


@torch.inference_mode()
def compute(model: nn.Module, config: FinetuneConfig, files: list[Path]) -> tuple[Tensor, Tensor]:
    """Return logits_NK, and features_ND before the last linear layer."""
    _, settings = prepare_inference(model, config, threads=2, use_gpu=False)
    head = model.get_submodule(find(config.model.backbone).head)
    last = [module for module in head.modules() if isinstance(module, nn.Linear)][-1]
    features: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].float()))
    logits = []
    for start in range(0, len(files), 16):
        images = [open_view(file.read_bytes(), SIZE_PX) for file in files[start : start + 16]]
        logits.append(predict(model, torch.tensor(np.stack(images)), settings))
    hook.remove()
    return torch.cat(logits), torch.cat(features)


def list_scores(
    found: dict[str, np.ndarray], labels_N: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """Return each score of the images of the test split and of the classes left out: higher is
    less known."""
    train_ND = found["train/features"]
    classes = np.unique(labels_N)
    means_KD = np.stack([train_ND[labels_N == label].mean(0) for label in classes])
    precision_DD: Any = LedoitWolf().fit(train_ND - means_KD[labels_N]).precision_
    of_all_DD: Any = LedoitWolf().fit(train_ND).precision_

    def unit(features_ND: np.ndarray) -> np.ndarray:
        return features_ND / np.linalg.norm(features_ND, axis=1, keepdims=True)

    def mahalanobis(features_ND: np.ndarray) -> np.ndarray:
        apart_NKD: Any = features_ND[:, None] - means_KD
        return np.einsum("nkd,de,nke->nk", apart_NKD, precision_DD, apart_NKD).min(1)

    def background(features_ND: np.ndarray) -> np.ndarray:
        apart_ND: Any = features_ND - train_ND.mean(0)
        return np.einsum("nd,de,ne->n", apart_ND, of_all_DD, apart_ND)

    def neighbour(features_ND: np.ndarray, k: int) -> np.ndarray:
        near_NN = unit(features_ND) @ unit(train_ND).T
        return -np.sort(near_NN, axis=1)[:, -k]

    def cosine(features_ND: np.ndarray) -> np.ndarray:
        return -(unit(features_ND) @ unit(means_KD).T).max(1)

    of_logits: dict[str, Score] = {
        "max probability": lambda x: -softmax(x, 1).max(1),
        "max logit": lambda x: -x.max(1),
        "energy": lambda x: -np.asarray(logsumexp(x, 1)),
        "entropy": lambda x: -(softmax(x, 1) * np.log(softmax(x, 1) + 1e-12)).sum(1),
        "margin": lambda x: -(np.sort(x, 1)[:, -1] - np.sort(x, 1)[:, -2]),
    }
    of_features: dict[str, Score] = {
        "Mahalanobis": mahalanobis,
        "relative Mahalanobis": lambda x: np.subtract(mahalanobis(x), background(x)),
        "nearest neighbour": lambda x: neighbour(x, 1),
        "5th neighbour": lambda x: neighbour(x, 5),
        "10th neighbour": lambda x: neighbour(x, 10),
        "cosine to class mean": cosine,
        "norm": lambda x: -np.linalg.norm(x, axis=1),
    }
    return {
        name: {part: score(found[f"{part}/{kind}"]) for part in ("test", "unknown")}
        for kind, scores in (("logits", of_logits), ("features", of_features))
        for name, score in scores.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--recipe", default="finetune")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bench-unknown")
    options = parser.parse_args()
    runtime.connect(None, quiet=True)
    areas: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        out = options.out.absolute() / f"seed-{seed}"
        if not (out / "data" / "manifest.json").exists():
            shutil.rmtree(out, ignore_errors=True)
            split_classes(out, seed)
        config = training_of(out, options.recipe)
        kept = out / f"{options.recipe}.npz"
        if not kept.exists():
            train_here(config)
            _, progress, model = load_best_model(config.out)
            found: dict[str, np.ndarray] = {}
            for part, folder in (
                ("train", out / "known" / "train"),
                ("test", out / "known" / "test"),
                ("unknown", out / "unknown"),
            ):
                files = sorted(folder.rglob("*.jpg"))
                tensors = compute(model, config, files)
                names = [progress.classes.index(f.parent.name) if part != "unknown" else -1
                         for f in files]  # fmt: skip
                found |= {
                    f"{part}/logits": tensors[0].numpy(),
                    f"{part}/features": tensors[1].numpy(),
                    f"{part}/labels": np.array(names),
                }
            np.savez_compressed(kept, **found)  # pyright: ignore[reportArgumentType]
        found = dict(np.load(kept))
        right_N = found["test/logits"].argmax(1) == found["test/labels"]
        print(f"seed {seed}: top-1 {right_N.mean():.3f} on {len(right_N)} images of 15 classes")
        for name, parts in list_scores(found, found["train/labels"]).items():
            scores_N = np.concatenate([parts["test"], parts["unknown"]])
            is_unknown_N = np.arange(len(scores_N)) >= len(parts["test"])
            areas.setdefault(name, []).append(float(roc_auc_score(is_unknown_N, scores_N)))
    for name, values in sorted(areas.items(), key=lambda item: -np.mean(item[1])):
        print(f"{name:<22} {np.mean(values):.3f}  ({', '.join(f'{v:.3f}' for v in values)})")


if __name__ == "__main__":
    main()
