"""The answer of a sweep: how deep to thaw, by how much that is better, and how sure it is.

The best trial is compared with the best of any other freeze depth. Where both left their answers to
the validation images, McNemar's exact test looks at the images that only one of them got right;
else Fisher's exact test takes them as different images, which is the more cautious.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, fisher_exact

from tuning.leaderboard import TrialResult
from tuning.review.data import Sweep
from tuning.seeds import Estimate, estimate

SIGNIFICANCE = 0.05


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The best trial against the best of the next best freeze depth."""

    rival: TrialResult
    lead: float
    """Of val/top1."""
    p_value: float | None
    """Two-sided; None where nothing tells how many validation images there are."""
    wins: int | None = None
    """Images that only the best trial got right; None where the test is unpaired."""
    losses: int | None = None
    """Images that only the rival got right."""

    @property
    def is_certain(self) -> bool:
        return self.p_value is not None and self.p_value < SIGNIFICANCE


@dataclass(frozen=True, kw_only=True)
class SweepVerdict:
    """What a sweep says."""

    headline: str
    lead: str
    """One or two sentences: by how much, and with what certainty."""
    best: TrialResult | None
    top1: Estimate | None
    """val/top1 of the best trial, with Wilson's 95 percent interval."""
    comparison: Comparison | None
    cautions: tuple[str, ...]
    """What the numbers don't say."""


def judge_sweep(sweep: Sweep) -> SweepVerdict:
    """Find the answer, or say plainly why there is none."""
    best, measured = sweep.winner, [row for row in sweep.standings if row.val_top1 is not None]
    if best is None or best.val_top1 is None:
        headline, lead = _without_winner(sweep, num_measured=len(measured))
        return SweepVerdict(
            headline=headline, lead=lead, best=None, top1=None, comparison=None, cautions=()
        )
    comparison, num_images = compare_depths(sweep, best), sweep.num_val_images
    top1 = estimate([best.val_top1], num_images) if num_images else None
    thaw, rival = thawing(sweep, sweep.depth_of(best)), comparison and comparison.rival
    headline = f"{thaw[0].upper()}{thaw[1:]}"
    if comparison is not None and rival is not None and not comparison.is_certain:
        headline += f", or {thawing(sweep, sweep.depth_of(rival))}"
    reached = f"reaches val/top1 {best.val_top1:.3f}"
    if top1 is not None:
        reached += f" (95 percent interval {top1.low:.3f} to {top1.high:.3f})"
    return SweepVerdict(
        headline=f"{headline}.",
        lead=f"The best trial {reached}. {_compare_in_words(sweep, comparison, num_images)}",
        best=best,
        top1=top1,
        comparison=comparison,
        cautions=_cautions(sweep, num_measured=len(measured)),
    )


def compare_depths(sweep: Sweep, best: TrialResult) -> Comparison | None:
    """Compare the best trial with the best of another freeze depth; None where there is none."""
    rival = next(
        (
            row
            for row in sweep.standings
            if row.val_top1 is not None and sweep.depth_of(row) != sweep.depth_of(best)
        ),
        None,
    )
    if rival is None:
        return None
    assert best.val_top1 is not None and rival.val_top1 is not None
    lead = best.val_top1 - rival.val_top1
    answers, others = (sweep.predictions_of(row, "val") for row in (best, rival))
    if answers is not None and others is not None and answers["row"].equals(others["row"]):
        correct_N, others_N = (
            np.equal(*(table[name].cast("string").to_numpy() for name in ("label", "predicted")))
            for table in (answers, others)
        )
        wins, losses = int((correct_N & ~others_N).sum()), int((others_N & ~correct_N).sum())
        p_value = compare_pairs(wins, losses)
        return Comparison(rival=rival, lead=lead, p_value=p_value, wins=wins, losses=losses)
    num_images = sweep.num_val_images
    p_value = num_images and compare_shares(best.val_top1, rival.val_top1, num_images)
    return Comparison(rival=rival, lead=lead, p_value=p_value)


def compare_pairs(wins: int, losses: int) -> float:
    """Return the two-sided p value of McNemar's exact test.

    Args:
        wins: images that only the first got right.
        losses: images that only the second got right.
    """
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def compare_shares(first: float, second: float, num_images: int) -> float:
    """Return the two-sided p value of Fisher's exact test of two shares, each of as many images."""
    counts = [round(share * num_images) for share in (first, second)]
    result: Any = fisher_exact([[count, num_images - count] for count in counts])
    return float(result.pvalue)


def thawing(sweep: Sweep, depth: int) -> str:
    """Say what a freeze depth trains, as an order: `thaw from layer3 on`."""
    if depth == 0:
        return "thaw the whole network"
    if depth == len(sweep.stages):
        return "train the head alone"
    return f"thaw from {sweep.stages[depth]} on"


def depth_name(sweep: Sweep, depth: int) -> str:
    """Name a freeze depth: `2 of 5 stages frozen`."""
    num_stages = len(sweep.stages)
    if depth in (0, num_stages):
        return "nothing frozen" if depth == 0 else f"all {num_stages} stages frozen"
    return f"{depth} of {num_stages} stages frozen"


def _compare_in_words(sweep: Sweep, comparison: Comparison | None, num_images: int | None) -> str:
    if comparison is None:
        return "No other freeze depth has a result, so there is nothing to compare it with."
    name = depth_name(sweep, sweep.depth_of(comparison.rival))
    by = f"{comparison.lead:.3f} better than" if comparison.lead else "no better than"
    start = f"That is {by} the best trial with {name} ({comparison.rival.val_top1:.3f})"
    if comparison.p_value is None:
        return f"{start}; how sure that is can't be told without the data set."
    if comparison.is_certain:
        return f"{start}, and too much for chance ({_p(comparison.p_value)})."
    return (
        f"{start}, which {num_images} validation images cannot tell from chance "
        f"({_p(comparison.p_value)})."
    )


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def _without_winner(sweep: Sweep, *, num_measured: int) -> tuple[str, str]:
    started, failed = len(sweep.standings), sum(row.state == "failed" for row in sweep.standings)
    if sweep.status == "running" and not num_measured:
        return "No answer yet.", f"Trials that have started: {started}; none has finished an epoch."
    if not started:
        return "No trial was run.", "The folder holds a sweep's config and nothing else."
    if failed == started:
        return (
            "Every trial failed.",
            f"None of {started} trials finished; the reasons stand in the leaderboard below.",
        )
    if not num_measured:
        return "No answer.", f"None of the {started} trials finished an epoch."
    best = max(row.val_top1 or 0.0 for row in sweep.standings)
    so_far = "has learned so far" if sweep.status == "running" else "learned"
    return (
        f"No trial {so_far}.",
        f"The best of {num_measured} reaches val/top1 {best:.3f}, which always answering one class "
        "may reach as well. Try other weights, more epochs or smaller learning rates.",
    )


def _cautions(sweep: Sweep, *, num_measured: int) -> tuple[str, ...]:
    best = sweep.winner
    assert best is not None
    lines = []
    if sweep.status == "running":
        lines.append("The sweep has not ended: trials to come may change the answer.")
    if num_measured > 1:
        lines.append(
            f"The best of {num_measured} trials is optimistic: it was chosen by the same images "
            "that measure it, and neither interval nor test corrects for that."
        )
    if best.state == "pruned":
        lines.append(f"The best trial was stopped early, after epoch {best.num_epochs}.")
    if len(sweep.standings) - num_measured and sweep.status == "ended":
        lines.append(f"Trials that finished no epoch: {len(sweep.standings) - num_measured}.")
    return tuple(lines)
