"""The verbs of `python -m datasets`; each imports what it needs when it runs."""

from rich.table import Table

from cluster.io.terminal import literal_console
from datasets.config import BenchConfig, InfoConfig, PreviewConfig
from datasets.manifest_file import read_manifest
from datasets.prepare.config import PrepareConfig
from datasets.shards import UNUSED, read_quarantine


def run_prepare(config: PrepareConfig) -> None:
    from datasets.prepare.prepare import describe, prepare

    if config.dry_run:
        describe(config)
        return
    prepare(config)


def run_info(config: InfoConfig) -> None:
    from datasets.prepare.folds import describe_folds
    from datasets.prepare.partition import tally_reasons

    manifest = read_manifest(config.data, config.fold)
    table = Table("class", title=config.data)
    for name in manifest.splits:
        table.add_column(name, justify="right")
    counts = [split.class_counts for split in manifest.splits.values()]
    for name, *per_split in zip(manifest.classes, *counts, strict=True):
        table.add_row(name, *map(str, per_split))
    table.add_section()
    splits = manifest.splits.values()
    table.add_row("images", *(str(split.num_images) for split in splits))
    table.add_row("shards", *(str(len(split.shards)) for split in splits))
    sizes = (sum(shard.num_bytes for shard in split.shards) / 2**20 for split in splits)
    table.add_row("MiB", *(f"{size:.1f}" for size in sizes))
    console = literal_console()
    console.print(table)
    if manifest.folds:
        console.print(f"val          fold {config.fold}")
        console.print(f"folds        {describe_folds(manifest)}", soft_wrap=True)
    console.print(f"fingerprint  {manifest.fingerprint}")
    tally = "no image"
    if manifest.num_quarantined:
        tally = tally_reasons(read_quarantine(config.data)["reason"].to_pylist())
    console.print(f"left out     {tally}")
    if manifest.num_unused:
        reasons = read_quarantine(config.data, UNUSED)["reason"].to_pylist()
        console.print(f"not used     {tally_reasons(reasons)}")


def run_preview(config: PreviewConfig) -> None:
    from datasets.preview import preview

    preview(config.data, config.out)
    print(f"wrote {config.out}")


def run_bench(config: BenchConfig) -> None:
    from cluster import runtime
    from datasets.bench import bench

    runtime.connect(config.address)
    bench(config.data, policy=config.policy, size_px=config.size_px, seconds=config.seconds)
