"""Where faults happen: one cluster of three raylets for all that allow it, data, straight runs."""

import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import safetensors.torch
import torch
from ray.cluster_utils import Cluster

from tests.chaos.driver import PLAN_VAR
from tests.chaos.sabotage import Plan, sabotaged_loop, steps_taken
from tests.conftest import ROOT, write_shards
from trainers import checkpoint, launch
from trainers.__main__ import parse
from trainers.config import FinetuneConfig
from trainers.tracking import read_rows

NUM_STEPS, STEPS_PER_EPOCH, INTERVAL = 18, 6, 4
"""Of every training here: 3 epochs of 6 batches of 8; each epoch's end is a checkpoint as well."""
OPTIONS = """--backbone lenet5 --init he --freeze-depth 0 --size-px 32 --policy light
    --global-batch-size 8 --epochs 3 --log-every-steps 1 --wandb off"""
PAUSE_S = 0.1
TIMEOUT_S = 240


class Unfit(AssertionError):
    """What a fault left behind is not what it must be."""


def ensure(condition: object, why: str) -> None:
    if not condition:
        raise Unfit(why)


class Arena:
    """One sitting: a seed, a folder, and what is shared by its faults."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder, seed
        self.data = str(folder / "data")
        if not Path(self.data, "manifest.json").exists():  # it is written last
            shutil.rmtree(self.data, ignore_errors=True)
            write_shards(self.data)
        self._drivers: list[Driver] = []

    @cached_property
    def nodes(self) -> Cluster:
        """The cluster, started by the first fault that needs it."""
        from cluster import runtime

        nodes = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 2,
                "object_store_memory": 2**29,
                "include_dashboard": True,
                "dashboard_port": find_free_port(),  # 8265 may be another cluster's
            },
        )
        for _ in range(2):
            nodes.add_node(num_cpus=2, object_store_memory=2**28)
        runtime.connect(nodes.address, quiet=True)
        return nodes

    def close(self) -> None:
        """End what still runs: the drivers of a fault that failed, and the cluster."""
        for driver in self._drivers:
            if driver.process.poll() is None:
                driver.kill_all()
        if "nodes" in self.__dict__:
            import ray

            ray.shutdown()
            self.nodes.shutdown()

    def draw(self, fault: str) -> random.Random:
        """The dice of one fault: its own, so that `--only` throws what a whole run throws."""
        return random.Random(f"{self.seed}/{fault}")

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
            return launch.fit(config)

    def straight(self, workers: int = 2, *, shared: bool = True) -> str:
        """Run folder of the same training, undisturbed, on the shared cluster or one of its own:
        there, workers compute with another number of threads."""
        folder = self.folder / f"straight-{workers}{'' if shared else '-alone'}"
        if (folder / "result.json").exists():
            return str(folder)
        shutil.rmtree(folder, ignore_errors=True)
        if shared:
            _ = self.nodes
            fit = launch.fit if workers else launch.fit_in_process
            fit(self.config(folder, workers=workers))
        else:
            beside = self.new_run(f"{folder.name}-journal")
            command = self.command(folder, workers=workers)
            self.start(command, plan_of(beside), log=beside / "log", shared=False).succeed()
        return str(folder)

    def start(
        self,
        command: list[str],
        plan: Plan,
        *,
        log: Path,
        shared: bool = True,
        env: dict[str, str] | None = None,
    ) -> "Driver":
        """Start a driver in a process of its own, on the shared cluster or one of its own."""
        address = ["--address", self.nodes.address] if shared else []
        self._drivers.append(Driver([*command, *address], plan, log, env or {}))
        return self._drivers[-1]


class Driver:
    """A command that runs, as a user would have started it."""

    def __init__(self, command: list[str], plan: Plan, log: Path, env: dict[str, str]) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.driver", *command],
                cwd=ROOT,
                env={**os.environ, PLAN_VAR: json.dumps(asdict(plan)), **env},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def printed(self) -> str:
        return self._log.read_text(errors="replace")

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Return its exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise Unfit(f"the driver still ran after {timeout_s:.0f} s: {self.tail()}") from None

    def succeed(self) -> None:
        code = self.wait()
        ensure(code == 0, f"exit code {code}: {self.tail()}")

    def sentence(self) -> str:
        """Wait for its end as a user's error; return the one sentence it ended in."""
        code = self.wait()
        ensure(code == 2, f"exit code {code} instead of 2: {self.tail()}")
        ensure("Traceback" not in self.printed, f"a traceback: {self.tail()}")
        sentences = [line for line in self.printed.splitlines() if line.startswith("error: ")]
        ensure(len(sentences) == 1, f"{len(sentences)} sentences: {self.tail()}")
        return sentences[0].removeprefix("error: ")

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something that must come while it runs."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while not condition():
            ensure(self.process.poll() is None, f"it ended before {what}: {self.tail()}")
            ensure(time.monotonic() < deadline_s, f"{what} never came: {self.tail()}")
            time.sleep(0.02)

    def kill_all(self) -> int:
        """SIGKILL it and all that it started, Ray's processes included; return how many."""
        family = [self.process.pid, *descendants(self.process.pid)]
        for pid in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not any(map(lives, family)), "the end of its processes", timeout_s=30)
        return len(family)

    def tail(self) -> str:
        return " / ".join(self.printed.splitlines()[-6:])[-900:]


@contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Do something in a thread beside the body; what goes wrong there is raised here, unless the
    body itself went wrong."""
    acted: Future[None] = Future()

    def run() -> None:
        try:
            acted.set_result(act())
        except Exception as error:  # it belongs to the thread that waits for it
            acted.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    yield
    acted.result(timeout=TIMEOUT_S)


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        ensure(time.monotonic() < deadline_s, f"{what} never came")
        time.sleep(0.02)


def find_free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def descendants(pid: int) -> list[int]:
    """Processes that a process has started, and those they have."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended since
            _, parent, *_ = stat.read_text().rpartition(")")[2].split()
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    found = list(children.get(pid, ()))
    for child in found:
        found += children.get(child, ())
    return found


def lives(pid: int) -> bool:
    """Whether a process is there, and no zombie that nobody has waited for."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def losses(run: str | Path) -> list[float]:
    return [row["train/loss"] for row in read_rows(str(run))]


def ensure_same(run: str | Path, straight: str, *, rel: float = 0.0) -> None:
    """Check that a run ended as the straight one did: losses, validation and weights, bit by bit
    unless `rel` allows for another order of summation."""
    rows, expected = read_rows(str(run)), read_rows(straight)
    steps = [row["global_step"] for row in rows]
    ensure(steps == [row["global_step"] for row in expected], f"rows of steps {steps}")
    for name in ("train/loss", "val/loss"):
        ours, theirs = ([row[name] for row in each if name in row] for each in (rows, expected))
        ensure(len(ours) == len(theirs), f"{len(ours)} of {len(theirs)} {name}")
        for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            ensure(abs(a - b) <= rel * abs(b), f"{name} {step}: {a} instead of {b}")
    if rel == 0:
        last = f"{checkpoint.folder(str(run), NUM_STEPS)}/model.safetensors"
        weights = safetensors.torch.load_file(last)
        for name, tensor in safetensors.torch.load_file(
            f"{checkpoint.folder(straight, NUM_STEPS)}/model.safetensors"
        ).items():
            ensure(torch.equal(tensor, weights[name]), f"{name} differs")


def count_lost(journal: Path, *, at_most: int, total: int = NUM_STEPS) -> str:
    """Say how many steps were taken twice, and check that there are no more than may be."""
    taken = steps_taken(journal)
    steps = {step for _, step, _ in taken}
    ensure(steps == set(range(total)), f"steps {sorted(steps)} were taken")
    lost = len(taken) - total
    ensure(lost <= at_most, f"{lost} steps were taken twice, {at_most} may be")
    return f"{lost} of {total} steps"


def plan_of(folder: Path, **values: Any) -> Plan:
    return Plan(journal=str(folder / "journal"), **values)


def counting(plan: Plan) -> Plan:
    """The same plan without a fault, for the second sitting."""
    return replace(plan, act="", pause_s=0.0)


@contextmanager
def mounted(place: Path, size: str) -> Iterator[Callable[[str], None]]:
    """Mount a file system of that size; yields what mounts it again with other options."""
    place.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place))

    def remount(options: str) -> None:
        wait_until(lambda: _mounts("-o", f"remount,{options}", str(place)), f"remount {options}")

    try:
        yield remount
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    ensure(done.returncode == 0, f"{shlex.join(['mount', *arguments])}: {done.stderr}")


def _mounts(*arguments: str) -> bool:
    """A file system with a file open for writing is busy: try again."""
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0
