"""Every metric of a run, named `phase/quantity_unit`, and how totals become them.

N counts the totals kept. Top-1 and top-5 are shares from 0 to 1, losses are nats per image.
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

LEARNING_RATE = "optim/learning_rate"
GRAD_NORM = "clip/grad_norm"
CLIPPED_SHARE = "clip/clipped_share"

EPOCH_S = "time/epoch_s"
TRAIN_S = "time/train_s"
TOTAL_S = "time/total_s"
FIRST_BATCH_S = "ingest/first_batch_s"
WAIT_S = "ingest/wait_s"
LOST_IMAGES = "ingest/lost_images"
LOST_NAMES = "ingest/lost_names"
IMAGES_PER_S = "ingest/images_per_s"

TRAIN_SUMS = ("count", "lost", "loss_sum", "top1_sum", GRAD_NORM, CLIPPED_SHARE)
"""What `step.train_step` returns: sums over the images of a batch, and clipping of the step."""
EVAL_SUMS = ("count", "lost", "loss_sum", "top1_sum", "top5_sum")
"""What `step.eval_step` returns."""


class Sums:
    """Totals of a phase, kept on the device: adding waits for nothing.

    The names are given, not learned from what is added: a rank without a single image must reduce
    the same vector as its peers.
    """

    def __init__(self, names: Sequence[str], device: torch.device | str) -> None:
        self.names = (*names, "steps")
        self.totals_N = torch.zeros(len(self.names), dtype=torch.float64, device=device)
        self._one = torch.ones((), dtype=torch.float64, device=device)

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """Add what a step returned: 0-dim tensors on the same device."""
        values = [sums[name].double() for name in self.names[:-1]]
        self.totals_N += torch.stack([*values, self._one])


def reduce(sums: Sums, world_size: int) -> dict[str, float]:
    """Turn the totals of all ranks into means, with one all_reduce and one wait for the device.

    `loss_sum` becomes `loss`, the mean over images, and so on; what isn't a sum over images is the
    mean over steps. `count` stays the number of images, `lost` that of those that could not be had
    (a phase that lost all has means of 0), `steps` that of steps over all ranks.
    """
    totals_N = sums.totals_N.clone()
    if world_size > 1:
        distributed.all_reduce(totals_N)
    totals = dict(zip(sums.names, totals_N.tolist(), strict=True))
    counts = {name: totals.pop(name) for name in ("count", "lost", "steps")}
    assert counts["steps"] > 0, "a phase without a single step has no mean"
    means = {
        name.removesuffix("_sum"): total
        / (max(1, counts["count"]) if name.endswith("_sum") else counts["steps"])
        for name, total in totals.items()
    }
    return {**means, **counts}
