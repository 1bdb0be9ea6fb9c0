"""The data set that is in OUT already: reused, or deleted once another one is complete."""

import hashlib
import json
import re
from collections.abc import Set
from dataclasses import asdict
from typing import Any

from cluster.io import storage
from cluster.io.markers import NOT_IN_KEY, flatten, marked
from datasets.manifest import SCHEMA_VERSION, SPLITS, Manifest
from datasets.manifest_file import read_manifest, read_schema_version
from datasets.prepare.config import PrepareConfig
from datasets.prepare.duplicates.report import PICTURE, TABLE
from datasets.shards import FOLD_FOLDER, STAGING, UNUSED

_SHARD_NAME = re.compile(r"part-\d{5}-[0-9a-f]{12}\.parquet")


def find_existing_output(config: PrepareConfig, source_version: str) -> Manifest | None:
    """Return the manifest at `config.out` if a run would write the same; else print what changed.

    Raises:
        UserError: where a newer Thaw wrote it.
    """
    if not storage.exists(storage.join(config.out, "manifest.json")):
        return None
    if read_schema_version(config.out) < SCHEMA_VERSION:
        print(f"{config.out}: prepared again, its shards are those of an older Thaw")
        return None
    manifest = read_manifest(config.out)
    defaults = asdict(PrepareConfig(source="synthetic", out=""))  # of options of a newer Thaw
    before, now = _used_options(defaults | manifest.options), _used_options(asdict(config))
    changed = [
        f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
        for name in sorted(before | now)
        if before.get(name) != now.get(name)
    ]
    if not changed and manifest.source_version != source_version:
        also = " or the exclude list" if config.exclude else ""
        changed = [f"the files of the source{also} changed"]
    if not changed and not _has_all_shards(config.out, manifest):
        changed = ["shards are missing"]
    if changed:
        print(f"{config.out}: prepared again, {'; '.join(changed)}")
        return None
    print(f"{config.out}: reused, it was made from the same source with the same options")
    return manifest


def name_staging(config: PrepareConfig, source_version: str) -> str:
    """Return a name for the staged files of a run, which the same run can use: the same options, of
    the same source."""
    facts = [SCHEMA_VERSION, source_version, _used_options(asdict(config))]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def clear_leftovers(out: str, staging: str) -> None:
    """Delete what interrupted runs left, but for the files that were staged under a name; a data
    set that is there stays as it is, but for its report of near duplicates."""
    for name in storage.list_names(storage.join(out, STAGING)):
        if name != staging:
            storage.delete_folder(storage.join(out, STAGING, name))
            storage.delete_file(storage.join(out, STAGING, name))
    for name in (TABLE, PICTURE):
        storage.delete_file(storage.join(out, name))
    if not storage.exists(storage.join(out, "manifest.json")):
        _delete_other_shards(out, frozenset())
    elif read_schema_version(out) == SCHEMA_VERSION:
        _delete_other_shards(out, _list_shards(read_manifest(out)))


def delete_before(out: str, manifest: Manifest) -> None:
    """Delete what is left of the data set that was there before this one; other files stay."""
    _delete_other_shards(out, _list_shards(manifest))
    if not manifest.num_unused:
        storage.delete_file(storage.join(out, UNUSED))


def _delete_other_shards(out: str, used: Set[str]) -> None:
    for split in (*SPLITS, *filter(FOLD_FOLDER.fullmatch, storage.list_names(out))):
        folder = storage.join(out, split)
        for name in filter(_SHARD_NAME.fullmatch, storage.list_names(folder)):
            if f"{split}/{name}" not in used:
                storage.delete_file(storage.join(folder, name))


def _used_options(options: dict[str, Any]) -> dict[str, Any]:
    unused = {"root": None, "test_root": None}
    if options["source"] != "synthetic":
        unused = {"synthetic": {}}
    ignored = marked(PrepareConfig, NOT_IN_KEY)
    values = flatten(options | unused)
    return {name: value for name, value in values.items() if name not in ignored}


def _has_all_shards(out: str, manifest: Manifest) -> bool:
    wanted = _list_shards(manifest)
    return wanted <= {
        f"{folder}/{name}"
        for folder in {path.split("/")[0] for path in wanted}
        for name in storage.list_names(storage.join(out, folder))
    }


def _list_shards(manifest: Manifest) -> set[str]:
    return {shard.path for split in manifest.splits.values() for shard in split.shards}
