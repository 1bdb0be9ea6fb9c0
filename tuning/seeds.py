"""What one training says on the test split with several seeds: mean and interval."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from scipy.stats import binomtest, t

from trainers import metrics
from trainers.tracking.alerts import CONFIDENCE

MEASURES = {metrics.TEST_TOP1: "top-1", metrics.TEST_TOP5: "top-5"}
"""The measures that are averaged, and their headings."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean share of correct images, and its interval."""

    mean: float
    low: float
    high: float


def summarize(tests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return an estimate of each measure, and what its interval is one of.

    Args:
        tests: what `evaluation.evaluate.evaluate` returned for each seed, on the same images.
    """
    num_images = tests[0]["num_images"]
    estimates = {name: estimate([test[name] for test in tests], num_images) for name in MEASURES}
    return {
        "num_images": num_images,
        "confidence": CONFIDENCE,
        "interval": f"t over {len(tests)} seeds" if len(tests) > 1 else "Wilson over the images",
        **{name: asdict(value) for name, value in estimates.items()},
    }


def estimate(shares: Sequence[float], num_images: int) -> Estimate:
    """Return the mean of shares of correct images, one per seed, and its 95 percent interval.

    Several seeds: t over them, cut at 0 and 1. It tells how the mean varies with the seed, on these
    very images. One seed: Wilson's over the images, as one says nothing about other seeds.
    """
    mean = fmean(shares)
    if len(shares) == 1:
        test = binomtest(round(mean * num_images), num_images)
        wilson = test.proportion_ci(CONFIDENCE, method="wilson")
        return Estimate(mean=mean, low=float(wilson.low), high=float(wilson.high))
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, len(shares) - 1))
    half = quantile * stdev(shares) / math.sqrt(len(shares))
    return Estimate(mean=mean, low=max(0.0, mean - half), high=min(1.0, mean + half))


def print_seeds(summary: dict[str, Any]) -> None:
    """Print a row for each seed, the mean, its interval, and what the sweep's winner had."""
    estimates = [Estimate(**summary[name]) for name in MEASURES]
    print()
    _print_row("seed", list(MEASURES.values()), "time")
    for row in summary["seeds"]:
        shares = [f"{row[name]:.3f}" for name in MEASURES]
        _print_row(str(row["seed"]), shares, f"{row[metrics.TOTAL_S]:.0f} s")
    num_images = summary["num_images"]
    _print_row("mean", [f"{each.mean:.3f}" for each in estimates], f"on {num_images} test images")
    ranges = [f"{each.low:.3f}-{each.high:.3f}" for each in estimates]
    _print_row(f"{summary['confidence']:.0%}", ranges, summary["interval"])
    winner = summary["winner"]
    if winner[metrics.TEST_TOP1] is not None:
        above = estimates[0].mean - winner[metrics.TEST_TOP1]
        _print_row(
            "winner",
            [f"{winner[name]:.3f}" for name in MEASURES],
            f"as the sweep left it, after epoch {winner['best_epoch']}: top-1 {above:+.3f} since",
        )


def _print_row(name: str, shares: Sequence[str], note: str) -> None:
    print(f"{name:<8}" + "".join(f"{share:<13}" for share in shares) + note)
