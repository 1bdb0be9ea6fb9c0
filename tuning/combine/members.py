"""The trials whose networks may be combined, and what was found."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cluster.io import storage
from cluster.io.records import damaged, read_record
from cluster.io.statistics import Estimate
from trainers.config import PRETRAINED, FinetuneConfig
from trainers.networks.freezing import is_head_only
from trainers.run import checkpoint
from trainers.run.checkpoint import TrainingProgress
from trainers.run.folder import read_config
from trainers.settings import step_settings
from tuning.leaderboard import LEARNS, TrialResult

SOUP, INTERPOLATION, ENSEMBLE = KINDS = ("soup", "interpolation", "ensemble")
MAX_MEMBERS = 5
"""Best trials that are combined."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """A trial whose network may be combined with the winner's."""

    trial_id: str
    run: str
    config: FinetuneConfig
    progress: TrainingProgress
    """Of its best checkpoint."""

    @property
    def sha256(self) -> str:
        return str(self.progress.files[checkpoint.MODEL]["sha256"])

    @property
    def start(self) -> tuple[object, ...]:
        """Equal for trainings of one network that start from the same weights."""
        model = self.config.model
        return model.backbone, model.init, model.weights, model.head, self.config.seed, self.pixels

    @property
    def pixels(self) -> tuple[object, ...]:
        """Equal for networks that take the same pixels."""
        settings = step_settings(self.config, torch.device("cpu"))
        return settings.mean, settings.std, self.config.ingest.size_px

    @property
    def can_interpolate(self) -> bool:
        """Whether pretrained weights have trained."""
        return self.config.model.init in PRETRAINED and not is_head_only(self.config.model)


def find_members(trials: Sequence[TrialResult]) -> list[Member]:
    """Return the winner and the best other trials whose networks take the same pixels, equal
    weights once.

    Args:
        trials: by rank.
    """
    members: dict[str, Member] = {}
    for trial in trials:
        if trial.verdict != LEARNS or len(members) == MAX_MEMBERS:
            break
        latest = checkpoint.latest_progress(trial.run)
        best = latest and checkpoint.read_progress(trial.run, latest.best_step)
        if best is None:
            continue
        config = read_config(trial.run)
        member = Member(trial_id=trial.trial_id, run=trial.run, config=config, progress=best)
        if all(member.pixels == other.pixels for other in members.values()):
            members.setdefault(member.sha256, member)  # a trial may be a copy of another
    return list(members.values())


@dataclass(frozen=True, kw_only=True)
class Combination:
    """One way to combine, measured on the validation images."""

    kind: str
    trials: tuple[str, ...]
    """Ids, the winner's first."""
    share: float | None = None
    """Of the winner's weights in an interpolation; the rest is the start's."""
    top1: float
    gain: Estimate
    """In val/top1 over the winner."""

    @property
    def is_kept(self) -> bool:
        return self.gain.is_gain

    def describe(self) -> str:
        if self.share is not None:
            parts = f"{self.share:.0%} of the winner"
        else:
            parts = f"{len(self.trials)} trials"
        return f"{self.kind} of {parts} {self.gain.describe_gain()}"


@dataclass(frozen=True, kw_only=True)
class Combinations:
    """The content of combined.json."""

    weights: tuple[str, ...]
    """SHA-256 of the members' weights, the winner's first."""
    tried: tuple[Combination, ...]
    is_cut: bool = False
    """Whether the budget ended before all were tried."""

    @property
    def kept(self) -> list[Combination]:
        return [each for each in self.tried if each.is_kept]


def combined_uri(out: str, *names: str) -> str:
    return storage.join(out, "combined", *names)


def read_combinations(out: str) -> Combinations | None:
    """Read combined.json; None where nothing was combined.

    Raises:
        UserError: where it is damaged.
    """
    uri = combined_uri(out, "combined.json")
    try:
        found = read_record(uri, Combinations)
    except FileNotFoundError:
        return None
    if unknown := {each.kind for each in found.tried} - {*KINDS}:
        raise damaged(uri, f"an unknown kind, {min(unknown)}")
    return found
