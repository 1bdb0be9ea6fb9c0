"""How the advice that a sweep came from did."""

from cluster.io.errors import UserError
from tuning.advice.front import find_advice
from tuning.record.record import SweepRecord


def score_advice(record: SweepRecord) -> str | None:
    """Return it in one sentence; None where the space came from no advice."""
    if record.config.advice is None:
        return None
    try:
        advice = find_advice(record.config.advice)
    except UserError:
        return f"The advice of this sweep is missing ({record.config.advice})."
    return advice.score(record.base, record.trials)
