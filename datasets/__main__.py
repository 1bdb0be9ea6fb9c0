"""python -m datasets prepare | info | preview"""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import tyro
from rich.console import Console
from rich.table import Table

from cluster.entry import run_room
from datasets import storage
from datasets.config import PrepareConfig
from datasets.partition import tally_reasons
from datasets.shards import read_manifest

VERBS = {
    "prepare": "turn images into a data set of validated, split, balanced Parquet shards",
    "info": "show the classes, counts, shards and left-out images of a data set",
    "preview": "draw a contact sheet of a data set and its augmentation policies",
}


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


def main(args: list[str]) -> None:
    verb = args[0] if args else "--help"
    if verb in ("-h", "--help"):
        print("python -m datasets VERB, where VERB is one of\n")
        print("\n".join(f"  {name:<9}{summary}" for name, summary in VERBS.items()))
        print("\n`python -m datasets VERB --help` shows the options of a verb.")
    elif verb == "prepare":
        _prepare(args[1:])
    elif verb == "info":
        _info(tyro.cli(InfoConfig, args=args[1:], prog="python -m datasets info"))
    elif verb == "preview":
        _preview(tyro.cli(PreviewConfig, args=args[1:], prog="python -m datasets preview"))
    else:
        raise ValueError(f"verb is {verb!r}: choose from {', '.join(VERBS)}")


def _prepare(args: list[str]) -> None:
    config = tyro.cli(
        tyro.conf.OmitArgPrefixes[PrepareConfig],
        args=args,
        prog="python -m datasets prepare",
        description=(
            "Turn images into a data set. Examples:\n\n"
            "python -m datasets prepare --source synthetic --out data/synthetic\n\n"
            "python -m datasets prepare --source folder --root photos --out data/photos"
        ),
    )
    from cluster import runtime
    from datasets.prepare import prepare

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
        content = storage.read_bytes(storage.join(config.data, "quarantine.parquet"))
        tally = tally_reasons(pq.read_table(pa.BufferReader(content))["reason"].to_pylist())
    console.print(f"left out     {tally}")


def _preview(config: PreviewConfig) -> None:
    from datasets.preview import preview

    preview(config.data, config.out)
    print(f"wrote {config.out}")


if __name__ == "__main__":
    run_room(main)
