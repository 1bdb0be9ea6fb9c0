"""The small files of a sweep's folder: its config, how it was started, what was promoted."""

from typing import Any

from cluster.io import storage
from cluster.io.errors import UserError
from cluster.io.records import damaged, read_object
from trainers import metrics
from tuning.config import TuningConfig
from tuning.record.results import TrialResult

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


def read_promotion(out: str, winner: TrialResult | None) -> dict[str, Any] | None:
    """Read promoted.json of a winner; None before it is promoted."""
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
