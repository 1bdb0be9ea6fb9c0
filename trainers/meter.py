"""Progress of a run, computed from the rows of its metrics.jsonl."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from cluster.io.terminal import Pace, describe_rate, describe_s, draw_bar
from datasets.manifest import Manifest
from trainers import metrics
from trainers.config import FinetuneConfig
from trainers.run.rows import Row


def describe_waits(rows: Sequence[Row]) -> str | None:
    """Write which shares of the epochs took no training step, and why; None before the first."""
    ended = [row for row in rows if metrics.EPOCH_S in row]
    waits = {
        "waiting for images": sum(row.get(metrics.WAIT_S, 0.0) for row in ended),
        "evaluation": sum(
            row[metrics.EPOCH_S] - row.get(metrics.TRAIN_S, row[metrics.EPOCH_S]) for row in ended
        ),
        "waiting for checkpoints": sum(row.get(metrics.SAVE_S, 0.0) for row in ended),
    }
    total_s = sum(row[metrics.EPOCH_S] + row.get(metrics.SAVE_S, 0.0) for row in ended)
    if not total_s:
        return None
    shares = (f"{wait_s / total_s:.0%} {why}" for why, wait_s in waits.items())
    return f"{', '.join(shares)} of {describe_s(total_s)}"


class Meter:
    """Epoch, step, rate, time left and val/top1 of a run."""

    def __init__(self, config: FinetuneConfig, manifest: Manifest) -> None:
        steps_per_epoch = manifest.split(config.train_on).num_images // config.global_batch_size
        self._num_epochs = config.num_epochs
        self._num_steps = config.num_epochs * steps_per_epoch
        self._global_batch_size = config.global_batch_size
        self._pace: Pace | None = None
        self._known: dict[str, Any] = {}

    def update(self, rows: Sequence[dict[str, Any]]) -> None:
        """Take new rows, oldest first; a value they do not have stays as it was."""
        if not rows:
            return
        for row in rows:
            self._known = self._known | row  # another thread may be reading
        step = rows[-1][metrics.GLOBAL_STEP]
        if self._pace is None:  # without the time to start workers and load weights
            self._pace = Pace(self._num_steps, done=step)
        elif step > self._pace.done:
            self._pace.reach(step)

    def describe(self) -> list[str]:
        """Return epoch, step, images/s and val/top1; empty where not known yet."""
        known = self._known
        if not known:
            return ["starting", "", "", ""]
        rate, top1 = self._images_per_s(), known.get(metrics.VAL_TOP1)
        return [
            f"epoch {known[metrics.EPOCH]}/{self._num_epochs}",
            f"step {known[metrics.GLOBAL_STEP]}/{self._num_steps}",
            "" if rate is None else describe_rate(rate, "images"),
            "" if top1 is None else f"val/top1 {top1:.3f}",
        ]

    def draw(self) -> Table:
        """Return one line for a terminal: a bar, step, images/s, time left, best val/top1."""
        epoch, step, rate, _ = self.describe()
        done, left_s = (self._pace.done, self._pace.left_s()) if self._pace else (0, None)
        best = self._known.get(metrics.VAL_BEST_TOP1)
        cells = [
            step,
            rate,
            "" if left_s is None else f"{describe_s(left_s)} left",
            "" if best is None else f"best {best:.3f}",
        ]
        return draw_bar(epoch, done, self._num_steps, [cell for cell in cells if cell])

    def _images_per_s(self) -> float | None:
        """Return the rate of the last finished epoch; before there is one, of the steps seen."""
        if metrics.IMAGES_PER_S in self._known:
            return self._known[metrics.IMAGES_PER_S]
        steps_per_s = self._pace.rate() if self._pace else None
        return None if steps_per_s is None else steps_per_s * self._global_batch_size
