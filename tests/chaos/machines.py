"""Nodes whose clock is wrong, whose memory runs out, or whose object store and disk are full."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cluster.ray_internals import find_memory_share
from tests.chaos.arena import Arena
from tests.chaos.checks import (
    INTERVAL,
    NUM_STEPS,
    STEPS_PER_EPOCH,
    count_lost,
    ensure,
    ensure_same,
    wait_until,
)
from tests.chaos.mounts import mounted
from tests.chaos.outcomes import Outcome
from tests.chaos.processes import find_by_name, lives
from tests.chaos.sabotage import counting, plan_of, steps_taken
from tests.conftest import ROOT

AHEAD_S = 3600
HEADROOM = 0.1
"""Of the machine's memory: from what is used to where Ray kills, and what is taken beyond."""
LARGE_IMAGES = ("--size-px", "160")
"""Images of 32 px travel beside the object store."""
FILL = """
import sys, numpy as np, ray
ray.init(sys.argv[1], log_to_driver=False)
kept = []
for size in (2**24, 2**20, 2**17):
    try:
        while True:
            kept.append(ray.put(np.ones(size, np.uint8)))
    except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError):
        pass
print("full", flush=True)
sys.stdin.read()
"""
EAT = """
import sys, numpy as np
kept = np.ones(int(sys.argv[1]), np.uint8)
print("eaten", flush=True)
sys.stdin.read()
"""


def set_clock(arena: Arena, name: str) -> Outcome:
    """One of two nodes is an hour ahead; the driver, which is on the other, ends and resumes."""
    folder, straight = arena.new_run(name), arena.straight(shared=False)
    step = arena.draw_step(name)
    plan, command = plan_of(folder, pause_s=0.3), arena.command(folder / "run")
    with wrong_clock() as variables, arena.cluster(num_cpus=1) as cluster:
        cluster.add_node(variables=variables)
        first = arena.start(command, plan, log=folder / "first.log", cluster=cluster)
        first.wait_until(lambda: len(steps_taken(plan.journal)) >= step, f"step {step}")
        workers = find_by_name(cluster.pids(), "RayTrainWorker")
        there = [pid for pid in workers if is_ahead(pid)]
        ensure(len(workers) == 2 and len(there) == 1, f"{there} of {workers} are ahead")
        first.process.kill()
        first.wait()
        second = arena.start(command, counting(plan), log=folder / "second.log", cluster=cluster)
        second.succeed()
    ensure_same(folder / "run", straight)
    return Outcome(
        fault=name,
        injected=f"the clock of one of two nodes is an hour ahead; SIGKILL of the driver after "
        f"step {step}, then the same command",
        survived=True,
        lost=count_lost(folder / "journal", at_most=2 * INTERVAL),
    )


@contextmanager
def wrong_clock() -> Iterator[dict[str, str]]:
    """Compile the wrong clock; yields the variables that give it to a process."""
    source = str(Path(__file__).with_name("clock.c"))
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/clock.so"
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
        yield {"LD_PRELOAD": library, "THAW_CLOCK_AHEAD_S": str(AHEAD_S)}


def is_ahead(pid: int) -> bool:
    return b"THAW_CLOCK_AHEAD_S=" in Path(f"/proc/{pid}/environ").read_bytes()


def run_out_of_memory(arena: Arena, name: str) -> Outcome:
    """Another process takes the memory, until Ray has killed a worker of the training."""
    folder, straight = arena.new_run(name), arena.straight(shared=False)
    step = arena.draw_step(name)
    plan, command = plan_of(folder, pause_s=2.0), arena.command(folder / "run")
    threshold = find_memory_share() + 2 * HEADROOM
    variables = {"RAY_memory_usage_threshold": f"{threshold:.3f}"}
    with arena.cluster(**variables, RAY_memory_monitor_refresh_ms="250") as cluster:
        driver = arena.start(command, plan, log=folder / "log", cluster=cluster)
        driver.wait_until(lambda: len(steps_taken(plan.journal)) >= step, f"step {step}")
        workers = find_by_name(cluster.pids(), "RayTrainWorker")
        ensure(len(workers) == 2, f"workers {workers}")
        missing = threshold - find_memory_share() + HEADROOM / 2
        with running(EAT, str(int(missing * total_memory())), says="eaten"):
            wait_until(lambda: not all(map(lives, workers)), "Ray's kill", timeout_s=60)
        ensure(len(steps_taken(plan.journal)) < NUM_STEPS, "it had ended before")
        goes_on = driver.wait() == 0
        says = "ran out of memory" if goes_on else "memory of a node ran out"
        words = driver.printed if goes_on else driver.sentence()
        ensure(says in words, f"it does not say why: {driver.tail()}")
        if not goes_on:
            again = arena.start(command, counting(plan), log=folder / "2.log", cluster=cluster)
            again.succeed()
    ensure_same(folder / "run", straight)
    then = (
        "its workers were started again" if goes_on else "it ended so, and the same command again"
    )
    return Outcome(
        fault=name,
        injected=f"another process takes the memory after step {step}, until Ray's memory monitor "
        "has killed a worker",
        survived=True,
        lost=count_lost(folder / "journal", at_most=2 * INTERVAL),
        seen=f"{says}: {then}",
    )


def total_memory() -> int:
    words = Path("/proc/meminfo").read_text().split()
    return int(words[words.index("MemTotal:") + 1]) * 1024


def fill_object_store(arena: Arena, name: str) -> Outcome:
    """Another job fills the object store, whose disk is full: before a run, and during it."""
    straight = arena.straight(2, *LARGE_IMAGES, shared=False)
    folder = arena.new_run(name)
    plan, says = plan_of(folder, pause_s=0.3), "object store of a node is full"
    command = arena.command(folder / "run", *LARGE_IMAGES, "--max-failures", "0")
    disk = folder / "disk"
    with mounted(disk, "8m"):
        (disk / "full").write_bytes(bytes(8 * 2**20 - 2**16))
        with arena.cluster(options=[f"--object-spilling-directory={disk}"]) as cluster:
            job = {"says": "full", "variables": cluster.environment}
            with running(FILL, cluster.address, **job):
                first = arena.start(command, plan, log=folder / "first.log", cluster=cluster)
                sentence = first.sentence()
                ensure(says in sentence, f"it says {sentence!r}")
            second = arena.start(command, plan, log=folder / "second.log", cluster=cluster)
            second.wait_until(lambda: len(steps_taken(plan.journal)) > STEPS_PER_EPOCH, "epoch 1")
            with running(FILL, cluster.address, **job):
                goes_on = second.wait() == 0
                ensure(goes_on or says in second.sentence(), f"then it says {second.tail()}")
            if not goes_on:
                third = arena.start(command, counting(plan), log=folder / "3.log", cluster=cluster)
                third.succeed()
    ensure_same(folder / "run", straight)
    then = "a run that holds its images goes on" if goes_on else "a run ends so, too"
    return Outcome(
        fault=name,
        injected="another job fills the object store, and the disk to which it spills is full: "
        "before a run, and again after epoch 1",
        survived=True,
        lost=count_lost(folder / "journal", at_most=2 * INTERVAL),
        seen=f"{sentence}; {then}",
    )


@contextmanager
def running(
    script: str, argument: str, *, says: str, variables: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Run a script that says when it is done and then waits; end it after the body."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, argument],
        cwd=ROOT,
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        lines = (line.strip() for line in process.stdout)  # Ray's are among them
        ensure(says in lines, f"it ended before it said {says!r}")
        yield
    finally:
        process.kill()
        process.communicate()


FAULTS = {
    "clock an hour off": set_clock,
    "memory monitor kills": run_out_of_memory,
    "object store and disk full": fill_object_store,
}
