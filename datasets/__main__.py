"""python -m datasets prepare | info | preview | audit | bench"""

from collections.abc import Sequence
from typing import Any

from cluster.dispatch import Verb, dispatch, parse_verb
from cluster.entry import run_room
from datasets.config import READERS

PREPARE_HELP = """Turn images into a data set of validated Parquet shards with splits.

  python -m datasets prepare --source synthetic --out runs/cars
  python -m datasets prepare --source folder --root photos/train --test-root photos/test --out ...
  python -m datasets prepare --source stanford --root stanford_cars --crop-to-box --out runs/cars
  python -m datasets prepare --source table --root cars.csv --label-column model --out runs/cars
  python -m datasets prepare --source folder --root cars.zip --out runs/cars --dry-run
  python -m datasets prepare --source folder --root photos --folds 5 --out runs/cars

A dry run prints splits, classes, counts and unused files, and writes nothing. Images that can't be
read are listed in OUT/quarantine.parquet with a reason. The same command again resumes, or reuses
a data set that is complete.
"""

VERBS = {
    "prepare": Verb(
        "turn images into a data set of validated Parquet shards with splits",
        "datasets.prepare.config:PrepareConfig",
        "datasets.commands:run_prepare",
        help=PREPARE_HELP,
    ),
    "info": Verb(
        "show classes, counts, shards and left-out images of a data set",
        "datasets.config:InfoConfig",
        "datasets.commands:run_info",
    ),
    "preview": Verb(
        "draw a contact sheet of a data set and its augmentation policies",
        "datasets.config:PreviewConfig",
        "datasets.commands:run_preview",
    ),
    "audit": Verb(
        "find faults of a data set; write a table, a page and an exclude list",
        "datasets.audit.config:AuditConfig",
        "datasets.audit.audit:run_audit",
        address="address",
        imports=READERS,
    ),
    "bench": Verb(
        "time every stage of ingest, and count the cores that feed a GPU",
        "datasets.config:BenchConfig",
        "datasets.commands:run_bench",
        address="address",
        imports=READERS,
    ),
}


def main(arguments: Sequence[str]) -> None:
    dispatch("datasets", VERBS, arguments)


def parse(arguments: Sequence[str]) -> Any:
    """Parse a verb and its options into its config."""
    return parse_verb("datasets", VERBS, arguments)


if __name__ == "__main__":
    run_room(main, early=True)
