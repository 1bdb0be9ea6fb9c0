"""All of Thaw on one GPU within ten minutes: python -m tests.bench.gpu [--out FOLDER].

Each part runs in a process of its own with a limit of time, so that one that fails or hangs costs
no other its rows. Rows are in FOLDER/bench.json after each part, and FOLDER/performance.md renders
them. `--merge FOLDER` puts rows of another machine into bench.json and docs/performance.md here.
"""

import argparse
import importlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tests.bench.gpu import page
from tests.bench.report import ROOT, keep, read_rows, report

RAY_MODULES = (
    "ray", "albumentations", "simplejpeg", "cv2", "pyarrow", "pandas", "pydantic", "tyro",
)  # fmt: skip
SWEEP_MODULES = (*RAY_MODULES, "optuna", "wandb", "plotly", "sklearn")
STEP_MODULES = ("numpy", "torchvision", "safetensors", "ray")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A measurement."""

    name: str
    function: str
    """MODULE:FUNCTION of this package; it takes `Sizes` and a folder of all parts."""
    modules: tuple[str, ...]
    """That it imports."""
    limit_s: float


PARTS = (
    Part(name="waits", function="training:bench_waits", modules=(*STEP_MODULES, "pytest"),
         limit_s=60),
    Part(name="ddp", function="training:bench_ddp", modules=STEP_MODULES, limit_s=60),
    Part(name="small-batches", function="training:bench_small_batches", modules=STEP_MODULES,
         limit_s=60),
    Part(name="ingest", function="ingest:bench_ingest", modules=RAY_MODULES, limit_s=270),
    Part(name="decoding", function="ingest:bench_decoding", modules=RAY_MODULES, limit_s=60),
    Part(name="sweep", function="sweep:bench_sweep", modules=SWEEP_MODULES, limit_s=150),
    Part(name="precisions", function="training:bench_precisions", modules=STEP_MODULES,
         limit_s=200),
)  # fmt: skip
"""In the order they run: what has never been measured first, what takes long last."""
MIN_PART_S = 20.0
"""With less time left, no part starts."""
LIMIT_S = 530.0
"""Of a whole run: within ten minutes with the time to install the wheels."""


def describe_machine() -> str:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{gpu}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}"


def find_missing(modules: Sequence[str]) -> list[str]:
    return [name for name in modules if importlib.util.find_spec(name) is None]


def find_other_versions() -> list[str]:
    """Sentences for what this machine has in another version than pyproject.toml asks for."""
    from packaging.requirements import Requirement

    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = []
    for requirement in map(Requirement, wanted):
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            continue
        if not requirement.specifier.contains(re.sub(r"\+.*", "", installed)):
            found.append(
                f"{requirement.name} {installed} (pyproject.toml: {requirement.specifier})"
            )
    return found


def measure(part: Part, folder: Path, out: Path, *, tiny: bool) -> None:
    """Measure a part in this process; keep each row, with the machine and the date, at once."""
    import torch

    from tests.bench.gpu.sizes import TINY, Sizes

    module, _, name = part.function.partition(":")
    function: Callable[[Sizes, Path], Iterator[dict]] = getattr(
        importlib.import_module(f"tests.bench.gpu.{module}"), name
    )
    facts = {"machine": describe_machine(), "date": date.today().isoformat()}
    # Compiling takes 20 s, however small the network.
    with torch.compiler.set_stance("force_eager" if tiny else "default"):
        for row in function(TINY if tiny else Sizes(), folder):
            keep([row | facts], out)


def one_session() -> AbstractContextManager[None]:
    """Start Ray once for all parts, as each start takes as long as a tiny part."""
    from tests.bench.gpu.ingest import ray_on

    return ray_on(len(os.sched_getaffinity(0)))


def to_command(part: Part, folder: Path, out: Path) -> list[str]:
    """Return the command that measures a part in a process of its own."""
    return [
        *(sys.executable, "-m", "tests.bench.gpu", "--part", part.name),
        *("--folder", str(folder), "--out", str(out)),
    ]


def call_in_process(command: Sequence[str], limit_s: float) -> str | None:
    """Run a process with all its children; return what went wrong."""
    process = subprocess.Popen(command, start_new_session=True, cwd=ROOT)
    try:
        status = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"stopped after {limit_s:.0f} s"
    return None if status == 0 else f"ended with status {status}"


def run_parts(
    parts: Sequence[Part], folder: Path, out: Path, *, limit_s: float, tiny: bool
) -> list[str]:
    """Measure all parts, keeping their rows in `out`; return what was not measured, and why."""
    left_out: list[str] = []
    deadline = time.monotonic() + limit_s
    for part in parts:
        left_s = max(0.0, deadline - time.monotonic())
        problem: str | None = None
        if missing := find_missing(part.modules):
            problem = f"this machine lacks {', '.join(missing)} (see tests/bench/gpu/wheels.txt)"
        elif left_s < MIN_PART_S:
            problem = f"{left_s:.0f} s are left of {limit_s:.0f}"
        else:
            started = time.monotonic()
            if tiny:  # a process for each would take most of the time
                measure(part, folder, out, tiny=True)
            else:
                command = to_command(part, folder, out)
                problem = call_in_process(command, min(part.limit_s, left_s))
            print(f"-- {part.name}: {time.monotonic() - started:.0f} s", flush=True)
        if problem:
            left_out.append(f"{part.name}: {problem}")
            print(f"left out {left_out[-1]}", flush=True)
    return left_out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.name for part in PARTS]
    parser.add_argument(
        "--out",
        type=Path,
        help="a folder for bench.json and performance.md; "
        "default: the repository, where docs/performance.md is rewritten",
    )
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="of the run")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=names,
        default=names,
        metavar="PART",
        help=f"of {', '.join(names)}",
    )
    parser.add_argument("--tiny", action="store_true", help="sizes of a test, on any machine")
    parser.add_argument("--merge", type=Path, metavar="FOLDER", help="measure nothing")
    parser.add_argument("--part", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options, started = parser.parse_args(), time.monotonic()
    if options.part:
        (part,) = (part for part in PARTS if part.name == options.part)
        measure(part, options.folder, options.out, tiny=options.tiny)
        return
    if options.merge:
        report(read_rows(options.merge))
        page.write_page(read_rows())
        return
    if find_missing(["torch"]):
        raise SystemExit("error: this Python has no torch; start with the one that has")
    print(describe_machine(), flush=True)
    if "no GPU" in describe_machine() and not options.tiny:
        raise SystemExit("error: torch sees no GPU; --tiny runs all parts on a CPU, to check them")
    for other in find_other_versions():
        print(f"other version: {other}", flush=True)
    out = options.out or ROOT
    out.mkdir(parents=True, exist_ok=True)
    chosen = [part for part in PARTS if part.name in options.only]
    with tempfile.TemporaryDirectory(prefix="thaw-gpu-") as folder:
        limit_s = options.limit_s - (time.monotonic() - started)  # the first import takes long
        with one_session() if options.tiny else nullcontext():
            left_out = run_parts(chosen, Path(folder), out, limit_s=limit_s, tiny=options.tiny)
    rows = [row for row in read_rows(out) if page.is_ours(row)]
    report(rows, out)
    if options.out:
        (out / "performance.md").write_text(page.render(rows))
    else:
        page.write_page(rows)
    print("\n".join(["all parts measured"] if not left_out else ["not measured:", *left_out]))


if __name__ == "__main__":
    main()
