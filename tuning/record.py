"""The record of a sweep: everything its folder says, read once, also while the sweep runs.

SWEEP/config.json               from its start on
SWEEP/started.json              from its start on: command, commit, versions
SWEEP/trials.json               while it runs: the state of every trial
SWEEP/trials/ID/                a run folder per trial
SWEEP/leaderboard.json          at its end
SWEEP/promoted/winner.json      where a winner is promoted: which trial it was
SWEEP/promoted/promoted.json    at the end of that
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from typing import Any, Literal

from cluster.io import storage
from cluster.io.errors import UserError
from cluster.io.records import damaged, read_object
from datasets.shards import Manifest, read_manifest
from trainers import metrics
from trainers.config import FinetuneConfig
from trainers.networks.freezing import adapter_rank, describe_frozen, name_stages
from trainers.run.evaluations import predictions_uri, read_evaluation
from trainers.run.folder import read_config
from trainers.run.predictions import Predictions, read_predictions, read_table
from trainers.run.rows import Row, read_rows
from tuning.advice.front import find_advice
from tuning.axes.axis import BACKBONE
from tuning.config import TuningConfig
from tuning.leaderboard import (
    FINISHED,
    KILLED,
    RUNNING,
    TrialResult,
    find_winner,
    rank,
    read_leaderboard,
)
from tuning.sharing.savings import Savings
from tuning.space import compared_fields, corners, model_of, order_fields
from tuning.states import read_trials

MEASURES = {metrics.TEST_TOP1: "top-1", metrics.TEST_TOP5: "top-5"}
"""The measures that a promotion averages over its seeds, and their headings."""
_STARTED = {
    "command": str,
    "commit": str | None,
    "versions": dict[str, str],
    "started_at": str,
}
_PROMOTED = {
    "run": str,
    "epochs": int,
    "train_on": str | None,
    "num_images": int,
    "confidence": float,
    "interval": str,
    **{name: {"mean": float, "low": float, "high": float} for name in MEASURES},
    "seeds": [{"seed": int, **dict.fromkeys(MEASURES, float)}],
    "winner": dict.fromkeys(MEASURES, float | None),
}
Status = Literal["running", "stopped", "ended"]


@dataclass(frozen=True, kw_only=True)
class FrozenPart:
    """How much of its network a trial freezes."""

    backbone: str
    stages: tuple[str, ...]
    """Of the network, from the input on."""
    depth: int
    """Frozen stages."""
    last: str
    """The last of them, or none, all, or lora:8 where adapters train beside all of them."""
    share: float
    is_only_network: bool
    """Whether all trials have this network."""

    @property
    def has_adapters(self) -> bool:
        return adapter_rank(self.last) is not None

    @property
    def key(self) -> tuple[str, str]:
        """Equal for trials that freeze the same part of the same network."""
        return self.backbone, self.last

    @property
    def column(self) -> tuple[float, str]:
        """Its position among those of all trials, and its label: `layer3 80%`, or the share alone
        where there are several networks."""
        shows_name = self.is_only_network or self.has_adapters
        return self.share, self.short if shows_name else f"{self.share:.0%}"

    @property
    def short(self) -> str:
        return f"{self.last} {self.share:.0%}"

    @property
    def name(self) -> str:
        """`2 of 5 stages frozen, up to layer1`, with the network where there are several."""
        num_stages = len(self.stages)
        name = f"{self.depth} of {num_stages} stages frozen, up to {self.last}"
        if self.depth in (0, num_stages):
            name = "nothing frozen" if self.depth == 0 else f"all {num_stages} stages frozen"
        name += f", {self.last}" * self.has_adapters
        return name if self.is_only_network else f"{self.backbone}, {name}"

    @property
    def instruction(self) -> str:
        """`thaw from layer3 on`, with the network where there are several."""
        if self.depth == 0:
            text = "thaw the whole network"
        elif self.has_adapters:
            text = f"train the head and adapters ({self.last})"
        elif self.depth == len(self.stages):
            text = "train only the head"
        else:
            text = f"thaw from {self.stages[self.depth]} on"
        return text if self.is_only_network else f"with {self.backbone}, {text}"


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """A sweep as its files describe it."""

    out: str
    """URI of its folder."""
    config: TuningConfig
    fingerprint: str | None
    """Of its data set."""
    status: Status
    """A driver that was killed leaves `running` behind."""
    num_trials: int
    """Trials that the whole sweep has."""
    trials: Sequence[TrialResult]
    """Those that have started, by rank."""
    savings: Savings
    sync: Sequence[str]
    """Commands that upload runs to W&B."""
    ended_by_user: bool = False
    """Whether it was stopped in W&B."""
    started: Mapping[str, Any] | None
    """started.json; None in a sweep of an older Thaw."""
    promoted: Mapping[str, Any] | None
    """promoted.json."""
    manifest: Manifest | None
    """None where the data set is missing or has changed."""

    @classmethod
    def read(cls, out: str) -> "SweepRecord":
        """Read a sweep, finished or not.

        Raises:
            UserError: where there is none, a file is damaged, or a sweep that has not ended has
                lost its data set.
        """
        out = storage.absolute(out, "out")
        known = read_sweep_config(out)
        if known is None:
            raise UserError(
                f"out is {out!r}: no sweep there (config.json is missing, or another command's); "
                "give the --out of a `python -m tuning`"
            )
        config, fingerprint = known
        manifest = _find_manifest(config.base, fingerprint)
        states, leaderboard = read_trials(out), read_leaderboard(out)
        started = states.by_id if states else {}
        status = _find_status(started, ended=leaderboard is not None)
        if leaderboard is not None and status == "ended":
            trials, facts = leaderboard
            trials = _add_states(trials, started)
        else:
            trials, facts = _rank_started(out, config, started, manifest), {}
        return cls(
            out=out,
            config=config,
            fingerprint=fingerprint,
            status=status,
            num_trials=states.num_trials if states else len(trials),
            trials=trials,
            savings=Savings.from_facts(facts),
            sync=facts.get("sync", ()),
            ended_by_user=bool(facts.get("ended_by_user")),
            started=read_start(out),
            promoted=_read_promotion(out, find_winner(trials)),
            manifest=manifest,
        )

    @property
    def base(self) -> FinetuneConfig:
        """The training that every trial starts from."""
        return self.config.base

    @property
    def winner(self) -> TrialResult | None:
        return find_winner(self.trials)

    @property
    def has_test_split(self) -> bool:
        return self.manifest is not None and "test" in self.manifest.splits

    @property
    def backbones(self) -> tuple[str, ...]:
        """The networks of the space."""
        return tuple(map(str, self.config.space.values_of(BACKBONE))) or (self.base.model.backbone,)

    @property
    def fields(self) -> list[str]:
        """The fields that tell its trials apart, in the order of their columns."""
        return compared_fields(corners(self.config.space))

    @cached_property
    def rows(self) -> dict[str, list[Row]]:
        """The rows of each trial's metrics.jsonl, by trial id."""
        return {trial.trial_id: read_rows(trial.run) for trial in self.trials}

    @cached_property
    def test(self) -> dict[str, Any] | None:
        """The winner's evaluation on the test split; None where there is none."""
        winner = self.winner
        if winner is None or winner.best_epoch is None or self.fingerprint is None:
            return None
        return read_evaluation(
            winner.run, "test", epoch=winner.best_epoch, fingerprint=self.fingerprint
        )

    @cached_property
    def advice(self) -> str | None:
        """How the advice that the space came from did; None where it came from none."""
        if self.config.advice is None:
            return None
        try:
            advice = find_advice(self.config.advice)
        except UserError:
            return f"The advice of this sweep is missing ({self.config.advice})."
        return advice.score(self.base, self.trials)

    @cached_property
    def num_val_images(self) -> int | None:
        """None where neither the data set nor the winner's predictions are there."""
        if self.manifest is not None:
            return self.manifest.split("val").num_images
        predictions = self.predictions_of(self.winner, "val") if self.winner else None
        return len(predictions.table) if predictions is not None else None

    @property
    def chance(self) -> float | None:
        """Accuracy of always predicting the most frequent class of the validation images."""
        if self.manifest is None:
            return None
        counts = self.manifest.split("val").class_counts
        return max(counts) / sum(counts)

    def frozen_of(self, trial: TrialResult) -> FrozenPart:
        """Return how much of its network a trial freezes."""
        model = model_of(self.base, trial.point)
        stages = tuple(name_stages(model.backbone))
        last, share = describe_frozen(model.backbone, model.freeze_depth)
        return FrozenPart(
            backbone=model.backbone,
            depth=round(share * len(stages)),
            stages=stages,
            last=last,
            share=share,
            is_only_network=len(self.backbones) == 1,
        )

    def predictions_of(self, trial: TrialResult, split: str) -> Predictions | None:
        """Return the predictions of a trial's best weights for the validation or test images; None
        where none were kept."""
        if split == "val":
            return read_predictions(trial.run, trial.best_epoch)
        if self.test is None or trial != self.winner:
            return None
        return read_table(predictions_uri(trial.run, split))


def read_sweep_config(out: str) -> tuple[TuningConfig, str | None] | None:
    """Read a sweep's config and the fingerprint of its data from config.json; None where the file
    is missing or of another command.

    Raises:
        UserError: where it is damaged, or does not fit this version of Thaw.
    """
    uri = storage.join(out, "config.json")
    values = _read(uri, {"data_fingerprint": str | None})
    if values is None or "base" not in values:
        return None
    fingerprint = values.pop("data_fingerprint")
    try:
        return TuningConfig.from_dict(values), fingerprint
    except UserError as error:
        raise damaged(uri, error) from None


def promotion_uri(out: str, winner: TrialResult) -> str:
    """Return the URI of the folder where a winner is promoted: `promoted`, or where another trial
    was promoted there, before the sweep was resumed, `promoted-ID`."""
    first = storage.join(out, "promoted")
    own = read_promoted_id(first) in (None, winner.trial_id)
    return first if own else f"{first}-{winner.trial_id}"


def read_promoted_id(folder: str) -> str | None:
    """Return the id of the trial that is promoted in a folder; None before that has begun."""
    known = _read(storage.join(folder, "winner.json"), {"trial_id": str})
    return None if known is None else known["trial_id"]


def _read_promotion(out: str, winner: TrialResult | None) -> dict[str, Any] | None:
    if winner is None:
        return None
    return _read(storage.join(promotion_uri(out, winner), "promoted.json"), _PROMOTED)


def read_start(out: str) -> dict[str, Any] | None:
    """Read started.json; None in a sweep of an older Thaw."""
    return _read(storage.join(out, "started.json"), _STARTED)


def _read(uri: str, hints: dict[str, Any]) -> dict[str, Any] | None:
    try:
        return read_object(uri, hints)
    except FileNotFoundError:
        return None


def _find_manifest(base: FinetuneConfig, fingerprint: str | None) -> Manifest | None:
    try:
        manifest = read_manifest(base.data, base.fold)
    except UserError:
        return None
    return manifest if manifest.fingerprint == fingerprint else None


def _find_status(started: dict[str, TrialResult], *, ended: bool) -> Status:
    known = {trial.state for trial in started.values()}
    if RUNNING in known:
        return "running"
    if ended:
        return "ended"
    return "stopped" if KILLED in known else "running"


def _add_states(
    trials: Sequence[TrialResult], started: dict[str, TrialResult]
) -> list[TrialResult]:
    """Add what only trials.json has to the trials of a leaderboard."""
    return [
        replace(trial, number=state.number, reason=state.reason)
        if (state := started.get(trial.trial_id))
        else trial
        for trial in trials
    ]


def _rank_started(
    out: str, sweep: TuningConfig, known: dict[str, TrialResult], manifest: Manifest | None
) -> list[TrialResult]:
    """Rank the trials of a sweep that has not ended by what is in their run folders."""
    base = sweep.base
    if manifest is None:
        raise UserError(
            f"data is {base.data!r}: the data set of this sweep, which has not ended, is missing; "
            "restore it"
        )
    trials: list[TrialResult] = []
    for trial_id in storage.list_names(storage.join(out, "trials")):
        run = storage.join(out, "trials", trial_id)  # the sweep may have been moved
        if (trial := known.get(trial_id)) is not None:
            trials.append(replace(trial, run=run))
        elif storage.exists(storage.join(run, "config.json")):
            config = read_config(run)
            fields = {axis.field for axis in sweep.space.all_axes}
            point = {field: attrgetter(field)(config) for field in order_fields(fields)}
            trials.append(TrialResult(trial_id=trial_id, point=point, run=run, state=FINISHED))
    return rank(trials, epochs=base.epochs, class_counts=manifest.split("val").class_counts)
