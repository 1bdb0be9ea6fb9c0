"""Images in class folders, with or without folders of splits above them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

import pyarrow as pa
from pyarrow import fs

from cluster.io.errors import UserError, require
from cluster.io.uris import name_of
from datasets.prepare.archives import is_archive
from datasets.prepare.classes import describe_spellings, unify
from datasets.prepare.config import PrepareConfig
from datasets.prepare.folders.by_name import NOT_AN_IMAGE, arrange_by_name
from datasets.prepare.folders.layout import NO_CLASS, Layout, Placed, arrange
from datasets.prepare.listing import (
    Listing,
    describe_source,
    describe_unused,
    hash_files,
    read_files,
    refuse_second_test_set,
    walk,
)
from datasets.prepare.names import is_other_file, stands_for_no_class
from datasets.prepare.splits import split_of_name
from datasets.prepare.tables.rows import is_table
from datasets.prepare.tables.sidecars import find_sidecars
from datasets.prepare.tables.table import list_by_metadata

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
    for name in ("image_column", "label_column", "split_column", "group_column"):
        require(
            getattr(config, name) == getattr(PrepareConfig, name),
            name,
            getattr(config, name),
            metadata
            or "the folder has no metadata.csv, or --class-by is set; use --source table for "
            "another table",
        )
    roots = _arrange_roots(config, places)
    layouts = [layout for layout, _ in roots.values()]
    images = [(uri, place) for uri, (layout, _) in roots.items() for place in layout.images]
    names = [name for layout in layouts for name in layout.classes]
    _refuse_no_images(config, layouts)
    _refuse_no_classes(config, layouts, names)
    try:
        class_of = unify(names)
    except UserError as error:
        raise UserError(f"{describe_source(config)}: {error}") from None
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
            *filter(None, [metadata]),
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


def _refuse_no_images(config: PrepareConfig, layouts: Sequence[Layout]) -> None:
    if any(layout.images for layout in layouts):
        return
    missing = "there are no images in class folders"
    remedy = "use a folder for each class, such as train/Audi S6 Sedan 2011/1.jpg"
    if config.class_depth != 1:
        remedy = f"no file is in {abs(config.class_depth)} folders, as class_depth asks for"
    if config.class_by is not None:
        missing = f"class_by is {config.class_by!r}, and no path of an image has it"
        remedy = "change the expression; it is searched in the path below the folder"
    unused = [of_one for layout in layouts for of_one in layout.unused]
    if unused:
        remedy += f"; {describe_unused(unused)}"
    if tables := _list_tables(layouts) or list(filter(None, [_find_sidecar(layouts)])):
        remedy += f"; where {', '.join(tables[:3])} tells the classes, use --source table"
    if any(is_archive(path) for path, _ in unused):
        remedy += "; unpack archives that are in others, or beside folders"
    if any(reason == NO_CLASS for _, reason in unused):
        remedy += (
            "; where their names tell the classes, use --class-by 'REGULAR EXPRESSION'; for images "
            "without classes, use `python -m trainers predict`"
        )
    raise UserError(f"{describe_source(config)}: {missing}; {remedy}")


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


def _refuse_no_classes(
    config: PrepareConfig, layouts: Sequence[Layout], classes: Sequence[str]
) -> None:
    """Refuse folders that stand for no class: train/1.jpg and test/2.jpg, as Kaggle has them,
    images/ beside annotations/, or one folder of images beside a table.

    Raises:
        UserError: with the tables that may tell the classes.
    """
    tables = _list_tables(layouts)
    is_refused = all(map(split_of_name, classes))
    if config.root is not None:
        one = len(set(classes)) == 1
        annotated = any(is_other_file(place.path) for of_one in layouts for place in of_one.images)
        is_refused |= all(map(stands_for_no_class, classes)) or (
            one and (annotated or bool(tables))
        )
    if not is_refused:
        return
    sidecar = _find_sidecar(layouts)
    remedy = (
        f"where {', '.join(tables[:3])} tells the classes, use --source table"
        if tables
        else "use an expression that finds the classes"
        if config.class_by is not None
        else f"where files such as {sidecar} tell the classes, use --source table"
        if sidecar
        else "move the images into a folder for each class, write a table of their paths and "
        "classes for --source table, or use --class-by 'REGULAR EXPRESSION' where their names tell "
        "the classes"
    )
    names = ", ".join(map(repr, dict.fromkeys(classes)))
    problem = f"{names} hold no class folders"
    if config.class_by is not None:
        problem = f"class_by is {config.class_by!r}, and all that it finds is {names}"
    raise UserError(f"{describe_source(config)}: {problem}; {remedy}")


def _find_sidecar(layouts: Iterable[Layout]) -> str | None:
    """Return a label file of an image, as YOLO, Pascal VOC and WebDataset have them."""
    unused = [path for layout in layouts for path, _ in layout.unused]
    placed = [place.path for layout in layouts for place in layout.images]
    return next(iter(find_sidecars([*placed, *unused]).values()), None)


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


def _list_tables(layouts: Iterable[Layout]) -> list[str]:
    """List tables and annotations; texts only at the top, as YOLO has one beside each image."""
    paths = list[str]()
    for layout in layouts:
        paths += [path for path, why in layout.unused if why in (NO_CLASS, NOT_AN_IMAGE)]
        paths += [place.path for place in layout.images]
    return [
        path
        for path in paths
        if is_table(path)
        and not any(
            word in name_of(path).casefold() for word in ("readme", "license", "submission")
        )
        and not ("/" in path and path.casefold().endswith(".txt"))
    ]
