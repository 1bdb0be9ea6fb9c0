"""What a source lists, as tests compare it."""

from datasets.prepare.listing import Listing


def placed(listing: Listing) -> set[tuple[str, str | None, str]]:
    """(split, class, content) of each reference; the content is the path it was written at."""
    rows = zip(listing.references.to_pylist(), listing.read(listing.references), strict=True)
    return {
        (
            row["split"],
            listing.classes[row["label"]] if row["label"] >= 0 else None,
            content.decode() if isinstance(content, bytes) else str(content),
        )
        for row, content in rows
    }
