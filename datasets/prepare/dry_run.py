"""What `prepare` would take from a source, for `--dry-run`: no image is opened."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
from rich import box
from rich.table import Table

from cluster.io.terminal import literal_console
from datasets.manifest import SPLITS
from datasets.prepare.config import PrepareConfig
from datasets.prepare.listing import Listing
from datasets.prepare.partition import describe_missing_validation, num_validation

MAX_CLASSES, MAX_NAMES = 200, 5


def print_listing(listing: Listing, config: PrepareConfig) -> None:
    """Print splits, classes, counts and unused files, each with the rule that decided."""
    console = literal_console(highlight=False, soft_wrap=True)
    splits = listing.references["split"].to_pylist()
    default = ("no folder or file names a split",) if set(splits) == {"train"} else ()
    for note in listing.notes or default:
        console.print(f"rule      {note}")
    counts = {split: _count(listing, split) for split in SPLITS if split in set(splits)}
    if config.folds is not None:
        console.print(f"rule      {config.folds} folds are cut from train, each validates in turn")
    elif "train" in counts and "val" not in counts:
        share = config.val_fraction
        cut = np.array([num_validation(number, share) for number in counts["train"]])
        counts = {**counts, "train": counts["train"] - cut, "val": cut}
        console.print(f"rule      val is cut from train, about {share:.0%} of each class")
    counts = {split: counts[split] for split in SPLITS if split in counts}
    console.print(_tabulate(listing.classes, counts))
    if "train" in counts and "val" in counts:
        train, val = (counts[split].tolist() for split in ("train", "val"))
        if missing := describe_missing_validation(listing.classes, train, val):
            console.print(f"missing   {missing}")
    unlabelled = sum(label < 0 for label in listing.references["label"].to_pylist())
    if unlabelled:
        console.print(f"no label  {unlabelled} images, which will be left out")
    if "group" in listing.references.column_names:
        groups = set(listing.references["group"].drop_null().to_pylist())
        console.print(f"groups    {len(groups)}, each in one split")
    for reason, paths in sorted(_by_reason(listing.unused).items(), key=lambda item: -len(item[1])):
        console.print(f"unused    {len(paths)} {reason}")
        for path in paths[:MAX_NAMES]:
            console.print(f"            {path}")
        if len(paths) > MAX_NAMES:
            console.print(f"            ... and {len(paths) - MAX_NAMES} more")
    noun = "file or row" if len(listing.unused) == 1 else "files and rows"
    images = ", ".join(f"{int(of_split.sum())} {split}" for split, of_split in counts.items())
    classes = "1 class" if len(listing.classes) == 1 else f"{len(listing.classes)} classes"
    console.print(
        f"{classes}; {images or 'no'} images, before those that can't be read and "
        f"duplicates are left out; {len(listing.unused)} {noun} not used; nothing written"
    )


def _count(listing: Listing, split: str) -> np.ndarray:
    """Images of each class."""
    rows = listing.references.filter(pc.field("split") == split)
    labels = rows["label"].to_numpy()
    return np.bincount(labels[labels >= 0], minlength=len(listing.classes))


def _tabulate(classes: Sequence[str], counts: dict[str, np.ndarray]) -> Table:
    table = Table("class", box=box.SIMPLE)
    for split in counts:
        table.add_column(split, justify="right")
    for label, name in enumerate(classes[:MAX_CLASSES]):
        table.add_row(name, *(str(of_split[label]) for of_split in counts.values()))
    if (more := len(classes) - MAX_CLASSES) > 0:
        rest = (str(of_split[MAX_CLASSES:].sum()) for of_split in counts.values())
        table.add_row(f"{more} more", *rest)
    return table


def _by_reason(unused: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    paths = defaultdict[str, list[str]](list)
    for path, reason in unused:
        paths[reason].append(path)
    return paths
