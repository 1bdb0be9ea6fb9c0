"""Reading of tables and label files: which column holds the images and which their classes."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from pyarrow import fs

from cluster.io import filesystems
from cluster.io.errors import UserError
from cluster.io.uris import name_of
from datasets.images import BadImage
from datasets.prepare.config import PrepareConfig
from datasets.prepare.listing import read_files
from datasets.prepare.tables.columns import Columns, find_columns, find_other_values
from datasets.prepare.tables.roots import Root
from datasets.prepare.tables.rows import Rows, Value, read_rows
from datasets.prepare.tables.sidecars import find_names, read_names, read_sidecars


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table that names images and classes, or the label files of a root as one."""

    root: Root
    path: str
    """Below the root; empty for label files."""
    columns: Columns
    notes: tuple[str, ...]
    infos: tuple[fs.FileInfo, ...]
    """Of its own files."""
    is_required: bool
    """Refused, not left out, where its column of classes has none."""


def read_tables(config: PrepareConfig, roots: Sequence[Root], *, is_required: bool) -> list[Table]:
    """Read the tables and label files of the roots; `root.skipped` names those that are not used.

    Args:
        is_required: whether the only table of a root is refused, where it has no classes.

    Raises:
        UserError: for that, and for label files that name no class.
    """
    tables = list[Table]()
    for root in roots:
        for path in root.tables:
            required = is_required and len(root.tables) == 1
            table = _read_table(config, root, path, is_required=required)
            tables += [] if table is None else [table]
        if root.sidecars:
            tables.append(_read_label_files(config, root))
    return _keep_classes(tables)


def _read_table(config: PrepareConfig, root: Root, path: str, *, is_required: bool) -> Table | None:
    """Read a table, and find its columns.

    Returns:
        None for one that is not used, as it has none of classes, say.

    Raises:
        UserError: for that, where it is required.
    """
    address = root.address(path)
    (content,) = read_files(root.refer_to([path]))
    try:
        if isinstance(content, BadImage):
            raise UserError(f"it can't be read: {content}")
        rows = read_rows(name_of(path), content)
        columns = find_columns(rows, config)
        if columns is None:
            raise UserError(_describe_no_classes(rows, is_required=is_required))
    except UserError as error:
        reason = str(error).removeprefix(f"{name_of(path)}: ") if is_required else str(error)
        _leave_out(root, path, reason, is_required=is_required)
        return None
    if (info := (root.infos or {}).get(path)) is None:
        with filesystems.explaining(root.uri):
            info = filesystems.resolve(root.uri)[0].get_file_info(address)
    return Table(
        root=root,
        path=path,
        columns=columns,
        notes=tuple(f"{path}: {note}" for note in (*rows.notes, columns.rule)),
        infos=(info,),
        is_required=is_required,
    )


def _read_label_files(config: PrepareConfig, root: Root) -> Table:
    """Read the label file of each image.

    Raises:
        UserError: where they name no classes.
    """
    paths = [*root.sidecars.values()]
    contents = dict(zip(paths, read_files(root.refer_to(paths)), strict=True))
    try:
        names: dict[int, str] = {}
        if (file := find_names(root.infos or ())) is not None:
            (content,) = read_files(root.refer_to([file]))
            names = {} if isinstance(content, BadImage) else read_names(file, content)
        rows = read_sidecars(
            {image: (path, contents[path]) for image, path in root.sidecars.items()}, names
        )
        if (columns := find_columns(rows, config)) is None:
            raise UserError(_describe_no_classes(rows, is_required=True))
    except UserError as error:
        raise UserError(f"{root.option} is {root.uri!r}: {error}") from None
    own = paths if file is None else [*paths, file]
    root.used.update(own)
    return Table(
        root=root,
        path="",
        columns=columns,
        notes=(*rows.notes, *([f"names of classes from {file}"] if names else [])),
        infos=tuple(root.infos[path] for path in own if root.infos is not None),
        is_required=True,
    )


def _describe_no_classes(rows: Rows, *, is_required: bool) -> str:
    nested = f" ({', '.join(rows.nested)} holds lists or objects)" if rows.nested else ""
    remedy = "; name it by --label-column" if is_required else ""
    return f"it has the columns {', '.join(rows.columns)}, and none of classes{nested}{remedy}"


def _keep_classes(tables: Sequence[Table]) -> list[Table]:
    """Leave out the tables whose guessed column has another value for each image of all of them: a
    test table of one image per class is judged with that of training images.

    Raises:
        UserError: for one that is required.
    """
    rows_of = defaultdict[str, dict[tuple[Value, Value], None]](dict)
    for table in tables:
        if (name := table.columns.guessed) is not None:
            rows = zip(table.columns.images, table.columns.labels, strict=True)
            rows_of[name] |= dict.fromkeys(rows)  # once: a copy of a table has the same rows
    reasons = {
        name: find_other_values(name, [label for _, label in rows])
        for name, rows in rows_of.items()
    }
    kept = list[Table]()
    for table in tables:
        if reason := reasons.get(table.columns.guessed or ""):
            _leave_out(table.root, table.path, reason, is_required=table.is_required)
        else:
            kept.append(table)
    return kept


def _leave_out(root: Root, path: str, reason: str, *, is_required: bool) -> None:
    """Note that a table is not used, or refuse it.

    Args:
        path: of the table; empty for the label files of images.
    """
    if is_required:
        where = f"{path}: " if path else ""
        raise UserError(f"{root.option} is {root.uri!r}: {where}{reason}") from None
    root.skipped[path] = f"a table that is not used: {reason}"
