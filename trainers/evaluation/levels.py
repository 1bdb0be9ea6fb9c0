"""Measures of each level of a hierarchy of classes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from trainers.inference.hierarchy import Hierarchy
from trainers.run.predictions import Predictions


def group_classes(predictions: Predictions, hierarchy: Hierarchy, level: int) -> Predictions:
    """Return predictions of a level's groups: the likeliest group, not that of the likeliest
    class. `predictions` has the columns of `Hierarchy.describe`."""
    names, index_K = hierarchy.groups(level)
    column = predictions.table[f"level_{hierarchy.levels[level]}"]
    predicted_N = np.searchsorted(names, column.to_pylist())
    table = predictions.table
    for name, index_N in (("label", index_K[predictions.label_N]), ("predicted", predicted_N)):
        values = pa.DictionaryArray.from_arrays(pa.array(index_N, pa.int32()), names)
        table = table.set_column(table.column_names.index(name), name, pa.chunked_array([values]))
    return replace(predictions, table=table, classes=tuple(names))


def measure_levels(predictions: Predictions, hierarchy: Hierarchy) -> list[dict[str, Any]]:
    """Return of each level its accuracy, the share of answers at it, and how many are right."""
    answer_N, level_N = (
        np.array(predictions.table[name].to_pylist(), object) for name in ("answer", "answer_level")
    )
    found = []
    for level, name in enumerate(hierarchy.levels):
        true_N = np.array(hierarchy.names[level], object)[predictions.label_N]
        at_level_N = level_N == name
        num_answers = int(at_level_N.sum())
        right = int((answer_N == true_N)[at_level_N].sum())
        found.append(
            {
                "level": name,
                "groups": len(set(hierarchy.names[level])),
                "top1": float(group_classes(predictions, hierarchy, level).is_correct_N.mean()),
                "answers": num_answers / max(1, len(level_N)),
                "answers_right": right / num_answers if num_answers else None,
            }
        )
    return found


def show_levels(levels: list[dict[str, Any]]) -> None:
    """Print a row for each level."""
    print("\nlevel       groups  top-1  answers at it  of them right")
    for row in levels:
        right = "-" if row["answers_right"] is None else f"{row['answers_right']:.1%}"
        print(
            f"{row['level']:<10}  {row['groups']:6}  {row['top1']:.3f}  {row['answers']:13.1%}  "
            f"{right:>13}"
        )
