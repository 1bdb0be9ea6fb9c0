"""What the checks of an audit return."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """An image that a check found."""

    image: int
    """Its row in the table of images."""
    detail: str
    """Why, in a few words, for the page and the lists."""
    others: tuple[tuple[int, str], ...] = ()
    """Images to compare it with, and what they are."""
    is_excluded: bool = True
    """Whether it belongs on the exclude list, unless it is a test image."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers of a check, for the page."""

    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Check:
    """The outcome of a check of the data set."""

    name: str
    result: str
    """A few words for the table: `4 pairs, 1 of them across splits`."""
    method: str
    """How it was found and what to do, for the page."""
    reason: str = ""
    """Of its images, in the exclude list: `label error`."""
    is_fine: bool
    suspects: tuple[Suspect, ...] = ()
    """The worst first."""
    table: Table | None = None


def of_images(
    name: str, suspects: list[Suspect], num_images: int, *, reason: str, method: str
) -> Check:
    """Return a check that looked at each image for itself."""
    result = "none"
    if suspects:
        result = f"{count_images(len(suspects))}, {len(suspects) / num_images:.1%}"
    return Check(
        name=name,
        result=result,
        method=method,
        reason=reason,
        is_fine=not suspects,
        suspects=tuple(suspects),
    )


def count_images(number: int) -> str:
    return f"{number} image{'' if number == 1 else 's'}"
