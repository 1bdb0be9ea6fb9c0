"""The kinds of sources: the driver lists each, tasks read its images."""

from collections.abc import Callable, Iterator
from functools import partial

import pyarrow as pa

from cluster.io import storage
from cluster.io.errors import UserError
from datasets.config import PrepareConfig, SyntheticConfig
from datasets.images import BadImage, encode_jpeg
from datasets.prepare import parquet, stanford
from datasets.prepare.listing import (
    SPLIT_OF_NAME,
    Listing,
    hash_files,
    is_folder,
    list_visible,
    read_files,
    refuse_second_test_set,
)
from datasets.synthetic import synthetic


def list_folder(config: PrepareConfig) -> Listing:
    """List `ROOT/class/*` or `ROOT/{train,val,test}/class/*`, and `TEST_ROOT/class/*`."""
    assert config.root is not None
    below = [info.base_name for info in list_visible("root", config.root) if is_folder(info)]
    folders = {SPLIT_OF_NAME[n]: storage.join(config.root, n) for n in below if n in SPLIT_OF_NAME}
    if "train" not in folders:
        folders = {"train": config.root}
    if config.test_root is not None:
        if "test" in folders:
            refuse_second_test_set(config.test_root, folders["test"])
        folders["test"] = config.test_root
    files, names = [], set()
    for split, folder in folders.items():
        field = "test_root" if folder == config.test_root else "root"
        for name in (i.base_name for i in list_visible(field, folder) if is_folder(i)):
            images = list_visible(field, storage.join(folder, name))
            files += [(split, folder, name, info) for info in images]
            names.add(name)
    if not files:
        raise UserError(
            f"root is {config.root!r}: there are no images; use a folder for each class, such as "
            "train/Audi S6 Sedan 2011/1.jpg"
        )
    classes = tuple(sorted(names))
    label_of = {name: label for label, name in enumerate(classes)}
    references = pa.table(
        {
            "split": [split for split, *_ in files],
            "label": pa.array([label_of[name] for _, _, name, _ in files], pa.int32()),
            "path": [info.path for *_, info in files],
            "folder": [folder for _, folder, *_ in files],
        }
    )
    version = hash_files(info for *_, info in files)
    return Listing(classes=classes, references=references, read=read_files, version=version)


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
    "stanford": stanford.list_stanford,
    "parquet": parquet.list_parquet,
    "synthetic": list_synthetic,
}
