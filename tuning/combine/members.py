"""The trials whose networks may be combined."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trainers.config import PRETRAINED, FinetuneConfig
from trainers.networks.freezing import is_head_only
from trainers.run import checkpoint
from trainers.run.checkpoint import TrainingProgress
from trainers.run.folder import read_config
from trainers.step.settings import step_settings
from tuning.config import MAX_MEMBERS
from tuning.record.results import LEARNS, TrialResult


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
