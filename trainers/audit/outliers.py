"""Images of other things: their features are far from those of all other images.

N images, D features.
"""

import numpy as np
from sklearn.neighbors import NearestNeighbors

from datasets.audit.findings import Check, Suspect, of_images

NUM_NEIGHBOURS = 10
MAX_DEVIATION = 4.5
"""Of the distance to the neighbours, in robust standard deviations above the median. Among 1,642
photographs of cars 13 others (a flower, a temple, screenshots, digits, noise) have 5 to 10."""
MAX_REFERENCES = 20_000
"""Images that others are compared with: all pairs of more would take long."""
_MAD_TO_DEVIATION = 1.4826


def measure_distances(features_ND: np.ndarray) -> np.ndarray:
    """Return each image's mean cosine distance to its NUM_NEIGHBOURS nearest other images."""
    features_ND = features_ND.astype(np.float32)
    features_ND = features_ND / (np.linalg.norm(features_ND, axis=1, keepdims=True) + 1e-6)
    num_images = len(features_ND)
    chosen = np.random.default_rng(0).permutation(num_images)[:MAX_REFERENCES]
    number = min(NUM_NEIGHBOURS + 1, len(chosen))
    index = NearestNeighbors(n_neighbors=number, metric="cosine", algorithm="brute")
    distances_NM, found_NM = index.fit(features_ND[chosen]).kneighbors(features_ND)
    is_self_NM = chosen[found_NM] == np.arange(num_images)[:, None]
    # Of an image that is no reference, the farthest one is left out instead of itself.
    is_self_NM[:, -1] |= ~is_self_NM.any(1)
    return distances_NM[~is_self_NM].reshape(num_images, number - 1).mean(1)


def find_far(distances_N: np.ndarray) -> list[tuple[int, float]]:
    """Return images whose distance stands out, and by how many deviations; the farthest first."""
    median = np.median(distances_N)
    deviation = _MAD_TO_DEVIATION * np.median(abs(distances_N - median))
    scores_N = (distances_N - median) / max(deviation, 1e-6)
    order = np.argsort(-scores_N, kind="stable")
    return [(int(i), float(scores_N[i])) for i in order if scores_N[i] > MAX_DEVIATION]


def check_outliers(features_ND: np.ndarray, rows_N: np.ndarray) -> Check:
    """Find images that are unlike all others.

    Args:
        rows_N: of the images in the table of images.
    """
    far = find_far(measure_distances(features_ND)) if len(features_ND) > NUM_NEIGHBOURS else []
    return of_images(
        "other things",
        [
            Suspect(image=int(rows_N[i]), detail=f"{score:.1f} deviations from its neighbours")
            for i, score in far
        ],
        len(features_ND),
        reason="other thing",
        method=(
            f"Images whose features are more than {MAX_DEVIATION} robust standard deviations "
            f"farther from their {NUM_NEIGHBOURS} nearest images than the median: other objects, "
            "drawings, screenshots, unusual views."
        ),
    )
