"""python -m datasets prepare | info | preview | bench"""

from dataclasses import dataclass

import tyro
from rich.console import Console
from rich.table import Table

from cluster.entry import print_verbs, run_room
from cluster.io.errors import UserError, require_between, require_positive
from cluster.io.fields import check_fields
from datasets.config import SIZES_PX, Policy, PrepareConfig
from datasets.prepare.partition import tally_reasons
from datasets.shards import read_manifest, read_quarantine

VERBS = {
    "prepare": "turn images into a data set of validated, split, balanced Parquet shards",
    "info": "show the classes, counts, shards and left-out images of a data set",
    "preview": "draw a contact sheet of a data set and its augmentation policies",
    "bench": "time every stage of ingest, and count the cores that feed a GPU",
}

PREPARE_HELP = """Turn images into a data set of validated, split, balanced Parquet shards.

  python -m datasets prepare --source synthetic --out runs/cars
  python -m datasets prepare --source folder --root photos/train --test-root photos/test --out ...
  python -m datasets prepare --source stanford --root stanford_cars --crop-to-box --out runs/cars

Images that can't be read go to OUT/quarantine.parquet with a reason. The same command again reuses
what it made.
"""


@dataclass(frozen=True, kw_only=True)
class InfoConfig:
    """Show what a data set holds: python -m datasets info --data data/cars"""

    data: str
    """URI of a prepared data set."""


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """Draw a contact sheet: python -m datasets preview --data data/cars"""

    data: str
    """URI of a prepared data set."""
    out: str = "preview.png"
    """URI of the PNG to write."""


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Time every stage of ingest on your data: python -m datasets bench --data runs/cars"""

    data: str
    """URI of a prepared data set."""
    policy: Policy = "cars"
    """Augmentation policy."""
    size_px: int = 224
    """Height and width of the images the network sees."""
    seconds: float = 10.0
    """About how long the whole stream is measured."""
    address: str | None = None
    """Address of a Ray cluster; default: RAY_ADDRESS, else a cluster on this machine."""

    def __post_init__(self) -> None:
        require_between("size_px", self.size_px, *SIZES_PX)
        require_positive("seconds", self.seconds)


def main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print_verbs("datasets", VERBS)
        return
    match parse(arguments):
        case PrepareConfig() as config:
            _prepare(config)
        case InfoConfig() as config:
            _info(config)
        case PreviewConfig() as config:
            _preview(config)
        case config:
            _bench(config)


def parse(arguments: list[str]) -> PrepareConfig | InfoConfig | PreviewConfig | BenchConfig:
    """Parse a verb and its options.

    Raises:
        UserError: for an unknown verb, or values that don't fit.
    """
    verb, *options = arguments
    configs = {"info": InfoConfig, "preview": PreviewConfig, "bench": BenchConfig}
    if verb == "prepare":
        config = tyro.cli(
            tyro.conf.OmitArgPrefixes[PrepareConfig],
            args=options,
            prog="python -m datasets prepare",
            description=PREPARE_HELP,
        )
    elif verb in configs:
        config = tyro.cli(configs[verb], args=options, prog=f"python -m datasets {verb}")
    else:
        raise UserError(f"verb is {verb!r}: choose from {', '.join(VERBS)}")
    check_fields(config)
    return config


def _prepare(config: PrepareConfig) -> None:
    from cluster import runtime
    from datasets.prepare.prepare import prepare

    runtime.connect(config.address)
    prepare(config)


def _info(config: InfoConfig) -> None:
    manifest = read_manifest(config.data)
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
    console = Console()
    console.print(table)
    console.print(f"fingerprint  {manifest.fingerprint}")
    tally = "no image"
    if manifest.num_quarantined:
        tally = tally_reasons(read_quarantine(config.data)["reason"].to_pylist())
    console.print(f"left out     {tally}")


def _preview(config: PreviewConfig) -> None:
    from datasets.preview import preview

    preview(config.data, config.out)
    print(f"wrote {config.out}")


def _bench(config: BenchConfig) -> None:
    from cluster import runtime
    from datasets.bench import bench

    runtime.connect(config.address)
    bench(config.data, policy=config.policy, size_px=config.size_px, seconds=config.seconds)


if __name__ == "__main__":
    run_room(main)
