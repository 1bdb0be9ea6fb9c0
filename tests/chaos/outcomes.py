"""What became of each fault: chaos.json, and chaos.md, its table."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.io import storage


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One row of the table."""

    fault: str
    """Its name in the registry."""
    injected: str
    """What was done, exactly."""
    survived: bool
    lost: str
    """Work done twice, or lost."""
    seen: str = ""
    """What else was seen; of a fault that was not survived, why."""
    seconds: float = 0.0
    seed: int = 0


def read_outcomes(out: Path) -> dict[str, Outcome]:
    """Outcomes of earlier runs by fault; none where there are none."""
    file = out / "chaos.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    return {row["fault"]: Outcome(**row) for row in rows}


def write_outcomes(out: Path, outcomes: Sequence[Outcome], order: Sequence[str]) -> None:
    """Write both files whole, new outcomes in the place of those that were known."""
    known = read_outcomes(out) | {outcome.fault: outcome for outcome in outcomes}
    rows = [known[fault] for fault in order if fault in known]
    text = json.dumps([asdict(row) for row in rows], indent=1)
    storage.write_bytes(str(out / "chaos.json"), text.encode())
    storage.write_bytes(str(out / "chaos.md"), to_table(rows).encode())


def to_table(rows: Sequence[Outcome]) -> str:
    """Write a Markdown table."""
    lines = [
        "| fault | injected | survived | work lost | seen | time |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        survived = "yes" if row.survived else "**no**"
        cells = (row.fault, row.injected, survived, row.lost, row.seen, f"{row.seconds:.0f} s")
        lines.append("| " + " | ".join(_flat(cell) for cell in cells) + " |")
    survived = sum(row.survived for row in rows)
    seeds = ", ".join(str(seed) for seed in sorted({row.seed for row in rows}))
    return "\n".join([*lines, "", f"{survived} of {len(rows)} faults survived; seed {seeds}.", ""])


def _flat(cell: str) -> str:
    """A cell is one line, and a bar in it no border."""
    return " ".join(cell.split()).replace("|", "\\|")
