"""What the names of files and folders tell: images, annotations, systems' own. Pure functions."""

from collections.abc import Sequence

from datasets.prepare.splits import split_of_name

SYSTEM_NAMES = frozenset(
    {
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "@synoresource", "@__thumb"),  # NAS
        *("#recycle", "#snapshot", "lost+found"),
        *("__macosx", "icon\r", "network trash folder", "temporary items"),  # macOS
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
        "__pycache__",
    }
)
"""Files and folders that operating systems and network storage add, in lower case."""
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".avif"),
    *(".heic", ".heif", ".jfif"),
)
OTHER_SUFFIXES = (
    *(".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".txt", ".md", ".html", ".pdf"),
    *(".mat", ".npy", ".npz", ".pkl", ".xlsx", ".py", ".ipynb", ".sh", ".log", ".zip", ".parquet"),
)
"""Of files that are beside images in data sets: they do not make a folder a class."""
_NO_CLASSES = frozenset(
    {
        *(
            "image",
            "images",
            "img",
            "imgs",
            "jpegimages",
            "jpg",
            "jpeg",
            "png",
            "photos",
            "pictures",
        ),
        *(
            "annotation",
            "annotations",
            "label",
            "labels",
            "mask",
            "masks",
            "segmentation",
            "trimaps",
        ),
    }
)
"""Folders of data sets whose classes are in a table or in file names."""
HIDDEN, SYSTEM = "hidden", "of an operating system or network storage"


def find_system_name(parts: Sequence[str]) -> str | None:
    """Return the reason to leave a path out: a part of it is hidden, or of a system."""
    for part in parts:
        if part.startswith("."):
            return HIDDEN
        if part.casefold() in SYSTEM_NAMES:
            return SYSTEM
    return None


def is_other_file(name: str) -> bool:
    """Whether a name is that of a table, an annotation or a text, by its suffix."""
    return name.casefold().endswith(OTHER_SUFFIXES)


def stands_for_no_class(folder: str) -> bool:
    """Whether a folder is usually one of a split, of all images or of annotations."""
    return folder.casefold() in _NO_CLASSES or split_of_name(folder) is not None
