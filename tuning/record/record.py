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
from datasets.manifest import Manifest
from datasets.manifest_file import read_manifest
from trainers.config import FinetuneConfig
from trainers.run.evaluations import folder_of, predictions_uri, read_evaluation
from trainers.run.folder import read_config
from trainers.run.predictions import Predictions, read_predictions, read_table
from trainers.run.rows import Row, read_rows
from tuning.axes.axis import BACKBONE
from tuning.config import TuningConfig
from tuning.point import compared_fields, order_fields
from tuning.record.files import read_promotion, read_start, read_sweep_config
from tuning.record.frozen import FrozenPart, find_frozen
from tuning.record.leaderboard import read_leaderboard
from tuning.record.results import FINISHED, KILLED, RUNNING, TrialResult, find_winner, rank
from tuning.record.savings import Savings
from tuning.record.states import read_trials
from tuning.space import corners

Status = Literal["running", "stopped", "ended"]


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
            promoted=read_promotion(out, find_winner(trials)),
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
        return find_frozen(self.base, trial.point, is_only_network=len(self.backbones) == 1)

    def predictions_of(self, trial: TrialResult, split: str) -> Predictions | None:
        """Return the predictions of a trial's best weights for the validation or test images; None
        where none were kept."""
        if split == "val":
            return read_predictions(trial.run, trial.best_epoch)
        if self.test is None or trial != self.winner:
            return None
        return read_table(predictions_uri(folder_of(trial.run, split)))


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
    """Rank the trials of a sweep that has not ended by what is in their run folders.

    Args:
        known: those that have started: the heads of others may train ahead in rounds. Empty in a
            sweep of an older Thaw, whose run folders are all of trials that have started.
    """
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
        elif not known and storage.exists(storage.join(run, "config.json")):
            config = read_config(run)
            fields = {axis.field for axis in sweep.space.all_axes}
            point = {field: attrgetter(field)(config) for field in order_fields(fields)}
            trials.append(TrialResult(trial_id=trial_id, point=point, run=run, state=FINISHED))
    return rank(trials, epochs=base.epochs, class_counts=manifest.split("val").class_counts)
