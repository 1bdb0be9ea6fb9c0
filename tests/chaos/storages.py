"""Storage that is full, read-only or ill, and checkpoints that are torn."""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3

from tests.chaos.arena import Arena
from tests.chaos.checks import (
    INTERVAL,
    NUM_STEPS,
    PAUSE_S,
    STEPS_PER_EPOCH,
    count_lost,
    ensure,
    ensure_same,
)
from tests.chaos.mounts import mounted
from tests.chaos.outcomes import Outcome
from tests.chaos.processes import Driver
from tests.chaos.sabotage import counting, plan_of, steps_taken
from tests.support.s3_server import Proxy, environment, serve_s3
from tests.support.training import train_here
from trainers.run import checkpoint

NUM_TEARS = 20
SMALL, LARGE = "1700k", "64m"
"""Room for one checkpoint and a half, and for all."""
SHARE_OF_503 = 0.25


def tear_checkpoints(arena: Arena, name: str) -> Outcome:
    """Each run is cut short, its latest checkpoint torn, and trained to its end in this process."""
    dice, folder, straight = arena.draw(name), arena.new_run(name), arena.straight(workers=0)
    cut = folder / "cut"
    stop_after(cut, arena, 2 * STEPS_PER_EPOCH)
    before, latest = steps_kept(cut)[-2:]
    warnings = Warnings()
    logging.getLogger("trainers.run.checkpoint").addHandler(warnings)
    lost = 0
    for number in range(NUM_TEARS):
        run = shutil.copytree(cut, folder / f"run-{number}")
        files = sorted((run / "checkpoints" / f"step-{latest:08d}").iterdir())
        file = dice.choice(files)
        offset = dice.randrange(file.stat().st_size)
        with file.open("r+b") as content:
            content.truncate(offset)
        warnings.lines.clear()
        found = checkpoint.read_latest(str(run))
        ensure(
            found is not None and found.progress.global_step == before,
            f"{file.name} cut at {offset}",
        )
        ensure(any("is damaged" in line for line in warnings.lines), "it did not say so")
        resume(run, arena)
        ensure_same(run, straight)
        lost += latest - before
    logging.getLogger("trainers.run.checkpoint").removeHandler(warnings)
    return Outcome(
        fault=name,
        injected=f"the latest of {len(steps_kept(cut))} checkpoints cut at {NUM_TEARS} offsets",
        survived=True,
        lost=f"{lost // NUM_TEARS} of {NUM_STEPS} steps each",
        seen=warnings.lines[-1],
    )


class Warnings(logging.Handler):
    """Keeps what is warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def stop_after(run: Path, arena: Arena, num_steps: int) -> None:
    """Train in this process up to a step, as far as the run of all epochs would have come."""
    epochs = num_steps // STEPS_PER_EPOCH
    _ = arena.nodes
    train_here(arena.config(run, "--epochs", str(epochs), workers=0))
    (run / "result.json").unlink()


def resume(run: Path, arena: Arena) -> None:
    train_here(arena.config(run, workers=0))


def steps_kept(run: Path) -> list[int]:
    names = (run / "checkpoints").iterdir()
    return sorted(int(path.name.removeprefix("step-")) for path in names)


def spoil_storage(
    arena: Arena, name: str, *, size: str, spoil: str, mend: str, injected: str, says: str
) -> Outcome:
    """Train where storage fails, see the sentence, mend it, and give the same command again."""
    folder = arena.new_run(name)
    plan = plan_of(folder, pause_s=PAUSE_S)
    with mounted(folder / "storage", size) as remount:
        run = folder / "storage" / "run"
        command = arena.command(run, "--max-failures", "0")
        first = arena.start(command, plan, log=folder / "first.log")
        if spoil:
            first.wait_until(lambda: len(steps_taken(plan.journal)) > STEPS_PER_EPOCH, "epoch 1")
            remount(spoil)
        sentence = first.sentence()
        ensure(says in sentence, f"it says {sentence!r}")
        ensure(not list(run.rglob("*.tmp")), "a part of a file is left")
        if spoil:
            again = arena.start(command, plan, log=folder / "still.log")
            ensure(says in again.sentence(), f"then it says {again.sentence()!r}")
        remount(mend)
        arena.start(command, counting(plan), log=folder / "second.log").succeed()
        ensure_same(run, arena.straight())
    lost = count_lost(folder / "journal", at_most=3 * INTERVAL)
    return Outcome(
        fault=name, injected=injected, survived=True, lost=lost,
        seen=sentence,
    )  # fmt: skip


def fill_disk(arena: Arena, name: str) -> Outcome:
    return spoil_storage(
        arena, name, size=SMALL, spoil="", mend=f"size={LARGE}",
        injected=f"a file system of {SMALL} holds the run; later one of {LARGE}",
        says="No space left on device",
    )  # fmt: skip


def freeze_storage(arena: Arena, name: str) -> Outcome:
    return spoil_storage(
        arena, name, size=LARGE, spoil="ro", mend="rw",
        injected="remounted read-only after epoch 1; later for writing",
        says="Read-only file system",
    )  # fmt: skip


@contextmanager
def ill_bucket(arena: Arena, folder: Path) -> Iterator[tuple[Proxy, Any, dict[str, str]]]:
    """Serve a bucket that holds the data; yields its proxy, a client past it, and its
    environment."""
    with serve_s3(folder / "moto.log") as port, Proxy(port, arena.seed) as proxy:
        there = environment(port)
        s3: Any = boto3.resource(
            "s3",
            endpoint_url=there["AWS_ENDPOINT_URL"],
            aws_access_key_id=there["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=there["AWS_SECRET_ACCESS_KEY"],
            region_name=there["AWS_DEFAULT_REGION"],
        )
        bucket = s3.Bucket("thaw")
        bucket.create(CreateBucketConfiguration={"LocationConstraint": there["AWS_DEFAULT_REGION"]})
        for file in Path(arena.data).rglob("*"):
            if file.is_file():
                key = f"data/{file.relative_to(arena.data)}"
                bucket.put_object(Key=key, Body=file.read_bytes())
        yield proxy, bucket, environment(proxy.port)


def fetch(bucket: Any, run: Path) -> Path:
    """Copy a run out of the bucket."""
    for item in bucket.objects.filter(Prefix="run/"):
        if not item.key.endswith("/"):
            file = run.parent / item.key
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(item.get()["Body"].read())
    return run


def train_on_s3(
    arena: Arena, name: str, disturb: Callable[[Proxy, Driver, str], str], *more: str
) -> tuple[Path, str, int]:
    """Train out of the bucket into it, disturbed once it is on its way, and once more if the first
    driver gave up; return the run, what was said, and how many requests were refused."""
    folder = arena.new_run(name)
    plan = plan_of(folder, pause_s=0.3)
    with ill_bucket(arena, folder) as (proxy, bucket, env):
        command = arena.command("s3://thaw/run", *more)
        command[command.index("--data") + 1] = "s3://thaw/data"
        options = {"shared": False, "env": env}
        driver = arena.start(command, plan, log=folder / "first.log", **options)
        said = disturb(proxy, driver, plan.journal)
        if said:
            proxy.share = 0.0
            second = arena.start(command, counting(plan), log=folder / "second.log", **options)
            second.succeed()
        return fetch(bucket, folder / "run"), said, proxy.num_refused


def make_s3_stumble(arena: Arena, name: str) -> Outcome:
    def disturb(proxy: Proxy, driver: Driver, journal: str) -> str:
        proxy.share = SHARE_OF_503
        driver.succeed()
        return ""

    run, _, num_refused = train_on_s3(arena, name, disturb, "--max-failures", "0")
    ensure(num_refused >= 10, f"{num_refused} requests were refused")
    ensure_same(run, arena.straight(shared=False))
    lost = count_lost(run.parent / "journal", at_most=0)
    injected = f"503 SlowDown to {num_refused} requests, {SHARE_OF_503:.0%} of all"
    return Outcome(
        fault=name, injected=injected, survived=True, lost=lost, seen="max_failures = 0 untouched"
    )


def make_s3_fail(arena: Arena, name: str) -> Outcome:
    def disturb(proxy: Proxy, driver: Driver, journal: str) -> str:
        driver.wait_until(lambda: len(steps_taken(journal)) > STEPS_PER_EPOCH, "epoch 1")
        proxy.share = 1.0
        return driver.sentence()

    run, said, num_refused = train_on_s3(arena, name, disturb, "--max-failures", "0")
    ensure("is out of reach" in said and "s3://thaw/" in said, f"it says {said!r}")
    ensure_same(run, arena.straight(shared=False))
    lost = count_lost(run.parent / "journal", at_most=4 * INTERVAL)
    injected = f"503 SlowDown to every request after epoch 1 ({num_refused}); later none"
    return Outcome(fault=name, injected=injected, survived=True, lost=lost, seen=said)


FAULTS = {
    "checkpoint torn at 20 offsets": tear_checkpoints,
    "disk full": fill_disk,
    "storage read-only": freeze_storage,
    "S3 answers 503 now and then": make_s3_stumble,
    "S3 answers 503 for good": make_s3_fail,
}
