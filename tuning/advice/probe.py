"""Linear probes: how well a linear classifier tells classes apart on given features.

N images, D features, K classes.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

STRENGTHS = (1e-3, 1e-2, 0.1, 1.0, 10.0)
"""C of `fit_linear`, from the strongest regularization to the weakest."""
HELD_OUT = 5
"""Of so many training images of a class, one chooses among STRENGTHS."""
MAX_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class LinearModel:
    """Standardizes features, then weighs them."""

    mean_D: Tensor
    std_D: Tensor
    weight_KD: Tensor
    bias_K: Tensor

    def predict(self, features_ND: np.ndarray) -> np.ndarray:
        """Return the class of each image."""
        inputs_ND = (torch.from_numpy(features_ND).float() - self.mean_D) / self.std_D
        return F.linear(inputs_ND, self.weight_KD, self.bias_K).argmax(1).numpy()


def fit_linear(
    features_ND: np.ndarray, labels_N: np.ndarray, num_classes: int, *, strength: float
) -> LinearModel:
    """Fit multinomial logistic regression on standardized features by L-BFGS.

    Args:
        strength: C of Fan et al. 2008 (LIBLINEAR): it minimizes the sum of cross-entropies times C,
            plus half the squared weights; biases are free.
    """
    features = torch.from_numpy(features_ND).float()
    labels = torch.from_numpy(labels_N)
    mean_D, std_D = features.mean(0), features.std(0, correction=0)
    std_D[std_D == 0] = 1.0  # a feature that never changes says nothing, but must not divide by 0
    inputs_ND = (features - mean_D) / std_D
    weight_KD = torch.zeros(num_classes, features.shape[1], requires_grad=True)
    bias_K = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_KD, bias_K],
        max_iter=MAX_STEPS,
        tolerance_grad=1e-5,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        penalty = weight_KD.square().sum() / (2 * strength * len(labels))
        value = F.cross_entropy(F.linear(inputs_ND, weight_KD, bias_K), labels) + penalty
        value.backward()
        return value

    optimizer.step(loss)
    return LinearModel(
        mean_D=mean_D, std_D=std_D, weight_KD=weight_KD.detach(), bias_K=bias_K.detach()
    )


def fit_probe(
    features_ND: np.ndarray, labels_N: np.ndarray, num_classes: int
) -> tuple[LinearModel, float]:
    """Fit a probe on training images, the strength of its regularization chosen among them alone.

    One image in HELD_OUT of each class is held out to choose, then all are fitted; of equals, the
    strongest regularization.

    Returns:
        The probe and its C.
    """
    held = hold_out(labels_N)

    def count_correct(strength: float) -> int:
        model = fit_linear(features_ND[~held], labels_N[~held], num_classes, strength=strength)
        return int((model.predict(features_ND[held]) == labels_N[held]).sum())

    strength = max(STRENGTHS, key=count_correct)
    return fit_linear(features_ND, labels_N, num_classes, strength=strength), strength


def hold_out(labels_N: np.ndarray) -> np.ndarray:
    """Mark every HELD_OUT-th image of each class, from its second on: never a class' only image."""
    held_N = np.zeros(len(labels_N), bool)
    for label in np.unique(labels_N):
        held_N[np.flatnonzero(labels_N == label)[1::HELD_OUT]] = True
    return held_N
