"""The page of an audit: an answer, and a section with thumbnails for each check."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.io.page import render
from cluster.io.uris import name_of
from datasets.audit.findings import Check
from datasets.audit.images import AuditedImages
from datasets.preview import encode_thumbnail

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Photo:
    """An image on the page."""

    caption: str
    uri: str | None
    """Its thumbnail, as a data URI; None where it can't be read."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A suspect on the page."""

    photos: Sequence[Photo]
    class_name: str
    split: str
    detail: str
    path: str
    is_excluded: bool


def render_audit(
    images: AuditedImages,
    checks: Sequence[Check],
    *,
    num_excluded: int,
    command: str | None,
    max_shown: int,
) -> bytes:
    """Return the page.

    Args:
        num_excluded: images on the exclude list.
        command: prepares the data set without them.
        max_shown: suspects of each check.
    """
    shown = {check.name: check.suspects[:max_shown] for check in checks}
    needed = {
        at
        for suspects in shown.values()
        for suspect in suspects
        for at in (suspect.image, *(other for other, _ in suspect.others))
    }
    thumbnails = _read_thumbnails(images, sorted(needed))
    labels, splits, classes = images.labels_N, images.splits_N, images.manifest.classes
    cards = {
        name: [
            Card(
                photos=[
                    Photo(caption="this image" if s.others else "", uri=thumbnails.get(s.image)),
                    *(Photo(caption=what, uri=thumbnails.get(at)) for at, what in s.others),
                ],
                class_name=classes[labels[s.image]],
                split=splits[s.image],
                detail=s.detail,
                path=images.table["path"][s.image].as_py(),
                is_excluded=s.is_excluded and splits[s.image] != "test",
            )
            for s in suspects
        ]
        for name, suspects in shown.items()
    }
    found = {suspect.image for check in checks for suspect in check.suspects}
    of_splits = images.manifest.splits.items()
    counts = ", ".join(f"{split.num_images:,} {name}" for name, split in of_splits)
    if folds := images.manifest.folds:
        counts += f"; val is fold {images.fold} of {len(folds)}"
    return render(
        HERE / "audit.html.j2",
        style=(HERE / "audit.css").read_text(),
        name=name_of(images.data),
        data=images.data,
        fingerprint=images.manifest.fingerprint,
        num_classes=len(classes),
        num_images=len(images),
        counts=counts,
        num_found=len(found),
        num_excluded=num_excluded,
        command=command,
        checks=checks,
        cards=cards,
    )


def _read_thumbnails(images: AuditedImages, rows: Sequence[int]) -> dict[int, str]:
    decoded = images.read_images(rows)
    return {row: encode_thumbnail(image_HWC) for row, image_HWC in decoded.items()}
