"""Splits that differ: a classifier is asked which split an image is of.

N images, D features.
"""

import numpy as np

from cluster.io.statistics import Estimate, auc
from datasets.audit.findings import Check, Suspect
from trainers.audit.folds import predict_held_out

MAX_AUC = 0.6
"""Chance that the classifier tells an image of one split from one of the other: 0.5 is a guess."""
MAX_IMAGES = 5000
"""Of each split: more would narrow an interval that is narrow enough."""
STRENGTH = 1e-2
NUM_SHOWN = 24


def compare(
    features_ND: np.ndarray, other_MD: np.ndarray, seed: int = 0
) -> tuple[Estimate, np.ndarray, np.ndarray]:
    """Train a classifier between two splits; return its AUC on images it was not trained on.

    Returns:
        AUC, and for up to MAX_IMAGES of `other_MD` their rows and probabilities.
    """
    generator = np.random.default_rng(seed)
    rows = [
        generator.permutation(len(of_split))[:MAX_IMAGES] for of_split in (features_ND, other_MD)
    ]
    both = np.concatenate([features_ND[rows[0]], other_MD[rows[1]]])
    is_other = np.repeat([0, 1], [len(rows[0]), len(rows[1])])
    scores = predict_held_out(both, is_other, strength=STRENGTH)[:, 1]
    found = auc(scores[is_other == 1], scores[is_other == 0])
    return found, rows[1], scores[is_other == 1]


def check_splits(features_ND: np.ndarray, splits_N: np.ndarray, rows_N: np.ndarray) -> Check:
    """Compare train with val and with test.

    Args:
        rows_N: of the images in the table of images.
    """
    parts, suspects, is_fine = [], list[Suspect](), True
    of_train = features_ND[splits_N == "train"]
    for name in ("val", "test"):
        own = np.flatnonzero(splits_N == name)
        if len(own) < 2 or len(of_train) < 2:
            continue
        found, chosen, scores = compare(of_train, features_ND[own])
        parts.append(
            f"train and {name}: AUC {found.mean:.2f} ({found.low:.2f} to {found.high:.2f})"
        )
        if found.low <= MAX_AUC:
            continue
        is_fine = False
        for at in np.argsort(-scores, kind="stable")[:NUM_SHOWN]:
            detail = f"{name} rather than train: {scores[at]:.0%}"
            image = int(rows_N[own[chosen[at]]])
            suspects.append(Suspect(image=image, detail=detail, is_excluded=False))
    return Check(
        name="splits that differ",
        result="; ".join(parts) or "one split alone",
        method=(
            "A linear classifier tells the splits apart by the features, cross-validated: an AUC "
            f"of 0.5 or less is a guess. Of concern above {MAX_AUC}: another camera, place or "
            "time. Then the images least like train are below."
        ),
        reason="unlike train",
        is_fine=is_fine,
        suspects=tuple(suspects),
    )
