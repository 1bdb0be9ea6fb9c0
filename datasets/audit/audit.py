"""Audit a prepared data set: its checks as a table, a page and lists.

OUT/findings.csv   every image that a check found, with split, class, reason and detail
OUT/exclude.csv    those of train and val, for `prepare --exclude`
OUT/audit.html     written last: the checks with thumbnails, in one file that needs no network
"""

import shlex
from collections.abc import Sequence
from dataclasses import asdict

from rich import box
from rich.table import Table

from cluster import runtime
from cluster.io import storage
from cluster.io.fields import option
from cluster.io.lease import hold_lease
from cluster.io.markers import NOT_IN_KEY, flatten, marked
from cluster.io.tables import to_csv
from cluster.io.terminal import literal_console
from datasets.audit.checks import run_checks
from datasets.audit.config import AuditConfig
from datasets.audit.findings import Check, count_images
from datasets.audit.images import AuditedImages, measure_images
from datasets.audit.page import render_audit
from datasets.prepare.config import PrepareConfig
from datasets.prepare.exclude import COLUMNS, parse_list

PAGE, FINDINGS, EXCLUDE = "audit.html", "findings.csv", "exclude.csv"
_MORE = (
    "Label errors, images of other things, and splits that differ need a network: "
    "`python -m trainers audit` adds these checks"
)


def run_audit(config: AuditConfig) -> None:
    """Run the checks that need no network; write and print what they find."""
    data, out = storage.absolute(config.data, "data"), storage.absolute(config.out, "out")
    runtime.connect(config.address)
    with hold_lease(out):
        images = measure_images(data, config.fold)
        write_audit(out, images, run_checks(images), max_shown=config.max_shown)
    print(_MORE)


def write_audit(
    out: str, images: AuditedImages, checks: Sequence[Check], *, max_shown: int
) -> None:
    """Write lists and page, and print the table of checks.

    Args:
        max_shown: images of each check on the page.
    """
    rows = list_findings(images, checks, only_excluded=False)
    excluded = list_findings(images, checks, only_excluded=True)
    exclude = storage.join(out, EXCLUDE)
    storage.write_bytes(storage.join(out, FINDINGS), to_csv(COLUMNS, rows))
    storage.write_bytes(exclude, to_csv(COLUMNS, [*list_earlier(images), *excluded]))
    command = write_command(images, exclude) if excluded else None
    page = render_audit(
        images, checks, num_excluded=len(excluded), command=command, max_shown=max_shown
    )
    storage.write_bytes(storage.join(out, PAGE), page)
    table = Table("check", "found", box=box.SIMPLE)
    for check in checks:
        table.add_row(check.name, check.result, style="" if check.is_fine else "bold")
    console = literal_console(highlight=False, soft_wrap=True)
    console.print(table)
    print(f"Page:     {storage.join(out, PAGE)} ({len(page) / 1e6:.1f} MB)")
    if folds := images.manifest.folds:
        print(f"Folds:    val is fold {images.fold} of {len(folds)}, train has the others")
    print(f"Findings: {storage.join(out, FINDINGS)}, {len(rows)} rows")
    print(
        f"Exclude:  {exclude}, {count_images(len(excluded))} of train and val: look at them first"
    )
    if command is not None:
        print(f"Next:     {command}")


def list_findings(
    images: AuditedImages, checks: Sequence[Check], *, only_excluded: bool
) -> list[tuple[str, ...]]:
    """Return rows of COLUMNS, check by check; of the exclude list, each image once.

    The exclude list has no test image: a test set without the images that a check, or a network,
    finds hard would measure something else.
    """
    rows: list[tuple[str, ...]] = []
    seen = set[int]()
    splits, labels = images.splits_N, images.labels_N
    for check in checks:
        for suspect in check.suspects:
            at = suspect.image
            if only_excluded and (
                not suspect.is_excluded or splits[at] == "test" or at in seen or not check.reason
            ):
                continue
            seen.add(at)
            path, name = images.table["path"][at].as_py(), images.manifest.classes[labels[at]]
            rows.append((path, splits[at], name, check.reason or check.name, suspect.detail))
    return rows


def list_earlier(images: AuditedImages) -> list[tuple[str | None, ...]]:
    """Return the rows of the list that the data set was prepared with: they stay out."""
    uri = images.manifest.options.get("exclude")
    if uri is None or not storage.exists(uri):
        return []
    entries, _ = parse_list(uri, storage.read_bytes(uri))
    return [
        (path, entry.split, None, entry.reason, "of the earlier list")
        for path, of_path in entries.items()
        for entry in of_path
    ]


def write_command(images: AuditedImages, exclude: str) -> str | None:
    """Write the command that prepares the same data set without the images of a list; None where
    the data set does not say how it was made."""
    options = flatten(images.manifest.options)
    if "source" not in options:
        return None
    default = flatten(asdict(PrepareConfig(source="synthetic", out="")))
    new = {"source": options["source"], "exclude": exclude, "out": f"{images.data}-clean"}
    left_out = marked(PrepareConfig, NOT_IN_KEY)
    words = ["python", "-m", "datasets", "prepare"]
    for path, value in (options | new).items():
        if path in new or (path in default and value != default[path] and path not in left_out):
            words += option(path.rpartition(".")[2], value)
    return shlex.join(words)
