"""Images in class folders, with or without folders of splits above them."""

import re
from collections.abc import Iterable
from dataclasses import replace

import pyarrow as pa
from pyarrow import fs

from cluster.io.errors import UserError, require
from datasets.prepare.classes import describe_spellings, unify
from datasets.prepare.config import PrepareConfig
from datasets.prepare.folders.by_name import arrange_by_name
from datasets.prepare.folders.layout import Layout, Placed, arrange
from datasets.prepare.folders.refusals import refuse_no_classes, refuse_no_images
from datasets.prepare.listing import (
    Listing,
    describe_source,
    hash_files,
    read_files,
    refuse_second_test_set,
    walk,
)
from datasets.prepare.tables.listing import list_by_metadata

LINK = "a link to a folder of the source"

FileInfos = dict[str, fs.FileInfo]
"""By paths below a root."""
Roots = dict[str, tuple[Layout, FileInfos]]
"""By the URI of the root."""


def list_folder(config: PrepareConfig) -> Listing:
    """List the images below ROOT and TEST_ROOT by metadata.csv, or by `layout`."""
    options = {"root": config.root, "test_root": config.test_root}
    places = {name: (uri, walk(name, uri)) for name, uri in options.items() if uri is not None}
    metadata = list_by_metadata(config, places) if config.class_by is None else None
    if isinstance(metadata, Listing):
        return metadata
    _refuse_columns(config, metadata)
    roots = _arrange_roots(config, places)
    layouts = [layout for layout, _ in roots.values()]
    names = [name for layout in layouts for name in layout.classes]
    refuse_no_images(config, layouts)
    refuse_no_classes(config, layouts, names)
    try:
        class_of = unify(names)
    except UserError as error:
        raise UserError(f"{describe_source(config)}: {error}") from None
    return _to_listing(roots, class_of, notes=filter(None, [metadata]))


def _refuse_columns(config: PrepareConfig, reason: str | None) -> None:
    """Refuse options of columns, as no table is read.

    Args:
        reason: that there is a metadata.csv, but not used.

    Raises:
        UserError: naming the option.
    """
    for name in ("image_column", "label_column", "split_column", "group_column"):
        require(
            getattr(config, name) == getattr(PrepareConfig, name),
            name,
            getattr(config, name),
            reason
            or "the folder has no metadata.csv, or --class-by is set; use --source table for "
            "another table",
        )


def _to_listing(roots: Roots, class_of: dict[str, str], notes: Iterable[str]) -> Listing:
    images = [(uri, place) for uri, (layout, _) in roots.items() for place in layout.images]
    classes = tuple(sorted(set(class_of.values())))
    label_of = {name: label for label, name in enumerate(classes)}
    labels = [label_of[class_of[place.class_name]] for _, place in images]
    infos = [roots[uri][1][place.path] for uri, place in images]
    references = pa.table(
        {
            "split": [place.split for _, place in images],
            "label": pa.array(labels, pa.int32()),
            "path": [info.path for info in infos],
            "folder": [uri for uri, _ in images],
        }
    )
    return Listing(
        classes=classes,
        references=references,
        read=read_files,
        version=hash_files(infos),
        unused=tuple(
            (infos_of[path].path, reason)
            for layout, infos_of in roots.values()
            for path, reason in layout.unused
        ),
        notes=(
            *notes,
            *(f"{uri}: {layout.rule}" for uri, (layout, _) in roots.items() if layout.rule),
            *describe_spellings(class_of),
        ),
    )


def _arrange_roots(config: PrepareConfig, places: dict[str, tuple[str, FileInfos]]) -> Roots:
    """Find split and class of each file of ROOT and TEST_ROOT."""
    roots: Roots = {}
    if config.root is not None:
        roots[config.root] = _arrange(config, "root", *places["root"])
    if config.test_root is not None:
        layout, infos = _arrange(config, "test_root", *places["test_root"])
        of_root = roots[config.root][0].splits if config.root is not None else {}
        for name, split in of_root.items():
            if split == "test":
                refuse_second_test_set(config.test_root, f"{config.root}/{name}")
        roots[config.test_root] = _as_test(config.test_root, layout), infos
    return roots


def _arrange(
    config: PrepareConfig, field: str, uri: str, infos: FileInfos
) -> tuple[Layout, FileInfos]:
    kinds = {path: info.type for path, info in infos.items()}
    links = [path for path, kind in kinds.items() if kind == fs.FileType.Unknown]
    files = [
        path
        for path, kind in kinds.items()
        if kind not in (fs.FileType.Directory, fs.FileType.Unknown)
    ]
    folders = [path for path, kind in kinds.items() if kind == fs.FileType.Directory]
    if config.class_by is not None:
        layout = arrange_by_name(files, re.compile(config.class_by))
    else:
        try:
            layout = arrange(
                files, folders, several_classes=field == "root", class_depth=config.class_depth
            )
        except UserError as error:
            raise UserError(f"{field} is {uri!r}: {error}") from None
    layout.unused.extend((path, LINK) for path in links)
    return layout, infos


def _as_test(uri: str, layout: Layout) -> Layout:
    """Take all images of `test_root` as test images; splits in it may be those of test only.

    Raises:
        UserError: where it has training images.
    """
    if any(split != "test" for split in layout.splits.values()):
        raise UserError(
            f"test_root is {uri!r}: it has splits of its own ({', '.join(layout.splits)}); give "
            "the folder of test images"
        )
    images = [Placed(place.path, "test", place.class_name) for place in layout.images]
    return replace(layout, images=images)
