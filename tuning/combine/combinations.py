"""What a sweep found where it combined its best trials: SWEEP/combined, as terminal, page and W&B
show it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.io import storage
from cluster.io.records import damaged, read_record
from cluster.io.statistics import Estimate
from trainers import metrics
from tuning.winner import read_test

SOUP, INTERPOLATION, ENSEMBLE = KINDS = ("soup", "interpolation", "ensemble")
COLUMNS = ("combination", "trials", "val/top1", "gain", "low", "high", "kept", "test/top1", "run")
"""Of `tabulate_combinations`; low and high are the interval of the gain."""


@dataclass(frozen=True, kw_only=True)
class Combination:
    """One way to combine, measured on the validation images."""

    kind: str
    trials: tuple[str, ...]
    """Ids, the winner's first."""
    share: float | None = None
    """Of the winner's weights in an interpolation; the rest is the start's."""
    top1: float
    gain: Estimate
    """In val/top1 over the winner."""

    @property
    def is_kept(self) -> bool:
        return self.gain.is_gain

    @property
    def name(self) -> str:
        """`soup of 3 trials`."""
        if self.share is not None:
            return f"{self.kind} of {self.share:.0%} of the winner"
        return f"{self.kind} of {len(self.trials)} trials"

    def describe(self) -> str:
        """Write its name and its gain."""
        return f"{self.name} {self.gain.describe_gain()}"


@dataclass(frozen=True, kw_only=True)
class Combinations:
    """The content of combined.json."""

    weights: tuple[str, ...]
    """SHA-256 of the members' weights, the winner's first."""
    tried: tuple[Combination, ...]
    is_cut: bool = False
    """Whether the budget ended before all were tried."""

    @property
    def kept(self) -> list[Combination]:
        return [each for each in self.tried if each.is_kept]


def combined_uri(out: str, *names: str) -> str:
    return storage.join(out, "combined", *names)


def read_combinations(out: str) -> Combinations | None:
    """Read combined.json; None where nothing was combined.

    Raises:
        UserError: where it is damaged.
    """
    uri = combined_uri(out, "combined.json")
    try:
        found = read_record(uri, Combinations)
    except FileNotFoundError:
        return None
    if unknown := {each.kind for each in found.tried} - {*KINDS}:
        raise damaged(uri, f"an unknown kind, {min(unknown)}")
    return found


def export_command(out: str, kind: str) -> str:
    """Write the command that exports a combination; several networks have no weights of one."""
    target = storage.join(out, f"exported-{kind}")
    words = [
        "python",
        "-m",
        "trainers",
        "export",
        "--run",
        combined_uri(out, kind),
        "--out",
        target,
    ]
    formats = ("--formats", "onnx", "torch_export") if kind == ENSEMBLE else ()
    return shlex.join([*words, *formats])


def describe_combinations(out: str, found: Combinations) -> list[str]:
    """Write what was kept, each in a line, and in one line what was not."""
    lines: list[str] = []
    for each in found.kept:
        line = f"{each.describe()}: val/top1 {each.top1:.3f}"
        if test := read_test(combined_uri(out, each.kind)):
            line += f", test top-1 {test[metrics.TEST_TOP1]:.3f}"
        lines.append(f"{line}; {combined_uri(out, each.kind)}")
    others = [each.describe() for each in found.tried if not each.is_kept]
    if others:
        lines.append(f"not significantly better than the winner: {', '.join(others)}")
    elif not found.tried and not found.is_cut:
        lines.append("no soup, ensemble or interpolation is better than the winner")
    if found.is_cut:
        lines.append("the budget ended before all were tried")
    return lines


def tabulate_combinations(out: str, found: Combinations) -> list[Sequence[Any]]:
    """Return a row of COLUMNS for each combination that was tried."""
    rows: list[Sequence[Any]] = []
    for each in found.tried:
        run = combined_uri(out, each.kind) if each.is_kept else None
        test = (read_test(run) or {}) if run else {}
        gain = each.gain
        cells = (each.name, " ".join(each.trials), each.top1, gain.mean, gain.low, gain.high)
        rows.append((*cells, each.is_kept, test.get(metrics.TEST_TOP1), run))
    return rows
