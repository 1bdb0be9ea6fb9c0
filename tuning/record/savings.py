"""Measured savings of sharing: printed at the end of a sweep, kept in leaderboard.json."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.io.fields import build
from tuning.record.results import TrialResult
from tuning.sharing.plan import SharingPlan
from tuning.sharing.prefixes import BuiltPrefixes


@dataclass(frozen=True, kw_only=True)
class Savings:
    """Passes of images through frozen stages that trials did not compute, and copied trials."""

    expected: float = 1.0
    """FLOPs without sharing / FLOPs with it, by the plan."""
    num_on_features: int = 0
    """Trials that trained on features."""
    num_passes: int = 0
    """Passes through frozen stages that these trials would have computed."""
    num_computed: int = 0
    """Passes that were computed instead, once for all."""
    computed_s: float = 0.0
    num_copied: int = 0
    """Trials copied from a recorded training."""
    copied_s: float = 0.0
    """Training time of their origins."""

    def describe(self) -> list[str]:
        """Write the savings in lines; none where nothing was shared."""
        lines: list[str] = []
        if self.num_on_features:
            line = (
                f"{self.num_on_features} trials trained on features: {self.num_computed} passes "
                f"through frozen stages in place of {self.num_passes}"
            )
            if self.num_computed:
                rate = self.num_computed / self.computed_s
                saved_s = (self.num_passes - self.num_computed) / rate
                line += f"; {self.computed_s:.0f} s, which saved about {saved_s:.0f} s"
            lines.append(line)
        if self.num_copied:
            lines.append(
                f"{self.num_copied} trials copied from a recorded training, "
                f"{self.copied_s:.0f} s of work"
            )
        return lines

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> "Savings":
        """Read them from leaderboard.json; one of an older Thaw has none.

        Raises:
            UserError: where they are damaged.
        """
        return build(cls, facts.get("sharing", {}), "leaderboard.json: sharing.")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_savings(
    plan: SharingPlan,
    built: BuiltPrefixes,
    trials: Sequence[TrialResult],
    *,
    on_features: Sequence[str],
    images_per_epoch: int,
) -> Savings:
    """Count the work that the trials of a sweep shared.

    Args:
        on_features: ids of the trials that could train on features.
        images_per_epoch: of training and validation.
    """
    trained = [row for row in trials if row.copied_from is None and row.trial_id in on_features]
    copied = [row for row in trials if row.copied_from is not None]
    return Savings(
        expected=plan.without / plan.with_sharing if plan.with_sharing else 1.0,
        num_on_features=len(trained),
        num_passes=sum(row.num_epochs for row in trained) * images_per_epoch,
        num_computed=built.num_images,
        computed_s=built.seconds,
        num_copied=len(copied),
        copied_s=sum(row.seconds for row in copied),
    )
