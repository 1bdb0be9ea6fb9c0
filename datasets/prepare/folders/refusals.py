"""Folders that are refused, as they hold no images or no classes, and what helps."""

from collections.abc import Iterable, Sequence

from cluster.io.errors import UserError
from cluster.io.uris import name_of
from datasets.prepare.archives import is_archive
from datasets.prepare.config import PrepareConfig
from datasets.prepare.folders.by_name import NOT_AN_IMAGE
from datasets.prepare.folders.layout import NO_CLASS, Layout
from datasets.prepare.listing import describe_source, describe_unused
from datasets.prepare.names import is_other_file, stands_for_no_class
from datasets.prepare.splits import split_of_name
from datasets.prepare.tables.rows import is_table
from datasets.prepare.tables.sidecars import find_sidecars


def refuse_no_images(config: PrepareConfig, layouts: Sequence[Layout]) -> None:
    """Refuse folders without an image in a class folder.

    Raises:
        UserError: with what their files look like.
    """
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


def refuse_no_classes(
    config: PrepareConfig, layouts: Sequence[Layout], classes: Sequence[str]
) -> None:
    """Refuse folders that stand for no class: train/1.jpg and test/2.jpg, as Kaggle has them,
    images/ beside annotations/, or one folder of images beside a table.

    Raises:
        UserError: with the tables that may tell the classes.
    """
    tables = _list_tables(layouts)
    if not _are_no_classes(config, layouts, classes, tables):
        return
    names = ", ".join(map(repr, dict.fromkeys(classes)))
    problem = f"{names} hold no class folders"
    if config.class_by is not None:
        problem = f"class_by is {config.class_by!r}, and all that it finds is {names}"
    remedy = _find_remedy(config, tables, _find_sidecar(layouts))
    raise UserError(f"{describe_source(config)}: {problem}; {remedy}")


def _are_no_classes(
    config: PrepareConfig,
    layouts: Sequence[Layout],
    classes: Sequence[str],
    tables: Sequence[str],
) -> bool:
    if all(map(split_of_name, classes)):
        return True
    if config.root is None:
        return False
    if all(map(stands_for_no_class, classes)):
        return True
    annotated = any(is_other_file(place.path) for of_one in layouts for place in of_one.images)
    return len(set(classes)) == 1 and (annotated or bool(tables))


def _find_remedy(config: PrepareConfig, tables: Sequence[str], sidecar: str | None) -> str:
    if tables:
        return f"where {', '.join(tables[:3])} tells the classes, use --source table"
    if config.class_by is not None:
        return "use an expression that finds the classes"
    if sidecar:
        return f"where files such as {sidecar} tell the classes, use --source table"
    return (
        "move the images into a folder for each class, write a table of their paths and classes "
        "for --source table, or use --class-by 'REGULAR EXPRESSION' where their names tell the "
        "classes"
    )


def _find_sidecar(layouts: Iterable[Layout]) -> str | None:
    """Return a label file of an image, as YOLO, Pascal VOC and WebDataset have them."""
    unused = [path for layout in layouts for path, _ in layout.unused]
    placed = [place.path for layout in layouts for place in layout.images]
    return next(iter(find_sidecars([*placed, *unused]).values()), None)


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
