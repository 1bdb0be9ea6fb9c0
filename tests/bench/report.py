"""Rows of bench.json: one per measure, kept by name from run to run."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]


def to_row(
    name: str, *, ours: float, peer: float, limit: float, target: float, num_runs: int
) -> dict:
    """Return a measure's row: rates of ours, of what people use, and of what can't be beaten."""
    return {
        "name": name,
        "ours": ours,
        "peer": peer,
        "ratio": ours / peer,
        "target": target,
        "limit_fraction": ours / limit,
        "runs": num_runs,
    }


def read_rows(folder: Path = ROOT) -> list[dict]:
    """Read bench.json; empty where there is none."""
    file = folder / "bench.json"
    return json.loads(file.read_text()) if file.exists() else []


def keep(rows: list[dict], folder: Path = ROOT) -> None:
    """Put rows in bench.json, in the place of older ones of the same names."""
    names = {row["name"] for row in rows}
    kept = [row for row in read_rows(folder) if row["name"] not in names]
    (folder / "bench.json").write_text(json.dumps([*kept, *rows], indent=1))


def report(rows: list[dict], folder: Path = ROOT) -> None:
    """Print rows and keep them in bench.json."""
    keep(rows, folder)
    table = Table("measure", "ours /s", "peer /s", "ratio", "target", "of the limit")
    for row in rows:
        table.add_row(row["name"], f"{row['ours']:.3g}", f"{row['peer']:.3g}",
                      f"{row['ratio']:.2f}", f"{row['target']:.2f}",
                      f"{row['limit_fraction']:.2f}")  # fmt: skip
    Console().print(table)
