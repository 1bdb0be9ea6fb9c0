"""Blending the images of a batch: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019).

B images, H x W pixels, C channels, K classes.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from datasets.plan import IGNORE_INDEX
from trainers.config import LossConfig
from trainers.networks.torch_internals import without_compiler


def build_mix(
    config: LossConfig, num_classes: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Return (images_BCHW, labels_B) -> (images_BCHW, targets_BK); None where nothing is blended.

    One share for all images of a call, from torch's global random state; each image is blended
    with its neighbour. Labels are smoothed before they are blended.
    """
    if not config.mixup_alpha and not config.cutmix_alpha:
        return None
    with without_compiler():
        from torchvision.transforms import v2

    blends = [
        blend(alpha=alpha, num_classes=num_classes)
        for blend, alpha in ((v2.MixUp, config.mixup_alpha), (v2.CutMix, config.cutmix_alpha))
        if alpha > 0
    ]
    blend = v2.RandomChoice(blends)

    def mix(images_BCHW: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        return blend(images_BCHW, smooth_targets(labels_B, num_classes, config.label_smoothing))

    return mix


def smooth_targets(labels_B: Tensor, num_classes: int, label_smoothing: float) -> Tensor:
    """Return float32 targets_BK; zeros for a label of IGNORE_INDEX."""
    targets_BK = F.one_hot(labels_B.clamp(min=0), num_classes).float()
    targets_BK = targets_BK * (1 - label_smoothing) + label_smoothing / num_classes
    return targets_BK * (labels_B != IGNORE_INDEX)[:, None]
