"""Options of `review` (standard library only)."""

from dataclasses import dataclass
from typing import Annotated

from cluster.io.markers import URI


@dataclass(frozen=True, kw_only=True)
class ReviewConfig:
    """Write OUT/review.html: a sweep on one page that needs no network.

    The page has the answer, the leaderboard, charts, the winner's mistakes, and the commands that
    reproduce the sweep. The sweep may still be running; --watch updates the page until it ends:

    python -m tuning review --out runs/sweep

    python -m tuning review --out runs/sweep --watch

    python -m tuning review --out runs/sweep --wandb
    """

    out: Annotated[str, URI] = "runs/sweep"
    """URI of a sweep's folder."""
    watch: bool = False
    """Update the page every few seconds while the sweep runs; an open page reloads itself."""
    pictures: bool = True
    """Show images and Grad-CAM of the winner. Needs the data set and the winner's checkpoint."""
    wandb: bool = False
    """Also save two workspaces (run review, sweep review) and a report with the answer in W&B.
    Needs a key and the package wandb-workspaces."""
    entity: str | None = None
    """User or team in W&B. Default: WANDB_ENTITY, else that of the key."""
