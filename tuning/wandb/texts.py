"""What W&B's reports say of a sweep, in Markdown."""

from cluster.io import storage
from cluster.io.uris import name_of
from trainers import metrics
from trainers.export.model_card import table
from tuning.leaderboard import COLUMNS, show_trial
from tuning.record import SweepRecord
from tuning.space import show

MAX_ROWS = 20
"""Of the leaderboard that is shown; leaderboard.csv has them all."""


def ask(record: SweepRecord) -> str:
    """Return the question of the sweep."""
    space = record.config.space
    rates = space.learning_rate_range or space.learning_rates
    values = (space.freeze_depths, rates, space.clipnorms, space.inits)
    axes = ("freeze depth", "learning rate", "clipnorm", "initialization")
    tried = "; ".join(
        f"{axis} {', '.join(map(show, tried))}" for axis, tried in zip(axes, values, strict=True)
    )
    return (
        f"How much of a pretrained {record.base.model.backbone} should be thawed for the images of "
        f"{name_of(record.base.data)}? Compared: {tried}."
    )


def describe_test(record: SweepRecord) -> str | None:
    """Say what the winner is worth on the test split; None where that was not measured."""
    if (test := record.test) is None:
        return None
    found = (
        f"On the {test['num_images']} test images, which chose nothing: top-1 "
        f"{test[metrics.TEST_TOP1]:.3f}, top-5 {test[metrics.TEST_TOP5]:.3f}"
    )
    if record.promoted is None:
        return f"{found}."
    top1 = record.promoted[metrics.TEST_TOP1]
    return (
        f"{found}; promoted, trained for {record.promoted['epochs']} epochs: top-1 "
        f"{top1['mean']:.3f} ({record.promoted['confidence']:.0%} interval {top1['low']:.3f}-"
        f"{top1['high']:.3f}, {record.promoted['interval']})."
    )


def show_leaderboard(record: SweepRecord) -> list[str]:
    """Return the best trials as the lines of a table."""
    rows = [show_trial(row) for row in record.trials[:MAX_ROWS]]
    more = len(record.trials) - len(rows)
    rest = ["", f"{more} more in leaderboard.csv."] if more else []
    return [*table(COLUMNS, rows), *rest]


def describe_origin(record: SweepRecord) -> list[str]:
    """Name data and versions; return the lines of a list."""
    started = record.started or {}
    versions = ", ".join(f"{name} {of}" for name, of in started.get("versions", {}).items())
    data = name_of(record.base.data)
    return [
        f"- Data set {data}, fingerprint `{record.fingerprint}`",
        f"- Started {started.get('started_at', 'at a time that was not recorded')}",
        f"- Versions: {versions or 'not recorded'}",
        f"- Everything else: `{storage.join(record.out, 'config.json')}`",
    ]
