"""A sweep as one offline HTML page: python -m tuning review --out runs/sweep"""

import time

from cluster.io import storage
from cluster.wandb_env import check_settings
from trainers.tracking.where import project_of
from tuning.record.record import SweepRecord
from tuning.review.config import ReviewConfig
from tuning.review.page import render_page
from tuning.wandb.views import save_views

WATCH_S = 5
"""How often the page of a running sweep is written, and reloads itself."""


def run_review(config: ReviewConfig) -> str:
    """Write the page, and return its URI."""
    if config.wandb:
        check_settings()
    out = storage.absolute(config.out, "out")
    page = storage.join(out, "review.html")
    is_announced = False
    while True:
        record = SweepRecord.read(out)
        follows = config.watch and record.status == "running"
        content = render_page(
            record,
            # Loading the network of each provisional winner would take longer than WATCH_S.
            pictures=config.pictures and not follows,
            refresh_s=WATCH_S if follows else None,
        )
        storage.write_bytes(page, content)
        if not follows:
            break
        if not is_announced:
            print(f"Watching: {page}, updated every {WATCH_S} s until the sweep ends", flush=True)
            is_announced = True
        time.sleep(WATCH_S)
    print(f"Review: {page} ({len(content) / 1e6:.1f} MB)")
    if config.wandb:
        for url in save_views(out, project=project_of(record.base.track), entity=config.entity):
            print(f"W&B:    {url}")
    return page
