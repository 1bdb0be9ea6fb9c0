"""What the folder of a sweep tells about it, read from its files and said in Markdown.

SWEEP/config.json         from its start on
SWEEP/started.json        from its start on: command, commit, versions
SWEEP/leaderboard.json    at its end
SWEEP/promoted/promoted.json    where the winner was promoted
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.io import storage
from cluster.io.errors import UserError
from cluster.io.records import damaged, read_object
from trainers import metrics
from trainers.export.model_card import basename, table
from trainers.run.evaluations import read_evaluation
from tuning.config import TuningConfig
from tuning.leaderboard import (
    COLUMNS,
    TrialResult,
    find_winner,
    read_leaderboard,
    show_standing,
)
from tuning.seeds import MEASURES
from tuning.sharing.savings import Savings
from tuning.space import FREEZE_DEPTH, INIT, show
from tuning.winner import train_longer

_STARTED = {
    "command": str,
    "commit": str | None,
    "versions": dict[str, str],
    "started_at": str,
}
_SHARES = dict.fromkeys(MEASURES, float)
_PROMOTED = {
    "run": str,
    "epochs": int,
    "train_on": str | None,
    "num_images": int,
    "confidence": float,
    "interval": str,
    **{name: {"mean": float, "low": float, "high": float} for name in MEASURES},
    "seeds": [{"seed": int, **_SHARES}],
    "winner": dict.fromkeys(MEASURES, float | None),
}
MAX_ROWS = 20
"""Of the leaderboard that is shown; leaderboard.csv has them all."""


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """A sweep as its files have it."""

    sweep: str
    config: dict[str, Any]
    """What config.json holds."""
    standings: Sequence[TrialResult]
    """Its leaderboard; empty while it runs."""
    savings: Savings
    started: dict[str, Any] | None
    """What started.json holds; None in a sweep of an older Thaw."""
    promoted: dict[str, Any] | None
    """What promoted.json holds."""

    @property
    def winner(self) -> TrialResult | None:
        return find_winner(self.standings)

    @property
    def group(self) -> str:
        """W&B group of its runs; the folder may have another name by now."""
        return self.config["base"]["track"]["group"] or basename(self.config["out"])

    @property
    def backbone(self) -> str:
        return self.config["base"]["model"]["backbone"]

    @property
    def rungs(self) -> list[int]:
        """Epochs after which ASHA prunes trials; none where they are too short for it."""
        last, rungs = self.config["base"]["epochs"] - 1, []
        rung = self.config["grace_epochs"]
        while rung <= last:
            rungs.append(rung)
            rung *= self.config["reduction_factor"]
        return rungs


def read_record_of_sweep(sweep: str) -> SweepRecord:
    """Read what there is.

    Raises:
        UserError: where no sweep has begun.
    """
    sweep = storage.absolute(sweep, "sweep")
    config = read_sweep_config(sweep)
    if config is None:
        raise UserError(
            f"sweep is {sweep!r}: no sweep there (config.json is missing); give the --out of a "
            "`python -m tuning`"
        )
    standings, facts = read_leaderboard(sweep) or ([], {})
    return SweepRecord(
        sweep=sweep,
        config=config,
        standings=standings,
        savings=Savings.from_facts(facts),
        started=_read(storage.join(sweep, "started.json"), _STARTED),
        promoted=_read(storage.join(sweep, "promoted", "promoted.json"), _PROMOTED),
    )


def read_sweep_config(sweep: str) -> dict[str, Any] | None:
    """Read what config.json says of a sweep and its data; None where there is none, or that of
    another command.

    Raises:
        UserError: where it is damaged, or does not fit this version of Thaw.
    """
    uri = storage.join(sweep, "config.json")
    values = _read(uri, {"data_fingerprint": str | None})
    if values is None or "base" not in values:
        return None
    fingerprint = values.pop("data_fingerprint")
    try:
        config = TuningConfig.from_dict(values)
    except ValueError as error:
        raise damaged(uri, error) from None
    return config.to_dict() | {"data_fingerprint": fingerprint}


def _read(uri: str, hints: dict[str, Any]) -> dict[str, Any] | None:
    try:
        return read_object(uri, hints)
    except FileNotFoundError:
        return None


def ask(findings: SweepRecord) -> str:
    """Return the question of the sweep."""
    space = findings.config["space"]
    rates = space["learning_rate_range"] or space["learning_rates"]
    values = (space["freeze_depths"], rates, space["clipnorms"], space["inits"])
    axes = ("freeze depth", "learning rate", "clipnorm", "initialization")
    tried = "; ".join(
        f"{axis} {', '.join(map(show, tried))}" for axis, tried in zip(axes, values, strict=True)
    )
    return (
        f"How much of a pretrained {findings.backbone} should be thawed for the images of "
        f"{basename(findings.config['base']['data'])}? Compared: {tried}."
    )


def answer(findings: SweepRecord) -> str:
    """Say how deep to thaw, and by how much that beats the best at any other depth."""
    winner = findings.winner
    if winner is None:
        return (
            f"No answer: none of {len(findings.standings)} trials is above what always answering "
            "one class reaches."
        )
    assert winner.val_top1 is not None, "a trial that learned has an accuracy"
    depth = winner.point[FREEZE_DEPTH]
    found = f"{_advise(depth)}: val/top1 {winner.val_top1:.3f} from {winner.point[INIT]} weights"
    others = [
        row
        for row in findings.standings
        if row.val_top1 is not None and row.point[FREEZE_DEPTH] != depth
    ]
    if not others:
        return f"{found}; no trial at another freeze depth finished an epoch."
    second = others[0]
    assert second.val_top1 is not None
    by = f"{winner.val_top1 - second.val_top1:.3f}"
    than = f"the best at another freeze depth ({second.point[FREEZE_DEPTH]}: {second.val_top1:.3f})"
    return f"{found}, {by} above {than}." if float(by) else f"{found}, no more than {than}."


def _advise(depth: object) -> str:
    match depth:
        case 0:
            return "Thaw the whole network (freeze depth 0)"
        case int() if depth > 0:
            return f"Freeze the first {_stages(depth)} (freeze depth {depth})"
        case int():
            return f"Thaw the last {_stages(-depth)} (freeze depth {depth})"
        case _:
            return f"Train the head alone (freeze depth {depth})"


def _stages(number: int) -> str:
    return "stage" if number == 1 else f"{number} stages"


def describe_test(findings: SweepRecord) -> str | None:
    """Say what the winner is worth on the test split; None where that was not measured."""
    winner = findings.winner
    if winner is None or winner.best_epoch is None:
        return None
    fingerprint = findings.config["data_fingerprint"]
    test = read_evaluation(winner.run, "test", epoch=winner.best_epoch, fingerprint=fingerprint)
    if test is None:
        return None
    found = (
        f"On the {test['num_images']} test images, which chose nothing: top-1 "
        f"{test[metrics.TEST_TOP1]:.3f}, top-5 {test[metrics.TEST_TOP5]:.3f}"
    )
    if findings.promoted is None:
        return f"{found}."
    top1 = findings.promoted[metrics.TEST_TOP1]
    return (
        f"{found}; promoted, trained for {findings.promoted['epochs']} epochs: top-1 "
        f"{top1['mean']:.3f} ({findings.promoted['confidence']:.0%} interval {top1['low']:.3f}-"
        f"{top1['high']:.3f}, {findings.promoted['interval']})."
    )


def show_leaderboard(findings: SweepRecord) -> list[str]:
    """Return the best trials as the lines of a table."""
    rows = [show_standing(row) for row in findings.standings[:MAX_ROWS]]
    more = len(findings.standings) - len(rows)
    rest = ["", f"{more} more in leaderboard.csv."] if more else []
    return [*table(COLUMNS, rows), *rest]


def describe_origin(findings: SweepRecord) -> list[str]:
    """Name data and versions; return the lines of a list."""
    started = findings.started or {}
    versions = ", ".join(f"{name} {of}" for name, of in started.get("versions", {}).items())
    data = basename(findings.config["base"]["data"])
    return [
        f"- Data set {data}, fingerprint `{findings.config['data_fingerprint']}`",
        f"- Started {started.get('started_at', 'at a time that was not recorded')}",
        f"- Versions: {versions or 'not recorded'}",
        f"- Everything else: `{storage.join(findings.sweep, 'config.json')}`",
    ]


def reproduce(findings: SweepRecord) -> list[str]:
    """Return the commands that run the same sweep."""
    if findings.started is None:
        return ["# not recorded: this sweep is of an older Thaw"]
    commit = findings.started["commit"]
    checkout = []
    if commit is not None:
        hash_, _, dirty = commit.partition("-")
        changed = "  # and changes that were not committed" if dirty else ""
        checkout = [f"git checkout {hash_}{changed}"]
    return [*checkout, findings.started["command"]]


def list_next(findings: SweepRecord) -> list[str]:
    """Return the commands that follow."""
    winner, sweep = findings.winner, shlex.quote(findings.sweep)
    if winner is None:
        return ["# none: no trial learned; search another space"]
    if findings.promoted is not None:
        run = findings.promoted["run"]
        out = storage.join(findings.sweep, "exported")
        return [shlex.join(["python", "-m", "trainers", "export", "--run", run, "--out", out])]
    return [f"python -m tuning promote --sweep {sweep}", train_longer(winner, findings.sweep)]
