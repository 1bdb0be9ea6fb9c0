"""The files of a prepared data set.

OUT/manifest.json           written last: without it there is no data set
OUT/{train,val,test}/part-00000-<id>.parquet
OUT/fold-0/part-00000-<id>.parquet      with --folds, instead of val and most of train
OUT/quarantine.parquet      path and reason of every image left out
OUT/unused.parquet          path and reason of files that are no images of it, where there are any
OUT/.staging/               of a `prepare` that has not ended
"""

import re
import struct
import zlib

import pyarrow as pa

from cluster.io import storage
from cluster.io.records import damaged

UNUSED = "unused.parquet"
STAGING = ".staging"
FOLD_FOLDER = re.compile(r"fold-\d+")
SHARD_SCHEMA = pa.schema(
    [
        ("image", pa.binary()),  # JPEG bytes
        ("label", pa.int32()),  # index into Manifest.classes
        ("image_id", pa.int64()),  # from the content's SHA-256: the same image anywhere
        ("crc32", pa.uint32()),  # `checksum` of the three above
        ("path", pa.string()),  # in the source
    ]
)
QUARANTINE_SCHEMA = pa.schema([("path", pa.string()), ("reason", pa.string())])


def fold_name(number: int) -> str:
    """Return the folder of a fold's shards."""
    return f"fold-{number}"


def checksum(jpeg: bytes | pa.Buffer, label: int, image_id: int) -> int:
    """CRC-32 of image, label and image id: damaged labels are found too."""
    return zlib.crc32(struct.pack("<iq", label, image_id), zlib.crc32(jpeg))


def read_quarantine(uri: str, name: str = "quarantine.parquet") -> pa.Table:
    """Read path and reason of every image that a data set left out, or of files unused.

    Raises:
        UserError: where the file is missing, or damaged.
    """
    file = storage.join(uri, name)
    try:
        table = storage.read_parquet(file)
        table = table.select(QUARANTINE_SCHEMA.names).cast(QUARANTINE_SCHEMA)
    except FileNotFoundError:
        raise damaged(file, "it is missing") from None
    except (KeyError, pa.ArrowException) as error:
        raise damaged(file, error) from None
    if any(column.null_count for column in table.columns):
        raise damaged(file, "a path or reason is missing")
    return table
