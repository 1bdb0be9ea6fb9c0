"""A training whose nodes die goes on with the workers that are left, on the same batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.config import ClusterConfig
from tests.conftest import ROOT
from trainers.run.rows import read_rows

# Three workers add up their gradients in another order than one does.
WORKERS_TOLERANCE = 1e-3


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.extended
def test_two_of_three_nodes_lost_leave_the_losses_as_they_were(
    own_ray: dict[str, str], easy_data: str, tmp_path: Path
) -> None:
    """A worker a node: the one that is left goes on alone."""
    out, alone = str(tmp_path / "elastic"), str(tmp_path / "alone")
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.programs.elastic_run", easy_data, out, alone],
        env={**os.environ, **own_ray}, cwd=ROOT, capture_output=True, text=True, timeout=500,
    )  # fmt: skip

    assert "nodes lost at step" in run.stdout, run.stderr[-2000:]
    end = json.loads(run.stdout.splitlines()[-1])
    assert end == {"global_step": 12, "nodes": 1, "evaluated": 17}
    losses = [[row["train/loss"] for row in read_rows(folder)] for folder in (out, alone)]
    assert len(losses[0]) == 12
    assert losses[0] == pytest.approx(losses[1], rel=WORKERS_TOLERANCE)


def test_fewer_workers_than_none_are_the_users_error() -> None:
    with pytest.raises(
        ValueError, match=r"min_workers is 3: use 1 up to cluster.num_workers \(2\)"
    ):
        ClusterConfig(num_workers=2, min_workers=3)
