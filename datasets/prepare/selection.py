"""The plan between the two jobs: which images are kept, in which split, and which are left out."""

from collections.abc import Sequence
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from cluster.io import storage
from datasets.prepare.class_checks import check_classes
from datasets.prepare.config import PrepareConfig
from datasets.prepare.duplicates.near import find_pairs
from datasets.prepare.duplicates.report import (
    PICTURE,
    TABLE,
    Pair,
    describe_pairs,
    order_pairs,
    write_report,
)
from datasets.prepare.listing import Listing
from datasets.prepare.partition import NEAR_TEST, NEAR_VAL, assign_splits, tally_reasons
from datasets.prepare.staging import read_staged, searches_near_duplicates, write_images
from datasets.shards import QUARANTINE_SCHEMA


def split_images(
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
    check_classes(config, listing.classes, good, note)
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
