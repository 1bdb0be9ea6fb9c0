"""The verdict on a sweep: how deep to thaw, by how much that is better, and whether that is
significant.

The best trial is compared with the best one of any other network or freeze depth: by McNemar's
exact test where both kept their predictions for the validation images, else by Fisher's exact test,
which treats them as predictions for different images and is the more conservative.
"""

from dataclasses import dataclass

from cluster.io.statistics import (
    SIGNIFICANCE,
    Estimate,
    count_discordant,
    fisher,
    mcnemar,
    wilson,
)
from trainers.run.stop import STOPPED
from tuning.record.record import SweepRecord
from tuning.record.results import FAILED, PRUNED, TrialResult


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The best trial against the best one of another network or freeze depth."""

    rival: TrialResult
    lead: float
    """Difference in val/top1."""
    p_value: float | None
    """Two-sided; None where the number of validation images is unknown."""
    wins: int | None = None
    """Images that only the best trial got right; None where the test is unpaired."""
    losses: int | None = None
    """Images that only the rival got right."""

    @property
    def is_certain(self) -> bool:
        return self.p_value is not None and self.p_value < SIGNIFICANCE


@dataclass(frozen=True, kw_only=True)
class SweepVerdict:
    """The answer of a record."""

    headline: str
    lead: str
    """One or two sentences: by how much, and whether that is significant."""
    best: TrialResult | None = None
    top1: Estimate | None = None
    """val/top1 of the best trial, with Wilson's interval."""
    comparison: Comparison | None = None
    cautions: tuple[str, ...] = ()
    """What to keep in mind when reading the numbers."""

    @property
    def text(self) -> str:
        """The answer in full, as the terminal, the review page and W&B show it."""
        return f"{self.headline} {self.lead}"


def judge(record: SweepRecord) -> SweepVerdict:
    """Return the answer of a sweep, or why there is none."""
    best, measured = record.winner, [row for row in record.trials if row.val_top1 is not None]
    if best is None or best.val_top1 is None:
        headline, lead = _without_winner(record, num_measured=len(measured))
        return SweepVerdict(headline=headline, lead=lead)
    comparison, num_images = compare_depths(record, best), record.num_val_images
    top1 = wilson(best.val_top1, num_images) if num_images else None
    thaw = record.frozen_of(best).instruction
    headline = f"{thaw[0].upper()}{thaw[1:]}"
    if comparison is not None and not comparison.is_certain:
        headline += f", or {record.frozen_of(comparison.rival).instruction}"
    reached = f"reaches val/top1 {best.val_top1:.3f}"
    if top1 is not None:
        reached += f" (95 percent interval {top1.low:.3f} to {top1.high:.3f})"
    return SweepVerdict(
        headline=f"{headline}.",
        lead=f"The best trial {reached}. {_compare_in_words(record, comparison)}",
        best=best,
        top1=top1,
        comparison=comparison,
        cautions=_cautions(record, best, num_measured=len(measured)),
    )


def compare_depths(record: SweepRecord, best: TrialResult) -> Comparison | None:
    """Compare the best trial with the best of another network or freeze depth; None where there is
    none."""
    key = record.frozen_of(best).key
    measured = (trial for trial in record.trials if trial.val_top1 is not None)
    rival = next((trial for trial in measured if record.frozen_of(trial).key != key), None)
    if rival is None:
        return None
    assert best.val_top1 is not None and rival.val_top1 is not None
    lead = best.val_top1 - rival.val_top1
    first, second = (record.predictions_of(trial, "val") for trial in (best, rival))
    if first is not None and second is not None and first.table["row"].equals(second.table["row"]):
        wins, losses = count_discordant(first.is_correct_N, second.is_correct_N)
        p_value = mcnemar(wins, losses)
        return Comparison(rival=rival, lead=lead, p_value=p_value, wins=wins, losses=losses)
    num_images = record.num_val_images
    p_value = fisher(best.val_top1, rival.val_top1, num_images) if num_images else None
    return Comparison(rival=rival, lead=lead, p_value=p_value)


def _compare_in_words(record: SweepRecord, comparison: Comparison | None) -> str:
    if comparison is None:
        return "No other freeze depth has a result to compare it with."
    name = record.frozen_of(comparison.rival).name
    by = f"{comparison.lead:.3f} better than" if comparison.lead else "no better than"
    start = f"That is {by} the best trial with {name} ({comparison.rival.val_top1:.3f})"
    if comparison.p_value is None:
        return f"{start}; without the data set there is no significance test."
    if comparison.is_certain:
        return f"{start}, which is significant ({show_p(comparison.p_value)})."
    return (
        f"{start}, which is not significant on {record.num_val_images} validation images "
        f"({show_p(comparison.p_value)})."
    )


def show_p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def _without_winner(record: SweepRecord, *, num_measured: int) -> tuple[str, str]:
    started, failed = len(record.trials), sum(row.state == FAILED for row in record.trials)
    if record.status == "running" and not num_measured:
        return "No answer yet.", f"Trials that have started: {started}; none has finished an epoch."
    if not started:
        return "No trial was run.", "The folder holds a sweep's config and nothing else."
    if failed == started:
        return (
            "Every trial failed.",
            f"None of {started} trials finished; the leaderboard has the reasons.",
        )
    if not num_measured:
        return "No answer.", f"None of the {started} trials finished an epoch."
    best = max(row.val_top1 or 0.0 for row in record.trials)
    so_far = "has learned so far" if record.status == "running" else "learned"
    return (
        f"No trial {so_far}.",
        f"The best of {num_measured} reaches val/top1 {best:.3f}, which is not above what always "
        "predicting the most frequent class reaches. Try other weights, more epochs or smaller "
        "learning rates.",
    )


def _cautions(record: SweepRecord, best: TrialResult, *, num_measured: int) -> tuple[str, ...]:
    lines = []
    if record.status == "running":
        lines.append("The sweep has not ended: later trials may change the answer.")
    if num_measured > 1:
        lines.append(
            f"The best of {num_measured} trials is optimistic: it was selected on the images "
            "that measure it, and neither interval nor test corrects for that."
        )
    if best.state in (PRUNED, STOPPED):
        lines.append(f"The best trial was stopped early, after epoch {best.num_epochs}.")
    num_without = len(record.trials) - num_measured
    if num_without and record.status == "ended":
        lines.append(f"Trials that finished no epoch: {num_without}.")
    return tuple(lines)
