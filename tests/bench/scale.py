"""What a cluster of a size asks for: python -m tests.bench.scale [--gpus 1000 --images 100e6 ...]

Prints the tables of docs/scale.md for the options given. With --write the tables of the default
options take the place of those in docs/scale.md, and docs/scale.png is drawn anew. What they
compute with is measured by `python -m tests.bench.scale_measure`; `make scale` does both.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import tyro

from tests.bench.report import ROOT
from tests.bench.scale_constants import read_constants
from tests.bench.scale_model import Scale
from tests.bench.scale_picture import draw
from tests.bench.scale_tables import TABLES

DOC, PICTURE = ROOT / "docs" / "scale.md", ROOT / "docs" / "scale.png"
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Options(Scale):
    write: bool = False
    """Write the tables of the default options into docs/scale.md, and draw docs/scale.png."""


def fill(text: str, scale: Scale) -> str:
    """Put each table in its place in a document; every table has one."""
    constants = read_constants()
    places = [match[2] for match in BLOCK.finditer(text)]
    assert sorted(places) == sorted(TABLES), f"tables of the document are {places}"
    return BLOCK.sub(
        lambda match: f"{match[1]}{TABLES[match[2]](scale, constants)}\n{match[3]}", text
    )


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.write:
        Path(DOC).write_text(fill(DOC.read_text(), Scale()))
        draw(PICTURE, Scale(), read_constants())
        print(f"wrote {DOC} and {PICTURE}")
        return
    for name, write in TABLES.items():
        print(f"\n{name}\n{write(options, read_constants())}")


if __name__ == "__main__":
    main()
