"""Storage that answers late: an object store on a slow link."""

from tests.chaos.arena import Arena
from tests.chaos.checks import count_lost, ensure, ensure_same
from tests.chaos.outcomes import Outcome
from tests.chaos.processes import Driver
from tests.chaos.storages import train_on_s3
from tests.support.s3_server import Proxy

SLOW_BYTES_PER_S = 100_000


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
    "storage at 100 kB/s": slow_storage,
}
