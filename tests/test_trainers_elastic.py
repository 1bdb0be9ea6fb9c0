"""A training whose nodes die goes on with the workers that are left, on the same batches."""

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.config import ClusterConfig
from tests.conftest import ROOT
from tests.elastic_run import elastic_config
from trainers import launch
from trainers.evaluate import evaluate
from trainers.tracking import read_rows

pytestmark = [pytest.mark.ray, pytest.mark.slow]
# Three workers add up their gradients in another order than one does.
WORKERS_TOLERANCE = 1e-3


def test_two_of_three_nodes_lost_leave_the_losses_as_they_were(
    ray_cluster: str, easy_data: str, tmp_path: Path
) -> None:
    """A worker a node: the one that is left goes on alone."""
    out = str(tmp_path / "elastic")
    # A folder of its own: the state API of this process finds its cluster by a file in Ray's.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        run = subprocess.run(
            [sys.executable, "-m", "tests.elastic_run", easy_data, out],
            env={**os.environ, "RAY_TMPDIR": folder},
            cwd=ROOT, capture_output=True, text=True, timeout=500,
        )  # fmt: skip
    evaluated = evaluate(out, split="val")  # in one process, whatever trained it
    alone = replace(elastic_config(easy_data, str(tmp_path / "alone")), cluster=ClusterConfig())
    launch.fit_in_process(alone)

    assert "nodes lost at step" in run.stdout, run.stderr[-2000:]
    assert "result 12" in run.stdout and "nodes 1" in run.stdout
    assert evaluated["num_images"] == 17
    losses = [[row["train/loss"] for row in read_rows(folder)] for folder in (out, alone.out)]
    assert len(losses[0]) == 12
    assert losses[0] == pytest.approx(losses[1], rel=WORKERS_TOLERANCE)


def test_fewer_workers_than_none_are_the_users_error() -> None:
    with pytest.raises(
        ValueError, match=r"min_workers is 3: use 1 up to cluster.num_workers \(2\)"
    ):
        ClusterConfig(num_workers=2, min_workers=3)
