"""Near duplicates for the user: a table and a picture of the pairs.

OUT/near_duplicates.parquet   path and split of both images of a pair, and their correlation
OUT/near_duplicates.png       the pairs side by side, those across splits first
"""

import io
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from cluster.io import storage
from datasets.images import load_image

TABLE, PICTURE = "near_duplicates.parquet", "near_duplicates.png"
MAX_DRAWN, TILE_PX, COLUMNS = 48, 160, 3

Pair = tuple[int, int, float]


def order_pairs(pairs: Sequence[Pair], splits: Sequence[str]) -> list[Pair]:
    """Put pairs with a test image first, then others across splits, each by correlation."""

    def key(pair: Pair) -> tuple[bool, bool, float]:
        one, other = splits[pair[0]], splits[pair[1]]
        return one == other, "test" not in (one, other), -pair[2]

    return sorted(pairs, key=key)


def describe_pairs(pairs: Sequence[Pair], splits: Sequence[str]) -> str:
    across = sum(splits[one] != splits[other] for one, other, _ in pairs)
    noun = "pair" if len(pairs) == 1 else "pairs"
    return f"{len(pairs)} {noun} of near duplicates, {across} of them across splits"


def write_report(
    out: str,
    pairs: Sequence[Pair],
    paths: Sequence[str],
    splits: Sequence[str],
    read_jpegs: Callable[[np.ndarray], dict[int, bytes]],
) -> None:
    """Write table and picture of pairs in the order of `order_pairs`."""
    first, second = [one for one, _, _ in pairs], [other for _, other, _ in pairs]
    table = pa.table(
        {
            "path": [paths[index] for index in first],
            "split": [splits[index] for index in first],
            "other_path": [paths[index] for index in second],
            "other_split": [splits[index] for index in second],
            "correlation": pa.array([pair[2] for pair in pairs], pa.float32()),
        }
    )
    storage.write_parquet(storage.join(out, TABLE), table)
    drawn = pairs[:MAX_DRAWN]
    jpegs = read_jpegs(np.unique([index for one, other, _ in drawn for index in (one, other)]))
    num_rows = -(-len(drawn) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (2 * TILE_PX + 16), num_rows * (TILE_PX + 24)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (one, other, correlation) in enumerate(drawn):
        x = number % COLUMNS * (2 * TILE_PX + 16)
        y = number // COLUMNS * (TILE_PX + 24)
        for side, index in enumerate((one, other)):
            tile = Image.fromarray(load_image(jpegs[index]))
            tile.thumbnail((TILE_PX, TILE_PX))
            sheet.paste(tile, (x + side * TILE_PX, y + 18))
        text = f"{splits[one]}, {splits[other]}: {correlation:.2f}"
        draw.text((x + 2, y + 2), text, fill="black")
    content = io.BytesIO()
    sheet.save(content, "PNG")
    storage.write_bytes(storage.join(out, PICTURE), content.getvalue())
