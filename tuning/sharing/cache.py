"""The cache: features and results that sweeps share, and which entries to evict.

CACHE/features/KEY/view-0003/   features of one view of a split
CACHE/results/KEY/ID.json       where the result of a training is
"""

import re
from dataclasses import dataclass
from typing import Any

from pyarrow import fs
from rich.table import Table

from cluster.io import filesystems, storage
from cluster.io.errors import require
from cluster.io.records import read_object
from cluster.io.terminal import literal_console
from tuning.sharing.config import CacheConfig

OWN = re.compile(r"view-\d{4,}|facts\.json")
"""What an entry has: the folder of a view, or its facts."""


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """Features under one key."""

    key: str
    uri: str
    facts: dict[str, Any]
    """Describes the features; empty where a builder was killed before it wrote them."""
    num_bytes: int
    """Of all files, incomplete views included."""
    used_s: float
    """When it was last written or opened by a sweep, in seconds since 1970."""


def list_entries(cache: str) -> list[CacheEntry]:
    """List the features in a cache, those used longest ago first; other folders are no entries, as
    of `trainers features` beside a sweep."""
    found = (_read_entry(cache, key) for key in storage.list_names(_features(cache)))
    entries = [entry for entry in found if entry is not None]
    return sorted(entries, key=lambda entry: (entry.used_s, entry.key))


def evict(cache: str, keep_bytes: float) -> list[CacheEntry]:
    """Delete the entries that were used longest ago, and return them."""
    entries = list_entries(cache)
    left, evicted = sum(entry.num_bytes for entry in entries), []
    for entry in entries:
        if left <= keep_bytes:
            break
        storage.delete_folder(entry.uri)
        left -= entry.num_bytes
        evicted.append(entry)
    return evicted


def run_cache(config: CacheConfig) -> None:
    """Evict down to --keep-gib and print the entries."""
    cache = storage.absolute(config.cache, "cache")
    require(
        storage.exists(cache), "cache", cache, "no folder there; give the folder `cache` of a sweep"
    )
    evicted = evict(cache, config.keep_gib * 2**30) if config.keep_gib is not None else []
    for entry in evicted:
        print(f"deleted {entry.key}, {entry.num_bytes / 2**30:.3f} GiB")
    entries = list_entries(cache)
    table = Table("key", "backbone", "up to", "split", "policy", "px", "GiB")
    for entry in entries:
        names = ("backbone", "stage", "split", "policy", "size_px")
        facts = [str(entry.facts.get(name, "-")) for name in names]
        table.add_row(entry.key, *facts, f"{entry.num_bytes / 2**30:.3f}")
    if entries:
        literal_console().print(table)
    total = sum(entry.num_bytes for entry in entries)
    results = storage.list_names(storage.join(cache, "results"))
    print(
        f"{cache}: {len(entries)} sets of features, {total / 2**30:.3f} GiB; "
        f"results of {len(results)} trainings"
    )


def _read_entry(cache: str, key: str) -> CacheEntry | None:
    uri = storage.join(_features(cache), key)
    filesystem, path = filesystems.resolve(uri)
    with filesystems.explaining(uri):
        below = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
    if not any(OWN.fullmatch(info.path.removeprefix(f"{path}/")) for info in below):
        return None
    files = [info for info in below if info.type == fs.FileType.File]
    try:
        facts = read_object(storage.join(uri, "facts.json"))
    except FileNotFoundError:
        facts = {}
    # A sweep writes facts.json again when it opens an entry.
    times = [info.mtime.timestamp() for info in files if info.mtime is not None]
    return CacheEntry(
        key=key,
        uri=uri,
        facts=facts,
        num_bytes=sum(info.size or 0 for info in files),
        used_s=max(times, default=0.0),
    )


def _features(cache: str) -> str:
    return storage.join(cache, "features")
