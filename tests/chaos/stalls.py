"""Storage that answers late: a file system that hangs, and an object store on a slow link."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.chaos.arena import Arena
from tests.chaos.checks import NUM_STEPS, STEPS_PER_EPOCH, count_lost, ensure, ensure_same
from tests.chaos.mounts import served
from tests.chaos.outcomes import Outcome
from tests.chaos.processes import Driver
from tests.chaos.sabotage import plan_of, steps_taken
from tests.chaos.storages import train_on_s3
from tests.support.s3_server import Proxy

HANG_S = 90
SLOW_BYTES_PER_S = 100_000


def hang_storage(arena: Arena, name: str) -> Outcome:
    """Data and run are on a file system in user space whose server stops: whoever reads or writes
    there waits, and can't be killed, as where an NFS server is gone."""
    folder, straight = arena.new_run(name), arena.straight(shared=False)
    step = arena.draw(name).randrange(2, STEPS_PER_EPOCH)
    plan, place = plan_of(folder, pause_s=1.0), folder / "storage"
    with served(place, folder / "served") as server:
        shutil.copytree(arena.data, place / "data")
        command = arena.command(place / "run", "--max-failures", "0")
        command[command.index("--data") + 1] = str(place / "data")
        driver = arena.start(command, plan, log=folder / "log", shared=False)
        driver.wait_until(lambda: len(steps_taken(plan.journal)) >= step, f"step {step}")
        with stopped(server):
            time.sleep(HANG_S)
            taken = len(steps_taken(plan.journal))
        driver.succeed()
        ensure(taken < NUM_STEPS, "it ended without its storage")
        ensure_same(place / "run", straight)
    ensure("was taken over" not in driver.printed, f"a lease was lost: {driver.tail()}")
    return Outcome(
        fault=name,
        injected=f"every access waits for {HANG_S} s after step {step}",
        survived=True,
        lost=count_lost(folder / "journal", at_most=0),
        seen=f"{taken - step} steps meanwhile; max_failures = 0 was not touched",
    )


@contextmanager
def stopped(server: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Stop a process while the body runs."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def slow_storage(arena: Arena, name: str) -> Outcome:
    passed = []

    def disturb(proxy: Proxy, driver: Driver, journal: str) -> str:
        proxy.bytes_per_s = SLOW_BYTES_PER_S
        driver.succeed()
        passed.append(proxy.num_bytes)
        return ""

    run, _, _ = train_on_s3(arena, name, disturb, "--max-failures", "0")
    ensure(passed[0] > 20 * SLOW_BYTES_PER_S, f"{passed[0]} bytes were no load")
    ensure_same(run, arena.straight(shared=False))
    return Outcome(
        fault=name,
        injected=f"S3 by a link of {SLOW_BYTES_PER_S // 1000} kB/s, over which "
        f"{passed[0] / 1e6:.1f} MB went",
        survived=True,
        lost=count_lost(run.parent / "journal", at_most=0),
        seen="max_failures = 0 untouched",
    )


FAULTS = {
    "storage hangs for 90 s": hang_storage,
    "storage at 100 kB/s": slow_storage,
}
