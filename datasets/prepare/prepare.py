"""Images of any source become a data set: validated, bounded, split, in balanced Parquet shards.

Two Ray Data jobs with a plan between them; of few images, in threads. The first reads, validates
and encodes the images and stages the JPEGs; it returns ids and sizes, all the driver ever holds.
The plan assigns splits, orders rows by content hash and cuts shards. The second fills each shard
from the staged files.

    OUT/.staging/*.parquet      removed at the end
    OUT/quarantine.parquet
    OUT/unused.parquet          where the source has files that are no images of the data set
    OUT/near_duplicates.*       where images are alike: a table and a picture
    OUT/{train,val,test,fold-0}/part-00000-<fingerprint>.parquet
    OUT/manifest.json           last: before it there is no data set
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.io import storage
from cluster.io.errors import UserError
from cluster.io.lease import hold_lease
from cluster.io.markers import IN_FINGERPRINT, URI, change_marked, marked
from cluster.io.progress import collect
from cluster.io.terminal import count, report
from datasets.blocks import connect_for, find_num_cpus, run_blocks
from datasets.config import PrepareConfig
from datasets.prepare.classes import find_similar
from datasets.prepare.dry_run import print_listing
from datasets.prepare.duplicates.near import find_pairs
from datasets.prepare.duplicates.report import (
    PICTURE,
    TABLE,
    Pair,
    describe_pairs,
    order_pairs,
    write_report,
)
from datasets.prepare.exclude import exclude
from datasets.prepare.existing import clear, find_existing_output
from datasets.prepare.folds import describe_folds
from datasets.prepare.groups import add_groups
from datasets.prepare.layout import stands_for_no_class
from datasets.prepare.listing import Listing, describe_source, describe_unused
from datasets.prepare.partition import (
    NEAR_TEST,
    NEAR_VAL,
    assign_splits,
    cut_row_groups,
    describe_missing_validation,
    fingerprint,
    tally_reasons,
)
from datasets.prepare.sources import SOURCES
from datasets.prepare.staging import (
    fill_shard,
    read_staged,
    searches_near_duplicates,
    stage_images,
    write_images,
)
from datasets.shards import (
    FOLD_FOLDER,
    QUARANTINE_SCHEMA,
    SPLITS,
    UNUSED,
    Manifest,
    Shard,
    Split,
    fold_name,
    join_splits,
    write_manifest,
)

_MIN_TASK_IMAGES, _MAX_TASK_IMAGES = 16, 500
_IDENTITY = ("split", "image_id", "label")


def prepare(config: PrepareConfig) -> Manifest:
    """Write the data set that `config` describes, or return the one that is there already.

    Raises:
        UserError: for a source without images, with one class, or with a class that has no
            training image, before or after bad images are left out.
    """
    config = _with_absolute_paths(config)
    listing = _list_source(config)
    _check_classes(config, listing.classes, listing.references)
    if (existing := find_existing_output(config, listing.version)) is not None:
        return existing
    connect_for(len(listing.references), config.address, imports=(__name__,))
    with hold_lease(config.out):
        return _write(config, listing)


def _list_source(config: PrepareConfig) -> Listing:
    """List the source; validation images train where folds are cut from both."""
    listing = add_groups(config, exclude(config, SOURCES[config.source](config)))
    if config.folds is None:
        return listing
    index = listing.references.column_names.index("split")
    splits = listing.references["split"].to_pylist()
    merged = pa.array(["train" if split == "val" else split for split in splits], pa.string())
    return replace(listing, references=listing.references.set_column(index, "split", merged))


def _write(config: PrepareConfig, listing: Listing) -> Manifest:
    started_s = time.monotonic()
    clear(config.out)
    for note in listing.notes:
        report(note)
    _write_unused(config, listing)
    staging = storage.join(config.out, ".staging")
    try:
        images = _stage(config, listing, staging)
        images, num_left_out = _split(config, listing, images, staging)
        identity = fingerprint(
            listing.classes,
            [tuple(image.values()) for image in images.select(_IDENTITY).to_pylist()],
            {name: getattr(config, name) for name in marked(PrepareConfig, IN_FINGERPRINT)},
        )
        parts = _write_parts(config, images, len(listing.classes), identity, staging)
        splits, folds = _choose_splits(parts)
        manifest = Manifest(
            classes=listing.classes,
            splits=splits,
            folds=folds,
            num_quarantined=num_left_out,
            fingerprint=identity,
            options=asdict(config),
            source_version=listing.version,
            num_unused=len(listing.unused),
        )
        write_manifest(config.out, manifest)
    finally:
        storage.delete_folder(staging)
    if manifest.folds:
        print(f"{config.out}: folds: {describe_folds(manifest)}")
    elif "train" in splits:
        train, val = splits["train"].class_counts, splits.get("val")
        missing = describe_missing_validation(
            listing.classes, train, val.class_counts if val is not None else [0] * len(train)
        )
        if missing is not None:
            print(f"{config.out}: {missing}")
    counts = ", ".join(f"{split.num_images} {name}" for name, split in manifest.splits.items())
    duration_s = time.monotonic() - started_s
    print(f"{config.out}: {len(manifest.classes)} classes; {counts} images; {duration_s:.0f} s")
    return manifest


def describe(config: PrepareConfig) -> None:
    """Print what `prepare` would take from the source, and what it would leave unused.

    Raises:
        UserError: as `prepare`, for what is wrong before an image is opened.
    """
    config = _with_absolute_paths(config)
    listing = _list_source(config)
    print_listing(listing, config)
    _check_classes(config, listing.classes, listing.references)


def _write_unused(config: PrepareConfig, listing: Listing) -> None:
    if not listing.unused:
        return
    paths, reasons = zip(*listing.unused, strict=True)
    table = pa.table([paths, reasons], schema=QUARANTINE_SCHEMA)
    storage.write_parquet(storage.join(config.out, UNUSED), table)
    print(f"{config.out}: {describe_unused(listing.unused)}; see {UNUSED}")


def _with_absolute_paths(config: PrepareConfig) -> PrepareConfig:
    """Make local paths absolute: tasks may run in another working directory."""
    config = change_marked(config, URI, storage.absolute)
    for root in filter(None, (config.root, config.test_root)):
        if f"{config.out}/".startswith(f"{root.rstrip('/')}/"):
            raise UserError(
                f"out is {config.out!r}: it is inside the source {root!r}, where shards would "
                "count as images; use a folder outside of it"
            )
    return config


def _check_classes(
    config: PrepareConfig, classes: tuple[str, ...], images: pa.Table, note: str = ""
) -> None:
    """Require two classes with training images each, except of test images alone; `note` says what
    was left out."""
    source = describe_source(config)
    if set(images["split"].to_pylist()) == {"test"}:
        return
    if len(classes) < 2:
        raise UserError(
            f"{source}: it has {len(classes)} class{note}; give images of two classes or more"
        )
    if not len(images):
        raise UserError(f"{source}: no image is left{note}; check the files")
    labels_of = defaultdict[str, set[int]](set)
    for split, label in zip(images["split"].to_pylist(), images["label"].to_pylist(), strict=True):
        labels_of["train" if FOLD_FOLDER.fullmatch(split) else split].add(label)
    train, test = labels_of["train"], labels_of["test"]
    for label, name in enumerate(classes):
        if label not in train:
            only = "only validation images" if label in labels_of["val"] else "no image"
            only = "only test images" if label in test else only
            remedy = "add training images of it, or remove the class"
            if stands_for_no_class(name):
                remedy = "move its images into folders of their classes, or remove the folder"
            if (similar := find_similar(name, classes)) is not None:
                remedy = f"call it {similar!r} where that is meant, which differs in case only"
            raise UserError(f"{source}: class {name!r} has {only}{note}; {remedy}")


def _stage(config: PrepareConfig, listing: Listing, staging: str) -> pa.Table:
    """Run the first job; return STAGED_SCHEMA with split, label, path and, where the source has
    groups, group, a row per image."""
    num_images = len(listing.references)
    references = listing.references.append_column("position", pa.array(np.arange(num_images)))
    num_tasks = max(4 * find_num_cpus(), num_images // _MAX_TASK_IMAGES)
    task_images = max(_MIN_TASK_IMAGES, -(-num_images // num_tasks))
    blocks = [references.slice(i, task_images) for i in range(0, num_images, task_images)]
    staged = run_blocks(blocks, stage_images, read=listing.read, config=config, staging=staging)
    images = collect(staged, num_images, "Preparing images").sort_by("position")
    for name in ("split", "label", "path", "group"):
        if name in references.column_names:
            images = images.append_column(name, references[name])
    return images


def _split(
    config: PrepareConfig, listing: Listing, images: pa.Table, staging: str
) -> tuple[pa.Table, int]:
    """Assign splits and write the quarantine; return the good images and how many are left out."""
    good = images.filter(pc.field("reason").is_null())
    pairs = list[Pair]()
    if searches_near_duplicates(config):
        read = partial(read_staged, staging, good, column="thumbnail")
        pairs = find_pairs(good["hashes"].to_pylist(), good["pixel_id"].to_pylist(), read)
    own_groups = good["group"].to_pylist() if "group" in good.column_names else [None] * len(good)
    splits, reasons = assign_splits(
        good["split"].to_pylist(),
        good["label"].to_pylist(),
        good["image_id"].to_pylist(),
        config.val_fraction,
        pixel_ids=good["pixel_id"].to_pylist(),
        groups=own_groups,
        pairs=[pair[:2] for pair in pairs],
        drop_near=config.near_duplicates == "drop",
        num_folds=config.folds,
    )
    _report_near_duplicates(config, pairs, good, splits, reasons, staging)
    good = good.drop_columns(["split", "reason"])
    good = good.append_column("split", pa.array(splits, pa.string()))
    good = good.append_column("reason", pa.array(reasons, pa.string()))
    left_out = pa.concat_tables(
        table.filter(pc.field("reason").is_valid()).select(QUARANTINE_SCHEMA.names)
        for table in (images, good)
    )
    uri = storage.join(config.out, "quarantine.parquet")
    write_images(uri, left_out, row_group_size=2**16)
    good = good.filter(pc.field("reason").is_null())
    note = ""
    if len(left_out):
        tally = tally_reasons(left_out["reason"].to_pylist())
        print(f"{config.out}: {len(left_out)} images left out, {tally}; see quarantine.parquet")
        note = f" after {len(left_out)} were left out ({tally})"
    _check_classes(config, listing.classes, good, note)
    return good, len(left_out)


def _report_near_duplicates(
    config: PrepareConfig,
    pairs: Sequence[Pair],
    images: pa.Table,
    splits: Sequence[str],
    reasons: Sequence[str | None],
    staging: str,
) -> None:
    """Write and print the pairs of images that are kept, or left out for being near duplicates."""
    reported = {None, NEAR_TEST, NEAR_VAL}
    pairs = [pair for pair in pairs if reported.issuperset(reasons[i] for i in pair[:2])]
    if not pairs:
        return
    pairs = order_pairs(pairs, splits)
    read = partial(read_staged, staging, images, column="image")
    write_report(config.out, pairs, images["path"].to_pylist(), splits, read)
    remedy = "" if config.near_duplicates == "drop" else "; --near-duplicates drop leaves out "
    remedy += "those of train like a test image" if remedy else ""
    print(f"{config.out}: {describe_pairs(pairs, splits)}; see {PICTURE}, {TABLE}{remedy}")


def _choose_splits(parts: dict[str, Split]) -> tuple[dict[str, Split], tuple[Split, ...]]:
    """Return the splits of the manifest and its folds, of which the first validates."""
    folds = tuple(split for name, split in parts.items() if FOLD_FOLDER.fullmatch(name))
    splits = {name: parts[name] for name in SPLITS if name in parts}
    if folds:
        train = [splits["train"]] if "train" in splits else []
        splits = {"train": join_splits([*train, *folds[1:]]), "val": folds[0]} | {
            name: split for name, split in splits.items() if name == "test"
        }
    return splits, folds


def _write_parts(
    config: PrepareConfig, images: pa.Table, num_classes: int, identity: str, staging: str
) -> dict[str, Split]:
    """Run the second job: cut each split or fold into shards and fill them."""
    blocks: list[pa.Table] = []
    row_groups: dict[str, tuple[int, ...]] = {}
    counts: dict[str, tuple[int, ...]] = {}
    num_pixels: dict[str, int] = {}
    for split in (*SPLITS, *map(fold_name, range(config.folds or 0))):
        rows = images.filter(pc.field("split") == split)
        if not len(rows):
            continue
        # By content hash: a random order that is always the same, so classes mix in a row group.
        rows = rows.sort_by([("image_id", "ascending"), ("path", "ascending")])
        counts[split] = tuple(np.bincount(rows["label"], minlength=num_classes).tolist())
        num_pixels[split] = int(rows["num_pixels"].to_numpy().sum())
        shards = cut_row_groups(
            len(rows),
            int(rows["num_bytes"].to_numpy().sum()),
            row_group_size=config.row_group_size,
            shard_bytes=config.shard_mib * 2**20,
        )
        start = 0
        for number, groups in enumerate(shards):
            path = f"{split}/part-{number:05d}-{identity[:12]}.parquet"
            block = rows.slice(start, sum(groups))
            blocks.append(block.append_column("shard", pa.array([path] * len(block))))
            row_groups[path] = groups
            start += sum(groups)
    size_of: dict[str, int] = {}
    filled = run_blocks(
        blocks, fill_shard, out=config.out, staging=staging, row_group_size=config.row_group_size
    )
    with count("Writing shards", len(images), "images") as advance:
        for written in filled:
            for shard, num_bytes in zip(*written.to_pydict().values(), strict=True):
                size_of[shard] = num_bytes
                advance(sum(row_groups[shard]))
    return {
        split: Split(
            shards=tuple(
                Shard(path=path, row_groups=groups, num_bytes=size_of[path])
                for path, groups in row_groups.items()
                if path.startswith(f"{split}/")
            ),
            class_counts=class_counts,
            num_pixels=num_pixels[split],
        )
        for split, class_counts in counts.items()
    }
