"""The GPU's rows of bench.json as a section of docs/performance.md."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.bench.report import ROOT

PAGE = ROOT / "docs" / "performance.md"
START, END = "<!-- start: python -m tests.bench.gpu -->\n", "<!-- end -->\n"
Row = dict[str, Any]

_COMPUTES = {
    "bf16": "default: bfloat16, channels last",
    "bf16_compile": "`--compile`",
    "fp16": "`--precision fp16`",
    "fp32": "`--precision fp32`",
    "bf16_nchw": "`--no-channels-last`, bfloat16",
    "fp32_nchw": "`--no-channels-last`, float32",
}


def is_ours(row: Row) -> bool:
    return row["name"].startswith("gpu/")


def render(rows: Sequence[Row]) -> str:
    """Return the section: a line that names the machine, and a table per question that has rows."""
    by_name = {row["name"].removeprefix("gpu/"): row for row in rows if is_ours(row)}
    if not by_name:
        return ""
    machines = sorted({f"{row['machine']}, {row['date']}" for row in by_name.values()})
    parts = [f"`python -m tests.bench.gpu` on {'; '.join(machines)}.\n"]
    parts += filter(None, (table(by_name) for table in (_precisions, _feeds, _shared, _others)))
    return "\n".join(parts)


def write_page(rows: Sequence[Row], page: Path = PAGE) -> None:
    """Put the section in the place of the one between the marks."""
    text = page.read_text()
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    assert start and end, f"{page} has the lines {START!r} and {END!r}"
    page.write_text(f"{before}{START}\n{render(rows)}\n{END}{after}")


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return ""
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _ratio(row: Row) -> str:
    missed = row["ratio"] < row["target"]
    return f"{row['ratio']:.2f}" + (f" (misses {row['target']:g})" if missed else "")


def _precisions(by_name: dict[str, Row]) -> str:
    found = [(shown, by_name.get(f"train_{name}_vs_plain")) for name, shown in _COMPUTES.items()]
    head = ("a training step", "images/s", "of the plain loop", "of the product's rate",
            "first step", "memory, both loops")  # fmt: skip
    return _table(
        head,
        [
            (shown, f"{row['ours']:,.0f}", _ratio(row), f"{row['limit_fraction']:.2f}",
             f"{row['first_step_s']:.1f} s", f"{row['peak_gib']:.1f} GiB")
            for shown, row in found
            if row
        ],
    )  # fmt: skip


def _feeds(by_name: dict[str, Row]) -> str:
    lines = []
    for name, row in by_name.items():
        kind, _, rest = name.partition("_")
        if kind in ("stream", "memory") and rest.endswith("_cores_vs_dataloader"):
            cores = rest.partition("_")[0]
            lines.append(
                (f"`{kind}`, {cores} cores", f"{row['ours']:,.0f}", f"{row['stall_share']:.1%}",
                 f"{row['limit_fraction']:.2f}", f"{row['peer']:,.0f}", _ratio(row))
            )  # fmt: skip
    head = ("ingest that feeds the step", "images/s", "time waited", "of the step alone",
            "DataLoader", "ratio")  # fmt: skip
    return _table(head, lines)


def _shared(by_name: dict[str, Row]) -> str:
    lines = []
    if row := by_name.get("features_vs_plain"):
        lines.append(("features/s", f"{row['ours']:,.0f}", f"{row['peer']:,.0f}", _ratio(row)))
    if row := by_name.get("sweep_head_only_vs_plain"):
        name = f"{row['num_trials']} head-only trials"
        lines.append((name, f"{row['ours_s']:.0f} s", f"{row['plain_s']:,.0f} s", _ratio(row)))
    return _table(("a sweep", "ours", "plain loop", "ratio"), lines)


def _others(by_name: dict[str, Row]) -> str:
    lines = []

    def add(name: str, shown: Callable[[Row], str], peer: str) -> None:
        if row := by_name.get(name):
            rates = (f"{row['ours']:,.0f}", f"{row['peer']:,.0f} ({peer})")
            lines.append((shown(row), *rates, _ratio(row)))

    add("train_ddp_vs_plain", lambda row: "DDP over NCCL, one worker", "plain DDP")
    for name in by_name:
        if name.endswith("_vs_cuda_graph"):
            size = name.split("_")[2]
            add(name, lambda row, size=size: f"a step of {size} images", "plain, as a CUDA graph")
    add(
        "decode_vs_nvjpeg",
        lambda row: (
            f"JPEGs of {row['width_px']}x{row['height_px']} decoded on {row['cores']} cores"
        ),
        "nvJPEG",
    )
    text = _table(("images/s", "ours", "peer", "ratio"), lines)
    if row := by_name.get("step_waits_for_nothing"):
        found = "waits for nothing" if row["ours"] else f"waits: {row['error']}"
        text += f"\nA step {found} (torch's synchronization debug mode).\n"
    return text
