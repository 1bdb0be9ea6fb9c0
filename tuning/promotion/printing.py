"""Prints what a promotion measured: a row for each seed or fold, the mean and its interval."""

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.io.statistics import Estimate
from trainers import metrics
from tuning.record.files import MEASURES

FOLD_MEASURES = {metrics.VAL_TOP1: "top-1", metrics.VAL_TOP5: "top-5"}
"""The measures that a cross-validation averages over its folds, and their headings."""


def print_seeds(summary: dict[str, Any]) -> None:
    """Print a row for each seed, the mean, its interval, and the sweep's winner."""
    estimates = _print_estimates(
        summary, "seed", MEASURES, f"on {summary['num_images']} test images"
    )
    winner = summary["winner"]
    if winner[metrics.TEST_TOP1] is not None:
        above = estimates[0].mean - winner[metrics.TEST_TOP1]
        _print_row(
            "winner",
            [f"{winner[name]:.3f}" for name in MEASURES],
            f"as the sweep left it, after epoch {winner['best_epoch']}: top-1 {above:+.3f} since",
        )


def print_folds(summary: dict[str, Any]) -> None:
    """Print a row for each fold, the mean and its interval."""
    note = f"on {summary['num_images']} images of train and val, each validated once"
    _print_estimates(summary, "fold", FOLD_MEASURES, note)


def _print_estimates(
    summary: dict[str, Any], part: str, measures: Mapping[str, str], note: str
) -> list[Estimate]:
    """Print a row for each seed or fold, the mean and its interval; return the estimates."""
    estimates = [Estimate(**summary[name]) for name in measures]
    print()
    _print_row(part, list(measures.values()), "time")
    for row in summary[f"{part}s"]:
        shares = [f"{row[name]:.3f}" for name in measures]
        _print_row(str(row[part]), shares, f"{row[metrics.TOTAL_S]:.0f} s")
    _print_row("mean", [f"{each.mean:.3f}" for each in estimates], note)
    ranges = [f"{each.low:.3f}-{each.high:.3f}" for each in estimates]
    _print_row(f"{summary['confidence']:.0%}", ranges, summary["interval"])
    return estimates


def _print_row(name: str, shares: Sequence[str], note: str) -> None:
    print(f"{name:<8}" + "".join(f"{share:<13}" for share in shares) + note)
