"""One step: tensors in, sums out. No Ray, no files, no logging, no wait for the device.

B images, H x W pixels, C channels, K classes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from datasets.plan import LOST
from trainers.backbones import unwrap
from trainers.config import OptimConfig
from trainers.optim import clip_gradients

RGB = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What stays the same from step to step."""

    mean: RGB
    """Pixel mean on a scale of 0 to 1."""
    std: RGB
    """Pixel standard deviation on that scale."""
    optim: OptimConfig
    """Its clipnorm or global_clipnorm clips the gradients."""
    label_smoothing: float = 0.0
    """Share of the training target spread evenly over the classes."""
    autocast_dtype: torch.dtype | None = None
    """bfloat16 for mixed precision; None computes in float32."""


def normalize(images_BHWC: Tensor, mean: RGB, std: RGB) -> Tensor:
    """Turn uint8 pixels into float32 images_BCHW of about zero mean and unit variance.

    The result is laid out in memory as torch.channels_last, which is how the pixels came.
    """
    device = images_BHWC.device
    mean_C = torch.tensor(mean).to(device, non_blocking=True)
    std_C = torch.tensor(std).to(device, non_blocking=True)
    return (images_BHWC.float() / 255).sub_(mean_C).div_(std_C).permute(0, 3, 1, 2)


def predict(model: nn.Module, images_BHWC: Tensor, settings: StepSettings) -> Tensor:
    """Return float32 logits_BK of uint8 pixels."""
    dtype = settings.autocast_dtype
    images_BCHW = normalize(images_BHWC, settings.mean, settings.std)
    with torch.autocast(images_BHWC.device.type, dtype=dtype, enabled=dtype is not None):
        logits_BK: Tensor = model(images_BCHW)
    return logits_BK.float()


def train_step(
    model: nn.Module,
    optimizer: Optimizer,
    images_BHWC: Tensor,
    labels_B: Tensor,
    *,
    settings: StepSettings,
) -> dict[str, Tensor]:
    """Update the model, put in its mode by `freezing.train_mode`, with one batch.

    Images labelled LOST pass through, so that every batch has its size, and count nowhere.

    Returns:
        `metrics.TRAIN_SUMS` as 0-dim tensors on the device, measured before the update.
    """
    labels_B = labels_B.long()
    optimizer.zero_grad()
    logits_BK = predict(model, images_BHWC, settings)
    count = (labels_B != LOST).sum()
    loss_sum = F.cross_entropy(
        logits_BK,
        labels_B,
        label_smoothing=settings.label_smoothing,
        ignore_index=LOST,
        reduction="sum",
    )
    loss = loss_sum / count.clamp(min=1)
    loss.backward()  # pyright: ignore[reportUnknownMemberType] torch leaves it half typed
    clipping = clip_gradients(model.parameters(), settings.optim)
    optimizer.step()
    return {
        "count": count,
        "lost": len(labels_B) - count,
        "loss_sum": loss_sum.detach(),
        "top1_sum": _top_k_sum(logits_BK, labels_B, 1),
        **clipping,
    }


@torch.no_grad()
def eval_step(
    model: nn.Module, images_BHWC: Tensor, labels_B: Tensor, *, settings: StepSettings
) -> dict[str, Tensor]:
    """Measure the model, in eval mode, on one batch; the loss is without label smoothing.

    DDP is stepped around: its forward broadcasts buffers, and would wait forever for a rank that
    has fewer batches.

    Returns:
        `metrics.EVAL_SUMS` as 0-dim tensors on the device.
    """
    labels_B = labels_B.long()
    logits_BK = predict(unwrap(model), images_BHWC, settings)
    count = (labels_B != LOST).sum()
    return {
        "count": count,
        "lost": len(labels_B) - count,
        "loss_sum": F.cross_entropy(logits_BK, labels_B, ignore_index=LOST, reduction="sum"),
        "top1_sum": _top_k_sum(logits_BK, labels_B, 1),
        "top5_sum": _top_k_sum(logits_BK, labels_B, 5),
    }


def _top_k_sum(logits_BK: Tensor, labels_B: Tensor, k: int) -> Tensor:
    """Count the images whose label is among the k largest logits, or among all K if fewer."""
    top_Bk = logits_BK.topk(min(k, logits_BK.shape[1])).indices
    return (top_Bk == labels_B[:, None]).sum()
