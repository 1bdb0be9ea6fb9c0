"""One step: tensors in, sums out. No Ray, no files, no logging, no wait for the device.

B images, H x W pixels, C channels, K classes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from datasets.plan import IGNORE_INDEX
from trainers.config import OptimConfig
from trainers.networks.backbones import unwrap
from trainers.networks.torch_internals import without_compiler
from trainers.step.depthwise import fast_gradients
from trainers.step.optim import clip_gradients

RGB = tuple[float, float, float]
AUX_WEIGHT = 0.4
"""Of an auxiliary head's loss (Szegedy et al. 2016, torchvision's reference training)."""

MIN_LOSS_SCALE = 1.0
"""float16 that still overflows at this scale of the loss does not recover."""


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """What stays the same from step to step."""

    mean: RGB
    """Pixel mean on a scale of 0 to 1."""
    std: RGB
    """Pixel standard deviation on that scale."""
    optim: OptimConfig
    """Its clipnorm or global_clipnorm clips the gradients."""
    images_per_rank: float | None = None
    """What a sum of losses is divided by: global batch size / ranks, so that the average of the
    ranks' gradients is that of the global batch, however it is shared. None: the batch given."""
    label_smoothing: float = 0.0
    """Share of the training target spread evenly over the classes."""
    class_weights_K: Tensor | None = None
    """Weight of an image of each class in training."""
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    """Blends images: (images_BCHW, labels_B) -> (images_BCHW, targets_BK), by `mixing`."""
    channels_last: bool = True
    """Layout of the images in memory; uint8 pixels come that way."""
    autocast_dtype: torch.dtype | None = None
    """bfloat16 or float16 for mixed precision; None computes in float32."""
    accumulation_steps: int = 1
    """Parts a batch is cut into."""


def seed_step(seed: int, step: int, rank: int, device: torch.device) -> None:
    """Seed what a step draws, so that a resumed one drops out the same units.

    `torch.manual_seed` formats a stack trace for each CUDA that has not started: 0.5 ms.
    """
    mixed = hash((seed, step, rank))
    torch.default_generator.manual_seed(mixed)
    if device.type == "cuda":
        torch.cuda.manual_seed(mixed)


@cache
def _on_device(values: RGB, device: torch.device) -> Tensor:
    """Copy a constant to a device once: each copy waits for the device."""
    return torch.tensor(values, device=device)


def normalize(images_BHWC: Tensor, mean: RGB, std: RGB) -> Tensor:
    """Turn uint8 pixels into float32 images_BCHW of about zero mean and unit variance.

    The result has the memory format torch.channels_last, as the pixels do.
    """
    mean_C, std_C = (_on_device(values, images_BHWC.device) for values in (mean, std))
    return (images_BHWC.float() / 255).sub_(mean_C).div_(std_C).permute(0, 3, 1, 2)


def to_inputs(images: Tensor, settings: StepSettings) -> Tensor:
    """Turn a batch into inputs of a network: pixels are normalized, features become float32.

    Args:
        images: uint8 images_BHWC, or float16 features `[B, ...]` of a prefix.
    """
    if images.dtype != torch.uint8:
        if settings.channels_last and images.ndim == 4:
            return images.to(torch.float32, memory_format=torch.channels_last)
        return images.float()
    images_BCHW = normalize(images, settings.mean, settings.std)
    return images_BCHW if settings.channels_last else images_BCHW.contiguous()


def predict(model: nn.Module, images: Tensor, settings: StepSettings) -> Tensor:
    """Return float32 logits_BK of a batch as `to_inputs` takes it, for a model in eval mode."""
    (logits_BK,) = forward(model, to_inputs(images, settings), settings)
    return logits_BK


def count_parts(num_images: int, accumulation_steps: int) -> int:
    """Return how many parts a batch is cut into: the fewest of the size that so many steps need.

    Their sizes differ by one image at most. BatchNorm's statistics of a single image are noise.
    """
    size = -(-num_images // accumulation_steps)
    return -(-num_images // size)


def train_step(
    network: nn.Module,
    optimizer: Optimizer,
    images: Tensor,
    labels_B: Tensor,
    *,
    settings: StepSettings,
    scaler: GradScaler | None = None,
) -> dict[str, Tensor]:
    """Update the network, put in its mode by `freezing.train_mode`, with one batch.

    Images labelled IGNORE_INDEX are computed, so that batches keep their size, but not counted.
    Random numbers (dropout, mixing) come from torch's global state.

    Args:
        scaler: of the loss, for float16.

    Returns:
        `metrics.TRAIN_SUMS` as tensors on the device, measured before the update, and PEAK_NORM.
    """
    scaler = scaler or GradScaler(enabled=False)
    optimizer.zero_grad()
    divisor = settings.images_per_rank or len(labels_B)
    num_parts = count_parts(len(labels_B), settings.accumulation_steps)
    parts = list(
        zip(images.tensor_split(num_parts), labels_B.long().tensor_split(num_parts), strict=True)
    )
    sums: dict[str, Tensor] = {}
    for number, part in enumerate(parts, start=1):
        with _all_reduce(network, now=number == len(parts)):
            loss_sum, part_sums = _loss(network, *part, settings)
            scaler.scale(loss_sum / divisor).backward()  # pyright: ignore[reportUnknownMemberType] torch leaves it half typed
        sums = {name: sums[name] + value if sums else value for name, value in part_sums.items()}
    scaler.unscale_(optimizer)
    clipping = clip_gradients(optimizer, settings.optim)
    with without_compiler():
        scaler.step(optimizer)
    scaler.update()
    if scaler.is_enabled():  # it skips steps that overflow: some do, but not many in a row
        finite = sums["loss_sum"].isfinite() & (scaler.get_scale() >= MIN_LOSS_SCALE)
        clipping = {name: torch.nan_to_num(v, 0.0, 0.0, 0.0) for name, v in clipping.items()}
    else:
        finite = clipping["clip/grad_norm"].isfinite()
    return {**sums, **clipping, "finite": finite}


@torch.no_grad()
def eval_step(
    model: nn.Module,
    images: Tensor,
    labels_B: Tensor,
    *,
    settings: StepSettings,
    forward: Callable[[nn.Module, Tensor, StepSettings], Tensor] = predict,
) -> Tensor:
    """Predict a batch with the model in eval mode; the loss is plain cross-entropy.

    DDP is bypassed: its forward broadcasts buffers, and would wait forever for a rank that has
    fewer batches.

    Returns:
        float32 `[5, B]` on the device: `run.predictions.COLUMNS` of each image.
    """
    return score_logits(forward(unwrap(model), images, settings), labels_B.long())


def score_logits(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Return what `eval_step` does, of logits."""
    predicted_B = logits_BK.topk(1).indices[:, 0]
    top_Bk = logits_BK.topk(min(5, logits_BK.shape[1])).indices
    # Of equal logits, the two calls may choose other classes.
    top5_B = (top_Bk == labels_B[:, None]).any(1) | (predicted_B == labels_B)
    confidence_B = logits_BK.softmax(dim=1).amax(1)
    loss_B = F.cross_entropy(logits_BK, labels_B, ignore_index=IGNORE_INDEX, reduction="none")
    columns = (labels_B, predicted_B, confidence_B, loss_B, top5_B)
    return torch.stack([column.float() for column in columns])


def forward(network: nn.Module, inputs: Tensor, settings: StepSettings) -> tuple[Tensor, ...]:
    """Return the float32 outputs of a network: logits_BK of its head, and of an auxiliary head."""
    dtype = settings.autocast_dtype
    with (
        torch.autocast(inputs.device.type, dtype=dtype, enabled=dtype is not None),
        fast_gradients(inputs.device, dtype),
    ):
        outputs: Tensor | tuple[Tensor, ...] = network(inputs)
    if isinstance(outputs, Tensor):
        outputs = (outputs,)
    return tuple(logits_BK.float() for logits_BK in outputs)


def _loss(
    network: nn.Module, images: Tensor, labels_B: Tensor, settings: StepSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the sum of the images' losses, and the metrics of the batch."""
    inputs = to_inputs(images, settings)
    count = (labels_B != IGNORE_INDEX).sum()
    targets, hard_targets_B = labels_B, labels_B
    if settings.mix is not None:
        inputs, targets = settings.mix(inputs, labels_B)
        hard_targets_B = torch.where(labels_B != IGNORE_INDEX, targets.argmax(1), IGNORE_INDEX)
    logits_BK, *aux_logits = forward(network, inputs, settings)
    loss_sum = _cross_entropy_sum(logits_BK, targets, settings)
    step_metrics = {
        "count": count,
        "lost": len(labels_B) - count,
        "loss_sum": loss_sum.detach(),
        "top1_sum": (logits_BK.topk(1).indices[:, 0] == hard_targets_B).sum(),
    }
    for aux_logits_BK in aux_logits:
        loss_sum = loss_sum + AUX_WEIGHT * _cross_entropy_sum(aux_logits_BK, targets, settings)
    return loss_sum, step_metrics


def _cross_entropy_sum(logits_BK: Tensor, targets: Tensor, settings: StepSettings) -> Tensor:
    """Sum the losses of labels_B, or of targets_BK, which are smooth already.

    An image has the weight of its label. torch's `weight` weighs each part of a smooth target by
    its own class: the part of a rare class, which all images have, would outweigh their labels.
    """
    if targets.ndim == 2:
        return F.cross_entropy(logits_BK, _weigh_targets(targets, settings), reduction="sum")
    cross_entropy = partial(
        F.cross_entropy,
        logits_BK,
        targets,
        label_smoothing=settings.label_smoothing,
        ignore_index=IGNORE_INDEX,
    )
    if settings.class_weights_K is None:
        return cross_entropy(reduction="sum")
    return cross_entropy(reduction="none") @ settings.class_weights_K[targets.clamp(min=0)]


def _weigh_targets(targets_BK: Tensor, settings: StepSettings) -> Tensor:
    """Weigh smooth targets by the classes of the labels in them."""
    weights_K, smoothing = settings.class_weights_K, settings.label_smoothing
    if weights_K is None:
        return targets_BK
    share = smoothing / len(weights_K)
    weighted_BK = weights_K * (targets_BK - share * targets_BK.sum(dim=1, keepdim=True))
    return weighted_BK + share / (1 - smoothing) * weighted_BK.sum(dim=1, keepdim=True)


def _all_reduce(network: nn.Module, *, now: bool) -> AbstractContextManager[None]:
    """Let DDP average the gradients of a backward pass `now`, or leave it to a later one."""
    if now or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    return network.no_sync()
