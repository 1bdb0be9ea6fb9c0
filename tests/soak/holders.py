"""Which processes or files a growth comes from."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tests.soak.samples import IDLE, SESSION_FOLDER, UNITS, Sample
from tests.soak.trends import find_trend, windows_of

MIN_SHARE = 0.2
"""Of a growth, for processes or files to be named."""


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Processes of one name that hold more at the end than after warm-up."""

    name: str
    growth: float
    num_first: float
    """Processes of this name after warm-up."""
    num_last: float
    """At the end."""
    kind: str
    """Kind of the handles that grow most; empty for other units."""

    def __str__(self) -> str:
        numbers = f" ({self.num_first:g} to {self.num_last:g} processes)"
        return (
            f"{self.name}{numbers if self.num_first != self.num_last else ''} {self.growth:+.0f}"
            + (f" {self.kind}" if self.kind else "")
        )


def find_holders(name: str, times_s: Sequence[float], samples: Sequence[Sample]) -> list[Holder]:
    """Return the processes that a measure's growth comes from, the largest first; none for a
    measure that is not of processes."""
    unit, _, role = name.partition(" of ")
    if unit not in UNITS or name in samples[0].counts:
        return []
    names = name_processes(samples, role)
    growth = find_trend(times_s, [sample.measure(name) for sample in samples], 0.0).growth
    holders = [
        _measure(own, unit, [pid for pid, its in names.items() if its == own], times_s, samples)
        for own in sorted(set(names.values()))
    ]
    found = [holder for holder in holders if holder.growth > max(0.0, MIN_SHARE * growth)]
    return sorted(found, key=lambda holder: -holder.growth)


def find_files(times_s: Sequence[float], samples: Sequence[Sample]) -> dict[str, float]:
    """Return the files that the growth of the session folder comes from, with theirs in MB, the
    largest first."""
    sizes = [sample.measure(SESSION_FOLDER) for sample in samples]
    enough = max(0.0, MIN_SHARE * find_trend(times_s, sizes, 0.0).growth)
    growths = {
        name: find_trend(times_s, [sample.files.get(name, 0.0) for sample in samples], 0.0).growth
        for name in {name for sample in samples for name in sample.files}
    }
    by_growth = sorted(growths.items(), key=lambda item: -item[1])
    return {name: growth for name, growth in by_growth if growth > enough}


def name_processes(samples: Sequence[Sample], role: str) -> dict[int, str]:
    """Return a name for each process of a role: of what it was seen running most."""
    seen: dict[int, Counter[str]] = {}
    for sample in samples:
        for pid, process in sample.processes.items():
            if process.role == role:
                seen.setdefault(pid, Counter())[process.name] += 1
    return {
        pid: max(names, key=lambda name: (name != IDLE, names[name])) for pid, names in seen.items()
    }


def _measure(
    name: str,
    unit: str,
    pids: Sequence[int],
    times_s: Sequence[float],
    samples: Sequence[Sample],
) -> Holder:
    there = [[s.processes[pid] for pid in pids if pid in s.processes] for s in samples]
    sums = [sum(process.held[unit] for process in alive) for alive in there]
    numbers = windows_of(times_s, [float(len(alive)) for alive in there])[1]
    kinds = {kind for alive in there for process in alive for kind in process.kinds}

    def grows_by(kind: str) -> float:
        counts = [float(sum(p.kinds.get(kind, 0) for p in alive)) for alive in there]
        return find_trend(times_s, counts, 0.0).growth

    return Holder(
        name=name,
        growth=find_trend(times_s, sums, 0.0).growth,
        num_first=float(numbers[0]),
        num_last=float(numbers[-1]),
        kind=max(sorted(kinds), key=grows_by) if unit == "handles" and kinds else "",
    )
