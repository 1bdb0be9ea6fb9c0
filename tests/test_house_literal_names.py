"""Names of classes and folders reach the terminal, CSV files and printed commands as they are."""

import csv
import io
import shlex

import pytest

from cluster.io.tables import to_csv
from cluster.io.terminal import literal_console
from datasets.__main__ import main
from tests.support.data import WriteData, rename_classes
from trainers.inference import predict

NAMES = ["Transit [van]", "[bold]Golf[/bold]", "a [/] b", ":car: 2", "=1+1", "x\\[y]", "<b>&amp;"]


@pytest.mark.parametrize("name", NAMES)
def test_info_prints_names_whole(name: str, write_data: WriteData, capsys) -> None:
    data = rename_classes(write_data(train=8, val=4, test=4), f"{name} {{}}")
    main(["info", "--data", data])
    out = capsys.readouterr().out
    assert all(f"{name} {number}" in out for number in range(3))


def test_predictions_are_shown_whole(tmp_path, capsys) -> None:
    import pyarrow as pa

    from cluster.io import storage

    table = pa.table({"probability": [0.5] * 7, "class": NAMES, "path": NAMES})
    storage.write_parquet(part := str(tmp_path / "p.parquet"), table)
    predict.show(part)
    out = capsys.readouterr().out
    assert all(out.count(name) == 2 for name in NAMES[: predict._NUM_SHOWN])


def test_every_console_is_literal() -> None:
    """rich would take `[van]` for markup, and `:car:` for an emoji."""
    file = io.StringIO()
    literal_console(file=file, width=200).print(*NAMES)
    assert file.getvalue().split("\n")[0] == " ".join(NAMES)


@pytest.mark.parametrize("cell", ["=1+1", "+49", "@sum", "-cmd|x", "\tx", "- Golf"])
def test_a_spreadsheet_computes_no_cell(cell: str) -> None:
    (row,) = list(csv.reader(io.StringIO(to_csv(["name"], [[cell]]).decode())))[1:]
    number = cell == "+49"
    assert row == [cell if number else f"'{cell}"]


def test_numbers_and_names_stay_as_they_are() -> None:
    rows = [[-1.5, "-2", "Transit [van]", 'a "b", c', None]]
    assert next(csv.reader(io.StringIO(to_csv([], rows).decode().split("\n", 1)[1]))) == [
        *("-1.5", "-2", "Transit [van]", 'a "b", c', "")
    ]


@pytest.mark.parametrize("folder", ["my cars", "a'b", "$HOME", "x;y"])
def test_a_printed_command_names_one_folder(folder: str) -> None:
    with pytest.raises(ValueError, match="make one with") as caught:
        from datasets.manifest_file import read_manifest

        read_manifest(f"/nowhere/{folder}")
    command = str(caught.value).split("`")[1]
    assert shlex.split(command)[-1] == f"/nowhere/{folder}"
