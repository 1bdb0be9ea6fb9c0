"""Where faults happen: one cluster of three raylets for all that allow it, data, straight runs."""

import hashlib
import random
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ray
from ray.cluster_utils import Cluster

from tests.chaos.checks import INTERVAL, STEPS_PER_EPOCH
from tests.chaos.processes import Driver, find_free_port
from tests.chaos.sabotage import Plan, plan_of, sabotaged_loop
from tests.conftest import ROOT
from tests.support.data import write_shards
from tests.support.job_server import TokenCluster, start_token_cluster
from tests.support.nodes import HEAD
from trainers import launch
from trainers.__main__ import parse
from trainers.config import FinetuneConfig
from trainers.prepare import prepare_run

# In bfloat16, another number of workers rounds otherwise.
OPTIONS = """--backbone lenet5 --init he --freeze-depth 0 --size-px 32 --policy light
    --global-batch-size 8 --epochs 3 --log-every-steps 1 --wandb off --precision fp32"""


ROOMS = "cluster", "datasets", "trainers", "tuning"


def fingerprint_code() -> str:
    """Hash the product's code."""
    files = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


class Arena:
    """One session: a seed, a folder, and what is shared by its faults."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.data = str(folder / "data")
        if not Path(self.data, "manifest.json").exists():  # it is written last
            shutil.rmtree(self.data, ignore_errors=True)
            write_shards(self.data)
        self._forget_other_code()
        self._drivers: list[Driver] = []
        # The kernel kills a raylet with the thread that started it, so this one stays.
        self._starter = ThreadPoolExecutor(1)

    def _forget_other_code(self) -> None:
        """Delete the straight runs that other code has left: its last bits may be others."""
        mark, code = self.folder / "code", fingerprint_code()
        if not mark.exists() or mark.read_text() != code:
            for run in self.folder.glob("straight-*"):
                shutil.rmtree(run)
            mark.write_text(code)

    @cached_property
    def nodes(self) -> Cluster:
        """The cluster, started by the first fault that needs it."""
        from cluster import runtime

        nodes = Cluster(
            initialize_head=True,
            head_node_args={
                **HEAD,
                "object_store_memory": 2**29,
                "include_dashboard": True,
                "dashboard_port": find_free_port(),  # 8265 may be another cluster's
            },
        )
        for _ in range(2):
            nodes.add_node(num_cpus=2, object_store_memory=2**28)
        runtime.connect(nodes.address, quiet=True)
        return nodes

    def add_node(self) -> None:
        """Add a node to the shared cluster, from any thread."""
        # Only the main thread may set the signal handler that a node wants.
        with patch.object(ray._private.utils, "set_sigterm_handler"):
            start = self._starter.submit(self.nodes.add_node, num_cpus=2, object_store_memory=2**28)
            start.result()

    def close(self) -> None:
        """End what still runs: the drivers of a fault that failed, and the cluster."""
        for driver in self._drivers:
            if driver.process.poll() is None:
                driver.kill_all()
        if "nodes" in self.__dict__:
            ray.shutdown()
            self.nodes.shutdown()

    def draw(self, fault: str) -> random.Random:
        """The dice of one fault: its own, so that `--only` throws what a whole run throws."""
        return random.Random(f"{self.seed}/{fault}")

    def draw_step(self, fault: str) -> int:
        """Steps taken before a fault in the middle of the second epoch."""
        return self.draw(fault).randrange(STEPS_PER_EPOCH + 1, 2 * STEPS_PER_EPOCH)

    def new_run(self, fault: str) -> Path:
        """A folder of a fault's own, with its run in `run` and its journal in `journal`."""
        folder = self.folder / fault
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "journal").mkdir(parents=True)
        return folder

    def command(self, out: str | Path, *more: str, workers: int = 2) -> list[str]:
        """The command line of a training, without `python -m`."""
        return [
            *("trainers", "transfer", "--data", self.data, "--out", str(out)),
            *OPTIONS.split(),
            *("--checkpoint-every-steps", str(INTERVAL), "--num-workers", str(workers), *more),
        ]

    def config(self, out: str | Path, *more: str, workers: int = 2) -> FinetuneConfig:
        """The same training as a config."""
        return parse(self.command(out, *more, workers=workers)[1:])

    def fit(self, config: FinetuneConfig, plan: Plan) -> dict[str, Any]:
        """Train on the shared cluster, with a saboteur in its workers."""
        _ = self.nodes
        with patch.object(launch, "train_loop_per_worker", sabotaged_loop(plan)):
            return launch.fit(prepare_run(config))

    @contextmanager
    def cluster(self, **options: Any) -> Iterator[TokenCluster]:
        """Start a cluster by `ray start` for one fault; `options` are those of `TokenCluster`."""
        with (
            tempfile.TemporaryDirectory(prefix="chaos", ignore_cleanup_errors=True) as folder,
            start_token_cluster(Path(folder), **options) as cluster,
        ):
            yield cluster

    def straight(self, workers: int = 2, *more: str, shared: bool = True) -> str:
        """Run folder of the same training, undisturbed, on the shared cluster or one of its own:
        there, workers compute with another number of threads."""
        name = "".join([f"straight-{workers}", "" if shared else "-own", *more])
        folder = self.folder / name
        if (folder / "result.json").exists():
            return str(folder)
        shutil.rmtree(folder, ignore_errors=True)
        if shared:
            _ = self.nodes
            launch.fit(prepare_run(self.config(folder, *more, workers=workers)))
        else:
            beside = self.new_run(f"{folder.name}-journal")
            command = self.command(folder, *more, workers=workers)
            self.start(command, plan_of(beside), log=beside / "log", shared=False).succeed()
        return str(folder)

    def start(
        self,
        command: list[str],
        plan: Plan,
        *,
        log: Path,
        shared: bool = True,
        cluster: TokenCluster | None = None,
        env: Mapping[str, str] | None = None,
        within: Sequence[str] = (),
    ) -> "Driver":
        """Start a driver in a process of its own, on the shared cluster, `cluster`, or one of its
        own.

        Args:
            within: words before the command.
        """
        if cluster is not None:
            command, env = [*command, "--address", cluster.address], cluster.environment
        elif shared:
            command = [*command, "--address", self.nodes.address]
        self._drivers.append(Driver(command, plan, log, env or {}, within))
        return self._drivers[-1]
