"""Options of `review`: facts only, standard library alone."""

from dataclasses import dataclass
from typing import Annotated

from cluster.io.markers import URI


@dataclass(frozen=True, kw_only=True)
class ReviewConfig:
    """Write OUT/review.html: a sweep on one page that opens anywhere, without network.

    The answer first, then the leaderboard and charts, where the winner errs, and how to reproduce
    it. A sweep may still be running; --watch writes the page anew until it has ended:

    python -m tuning review --out runs/sweep

    python -m tuning review --out runs/sweep --watch

    python -m tuning review --out runs/sweep --wandb
    """

    out: Annotated[str, URI] = "runs/sweep"
    """URI of a sweep's folder."""
    watch: bool = False
    """Write the page every few seconds while the sweep runs; an open page follows by itself."""
    pictures: bool = True
    """Show images and Grad-CAM of the winner, which needs the data set and its checkpoint."""
    wandb: bool = False
    """Also save workspaces and reports in W&B: run review, sweep review, how deep to thaw, model
    card. Needs a key, and the package wandb-workspaces."""
    entity: str | None = None
    """User or team in W&B. Default: the key's."""
