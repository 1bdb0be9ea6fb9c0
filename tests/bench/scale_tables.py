"""The tables of docs/scale.md: name -> Markdown, from a size and the measured constants."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from math import inf
from typing import Any

from tests.bench.scale_constants import read_parts
from tests.bench.scale_model import DEPTHS, FROZEN, Feeding, Keeping, Scale, Step, first_size

Constants = dict[str, dict[str, Any]]
SIZES = (1, 8, 64, 256, 1000, 4000)
MAX_SHARE, MAX_OVERHEAD, MAX_WAIT_S = 0.1, 0.02, 60.0
"""What counts as broken: a tenth of a step on the network, a fiftieth of the time in checkpoints,
a minute until all streams have begun."""
POLLS_PER_S = 3
"""Of the rows of a running trial: its mirror once, its process twice a second."""


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def number(value: float) -> str:
    """Write three digits that count: 0.0123, 1.23, 12.3, 1,230."""
    if value == inf:
        return "more than 100,000"
    if abs(value) >= 1000:
        digits = len(str(int(abs(value))))
        return f"{round(value, 3 - digits):,.0f}"
    return f"{value:.3g}"


def amount(num_bytes: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{number(num_bytes / size)} {unit}"
    return f"{number(num_bytes)} B"


def seconds(value: float) -> str:
    if value < 0.1:
        return f"{number(value * 1e3)} ms"
    if value < 300:
        return f"{number(value)} s"
    return f"{number(value / 60)} min" if value < 3 * 3600 else f"{number(value / 3600)} h"


def list_options(scale: Scale, constants: Constants) -> str:
    rows = []
    for field in fields(Scale):
        option = "--" + field.name.replace("_", "-")
        rows.append([f"`{option}`", number(getattr(scale, field.name))])
    return table(["option", "value"], rows)


def list_constants(scale: Scale, constants: Constants) -> str:
    rows = []
    for name, part in read_parts().items():
        rows.append([name, f"`{part['command']}`", part["date"], part["machine"]])
    return table(["part", "command", "measured", "on"], rows)


def compare_depths(scale: Scale, constants: Constants) -> str:
    """Freeze depths at the size asked for."""
    rows = []
    for depth in DEPTHS:
        step = Step(scale, constants, depth)
        rows.append(
            [
                f"{depth} ({FROZEN[depth]})",
                f"{constants['network']['trained_parameters'][depth] / 1e6:.2f} M",
                amount(step.wire_bytes),
                seconds(step.compute_s),
                seconds(step.all_reduce_s),
                f"{step.share:.1%}",
                number(step.images_per_s),
                number(step.fed_images_per_s),
                amount(constants["checkpoint"]["bytes"][depth]),
                amount(constants["network"]["feature_bytes"][depth] * scale.images),
            ]
        )
    header = [
        "freeze depth", "trained", "sent by a node a step", "compute", "all-reduce",
        "waits for it", "images/s, fed", "images/s of the CPUs", "checkpoint", "features, a view",
    ]  # fmt: skip
    return table(header, rows)


def compare_sizes(scale: Scale, constants: Constants) -> str:
    """Images a second, and the share of a step that waits for the network, by number of GPUs."""
    rows = []
    for gpus in SIZES:
        steps = [Step(replace(scale, gpus=gpus), constants, depth) for depth in (0, 3, 4, 5)]
        cells = [f"{number(step.images_per_s)} ({step.share:.1%})" for step in steps]
        rows.append([f"{gpus:,}", *cells])
    header = ["GPUs", *(f"depth {depth}" for depth in (0, 3, 4, 5))]
    return table(header, rows)


def compare_networks(scale: Scale, constants: Constants) -> str:
    """The same at the size asked for, by the network of a node."""
    rows = []
    for gbps in (25, 100, 400, 1600):
        of_network = replace(scale, network_gbps=gbps)
        steps = [Step(of_network, constants, depth) for depth in DEPTHS]
        rows.append([gbps, *(f"{number(s.images_per_s)} ({s.share:.0%})" for s in steps)])
    return table(["Gbit/s of a node", *(f"depth {depth}" for depth in DEPTHS)], rows)


def describe_feeding(scale: Scale, constants: Constants) -> str:
    """What feeding asks for, by number of GPUs: as by default, with a lane for each worker, and
    with larger row groups and tasks as well."""
    rows = []
    for gpus in (8, 64, 256, 1000):
        lanes = max(scale.interleave, gpus)
        sizes = [replace(scale, gpus=gpus)]
        if lanes > scale.interleave:
            sizes.append(replace(sizes[0], interleave=lanes))
            sizes.append(replace(sizes[1], row_group_size=256, task_images=1024))
        rate = Step(sizes[0], constants, 0).images_per_s
        for size in sizes:
            feeding = Feeding(size, constants, rate)
            rows.append(
                [
                    f"{gpus:,}",
                    f"{size.interleave:,}",
                    f"{size.row_group_size}, {size.task_images:,}",
                    number(rate),
                    f"{feeding.reads_per_image:.2f}",
                    f"{number(feeding.read_gb_per_s)} GB/s",
                    f"{number(feeding.read_gb_per_s * 8 / size.nodes)} Gbit/s",
                    number(feeding.requests_per_s),
                    f"{feeding.cores_per_gpu:.1f}",
                ]
            )
    header = [
        "GPUs", "`--interleave`", "row group, task", "images/s", "reads of an image",
        "from storage", "to a node", "S3 requests/s", "cores a GPU",
    ]  # fmt: skip
    return table(header, rows)


def describe_metadata(scale: Scale, constants: Constants) -> str:
    """What a rank holds to plan, and what lies on storage, for the images asked for."""
    planner, manifest, requests = (constants[name] for name in ("planner", "manifest", "requests"))
    share = scale.images / planner["images"][-1]
    task_images = 256
    tasks_per_s = Step(scale, constants, 0).images_per_s / task_images
    rows = [
        ["shards of 128 MiB", number(manifest["shards"] * share)],
        ["row groups of 64 images", number(manifest["row_groups"] * share)],
        ["the data set", amount(scale.images * scale.image_kb * 1e3)],
        ["manifest.json", amount(manifest["bytes"][-1] * share)],
        ["manifest.json, read by all ranks at a start",
         amount(manifest["bytes"][-1] * share * scale.gpus)],
        ["reading and parsing it", seconds(manifest["read_s"][-1] * share)],
        ["planner of a rank, peak", amount(planner["peak_bytes"][-1] * share)],
        ["planner, an image", f"{planner['peak_bytes'][-1] / planner['images'][-1]:.2f} B"],
        ["until the first read task is planned", seconds(planner["first_chunk_s"][-1] * share)],
        ["a read task, planned", seconds(planner["chunk_s"][-1])],
        ["read tasks a second, of all ranks", number(tasks_per_s)],
        ["requests for a row group: first of a shard, later",
         f"{requests['first_of_a_shard']}, {requests['later']}"],
    ]  # fmt: skip
    return table([f"for {number(scale.images)} images", ""], rows)


def describe_keeping(scale: Scale, constants: Constants) -> str:
    """Checkpoints and rows of a training whose network trains whole."""
    keeping = Keeping(scale, constants, Step(scale, constants, 0).step_s)
    rows = [
        ["a step", seconds(keeping.step_s)],
        ["an epoch", f"{number(scale.steps_per_epoch)} steps, "
         f"{seconds(scale.steps_per_epoch * keeping.step_s)}"],
        ["a checkpoint (Adam)", amount(keeping.checkpoint_bytes)],
        ["all ranks wait while rank 0 copies it", seconds(keeping.stall_s)],
        [f"rank 0 writes it at {number(scale.write_mb_per_s)} MB/s, beside the training",
         seconds(keeping.write_s)],
        [f"every {scale.checkpoint_every_steps} steps: every", seconds(keeping.interval_s)],
        ["share of the time in checkpoints", f"{keeping.overhead:.1%}"],
        ["a failure every", seconds(keeping.mtbf_s)],
        ["best interval (Young)", f"{seconds(keeping.best_interval_s)}: "
         f"`--checkpoint-every-steps {keeping.best_interval_steps}`"],
        ["read by all ranks at a resume", amount(keeping.checkpoint_bytes * scale.gpus)],
        ["rows of metrics.jsonl", f"{number(keeping.num_rows)}, {number(keeping.rows_per_s)} a "
         f"second, {amount(keeping.rows_bytes)}"],
        ["written, were the file rewritten for every row", amount(keeping.rewritten_bytes)],
        ["points of a metric in W&B (100,000 advised)", number(keeping.num_rows)],
    ]  # fmt: skip
    return table([f"{scale.gpus:,} GPUs, {scale.epochs} epochs", ""], rows)


def describe_sweep(scale: Scale, constants: Constants) -> str:
    """What the driver of a sweep does, a trial on each GPU."""
    sweep = constants["sweep"]
    measured = sweep["trials"][-1]
    share = scale.trials / measured
    sizes = ", ".join(number(size) for size in sweep["trials"])
    kept = ", ".join(number(mib) for mib in sweep["driver_mib"])
    mirrors = constants["mirrors"]
    rows = [
        ["trials.json", amount(sweep["trials_json_bytes"][-1] * share)],
        ["Tune's state, a trial", amount(sweep["tune_state_bytes"][-1] / measured)],
        [f"memory of a driver after sweeps of {sizes} trials", f"{kept} MiB"],
        ["CPU of the driver, a trial (Tune)", seconds(sweep["driver_cpu_s"][-1] / measured)],
        ["of which Thaw's callbacks", seconds(sweep["callbacks_s"][-1] / measured)],
        ["threads that mirror, were all trials to run at once", number(scale.trials)],
        ["their reads of rows a second", number(POLLS_PER_S * scale.trials)],
        ["a mirror: CPU of the driver, memory it keeps",
         f"{seconds(mirrors['cpu_s'][-1] / mirrors['mirrors'][-1])}, "
         f"{max(0.0, mirrors['kept_mib'][-1] / mirrors['mirrors'][-1]):.2g} MiB"],
    ]  # fmt: skip
    return table([f"{scale.trials:,} trials", ""], rows)


def describe_workers(scale: Scale, constants: Constants) -> str:
    """Workers of Ray Train on this machine, and forked ranks."""
    workers, ranks = constants["workers"], constants["ranks"]
    rows = [
        [f"{count} workers", f"{number(worker_mib)} MiB", f"{number(all_mib / 1024)} GiB",
         seconds(fit_s)]
        for count, worker_mib, all_mib, fit_s in zip(
            *(workers[name] for name in ("workers", "worker_mib", "all_mib", "fit_s")), strict=True
        )
    ]  # fmt: skip
    private, last = ranks["private_mib"][-1], ranks["ranks"][-1]
    rows.append(
        [f"{last} forked ranks", f"{number(private)} MiB", f"{number(private * last / 1024)} GiB",
         seconds(ranks["train_s"][-1])]
    )  # fmt: skip
    header = ["", "memory of one that is its own", "of all, readers included", "a training"]
    return table(header, rows)


def describe_growth(scale: Scale, constants: Constants) -> str:
    """What was run on this machine, and how it grows: 1 is in step with the work."""
    planner, rows, ranks, sweep, coordinator, manifest = (
        constants[n] for n in ("planner", "rows", "ranks", "sweep", "coordinator", "manifest")
    )

    def told(sizes: Sequence[float], values: Sequence[float], write: Callable[[float], str]) -> str:
        return ", ".join(f"{s:,}: {write(v)}" for s, v in zip(sizes, values, strict=True))

    lines = [
        ["planner's memory, by images", told(planner["images"], planner["peak_bytes"], amount),
         planner["peak_exponent"]],
        ["planning an epoch of a worker's 51,200 images, by workers",
         told(planner["workers"], planner["epoch_of_a_worker_s"], seconds),
         planner["epoch_exponent"]],
        ["manifest.json, by images", told(manifest["images"], manifest["bytes"], amount),
         manifest["bytes_exponent"]],
        ["a row written, by rows before it", told(rows["rows_before"], rows["log_s"], seconds),
         rows["log_exponent"]],
        ["a row read, by rows before it", told(rows["rows_before"], rows["poll_s"], seconds),
         rows["poll_exponent"]],
        ["a training, by ranks with equal work on two cores",
         told(ranks["ranks"], ranks["train_s"], seconds), ranks["train_exponent"]],
        ["metrics reduced over the ranks",
         told(ranks["ranks"][1:], ranks["reduce_s"][1:], seconds), ranks["reduce_exponent"]],
        ["bytes Thaw reduces, a rank", told(ranks["ranks"], ranks["all_reduced_bytes"], amount),
         ""],
        ["rows and files of the run", told(ranks["ranks"], ranks["rows"], number) + " rows; "
         + ", ".join(map(str, ranks["files"])) + " files", 0.0],
        ["a sweep's trials, wall time", told(sweep["trials"], sweep["wall_s"], seconds),
         sweep["wall_exponent"]],
        ["mirrors of runs in W&B, CPU of the driver",
         told(constants["mirrors"]["mirrors"], constants["mirrors"]["cpu_s"], seconds),
         constants["mirrors"]["cpu_exponent"]],
        ["Thaw's callbacks in it", told(sweep["trials"], sweep["callbacks_s"], seconds),
         sweep["callbacks_exponent"]],
        ["a stream registers with Ray Data's coordinator, by workers (before)",
         told(coordinator["workers"], coordinator["register_s"], seconds),
         coordinator["register_exponent"]],
    ]  # fmt: skip
    cells = [
        [what, values, grown if isinstance(grown, str) else f"{grown:.2f}"]
        for what, values, grown in lines
    ]
    return table(["what", "seen", "exponent"], cells)


def find_breaks(scale: Scale, constants: Constants) -> str:
    """What breaks, in the order of the sizes at which it does."""
    network = [Step(scale, constants, depth) for depth in DEPTHS]

    def step_at(gpus: int, depth: int = 0) -> Step:
        return Step(replace(scale, gpus=gpus), constants, depth)

    def feeding_at(gpus: int) -> Feeding:
        return Feeding(replace(scale, gpus=gpus), constants, step_at(gpus).images_per_s)

    keeping = Keeping(scale, constants, network[0].step_s)
    starved = next(
        (d for d in DEPTHS if step_at(1, d).images_per_s > step_at(1, d).fed_images_per_s), None
    )
    coordinator = constants["coordinator"]
    grows, last = coordinator["register_exponent"], coordinator["workers"][-1]

    def register_all_s(gpus: int) -> float:
        one_s = coordinator["register_s"][-1] * (gpus / last) ** grows
        return 2 * gpus * one_s / (1 + grows)

    row_s = scale.log_every_steps * keeping.step_s
    rows_of_a_write = row_s * scale.write_mb_per_s * 1e6 / constants["rows"]["row_bytes"]
    found: list[tuple[float, str, str, str]] = []
    if starved is not None:
        found.append(
            (
                1,
                f"CPUs feed less than a GPU takes, from freeze depth {starved} on",
                "1 GPU",
                "features (`tuning`, any depth that fits), `--ingest memory`, or nodes for reading",
            )
        )
    if keeping.overhead > MAX_OVERHEAD:
        found.append(
            (
                1,
                f"a checkpoint every {scale.checkpoint_every_steps} steps takes "
                f"{keeping.overhead:.1%} of the time",
                "1 GPU",
                f"`--checkpoint-every-steps {keeping.best_interval_steps}`",
            )
        )
    found.append(
        (
            1,
            "metrics.jsonl is written whole for every row: one write takes longer than the time "
            "between two rows",
            f"{number(rows_of_a_write)} rows, any number of GPUs",
            "mended: a local file grows, and on object stores rows wait for a write that is worth "
            "it; `--log-every-steps` for fewer",
        )
    )
    sizes = [
        (
            first_size(lambda n: feeding_at(n).requests_per_s > scale.gets_per_s * scale.prefixes),
            f"{number(scale.gets_per_s)} requests/s of an S3 prefix",
            "shards on NVMe or a shared file system; else more prefixes, larger row groups and "
            "tasks, a lane for each worker (below)",
        ),
        (
            first_size(lambda n: 2 * n > scale.node_cpus),
            "Ray Data divides a node's CPUs among the streams of all nodes: none has any",
            "mended: a stream has its training's share",
        ),
        (
            first_size(lambda n: register_all_s(n) > MAX_WAIT_S),
            f"all streams register with Ray Data's one coordinator: {seconds(MAX_WAIT_S)} and more",
            "mended: they don't",
        ),
        (
            first_size(lambda n: n * scale.worker_batch_size > 32_768),
            "a global batch above 32,768, where accuracy has been kept (You et al. 2017)",
            "a smaller `--global-batch-size`, or several trainings: a sweep",
        ),
        (
            scale.gets_per_s * scale.prefixes / POLLS_PER_S,
            "a sweep with a trial a GPU: rows are looked for more often than a prefix of S3 allows",
            "several sweeps; shared file storage for `--out`",
        ),
        *(
            (
                first_size(lambda n, d=depth: step_at(n, d).share > MAX_SHARE),
                f"a tenth of a step waits for the all-reduce, freeze depth {depth}",
                "a larger batch a GPU, `--accumulation-steps`; freezing deeper but for the head "
                "makes it worse",
            )
            for depth in (0, 4)
        ),
    ]
    found += [(gpus, what, f"{number(gpus)} GPUs", do) for gpus, what, do in sizes]
    found.sort(key=lambda row: row[0])
    return table(["what breaks", "at", "what to do"], [row[1:] for row in found])


TABLES: dict[str, Callable[[Scale, Constants], str]] = {
    "breaks": find_breaks,
    "depths": compare_depths,
    "sizes": compare_sizes,
    "networks": compare_networks,
    "feeding": describe_feeding,
    "metadata": describe_metadata,
    "keeping": describe_keeping,
    "sweep": describe_sweep,
    "workers": describe_workers,
    "growth": describe_growth,
    "options": list_options,
    "constants": list_constants,
}
