"""The two kinds of Ray tasks of `prepare`: encode images into a staged file, fill one shard."""

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.io import filesystems, storage
from datasets.images import BadImage, Converted, convert, identify_pixels
from datasets.prepare.config import PrepareConfig
from datasets.prepare.duplicates.near import hash_image
from datasets.prepare.listing import Reader
from datasets.prepare.partition import identify
from datasets.shards import SHARD_SCHEMA, checksum

# A shard takes few rows of each staged file: with small row groups it reads little else.
STAGED_ROW_GROUP_SIZE = 16
STAGED_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),  # index of the reference
        ("staged", pa.string()),  # name of the staged file
        ("row", pa.int32()),  # in the staged file
        ("image_id", pa.int64()),
        ("pixel_id", pa.int64()),  # the same for the same pixels
        ("hashes", pa.binary()),  # `near.hash_image`; null where near duplicates are kept
        ("num_bytes", pa.int64()),
        ("num_pixels", pa.int64()),
        ("reason", pa.string()),  # why the image is left out; else null
    ]
)


def stage_images(
    references: pa.Table, *, read: Reader, config: PrepareConfig, staging: str
) -> pa.Table:
    """Validate and encode the images; return STAGED_SCHEMA, a row per reference, without pixels.

    Where an interrupted run has staged the same references, the images are not read again.
    """
    rows = references.to_pylist()
    name = f"{rows[0]['position']:09d}-{identify(repr(rows).encode()):016x}.parquet"
    facts_uri = storage.join(staging, f"facts-{name}")
    if storage.exists(facts_uri):
        return storage.read_parquet(facts_uri)
    cv2.setNumThreads(0)  # tasks already fill the cores
    jpegs: list[bytes] = []
    thumbnails: list[bytes | None] = []
    facts = []
    for reference, content in zip(rows, read(references), strict=True):
        fact = {"position": reference["position"]}
        try:
            converted = _convert(reference, content, config)
        except BadImage as bad:
            fact["reason"] = bad.reason
        else:
            assert isinstance(content, bytes)
            fact |= {"staged": name, "row": len(jpegs), "image_id": identify(content)}
            fact["pixel_id"] = identify_pixels(converted.source_HWC)
            fact["num_bytes"] = len(converted.jpeg)
            fact["num_pixels"] = converted.num_pixels
            thumbnail = None
            if searches_near_duplicates(config):
                fact["hashes"], thumbnail = hash_image(converted.source_HWC)
            jpegs.append(converted.jpeg)
            thumbnails.append(thumbnail)
        facts.append(fact)
    columns = [pa.array(jpegs, pa.binary()), pa.array(thumbnails, pa.binary())]
    table = pa.table(columns, ["image", "thumbnail"])
    write_images(storage.join(staging, name), table, STAGED_ROW_GROUP_SIZE)
    staged = pa.Table.from_pylist(facts, schema=STAGED_SCHEMA)
    storage.write_parquet(facts_uri, staged)  # last: they say that the images are staged
    return staged


def _convert(reference: dict, content: bytes | BadImage, config: PrepareConfig) -> Converted:
    if isinstance(content, BadImage):
        raise content
    if reference["label"] < 0:
        raise BadImage("no label")
    return convert(
        content,
        short_side_px=config.short_side_px,
        box=reference["box"] if config.crop_to_box else None,
        box_margin=config.box_margin,
    )


def searches_near_duplicates(config: PrepareConfig) -> bool:
    """Rendered images differ by their seeds."""
    return config.near_duplicates != "keep" and config.source != "synthetic"


def read_staged(
    staging: str, images: pa.Table, indices: np.ndarray, column: str
) -> dict[int, bytes]:
    """Read a column of the staged files, for images by index."""
    values = dict[int, bytes]()
    names = np.asarray(images["staged"].take(indices).to_pylist(), object)
    rows_N = images["row"].to_numpy()
    for name in np.unique(names):
        wanted = indices[names == name]
        groups = np.unique(rows_N[wanted] // STAGED_ROW_GROUP_SIZE)
        file_system, path = filesystems.resolve(storage.join(staging, str(name)))
        with file_system.open_input_file(path) as stream:
            table = pq.ParquetFile(stream).read_row_groups(groups.tolist(), [column])
        first_of = {group: number * STAGED_ROW_GROUP_SIZE for number, group in enumerate(groups)}
        for index in wanted:
            row = int(rows_N[index])
            at = first_of[row // STAGED_ROW_GROUP_SIZE] + row % STAGED_ROW_GROUP_SIZE
            values[int(index)] = table[column][at].as_py()
    return values


def fill_shard(rows: pa.Table, *, out: str, staging: str, row_group_size: int) -> pa.Table:
    """Write one shard from the staged files; `rows` lists its images in their order."""
    names = np.asarray(rows["staged"].to_pylist())
    staged_rows = rows["row"].to_numpy()
    jpegs = np.empty(len(rows), dtype=object)
    for name in np.unique(names):
        (indices,) = np.nonzero(names == name)
        wanted = staged_rows[indices]
        groups = np.unique(wanted // STAGED_ROW_GROUP_SIZE)
        file_system, path = filesystems.resolve(storage.join(staging, str(name)))
        with file_system.open_input_file(path) as stream:
            images = pq.ParquetFile(stream).read_row_groups(groups.tolist(), ["image"]).column(0)
        before = np.searchsorted(groups, wanted // STAGED_ROW_GROUP_SIZE) * STAGED_ROW_GROUP_SIZE
        for index, row in zip(indices, before + wanted % STAGED_ROW_GROUP_SIZE, strict=True):
            jpegs[index] = images[int(row)].as_py()
    rows = rows.append_column("image", pa.array(jpegs, pa.binary()))
    labels, image_ids = rows["label"].to_pylist(), rows["image_id"].to_pylist()
    sums = pa.array(map(checksum, jpegs, labels, image_ids), pa.uint32())
    rows = rows.append_column("crc32", sums)
    table = rows.select(SHARD_SCHEMA.names)
    shard = rows["shard"][0].as_py()
    num_bytes = write_images(storage.join(out, shard), table.cast(SHARD_SCHEMA), row_group_size)
    return pa.table({"shard": [shard], "num_bytes": [num_bytes]})


def write_images(uri: str, table: pa.Table, row_group_size: int) -> int:
    """Write Parquet for images and return its size; JPEGs neither compress nor repeat."""
    return storage.write_parquet(
        uri,
        table,
        row_group_size=row_group_size,
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )
