"""A sweep as one offline HTML page: python -m tuning review --out runs/sweep"""

import time

from cluster.io import storage
from tuning.record import SweepRecord
from tuning.review.config import ReviewConfig
from tuning.review.page import render_page
from tuning.wandb.views import save_views

WATCH_S = 5
"""How often the page of a running sweep is written, and loads itself anew."""


def run_review(config: ReviewConfig) -> str:
    """Write the page, and return its URI.

    Raises:
        UserError: where there is no sweep.
    """
    out = storage.absolute(config.out, "out")
    page = storage.join(out, "review.html")
    told = False
    while True:
        sweep = SweepRecord.read(out)
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
