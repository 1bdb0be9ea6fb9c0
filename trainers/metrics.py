"""Every metric of a run, named `phase/quantity_unit`, and its computation from sums.

N sums. Top-1 and top-5 are shares from 0 to 1, losses are nats per image.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, distributed

EPOCH = "epoch"
GLOBAL_STEP = "global_step"

TRAIN_LOSS = "train/loss"
TRAIN_TOP1 = "train/top1"
VAL_LOSS = "val/loss"
VAL_TOP1 = "val/top1"
VAL_TOP5 = "val/top5"
VAL_BEST_TOP1 = "val/best_top1"
TEST_LOSS = "test/loss"
TEST_TOP1 = "test/top1"
TEST_TOP5 = "test/top5"
TEST_ECE = "test/ece"
TEST_CALIBRATED_ECE = "test/calibrated_ece"
TEST_CALIBRATED_LOSS = "test/calibrated_loss"

LEARNING_RATE = "optim/learning_rate"
GRAD_NORM = "clip/grad_norm"
GRAD_NORM_AFTER = "clip/grad_norm_after"
CLIPPED_SHARE = "clip/clipped_share"
PEAK_NORM = "clip/peak_norm"
"""Largest norm of a single tensor's gradient in the run so far, before clipping."""
STAGE_CLIPPING = "clip/stages"
"""The three of each stage that trains, as one vector; `stage_metrics` names its parts."""

FROZEN_STAGE, FROZEN_SHARE = "frozen/stage", "frozen/share"
"""The last frozen stage and the share of frozen stages, in W&B's summary of a run."""

EPOCH_S = "time/epoch_s"
TRAIN_S = "time/train_s"
TOTAL_S = "time/total_s"
SAVE_S = "time/save_s"
"""Time that the loop has waited for checkpoints since the row of the epoch before."""
FIRST_BATCH_S = "ingest/first_batch_s"
WAIT_S = "ingest/wait_s"
UNREADABLE_IMAGES = "ingest/lost_images"
UNREADABLE_NAMES = "ingest/lost_names"
IMAGES_PER_S = "ingest/images_per_s"

SYSTEM = "system/"
"""Prefix of what workers use of their machines: `trainers.run.usage` lists it."""

PUBLISHED = (
    *(EPOCH, GLOBAL_STEP, TRAIN_LOSS, VAL_TOP1, EPOCH_S, WAIT_S, IMAGES_PER_S),
    UNREADABLE_IMAGES,
)
"""What Prometheus sees of each training."""

SUMMARIES = {
    VAL_TOP1: (EPOCH, "max"),
    VAL_TOP5: (EPOCH, "max"),
    VAL_LOSS: (EPOCH, "min"),
    TRAIN_LOSS: (GLOBAL_STEP, "min"),
    TRAIN_TOP1: (GLOBAL_STEP, "max"),
}
"""Metric -> the axis it is drawn over, and whether its best value is the maximum or minimum."""

TRAIN_SUMS = (
    "count",
    "lost",
    "finite",
    "loss_sum",
    "top1_sum",
    GRAD_NORM,
    GRAD_NORM_AFTER,
    CLIPPED_SHARE,
    STAGE_CLIPPING,
)
"""What `step.train_step` returns: sums over the images of a batch, and clipping of the step."""


def stage_metrics(stages: Sequence[str]) -> list[str]:
    """Name the parts of STAGE_CLIPPING for the stages that train, first to last."""
    parts = (GRAD_NORM, GRAD_NORM_AFTER, CLIPPED_SHARE)
    return [part.replace("/", f"/{stage}/") for stage in stages for part in parts]


class Sums:
    """Sums over the steps of a phase, kept on the device: `add` never waits for it.

    The names are given in advance: a rank without images must reduce the same vector as its peers.

    Args:
        names: of the values added, each a 0-dim tensor, or a vector whose parts `parts` names.
        start: sums over all ranks to continue from, given to one rank.
    """

    def __init__(
        self,
        names: Sequence[str],
        device: torch.device | str,
        *,
        parts: Mapping[str, Sequence[str]] | None = None,
        start: Mapping[str, float] | None = None,
    ) -> None:
        self._keys = names
        self.names = [part for name in names for part in (parts or {}).get(name, [name])]
        self.names.append("steps")
        totals = [(start or {}).get(name, 0.0) for name in self.names]
        self.totals_N = torch.tensor(totals, dtype=torch.float64, device=device)
        self._one = torch.ones(1, dtype=torch.float64, device=device)

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Add what a step returned: tensors on the same device."""
        values = [sums[key].reshape(-1).double() for key in self._keys]
        self.totals_N += torch.cat([*values, self._one])

    def reduce(self, world_size: int) -> dict[str, float]:
        """Return the totals of all ranks, with one all_reduce and one wait for the device."""
        totals_N = self.totals_N.clone()
        if world_size > 1:
            distributed.all_reduce(totals_N)
        return dict(zip(self.names, totals_N.tolist(), strict=True))

    def local(self) -> dict[str, float]:
        """Return the totals of this rank."""
        return dict(zip(self.names, self.totals_N.tolist(), strict=True))


def rescale(totals: Mapping[str, float], factor: float) -> dict[str, float]:
    """Scale the totals that every rank adds to in each step; sums over images stay.

    Checkpoints hold those of one rank, so that an epoch may resume on another number of ranks.
    """
    of_images = ("count", "lost")
    return {
        name: total if name in of_images or name.endswith("_sum") else total * factor
        for name, total in totals.items()
    }


def means_of(totals: Mapping[str, float]) -> dict[str, float]:
    """Turn totals into means.

    `loss_sum` becomes `loss`, its mean over images; `clip/*` becomes its mean over steps. The
    numbers `count` (images), `lost` (unreadable images), `steps` (over all ranks) and `finite`
    (steps with a finite gradient) stay. Means over no readable image are 0.
    """
    assert totals["steps"] > 0, "a phase without a single step has no mean"
    means: dict[str, float] = {}
    for name, total in totals.items():
        if name in ("count", "lost", "steps", "finite"):
            means[name] = total
        elif name.endswith("_sum"):
            means[name.removesuffix("_sum")] = total / max(1, totals["count"])
        else:
            means[name] = total / totals["steps"]
    return means
