"""Advice on storage: what was measured of which data and network, and how a sweep scores it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cluster.io import storage
from cluster.io.errors import UserError, require
from cluster.io.fields import build
from cluster.io.records import damaged, read_object
from datasets.shards import read_manifest
from trainers.config import Init
from trainers.networks.freezing import resolve_depth
from tuning.advice.quadrants import Stage, Verdict
from tuning.leaderboard import TrialResult, find_winner
from tuning.space import FREEZE_DEPTH


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What advice.json holds."""

    data: str
    fingerprint: str
    """Of the data set."""
    backbone: str
    init: Init
    weights: str | None
    normalization: str
    size_px: int
    verdict: Verdict
    stages: tuple[Stage, ...]

    @property
    def recommended(self) -> int:
        return self.verdict.freeze_depths[0]

    def to_dict(self) -> dict[str, Any]:
        """The advice as JSON would give it back, with what follows from the verdict."""
        verdict = self.verdict
        says = {
            "quadrant": [
                "little data" if verdict.is_little else "much data",
                "similar task" if verdict.is_similar else "different task",
            ],
            "advice": verdict.advice,
        }
        return json.loads(json.dumps(says | asdict(self)))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Advice":
        """Rebuild from `to_dict`.

        Raises:
            UserError: for values that don't fit.
        """
        advice = build(cls, {k: v for k, v in values.items() if k in cls.__dataclass_fields__})
        if not advice.verdict.freeze_depths:
            raise UserError("verdict.freeze_depths is empty")
        return advice

    def options(self) -> dict[str, Any]:
        """Fields of a sweep's command that are taken from the advice."""
        return {
            "data": self.data,
            "backbone": self.backbone,
            "inits": (self.init,),
            "weights": self.weights,
            "normalization": None if self.normalization == "auto" else self.normalization,
            "size_px": self.size_px,
            "freeze_depths": self.verdict.freeze_depths,
        }

    def require_same_data(self, data: str) -> None:
        """Refuse data that the advice is not about.

        Raises:
            UserError: where the fingerprints differ, or there is no data set.
        """
        require(
            read_manifest(data).fingerprint == self.fingerprint,
            "data",
            data,
            "it is another data set than the advice is about, or was prepared anew since; measure "
            "it again with `python -m tuning advise`",
        )


def advice_uri(out: str) -> str:
    return storage.join(out, "advice.json")


def read_advice(out: str) -> Advice:
    """Read the advice in a folder.

    Raises:
        UserError: where there is none.
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
    except ValueError as error:
        raise damaged(advice_uri(out), error) from None


def score_advice(recommended: int, backbone: str, standings: Sequence[TrialResult]) -> str:
    """Say in one sentence how the recommended freeze depth did in a sweep.

    Args:
        standings: of all trials, in order of rank.
    """
    start = f"recommended freeze depth {recommended}"
    winner = find_winner(standings)
    if winner is None or winner.val_top1 is None:
        return f"{start}; no trial of this sweep learned"
    depth = _depth(winner, backbone)
    if depth == recommended:
        return f"{start}; the winner has it ({winner.val_top1:.3f})"
    won = f"the winner has {depth} ({winner.val_top1:.3f})"
    for row in standings:
        if _depth(row, backbone) == recommended and row.val_top1 is not None:
            best = f"best there {row.val_top1:.3f}{', pruned' if row.state == 'pruned' else ''}"
            way = "deeper thawing" if depth < recommended else "freezing more"
            return f"{start} ({best}); {won}: {way} gained {winner.val_top1 - row.val_top1:.3f}"
    return f"{start}, with which no trial of this sweep finished an epoch; {won}"


def _depth(row: TrialResult, backbone: str) -> int:
    depth: Any = row.point[FREEZE_DEPTH]
    return resolve_depth(backbone, depth)
