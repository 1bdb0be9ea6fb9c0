"""The kinds of sources: the driver lists each, tasks read its images."""

from collections.abc import Callable, Iterator
from functools import partial

import pyarrow as pa

from datasets.images import BadImage, encode_jpeg
from datasets.prepare.config import PrepareConfig
from datasets.prepare.folders.folder import list_folder
from datasets.prepare.listing import Listing
from datasets.prepare.parquet.parquet import list_parquet
from datasets.prepare.stanford.stanford import list_stanford
from datasets.prepare.tables.listing import list_table
from datasets.synthetic import synthetic
from datasets.synthetic.config import SyntheticConfig


def list_synthetic(config: PrepareConfig) -> Listing:
    """List the images of procedural cars; the tasks render them."""
    options = config.synthetic
    rows = [
        {
            "split": split,
            "label": synthetic.label_of(options, model),
            "path": f"synthetic/{split}/{model:03d}/{index:05d}",
            "model": model,
            "index": index,
        }
        for split, per_class in (
            ("train", options.train_per_class),
            ("test", options.test_per_class),
        )
        for model in range(options.num_classes)
        for index in range(per_class)
    ]
    return Listing(
        classes=synthetic.class_names(options),
        references=pa.Table.from_pylist(rows),
        read=partial(_render, options=options),
        version="",
    )


def _render(references: pa.Table, *, options: SyntheticConfig) -> Iterator[bytes | BadImage]:
    for row in references.select(["split", "model", "index"]).to_pylist():
        image_HWC = synthetic.render(options, row["model"], row["index"], row["split"])
        yield encode_jpeg(image_HWC)


SOURCES: dict[str, Callable[[PrepareConfig], Listing]] = {
    "folder": list_folder,
    "table": list_table,
    "parquet": list_parquet,
    "stanford": list_stanford,
    "synthetic": list_synthetic,
}
