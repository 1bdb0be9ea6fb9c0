"""Golden loss lists of the recipes, and golden models of W&B's workspaces and report.

python -m tests.support.golden, or `make golden`, records them again.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from cluster import runtime
from cluster.scaling import in_process
from datasets.config import IngestConfig
from tests.support import golden_views
from tests.support.data import write_shards
from tests.support.training import train_here
from trainers.config import FinetuneConfig, TrackConfig
from trainers.recipes import RECIPES, pretrained
from trainers.run.rows import read_rows

STARTS = {"pretrained": pretrained(), **RECIPES}
RUNS = {recipe: (recipe, "mobilenet_v2") for recipe in STARTS}
RUNS["finetune test_vit"] = ("finetune", "test_vit")
"""Recipe and network of each list of losses."""
GOLDEN = Path(__file__).parent / "golden_losses.json"


def shrink(run: str, data: str, out: str) -> FinetuneConfig:
    """A recipe at 32 px on 48 images, its numbers as they are; 2 epochs of 3 steps."""
    recipe, backbone = RUNS[run]
    config = STARTS[recipe]
    phases = tuple((depth, 1, rate) for depth, _, rate in config.schedule.phases)
    return replace(
        config,
        data=data,
        out=out,
        epochs=2,
        global_batch_size=16,
        ingest=IngestConfig(size_px=32, policy="light"),
        model=replace(config.model, backbone=backbone, init="he"),
        schedule=replace(config.schedule, phases=phases, warmup_epochs=0),
        track=TrackConfig(wandb="off", log_every_steps=1),
        compute=replace(config.compute, precision="fp32"),
        cluster=in_process(config.cluster),
    )


def losses_of(run: str, data: str, out: str) -> list[float]:
    """Train a shrunk recipe in this process; return train/loss step by step."""
    train_here(shrink(run, data, out))
    return [row["train/loss"] for row in read_rows(out)]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        golden_views.record(Path(folder))
    runtime.connect(None)
    with tempfile.TemporaryDirectory() as folder:
        write_shards(f"{folder}/data")
        losses = {
            run: losses_of(run, f"{folder}/data", f"{folder}/{run.split()[-1]}") for run in RUNS
        }
    GOLDEN.write_text(json.dumps(losses, indent=1) + "\n")
    print(f"wrote {GOLDEN} and {golden_views.GOLDEN}: say in the commit message why they changed")


if __name__ == "__main__":
    main()
