"""Last epochs on larger images: whether they pay is measured on the validation images.

    OUT/resolution/         a run folder: the winner, trained a little further on larger images
    OUT/seed-0-288px/ ...   the last epochs of a seed, where that was better

A network that was trained on random crops sees objects smaller in evaluation; training the last
epochs on larger images is one remedy (Touvron et al. 2019, Fixing the train-test resolution
discrepancy, https://arxiv.org/abs/1906.06423).
"""

import json
from dataclasses import dataclass, replace

from cluster.io import storage
from cluster.io.errors import UserError, require
from cluster.io.statistics import Estimate, bootstrap_difference
from trainers.config import AUTO, Auto, FinetuneConfig, ScheduleConfig
from trainers.networks.backbones import find, require_size
from trainers.networks.freezing import adapter_rank
from trainers.networks.weights.tensors import to_safetensors
from trainers.run import checkpoint
from trainers.run.predictions import read_predictions
from tuning.record.results import TrialResult

LARGER, MULTIPLE_PX = 9 / 7, 32
"""288 px after 224."""
LAST_SHARE, LAST_RATE = 0.1, 0.1
"""Of the epochs, at least one, and of the learning rate."""


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """Larger images in the last epochs, measured on the validation images."""

    size_px: int
    gain: Estimate
    """In val/top1 over the winner."""

    @property
    def is_better(self) -> bool:
        return self.gain.is_gain

    def describe(self) -> str:
        used = "used" if self.is_better else "not significantly better: not used"
        return f"last epochs at {self.size_px} px: val/top1 {self.gain.describe_gain()}, {used}"


def choose_size(base: FinetuneConfig, wanted: int | Auto | None) -> int | None:
    """Return the size of the last epochs' images that a network takes; None for no larger one.

    Raises:
        UserError: where a size is asked for that it doesn't take.
    """
    if wanted is None:
        return None
    backbone, size_px = base.model.backbone, base.ingest.size_px
    larger_px = round(LARGER * size_px / MULTIPLE_PX) * MULTIPLE_PX if wanted == AUTO else wanted
    if wanted != AUTO:
        require_size(backbone, larger_px, field="last_size_px", training=True)
    keeps_size = find(backbone).takes_size or adapter_rank(base.model.freeze_depth) is not None
    if larger_px <= size_px or keeps_size:
        require(
            wanted == AUTO,
            "last_size_px",
            wanted,
            "the network or its adapters keep the size: use None"
            if keeps_size
            else f"the sweep has images of {size_px} px: use more, or None",
        )
        return None
    try:
        require_size(backbone, larger_px, training=True)
    except UserError:
        return None
    return larger_px


def count_last(epochs: int) -> int:
    """Return how many epochs on larger images follow so many."""
    return max(1, round(LAST_SHARE * epochs))


def continue_larger(training: FinetuneConfig, run: str, size_px: int, out: str) -> FinetuneConfig:
    """Return the last epochs of a training, from the best weights in `run`, which are written to
    `out`."""
    start = storage.join(out, "start.safetensors")
    if not storage.exists(start):
        progress, tensors = checkpoint.load_best(run)
        named = {"classes": json.dumps(progress.classes)}
        storage.write_bytes(start, to_safetensors(tensors, named))
    rate = LAST_RATE * training.optim.learning_rate
    return replace(
        training,
        out=out,
        epochs=count_last(training.epochs),
        ingest=replace(training.ingest, size_px=size_px),
        model=replace(training.model, init="file", weights=start, head=None),
        optim=replace(training.optim, learning_rate=rate),
        schedule=ScheduleConfig(schedule=training.schedule.schedule),
    )


def compare(winner: TrialResult, larger: FinetuneConfig) -> Resolution | None:
    """Compare the winner with its continuation by their predictions for the validation images; None
    where the winner's were not kept."""
    before = read_predictions(winner.run, winner.best_epoch)
    after = read_predictions(larger.out, larger.epochs)
    if before is None or after is None or not before.table["row"].equals(after.table["row"]):
        return None
    gain = bootstrap_difference(before.is_correct_N, after.is_correct_N)
    return Resolution(size_px=larger.ingest.size_px, gain=gain)
