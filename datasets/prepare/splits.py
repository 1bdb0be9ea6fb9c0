"""Which split a file or folder name stands for, by Hugging Face's documented keywords. Pure.

Source: https://huggingface.co/docs/hub/datasets-file-names-and-splits
"""

import re
from collections.abc import Sequence

KEYWORDS = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF_WORD = {word: split for split, words in KEYWORDS.items() for word in words}
_SEPARATORS = re.compile(r"[-._ 0-9]+")
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5,}\.")


def split_of_name(name: str) -> str | None:
    """Return the split whose keyword is in a name, between separators and in any case.

    Dashes, dots, underscores, spaces and digits separate. None without a keyword, and where the
    keywords of two splits are in the name.
    """
    words = _SEPARATORS.split(name.casefold())
    found = {SPLIT_OF_WORD[word] for word in words if word in SPLIT_OF_WORD}
    return found.pop() if len(found) == 1 else None


def split_of_file(parts: Sequence[str]) -> str | None:
    """Return the split of a data file by its path below the root: folders, then its own name.

    The shard pattern `SPLIT-00000-of-00005` of the name is first, as with Hugging Face. Of several
    folders the nearest is used. Train is the default, as long as no name of another split's shards
    is in the way.

    Returns:
        None for the shards of a split of another name, such as `unsupervised-00000-of-00001`.
    """
    name = parts[-1]
    if (shard := _SHARD.match(name)) and (split := split_of_name(shard[1])):
        return split
    for folder in reversed(parts[:-1]):
        if split := split_of_name(folder):
            return split
    if shard:
        return None
    return split_of_name(name) or "train"
