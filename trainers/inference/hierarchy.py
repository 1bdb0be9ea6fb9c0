"""Classes in levels, such as make, model and year: accuracy of each level, and answers that back
off to the make where the model is uncertain.

B images, K classes, G groups of a level.
"""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cluster.io import storage
from cluster.io.errors import UserError, require
from cluster.io.markers import NAMES
from datasets.prepare.classes import clean

TWO_WORDS = (
    "AM General", "Alfa Romeo", "Aston Martin", "De Tomaso", "Great Wall", "Land Rover",
    "Range Rover", "Rolls Royce", "Mercedes Benz",
)  # fmt: skip
"""Makes whose name has a space."""
_YEAR = re.compile(r"(19|20)\d\d")


@dataclass(frozen=True, kw_only=True)
class Hierarchy:
    """Names of each class, the coarsest level first; a name includes those of the levels above."""

    levels: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    """Of each level, its name of each class."""

    def groups(self, level: int) -> tuple[list[str], np.ndarray]:
        """Return the names of a level, sorted, and the index among them of each class."""
        names, index_K = np.unique(self.names[level], return_inverse=True)
        return names.tolist(), index_K

    def probabilities(self, level: int, probabilities_BK: np.ndarray) -> np.ndarray:
        """Return probabilities_BG: those of a group's classes, added."""
        names, index_K = self.groups(level)
        return probabilities_BK @ np.eye(len(names), dtype=probabilities_BK.dtype)[index_K]

    def describe(self, probabilities_BK: np.ndarray, least: float) -> dict[str, pa.Array]:
        """Return columns: the likeliest group of each level, and the answer.

        The answer is the likeliest group of the finest level where it has a probability of at
        least `least`; where no level has one, of the coarsest.
        """
        columns: dict[str, pa.Array] = {}
        num_images = len(probabilities_BK)
        answer_B, level_B = np.full((2, num_images), "", object)
        probability_B = np.zeros(num_images)
        for number, level in enumerate(self.levels):
            names, _ = self.groups(number)
            of_group_BG = self.probabilities(number, probabilities_BK)
            likeliest_B = np.array(names, object)[of_group_BG.argmax(1)]
            highest_B = of_group_BG.max(1)
            columns[f"level_{level}"] = pa.array(likeliest_B, pa.string())
            is_answer_B = (highest_B >= least) | (number == 0)
            answer_B = np.where(is_answer_B, likeliest_B, answer_B)
            level_B = np.where(is_answer_B, level, level_B)
            probability_B = np.where(is_answer_B, highest_B, probability_B)
        return columns | {
            "answer": pa.array(answer_B, pa.string()),
            "answer_level": pa.array(level_B, pa.string()),
            "answer_probability": pa.array(probability_B, pa.float32()),
        }


def open_hierarchy(source: str, classes: Sequence[str]) -> Hierarchy:
    """Read the levels of classes from their names (`names`), or from a CSV file.

    Raises:
        UserError: where the file does not name each class.
    """
    return parse_names(classes) if source == NAMES else read_levels(source, classes)


def parse_names(classes: Sequence[str]) -> Hierarchy:
    """Read make, model and year from names such as `Audi S6 Sedan 2011`."""
    makes, models = [], []
    for name in classes:
        words = name.split()
        if len(words) > 1 and _YEAR.fullmatch(words[-1]):
            words.pop()
        size = 2 if " ".join(words[:2]) in TWO_WORDS else 1
        makes.append(" ".join(words[:size]))
        models.append(" ".join(words))
    levels, names = ("make", "model"), (tuple(makes), tuple(models))
    if tuple(models) != tuple(" ".join(name.split()) for name in classes):
        levels, names = (*levels, "year"), (*names, tuple(classes))
    return Hierarchy(levels=levels, names=names)


def read_levels(uri: str, classes: Sequence[str]) -> Hierarchy:
    """Read a CSV file with the column `class` and a column for each level, the coarsest first."""
    try:
        text = storage.read_bytes(storage.absolute(uri, "hierarchy")).decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text), strict=True))
    except FileNotFoundError:
        raise UserError(
            f"hierarchy is {uri!r}: no such file; give `names`, or a CSV file with the column "
            "class and a column for each level"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"hierarchy is {uri!r}: it is no CSV file in UTF-8 ({error})") from None
    levels = [name for name in (rows[0] if rows else {}) if name and name != "class"]
    require(
        bool(levels) and "class" in rows[0],
        "hierarchy",
        uri,
        "the file needs the column class and a column for each level, the coarsest first",
    )
    of_class = {
        clean(row["class"] or ""): [clean(row[level] or "") for level in levels] for row in rows
    }
    missing = [name for name in classes if "" in of_class.get(clean(name), [""])]
    require(not missing, "hierarchy", uri, f"it does not have the levels of {missing[:3]}")
    rows = [of_class[clean(name)] for name in classes]
    paths = [[" ".join(row[: n + 1]) for row in rows] for n in range(len(levels))]
    names = tuple(map(tuple, paths))
    if len(set(names[-1])) < len(classes):  # classes that only their own name tells apart
        levels, names = [*levels, "class"], (*names, tuple(classes))
    return Hierarchy(levels=tuple(levels), names=names)
