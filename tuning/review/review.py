"""A sweep as one offline HTML page: python -m tuning review --out runs/sweep"""

import time
from dataclasses import dataclass

from cluster.io import storage
from tuning.review.data import read_sweep
from tuning.review.page import render_page
from tuning.wandb.views import save_views

WATCH_S = 5
"""How often the page of a running sweep is written, and loads itself anew."""


@dataclass(frozen=True, kw_only=True)
class ReviewConfig:
    """Write OUT/review.html: a sweep on one page that opens anywhere, without network.

    The answer first, then the leaderboard and charts, where the winner errs, and how to reproduce
    it. A sweep may still be running; --watch writes the page anew until it has ended:

    python -m tuning review --out runs/sweep

    python -m tuning review --out runs/sweep --watch

    python -m tuning review --out runs/sweep --wandb
    """

    out: str = "runs/sweep"
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


def run_review(config: ReviewConfig) -> str:
    """Write the page, and return its URI.

    Raises:
        UserError: where there is no sweep.
    """
    out = storage.absolute(config.out, "out")
    page = storage.join(out, "review.html")
    told = False
    while True:
        sweep = read_sweep(out)
        follows = config.watch and sweep.status == "running"
        content = render_page(
            sweep,
            # The winner of the moment is not worth loading a network every few seconds.
            pictures=config.pictures and not follows,
            refresh_s=WATCH_S if follows else None,
        )
        storage.write_bytes(page, content)
        if not follows:
            break
        if not told:
            print(f"Watching: {page}, written every {WATCH_S} s until the sweep ends", flush=True)
            told = True
        time.sleep(WATCH_S)
    print(f"Review: {page} ({len(content) / 1e6:.1f} MB)")
    if config.wandb:
        for url in save_views(out, project=sweep.base.track.project, entity=config.entity):
            print(f"W&B:    {url}")
    return page
