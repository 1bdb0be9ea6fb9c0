"""A node whose clock is wrong."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.arena import Arena
from tests.chaos.checks import (
    INTERVAL,
    STEPS_PER_EPOCH,
    count_lost,
    ensure,
    ensure_same,
)
from tests.chaos.outcomes import Outcome
from tests.chaos.processes import find_by_name
from tests.chaos.sabotage import counting, plan_of, steps_taken

AHEAD_S = 3600


def set_clock(arena: Arena, name: str) -> Outcome:
    """One of two nodes is an hour ahead; the driver, which is on the other, ends and resumes."""
    folder, straight = arena.new_run(name), arena.straight(shared=False)
    step = arena.draw(name).randrange(STEPS_PER_EPOCH + 1, 2 * STEPS_PER_EPOCH)
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


FAULTS = {
    "clock an hour off": set_clock,
}
