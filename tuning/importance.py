"""How much each axis of a space decides, from the trials that ran."""

from collections.abc import Sequence

from tuning.leaderboard import Standing


def rank_axes(standings: Sequence[Standing]) -> dict[str, float]:
    """Placeholder until the merge."""
    return {}
