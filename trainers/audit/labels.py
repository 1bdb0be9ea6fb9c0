"""Likely label errors: a classifier that has not seen the image finds another class likelier.

N images, K classes, D features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from sklearn.metrics import log_loss

from datasets.audit.findings import Check, Suspect, of_images
from trainers.audit.folds import predict_held_out
from trainers.inference.probe import fit_linear, hold_out

STRENGTHS = (1e-3, 1e-2, 0.1)
"""C of the classifiers: weaker regularization learns wrong labels by heart."""
MAX_ERRORS = 0.5
"""Share of labels that may be errors; with more, the classifiers are wrong rather than these."""
_FLOOR = 1e-9


def choose_strength(features_ND: np.ndarray, labels_N: np.ndarray) -> float:
    """Return the C of the lowest cross-entropy on held-out images: probabilities are compared."""
    held_N = hold_out(labels_N)
    if not held_N.any():
        return STRENGTHS[0]

    def measure(strength: float) -> float:
        probe = fit_linear(features_ND[~held_N], labels_N[~held_N], strength=strength)
        probabilities = probe.predict_proba(features_ND[held_N].astype(np.float32))
        return log_loss(labels_N[held_N], probabilities, labels=probe.classes_)

    return min(STRENGTHS, key=measure)


def find_errors(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> list[tuple[int, int]]:
    """Return likely label errors, the worst first, each with the class that is likelier.

    Confident learning (Northcutt et al., 2021) counts them: an image is confidently of a class if
    its probability is at least the mean of those that have the label. As many images are returned,
    those whose label is least likely beside the likeliest other class.
    """
    rows = np.arange(len(labels_N))
    of_label_N = probabilities_NK[rows, labels_N]
    sums_K = np.bincount(labels_N, of_label_N, minlength=probabilities_NK.shape[1])
    counts_K = np.bincount(labels_N, minlength=probabilities_NK.shape[1])
    thresholds_K = np.maximum(sums_K / np.maximum(counts_K, 1), _FLOOR)
    confident_NK = np.where(probabilities_NK >= thresholds_K, probabilities_NK, 0)
    is_other_N = (confident_NK.max(1) > 0) & (confident_NK.argmax(1) != labels_N)
    others_NK = probabilities_NK.copy()
    others_NK[rows, labels_N] = -1
    best_N = others_NK.argmax(1)
    ratio_N = others_NK[rows, best_N] / np.maximum(of_label_N, _FLOOR)
    order = np.argsort(-ratio_N, kind="stable")[: is_other_N.sum()]
    return [(int(i), int(best_N[i])) for i in order if ratio_N[i] > 1]


def check_labels(
    features_ND: np.ndarray, labels_N: np.ndarray, rows_N: np.ndarray, classes: Sequence[str]
) -> Check:
    """Find likely label errors among the images of all splits.

    Args:
        rows_N: of the images in the table of images.
    """
    known_K, own_N = np.unique(labels_N, return_inverse=True)
    # A class' only image would be called another one: no classifier knows its class.
    counted_N = np.bincount(own_N)[own_N] > 1
    suspects = list[Suspect]()
    if len(known_K) > 1 and counted_N.any():
        strength = choose_strength(features_ND, own_N)
        probabilities_NK = predict_held_out(features_ND, own_N, strength=strength)
        names = [classes[int(number)] for number in known_K]
        found = _list_suspects(probabilities_NK, own_N, rows_N, names)
        suspects = [suspect for image, suspect in found if counted_N[image]]
    check = of_images(
        "label errors",
        suspects,
        len(labels_N),
        reason="label error",
        method=(
            "Linear classifiers on the features, each trained without the images that it judges, "
            "find another class likelier; confident learning says how many of these are errors. "
            "Some are hard images with right labels. Beside each: the most typical images of its "
            "label and of the other class."
        ),
    )
    num_counted = int(counted_N.sum())
    if len(suspects) <= MAX_ERRORS * num_counted:
        return check
    return replace(
        check,
        result=f"not known: the classifiers contradict {len(suspects)} of {num_counted} labels, so "
        "they know too little; give more images of each class, or another network",
        suspects=(),
    )


def _list_suspects(
    probabilities_NK: np.ndarray, labels_N: np.ndarray, rows_N: np.ndarray, names: Sequence[str]
) -> Iterator[tuple[int, Suspect]]:
    """Yield the images of likely errors, each with what the page says about it."""
    typical_K = [
        int(rows_N[np.where(labels_N == label, probabilities_NK[:, label], -1).argmax()])
        for label in range(len(names))
    ]
    for image, other in find_errors(probabilities_NK, labels_N):
        label = int(labels_N[image])
        share, more = probabilities_NK[image, [label, other]]
        yield (
            image,
            Suspect(
                image=int(rows_N[image]),
                detail=f"looks like {names[other]}, {more:.0%}; its label has {share:.1%}",
                others=((typical_K[label], names[label]), (typical_K[other], names[other])),
            ),
        )
