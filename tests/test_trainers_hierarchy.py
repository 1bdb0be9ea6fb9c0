"""Levels of classes: read from names or a table, measured, and answers that back off."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from trainers.evaluation.levels import group_classes, measure_levels
from trainers.inference.hierarchy import Hierarchy, open_hierarchy, parse_names
from trainers.run.predictions import COLUMNS, build_predictions

CARS = (
    "AM General Hummer SUV 2000",
    "Audi S4 Sedan 2007",
    "Audi S4 Sedan 2012",
    "Audi S6 Sedan 2011",
    "smart fortwo Convertible 2012",
)


def test_make_model_and_year_are_read_from_names() -> None:
    found = parse_names(CARS)

    assert found.levels == ("make", "model", "year")
    assert found.names[0] == ("AM General", "Audi", "Audi", "Audi", "smart")
    assert found.names[1][1] == found.names[1][2] == "Audi S4 Sedan"
    assert found.names[2] == CARS
    assert parse_names(("Audi S4", "BMW")).levels == ("make", "model")


def test_an_answer_backs_off_to_the_level_that_is_certain() -> None:
    found = parse_names(CARS)
    probabilities_BK = np.array(
        [
            [0.01, 0.95, 0.02, 0.01, 0.01],  # a class
            [0.01, 0.50, 0.45, 0.03, 0.01],  # one of two years
            [0.08, 0.30, 0.22, 0.40, 0.00],  # some Audi
            [
                0.40,
                0.20,
                0.10,
                0.15,
                0.15,
            ],  # nothing: the likeliest make is not the likeliest class's
        ]
    )
    columns = {k: v.to_pylist() for k, v in found.describe(probabilities_BK, 0.9).items()}

    assert columns["answer"] == ["Audi S4 Sedan 2007", "Audi S4 Sedan", "Audi", "Audi"]
    assert columns["answer_level"] == ["year", "model", "make", "make"]
    assert columns["answer_probability"] == pytest.approx([0.95, 0.95, 0.92, 0.45])
    assert columns["level_make"] == ["Audi"] * 4
    assert (
        columns["level_model"][2] == "Audi S4 Sedan"
        and columns["level_year"][2] == "Audi S6 Sedan 2011"
    )


def test_each_level_is_measured() -> None:
    found = parse_names(CARS)
    probabilities_NK = np.array(
        [[0.0, 0.95, 0.05, 0, 0], [0.0, 0.4, 0.35, 0.2, 0.05], [0.9, 0, 0, 0, 0.1]]
    )
    columns = dict(zip(COLUMNS, np.array([[1, 2, 4], [1, 1, 0], [1, 1, 1.0], [0, 0, 0], [1, 1, 1]]),
                       strict=True))  # fmt: skip
    predictions = build_predictions(columns | found.describe(probabilities_NK, 0.9), CARS)
    make, model, year = measure_levels(predictions, found)

    assert [row["top1"] for row in (make, model, year)] == pytest.approx([2 / 3, 2 / 3, 1 / 3])
    assert (make["groups"], make["answers"], make["answers_right"]) == (
        3,
        pytest.approx(1 / 3),
        1.0,
    )
    assert (model["answers"], model["answers_right"]) == (0, None)
    assert year["answers_right"] == 0.5
    assert group_classes(predictions, found, 0).classes == ("AM General", "Audi", "smart")


def test_levels_come_from_a_table_too(tmp_path: Path) -> None:
    file = tmp_path / "levels.csv"
    file.write_text("class,kind,brand\na,car,x\nb,car,x\nc,bike,y\n")
    found = open_hierarchy(str(file), ("c", "a", "b"))

    assert found == Hierarchy(
        levels=("kind", "brand", "class"),
        names=(("bike", "car", "car"), ("bike y", "car x", "car x"), ("c", "a", "b")),
    )
    assert isinstance(found.describe(np.eye(3), 0.9)["level_kind"], pa.Array)


def test_names_in_a_table_are_those_of_the_run_however_they_are_written(tmp_path: Path) -> None:
    """macOS takes letters and accents apart; spreadsheets leave blanks at the end of a cell."""
    file = tmp_path / "levels.csv"
    file.write_text("class,make\nCitroe\u0308n C4 ,Citroe\u0308n\nCitro\u00ebn  C5,Citro\u00ebn \n")
    classes = ("Citro\u00ebn C5", "Citro\u00ebn C4")

    assert open_hierarchy(str(file), classes).names == (("Citro\u00ebn",) * 2, classes)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("class,kind\na,car\n", r"hierarchy is .*does not have the levels of \['b'\]"),
        ("class,kind\na,car\nb,\n", r"does not have the levels of \['b'\]"),
        ("kind,class\ncar,a\nbike\n", r"does not have the levels of \['b'\]"),
        ("name,kind\na,car\n", "needs the column class and a column for each level"),
        ("", "needs the column class"),
        ("class\na\nb\n", "needs the column class and a column"),
        (b"class,kind\n\xff,x\n", "no CSV file in UTF-8"),
        ('class,kind\n"a,x\n', "no CSV file in UTF-8"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    content: str | bytes, sentence: str, tmp_path: Path
) -> None:
    file = tmp_path / "levels.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(ValueError, match=sentence):
        open_hierarchy(str(file), ("a", "b"))
    with pytest.raises(ValueError, match="no such file; give `names`"):
        open_hierarchy(str(tmp_path / "none.csv"), ("a",))
