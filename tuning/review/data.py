"""Everything a review of a sweep tells, read from its folder; Ray is not needed for it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from operator import attrgetter
from typing import Any, Literal

import pyarrow as pa

from cluster.io import storage
from cluster.io.errors import UserError
from datasets.shards import Manifest, read_manifest
from trainers.config import FinetuneConfig
from trainers.networks.backbones import find
from trainers.networks.freezing import resolve_depth
from trainers.run.evaluations import PREDICTIONS, folder_of, read_evaluation
from trainers.run.folder import read_config
from trainers.run.predictions import read_predictions
from trainers.run.rows import Row, read_rows
from tuning.advice.advice import read_advice, score_advice
from tuning.leaderboard import Ended, TrialResult, find_winner, rank, read_leaderboard
from tuning.record import SweepRecord, read_record_of_sweep, read_sweep_config
from tuning.space import AXES, FREEZE_DEPTH
from tuning.states import FAILED, KILLED, RUNNING, Trials, read_trials


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep as its folder tells it."""

    out: str
    base: FinetuneConfig
    """What every trial starts from."""
    findings: SweepRecord
    """What its config.json, started.json, leaderboard.json and promoted.json say."""
    status: Literal["running", "stopped", "ended"]
    """running: has not ended, as far as the folder tells: a driver that is killed can't say so."""
    num_trials: int
    """Those it will have, in all."""
    standings: Sequence[TrialResult]
    """Of all trials that have started, in order of rank."""
    rows: dict[str, list[Row]]
    """By trial id: what its metrics.jsonl holds."""
    reasons: dict[str, str]
    """By trial id: why it failed."""
    manifest: Manifest | None
    """None where the data set is gone, or another one by now."""
    sync: Sequence[str]
    """Commands that upload the runs to W&B."""
    test: dict[str, Any] | None
    """The winner's evaluation on the test split."""
    advice: str | None
    """How the advice that the sweep comes from did."""

    @property
    def winner(self) -> TrialResult | None:
        return find_winner(self.standings)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the network's stages, from the input on."""
        return tuple(name for name, _ in find(self.base.model.backbone).stages)

    @property
    def num_val_images(self) -> int | None:
        """None where nothing tells."""
        if self.manifest is not None:
            return self.manifest.split("val").num_images
        winner = self.winner
        predictions = self.predictions_of(winner, "val") if winner else None
        return predictions.num_rows if predictions is not None else None

    @property
    def chance(self) -> float | None:
        """What always answering the commonest class reaches on validation images."""
        if self.manifest is None:
            return None
        counts = self.manifest.split("val").class_counts
        return max(counts) / sum(counts)

    def depth_of(self, row: TrialResult) -> int:
        """Frozen stages of a trial, as a number."""
        depth: Any = row.point[FREEZE_DEPTH]
        return resolve_depth(self.base.model.backbone, depth)

    def predictions_of(self, row: TrialResult, split: str) -> pa.Table | None:
        """Return what a trial's best weights say to each image of the validation or test split;
        None where nobody asked them."""
        if split == "val":
            return read_predictions(row.run, row.best_epoch)
        if self.test is None or row != self.winner:
            return None
        return storage.read_parquet(storage.join(folder_of(row.run, split), PREDICTIONS))


def read_sweep(out: str) -> Sweep:
    """Read a sweep, whether it has ended or not.

    Raises:
        UserError: where there is none, or it has not ended and its data set is gone.
    """
    if read_sweep_config(out) is None:
        raise UserError(
            f"out is {out!r}: no sweep there (config.json is missing, or another command's); give "
            "the --out of a `python -m tuning`"
        )
    findings = read_record_of_sweep(out)
    config = findings.config
    base = FinetuneConfig.from_dict(config["base"])
    fingerprint, manifest = config["data_fingerprint"], _find_manifest(base.data)
    if manifest is not None and manifest.fingerprint != fingerprint:
        manifest = None
    trials, known = read_trials(out), read_leaderboard(out)
    status = _status(trials, ended=known is not None)
    if known is not None and status == "ended":
        standings, facts = known
    else:
        if manifest is None:
            raise UserError(
                f"data is {base.data!r}: the data set of this sweep, which has not ended, is gone; "
                "bring it back"
            )
        standings, facts = _stand(out, base, trials, manifest), {}
    winner = find_winner(standings)
    states = {trial.trial_id: trial for trial in trials.trials} if trials else {}
    return Sweep(
        out=out,
        base=base,
        findings=findings,
        status=status,
        num_trials=trials.num_trials if trials else len(standings),
        standings=standings,
        rows={row.trial_id: read_rows(row.run) for row in standings},
        reasons={name: trial.reason for name, trial in states.items() if trial.reason},
        manifest=manifest,
        sync=facts.get("sync", []),
        test=winner and _find_test(winner, fingerprint),
        advice=_score(config["advice"], base, standings),
    )


def _status(trials: Trials | None, *, ended: bool) -> Literal["running", "stopped", "ended"]:
    states = {trial.state for trial in trials.trials} if trials else set()
    if RUNNING in states:
        return "running"
    if ended:
        return "ended"
    return "stopped" if KILLED in states else "running"


def _run_folder(out: str, trial_id: str) -> str:
    """Where a trial lies now: a sweep may have been moved as a whole."""
    return storage.join(out, "trials", trial_id)


def _stand(
    out: str, base: FinetuneConfig, trials: Trials | None, manifest: Manifest
) -> list[TrialResult]:
    """Rank the trials that have started, and tell those that go on from those that were stopped."""
    ended, states = [], {trial.trial_id: trial for trial in trials.trials} if trials else {}
    for trial_id in storage.list_names(storage.join(out, "trials")):
        run = _run_folder(out, trial_id)
        state = states.get(trial_id)
        if state is not None:
            point = state.point
        elif storage.exists(storage.join(run, "config.json")):
            config = read_config(run)
            point = {axis: attrgetter(axis)(config) for axis in AXES}
        else:
            continue  # it has not begun
        failed = state is not None and state.state == FAILED
        ended.append(Ended(trial_id=trial_id, point=point, run=run, failed=failed))
    standings = rank(ended, epochs=base.epochs, class_counts=manifest.split("val").class_counts)
    return [
        replace(row, state=states[row.trial_id].state) if row.trial_id in states else row
        for row in standings
    ]


def _find_manifest(data: str) -> Manifest | None:
    try:
        return read_manifest(data)
    except ValueError:  # says why; the page does without
        return None


def _find_test(winner: TrialResult, fingerprint: str) -> dict[str, Any] | None:
    assert winner.best_epoch is not None, "a trial that learned has finished an epoch"
    return read_evaluation(winner.run, "test", epoch=winner.best_epoch, fingerprint=fingerprint)


def _score(
    advice: str | None, base: FinetuneConfig, standings: Sequence[TrialResult]
) -> str | None:
    if advice is None:
        return None
    try:
        recommended = read_advice(advice).recommended
    except ValueError:
        return f"The advice this sweep comes from is gone ({advice})."
    return score_advice(recommended, base.model.backbone, standings)


def threshold_of(clipnorm: Any) -> float:
    """Order clipnorms: what does not clip comes last."""
    return inf if clipnorm is None else float(clipnorm)
