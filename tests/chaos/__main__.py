"""Inject faults into real runs, and print what became of them as one table.

usage: python -m tests.chaos [--seed N] [--only NAME ...] [--out DIR]

A NAME selects all faults that begin with it. Outcomes are kept in DIR from run to run, so a run
of some renews their rows. Exit code 1: not all faults of this run were survived.
"""

import os
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from cluster.io import terminal
from tests.chaos.arena import Arena
from tests.chaos.checks import Unfit
from tests.chaos.faults import FAULTS
from tests.chaos.outcomes import Outcome, read_outcomes, to_table, write_outcomes


@dataclass(frozen=True, kw_only=True)
class ChaosConfig:
    """Which faults are injected."""

    seed: int = 0
    """Draws ranks, steps, offsets and trials."""
    only: tuple[str, ...] = ()
    """Names of faults, or how they begin. Default: all."""
    out: Path = Path("runs/chaos")
    """Folder of chaos.md and chaos.json; the runs lie there too, and those of survived faults are
    deleted."""

    def choose(self) -> list[str]:
        """Return the faults to inject.

        Raises:
            ValueError: where a name fits none.
        """
        for name in self.only:
            if not any(fault.startswith(name) for fault in FAULTS):
                raise ValueError(f"only is {name!r}: choose from {', '.join(FAULTS)}")
        return [name for name in FAULTS if not self.only or name.startswith(self.only)]


def inject(arena: Arena, name: str) -> Outcome:
    """Inject a fault; what it breaks is a row that says so, and the others have their turn."""
    began_s = time.monotonic()
    try:
        outcome = FAULTS[name](arena, name)
        shutil.rmtree(arena.folder / name, ignore_errors=True)
    except Exception as error:
        if not isinstance(error, Unfit):
            traceback.print_exc()
        said = f"{type(error).__name__}: {error}"[:400]
        outcome = Outcome(fault=name, injected="", survived=False, lost="unknown", seen=said)
    return replace(
        outcome,
        seen=outcome.seen.replace(str(arena.folder), "..."),
        seconds=time.monotonic() - began_s,
        seed=arena.seed,
    )


def main(config: ChaosConfig) -> int:
    out = config.out.absolute()
    # A folder of its own, beside the clusters of others on this machine.
    os.environ.setdefault("RAY_TMPDIR", tempfile.mkdtemp(prefix="chaos"))
    names, began_s = config.choose(), time.monotonic()
    arena = Arena(out / f"seed-{config.seed}", config.seed)
    outcomes: list[Outcome] = []
    try:
        for number, name in enumerate(names, start=1):
            print(f"[{number}/{len(names)}] {name} ...", flush=True)
            outcomes.append(inject(arena, name))
            write_outcomes(out, outcomes[-1:], list(FAULTS))
            outcome = outcomes[-1]
            word = "survived" if outcome.survived else f"NOT SURVIVED: {outcome.seen}"
            spent_s = time.monotonic() - began_s
            left_s = spent_s / number * (len(names) - number)
            print(
                f"    {word}; work lost: {outcome.lost}; {outcome.seconds:.0f} s, "
                f"about {terminal.describe_s(left_s)} left",
                flush=True,
            )
    finally:
        arena.close()
    print(f"\n{to_table(list(read_outcomes(out).values()))}\nWritten: {out}/chaos.md, chaos.json")
    return 0 if all(outcome.survived for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(ChaosConfig, description=__doc__)))
