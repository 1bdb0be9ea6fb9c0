"""Reading and writing of manifest.json, which is checked before anything is planned by it."""

import json
import os
import shlex
from dataclasses import asdict, replace
from typing import Any

from pyarrow import fs

from cluster.io import filesystems, storage
from cluster.io.errors import UserError
from cluster.io.fields import build
from cluster.io.records import damaged, parse_json
from datasets.manifest import SCHEMA_VERSION, SPLITS, TRAIN_AND_VAL, Manifest
from datasets.shards import STAGING


def write_manifest(uri: str, manifest: Manifest) -> None:
    storage.write_bytes(
        storage.join(uri, "manifest.json"), json.dumps(asdict(manifest), indent=1).encode()
    )


def is_prepared(uri: str) -> bool:
    """Whether `uri` is a prepared data set; other programs write a manifest.json as well.

    Raises:
        UserError: where `uri` can't be reached.
    """
    return storage.exists(storage.join(uri, "manifest.json")) and _read_values(uri) is not None


def read_schema_version(uri: str) -> int:
    """Read the schema version of the manifest.json at `uri`.

    Raises:
        UserError: where it is not Thaw's.
    """
    values = _read_values(uri)
    if values is None:
        raise UserError(
            f"out is {uri!r}: it has a manifest.json of another program; use another folder"
        )
    if not isinstance(values["schema_version"], int):
        raise damaged(storage.join(uri, "manifest.json"), "its schema_version is no number")
    return values["schema_version"]


def _read_values(uri: str) -> dict[str, Any] | None:
    """Read the JSON of a manifest of any version; None where it is not Thaw's."""
    content = storage.read_bytes(storage.join(uri, "manifest.json"))
    try:
        values = parse_json(content, uri)
    except ValueError:
        return None
    return values if isinstance(values, dict) and "schema_version" in values else None


def _nothing_prepared(uri: str, names: list[str]) -> UserError:
    """Say what to do where no data set is: finish it, or prepare the images, which may be there.

    Args:
        names: of the files there.
    """
    quoted = shlex.quote(uri)
    options = f"... --out {quoted}"
    if names and "config.json" not in names:  # which trainings and sweeps have
        options = f"folder --root {quoted} --out ..."
    remedy = f"make one with `python -m datasets prepare --source {options}`"
    if STAGING in names:
        remedy = "a `prepare` was interrupted there: run its command again, which resumes"
    return UserError(
        f"data is {uri!r}: no prepared data set there (manifest.json is missing); {remedy}"
    )


def read_manifest(uri: str, fold: int = 0) -> Manifest:
    """Read the manifest of a prepared data set.

    Args:
        fold: that validates, where the data set has folds.

    Returns:
        It without splits that hold no image, as they can neither train nor measure anything.

    Raises:
        UserError: where there is none of Thaw's, it was written by another version of Thaw, its
            values contradict each other, it names files outside of the data set, or it does not
            have the fold.
    """
    try:
        values = _read_values(uri)
    except FileNotFoundError:
        raise _nothing_prepared(uri, storage.list_names(uri)) from None
    except OSError as error:
        if isinstance(error.__cause__, NotADirectoryError):  # `uri` is a file, such as cars.zip
            raise _nothing_prepared(uri, [uri]) from None
        raise UserError(f"data is {uri!r}: it cannot be read ({error}); check the URI") from None
    if values is None:
        raise UserError(
            f"data is {uri!r}: its manifest.json is another program's; give a data set made by "
            "`python -m datasets prepare`"
        )
    version = values["schema_version"]
    if version != SCHEMA_VERSION:
        raise UserError(
            f"data is {uri!r}: its shards have schema version {version}, this Thaw reads "
            f"{SCHEMA_VERSION}; update Thaw or prepare the data again"
        )
    try:
        manifest = build(Manifest, values)
        _check_counts(manifest)
    except ValueError as error:
        raise damaged(storage.join(uri, "manifest.json"), error) from None
    _refuse_links_out(uri, manifest)
    filled = {name: split for name, split in manifest.splits.items() if split.num_images}
    return replace(manifest, splits=filled).with_fold(fold)


def _check_counts(manifest: Manifest) -> None:
    """Check the numbers that readers plan by without opening a shard."""
    for name in manifest.splits:
        if name not in SPLITS:
            raise UserError(f"splits.{name[:40]} is unknown: use {', '.join(SPLITS)}")
    parts = {f"splits.{name}": split for name, split in manifest.splits.items()}
    parts |= {f"folds.{number}": fold for number, fold in enumerate(manifest.folds)}
    for name, split in parts.items():
        if len(split.class_counts) != len(manifest.classes) or min(split.class_counts) < 0:
            raise UserError(
                f"{name}.class_counts has {len(split.class_counts)} numbers: use one, zero "
                f"or more, for each of the {len(manifest.classes)} classes"
            )
        num_rows = sum(sum(shard.row_groups) for shard in split.shards)
        if num_rows != split.num_images:
            raise UserError(
                f"{name}.class_counts is {split.num_images} in all: its row groups hold {num_rows}"
            )
    if manifest.folds:
        _check_folds(manifest)


def _check_folds(manifest: Manifest) -> None:
    """Check that the folds are parts of train and val, and that none has all images of a class."""
    if manifest.splits.get("val") != manifest.folds[0] or "train" not in manifest.splits:
        raise UserError("folds.0 is not splits.val: the first fold validates")
    both = manifest.split(TRAIN_AND_VAL)
    shards = [shard for fold in manifest.folds for shard in fold.shards]
    if len(set(shards)) < len(shards) or not set(shards) <= set(both.shards):
        raise UserError("folds: use each shard of splits.train and splits.val at most once")
    for number, fold in enumerate(manifest.folds):
        for of_fold, count in zip(fold.class_counts, both.class_counts, strict=True):
            if of_fold and of_fold >= count:
                raise UserError(f"folds.{number}.class_counts leaves a class without train images")


def _refuse_links_out(uri: str, manifest: Manifest) -> None:
    """Refuse files that are links out of the data set; the data set itself may be a link.

    Raises:
        UserError: naming the link.
    """
    filesystem, root = filesystems.resolve(uri)
    if not isinstance(filesystem, fs.LocalFileSystem):
        return
    files = [os.path.join(root, s.path) for split in manifest.splits.values() for s in split.shards]
    for path in (*dict.fromkeys(map(os.path.dirname, files)), *files):
        if os.path.islink(path) and storage.leaves(path, root):
            raise UserError(
                f"data is {uri!r}: {path} is a link out of the data set, to "
                f"{os.path.realpath(path)}; put the files themselves there"
            )
