"""Run a sweep of many short trials, then a training of many short epochs, on one cluster, and judge
whether what they hold grows.

usage: python -m tests.soak [--minutes N] [--only sweep] [--out DIR]

The sweep has a quarter of the time, 6 minutes at most. A third of the time of each is warm-up.
Exit code 1: a measure grows. The table names the processes or files that it grows in; soak.json has
each process at each moment.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import ray
import tyro

from cluster.environment import DRIVER_ENV
from tests.conftest import ROOT
from tests.soak.holders import find_files, find_holders
from tests.soak.samples import NAMES, SESSION_FOLDER, Sample, Sampler, allowed
from tests.soak.trends import WARM_UP, Trend, find_trend
from tests.support.data import write_shards
from tests.support.job_server import TokenCluster, start_token_cluster

NUM_SAMPLES = 120
"""Of each of the two."""
OPTIONS = "--backbone lenet5 --size-px 32 --policy light --wandb off"
COMMANDS = {
    "sweep": "tuning transfer --inits he --freeze-depths 0 --search random --trials 3000 "
    "--learning-rate-range 1e-7 1e-2 --clipnorms none --epochs 1 --grace-epochs 1 --no-share "
    f"--num-workers 0 --global-batch-size 8 {OPTIONS}",
    "training": "trainers transfer --init he --freeze-depth 0 --epochs 20000 --num-workers 2 "
    f"--global-batch-size 8 --max-failures 0 {OPTIONS}",
    "plain": "tests.soak.plain",
}
WITHOUT_DATA = ("plain",)
SHARES = {"sweep": 0.25, "training": 0.75}
"""Of the time: there are several trials a second, and an epoch takes about one."""
MAX_SWEEP_MINUTES = 6.0
"""About 2,200 trials. Tune lists them first, in a time that is the square of their number."""
VARIABLES = {
    name: DRIVER_ENV[name]
    for name in (
        "RAY_idle_worker_killing_time_threshold_ms",
        "RAY_task_events_max_num_task_in_gcs",
    )
} | {"RAY_ROTATION_MAX_BYTES": "1000000", "RAY_ROTATION_BACKUP_COUNT": "1"}
"""Environment of the cluster, as docs/cluster.md has it for one that lives long; with logs that are
small, so that each is rotated within the soak."""
COUNTERS: dict[str, Callable[[Path], int]] = {
    "sweep": lambda out: len(list(out.glob("trials/*/result.json"))),
    "training": lambda out: sum(b'"val/loss"' in row for row in read_lines(out)),
    "plain": lambda out: len(list(out.glob("tune/*/result.json"))),
}
"""Trials that have ended, and epochs."""


@dataclass(frozen=True, kw_only=True)
class SoakConfig:
    """How long."""

    minutes: float = 120.0
    """Both together, without the start of the cluster."""
    only: Literal["sweep", "training", "plain"] | None = None
    """One of them for the whole time, or a sweep of Ray Tune without anything of ours."""
    out: Path = Path("runs/soak")
    """Folder of soak.json, soak.md and soak.png."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A command that has run for a while."""

    name: str
    times_s: list[float]
    samples: list[Sample]
    done: list[int]
    """Trials or epochs at each sample."""

    def values(self, name: str) -> list[float]:
        """Return one of NAMES over time."""
        return [sample.measure(name) for sample in self.samples]

    def holders(self, name: str) -> str:
        """Write in which processes or files a measure grows."""
        if name == SESSION_FOLDER:
            files = find_files(self.times_s, self.samples)
            return ", ".join(f"{file} {growth:+.1f}" for file, growth in files.items())
        return ", ".join(map(str, find_holders(name, self.times_s, self.samples)))

    def trends(self) -> dict[str, Trend]:
        return {name: find_trend(self.times_s, self.values(name), allowed(name)) for name in NAMES}


def read_lines(out: Path) -> list[bytes]:
    return b"".join(file.read_bytes() for file in out.glob("**/metrics.jsonl")).splitlines()


def run_part(name: str, folder: Path, cluster: TokenCluster, minutes: float) -> Part:
    """Run a command until its time is over, sample it, and end it as a user does."""
    out = folder / name
    data = [] if name in WITHOUT_DATA else ["--data", f"{folder}/data"]
    command = [*COMMANDS[name].split(), *data, "--out", str(out)]
    with (folder / f"{name}.log").open("wb") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", *command, "--address", cluster.address],
            cwd=ROOT,
            env=cluster.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    sampler = Sampler(cluster, folder / "ray")
    part = Part(name=name, times_s=[], samples=[], done=[])
    began_s = time.monotonic()
    for number in range(NUM_SAMPLES):
        time.sleep(max(0.0, began_s + minutes * 60 * number / NUM_SAMPLES - time.monotonic()))
        assert driver.poll() is None, f"it ended: {(folder / f'{name}.log').read_text()[-2000:]}"
        part.times_s.append(time.monotonic() - began_s)
        part.samples.append(sampler.take(driver.pid))
        part.done.append(COUNTERS[name](out))
    driver.send_signal(signal.SIGTERM)
    code = driver.wait(timeout=120)
    assert code == 128 + signal.SIGTERM, f"exit code {code}"
    return part


def minutes_of(part: str, minutes: float) -> float:
    return minutes if part == "training" else min(minutes, MAX_SWEEP_MINUTES)


def to_table(parts: list[Part]) -> str:
    """Write a Markdown table of what was held after warm-up."""
    lines = [
        "| measure | of | after warm-up | growth | allowed | an hour | chance | | in |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for part in parts:
        for name, trend in part.trends().items():
            cells = [
                name, part.name, f"{trend.median:.1f}", f"{trend.growth:+.1f}",
                f"{trend.allowed:.1f}", f"{trend.per_hour:+.0f}", f"{trend.chance:.2g}",
                "**grows**" if trend.grows else "flat", part.holders(name) if trend.grows else "",
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def draw(parts: list[Part], file: Path) -> None:
    """Draw a chart of each measure, the sweep's and the training's beside each other."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(NAMES), len(parts), figsize=(11, 1.3 * len(NAMES)), squeeze=False, sharex="col"
    )
    for column, part in enumerate(parts):
        trends = part.trends()
        for row, name in enumerate(NAMES):
            axis = axes[row][column]
            colour = "#c0392b" if trends[name].grows else "#2c3e50"
            minutes = [at / 60 for at in part.times_s]
            axis.plot(minutes, part.values(name), color=colour, lw=1)
            axis.axvline(minutes[-1] * WARM_UP, color="#bbbbbb", lw=1)
            axis.set_ylim(bottom=0)
            axis.set_title(f"{part.name}: {name}", fontsize=8, loc="left")
            axis.tick_params(labelsize=7)
        axes[-1][column].set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(file, dpi=70)


def main(config: SoakConfig) -> int:
    out = config.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("RAY_TMPDIR", tempfile.mkdtemp(prefix="soak"))
    with tempfile.TemporaryDirectory(prefix="soak", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        write_shards(f"{folder}/data")
        with start_token_cluster(folder, **VARIABLES) as cluster:
            os.environ |= cluster.environment
            ray.init(cluster.address, log_to_driver=False)
            try:
                shares = {config.only: 1.0} if config.only else SHARES
                parts = [
                    run_part(part, folder, cluster, minutes_of(part, config.minutes * share))
                    for part, share in shares.items()
                ]
            finally:  # Ray's hook for exceptions would ask a cluster that is gone
                ray.shutdown()
    (out / "soak.json").write_text(json.dumps([asdict(part) for part in parts]))
    table = to_table(parts)
    (out / "soak.md").write_text(table)
    draw(parts, out / "soak.png")
    counts = ", ".join(f"{part.done[-1]} of the {part.name}" for part in parts)
    print(f"{table}\nTrials and epochs: {counts}\nWritten: {out}/soak.md, soak.json, soak.png")
    return int(any(trend.grows for part in parts for trend in part.trends().values()))


if __name__ == "__main__":
    if os.environ.get("RAY_AUTH_MODE") != "token":  # which Ray reads as it is imported
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "RAY_AUTH_MODE": "token"})
    sys.exit(main(tyro.cli(SoakConfig, description=__doc__)))
