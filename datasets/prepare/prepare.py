"""Images of any source become a data set: validated, bounded, split, in balanced Parquet shards.

Two Ray Data jobs with a plan between them; of few images, in threads. The first reads, validates
and encodes the images and stages the JPEGs; it returns ids and sizes, all the driver ever holds.
The plan assigns splits, orders rows by content hash and cuts shards. The second fills each shard
from the staged files.

    OUT/.staging/KEY/*.parquet  removed at the end; an interrupted run leaves them to the next one
    OUT/quarantine.parquet
    OUT/unused.parquet          where the source has files that are no images of the data set
    OUT/near_duplicates.*       where images are alike: a table and a picture
    OUT/{train,val,test,fold-0}/part-00000-<fingerprint>.parquet
    OUT/manifest.json           last: before it there is no data set, or the one before

The shards of a data set that is there already stay until the new manifest is written: their names
hold another fingerprint.
"""

import time
from dataclasses import asdict, replace

import pyarrow as pa

from cluster.io import filesystems, storage
from cluster.io.errors import StorageError, UserError
from cluster.io.lease import hold_lease
from cluster.io.markers import IN_FINGERPRINT, URI, change_marked, marked
from cluster.io.terminal import report
from datasets.blocks import connect_for
from datasets.manifest import SPLITS, Manifest, Split, join_splits
from datasets.manifest_file import write_manifest
from datasets.prepare.class_checks import check_classes
from datasets.prepare.config import PrepareConfig
from datasets.prepare.dry_run import print_listing
from datasets.prepare.exclude import exclude
from datasets.prepare.existing import (
    clear_leftovers,
    delete_before,
    find_existing_output,
    name_staging,
)
from datasets.prepare.folds import describe_folds
from datasets.prepare.groups import add_groups
from datasets.prepare.jobs import stage, write_shards
from datasets.prepare.listing import Listing, describe_unused
from datasets.prepare.partition import describe_missing_validation, fingerprint
from datasets.prepare.remote import is_local
from datasets.prepare.selection import split_images
from datasets.prepare.sources import SOURCES
from datasets.shards import FOLD_FOLDER, QUARANTINE_SCHEMA, STAGING, UNUSED

_IDENTITY = ("split", "image_id", "label")


def prepare(config: PrepareConfig) -> Manifest:
    """Write the data set that `config` describes, or return the one that is there already.

    Raises:
        UserError: for a source without images, with one class, or with a class that has no
            training image, before or after bad images are left out.
    """
    config = _with_absolute_paths(config)
    listing = _list_source(config)
    check_classes(config, listing.classes, listing.references)
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
    key = name_staging(config, listing.version)
    clear_leftovers(config.out, key)
    for note in listing.notes:
        report(note)
    _write_unused(config, listing)
    staging = storage.join(config.out, STAGING, key)
    if storage.list_names(staging):
        report(f"{config.out}: resuming, images that are staged already are not read again")
    try:
        images = stage(config, listing, staging)
        images, num_left_out = split_images(config, listing, images, staging)
        identity = fingerprint(
            listing.classes,
            [tuple(image.values()) for image in images.select(_IDENTITY).to_pylist()],
            {name: getattr(config, name) for name in marked(PrepareConfig, IN_FINGERPRINT)},
        )
        parts = write_shards(config, images, len(listing.classes), identity, staging)
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
        delete_before(config.out, manifest)
    except StorageError:
        raise  # what is staged serves the next run
    except (UserError, OSError):  # which needs other options, or the space of a disk
        if is_local(filesystems.resolve(config.out)[0]):  # a bucket may have refused a write
            storage.delete_folder(storage.join(config.out, STAGING))
        raise
    storage.delete_folder(storage.join(config.out, STAGING))
    _print_counts(config.out, manifest, time.monotonic() - started_s)
    return manifest


def describe(config: PrepareConfig) -> None:
    """Print what `prepare` would take from the source, and what it would leave unused.

    Raises:
        UserError: as `prepare`, for what is wrong before an image is opened.
    """
    config = _with_absolute_paths(config)
    listing = _list_source(config)
    print_listing(listing, config)
    check_classes(config, listing.classes, listing.references)


def _write_unused(config: PrepareConfig, listing: Listing) -> None:
    if not listing.unused:
        return
    paths, reasons = zip(*listing.unused, strict=True)
    table = pa.table([paths, reasons], schema=QUARANTINE_SCHEMA)
    storage.write_parquet(storage.join(config.out, UNUSED), table)
    print(f"{config.out}: {describe_unused(listing.unused)}; see {UNUSED}")


def _print_counts(out: str, manifest: Manifest, duration_s: float) -> None:
    if manifest.folds:
        print(f"{out}: folds: {describe_folds(manifest)}")
    elif "train" in manifest.splits:
        train, val = manifest.splits["train"].class_counts, manifest.splits.get("val")
        missing = describe_missing_validation(
            manifest.classes, train, val.class_counts if val is not None else [0] * len(train)
        )
        if missing is not None:
            print(f"{out}: {missing}")
    counts = ", ".join(f"{split.num_images} {name}" for name, split in manifest.splits.items())
    print(f"{out}: {len(manifest.classes)} classes; {counts} images; {duration_s:.0f} s")


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
