"""The advice file (advice.json), and its score at the end of a sweep."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.io import storage
from cluster.io.errors import UserError, require
from cluster.io.fields import build
from cluster.io.records import damaged, read_object
from datasets.config import Policy
from datasets.manifest_file import read_manifest
from trainers.config import FinetuneConfig, FreezeDepth, Init
from trainers.networks.freezing import count_frozen
from tuning.advice.extrapolation import Race
from tuning.advice.quadrants import Quadrant, Stage
from tuning.axes.axis import Axis
from tuning.config import SpaceConfig
from tuning.point import model_of
from tuning.record.results import TrialResult, find_winner

NUM_TO_SWEEP = 3
"""Freeze depths that a sweep takes from a race."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What advice.json holds."""

    data: str
    fingerprint: str
    """Of the data set with the fold that validated."""
    fold: int = 0
    backbone: str
    init: Init
    weights: str | None
    normalization: str
    size_px: int
    epochs: int | None = None
    """Of the trials of the sweep that the race predicts, as its images per step and its policy;
    None: a sweep's default."""
    global_batch_size: int | None = None
    policy: Policy | None = None
    verdict: Quadrant
    stages: tuple[Stage, ...]
    race: Race | None = None

    @property
    def recommended(self) -> int:
        """The freeze depth that wins the race; without one, that of the quadrant."""
        return self.race.depths[0].depth if self.race else self.verdict.freeze_depths[0]

    @property
    def to_sweep(self) -> tuple[FreezeDepth, ...]:
        """The three best depths of the race; without one, a sweep's usual ones."""
        if self.race is None:
            return SpaceConfig().freeze_depths
        return tuple(raced.depth for raced in self.race.depths[:NUM_TO_SWEEP])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values, with the quadrant in words."""
        verdict = self.verdict
        words = {
            "quadrant": [
                "little data" if verdict.is_little else "much data",
                "similar task" if verdict.is_similar else "different task",
            ],
            "advice": verdict.advice,
        }
        return json.loads(json.dumps(words | asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Advice":
        """Rebuild from `to_dict`.

        Raises:
            UserError: for values that don't fit.
        """
        known = {k: v for k, v in values.items() if k in cls.__dataclass_fields__}
        if isinstance(stages := known.get("stages"), list):
            known["stages"] = [_without_logme(stage) for stage in stages]
        advice = build(cls, known)
        if not advice.verdict.freeze_depths:
            raise UserError("verdict.freeze_depths is empty")
        return advice

    def options(self) -> dict[str, Any]:
        """Return the fields of a sweep's command that come from the advice."""
        return {
            "data": self.data,
            "fold": self.fold,
            "backbone": self.backbone,
            "inits": (self.init,),
            "weights": self.weights,
            "normalization": None if self.normalization == "auto" else self.normalization,
            "size_px": self.size_px,
            "epochs": self.epochs,
            "global_batch_size": self.global_batch_size,
            "policy": self.policy,
            "freeze_depths": self.to_sweep,
        }

    def axes(self) -> tuple[Axis, ...]:
        """Return none: its freeze depths have a short option."""
        return ()

    def score(self, base: FinetuneConfig, results: Sequence[TrialResult]) -> str:
        """As `score_advice`."""
        return score_advice(self.recommended, base, results)

    def require_same_data(self, data: str) -> None:
        """Refuse another data set than the advice was measured on.

        Raises:
            UserError: also if there is no data set.
        """
        require(
            read_manifest(data, self.fold).fingerprint == self.fingerprint,
            "data",
            data,
            "the advice was measured on another data set, or before this one was prepared again; "
            "run `python -m tuning advise` again",
        )


def _without_logme(stage: Any) -> Any:
    """Drop a key that older files have."""
    if not isinstance(stage, dict):
        return stage
    return {key: value for key, value in stage.items() if key != "logme"}


def advice_uri(out: str) -> str:
    return storage.join(out, "advice.json")


def ranking_uri(out: str) -> str:
    return storage.join(out, "backbones.json")


def remove_advice(out: str) -> None:
    """Remove what an earlier `advise` has left in a folder, of one network or of several."""
    for name in ("advice.json", "advice.png", "backbones.json", "backbones.png"):
        storage.delete_file(storage.join(out, name))


def read_advice(out: str) -> Advice:
    """Read the advice in a folder.

    Raises:
        UserError: if there is none.
    """
    try:
        values = read_object(advice_uri(out))
    except FileNotFoundError:
        raise UserError(
            f"from_advice is {out!r}: no advice there (advice.json is missing); give the --out of "
            "`python -m tuning advise`"
        ) from None
    try:
        return Advice.from_dict(values)
    except UserError as error:
        raise damaged(advice_uri(out), error) from None


def score_advice(recommended: int, base: FinetuneConfig, results: Sequence[TrialResult]) -> str:
    """Say in one sentence how the recommended freeze depth did in a sweep.

    Args:
        base: the training that every trial starts from.
        results: of all trials, in order of rank.
    """
    start = f"recommended freeze depth {recommended}"
    winner = find_winner(results)
    if winner is None or winner.val_top1 is None:
        return f"{start}; no trial of this sweep learned"
    depth = _depth(winner, base)
    if depth == recommended:
        return f"{start}; the winner has it ({winner.val_top1:.3f})"
    won = f"the winner has {depth} ({winner.val_top1:.3f})"
    for row in results:
        if _depth(row, base) == recommended and row.val_top1 is not None:
            best = (
                f"its best trial: {row.val_top1:.3f}{', pruned' if row.state == 'pruned' else ''}"
            )
            change = "freezing fewer stages" if depth < recommended else "freezing more stages"
            return f"{start} ({best}); {won}: {change} gained {winner.val_top1 - row.val_top1:.3f}"
    return f"{start}, with which no trial of this sweep finished an epoch; {won}"


def _depth(row: TrialResult, base: FinetuneConfig) -> int:
    return count_frozen(model_of(base, row.point))
