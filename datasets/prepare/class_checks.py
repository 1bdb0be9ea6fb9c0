"""Whether the classes of a source can be trained: two or more, each with training images."""

from collections import defaultdict

import pyarrow as pa

from cluster.io.errors import UserError, show
from datasets.prepare.classes import find_similar
from datasets.prepare.config import PrepareConfig
from datasets.prepare.listing import describe_source
from datasets.prepare.names import stands_for_no_class
from datasets.shards import FOLD_FOLDER


def check_classes(
    config: PrepareConfig, classes: tuple[str, ...], images: pa.Table, note: str = ""
) -> None:
    """Require two classes with training images each, except of test images alone; `note` says what
    was left out."""
    source = describe_source(config)
    if set(images["split"].to_pylist()) == {"test"}:
        return
    if len(classes) < 2:
        found = f"1 class, {show(classes[0])}" if classes else "no class"
        raise UserError(
            f"{source}: it has {found}{note}; give a folder, or a table, of images of two classes "
            "or more"
        )
    if not len(images):
        raise UserError(f"{source}: no image is left{note}; check the files")
    labels_of = defaultdict[str, set[int]](set)
    for split, label in zip(images["split"].to_pylist(), images["label"].to_pylist(), strict=True):
        labels_of["train" if FOLD_FOLDER.fullmatch(split) else split].add(label)
    train, test = labels_of["train"], labels_of["test"]
    for label, name in enumerate(classes):
        if label not in train:
            only = "only validation images" if label in labels_of["val"] else "no image"
            only = "only test images" if label in test else only
            remedy = "add training images of it, or remove the class"
            if stands_for_no_class(name):
                remedy = "move its images into folders of their classes, or remove the folder"
            if (similar := find_similar(name, classes)) is not None:
                remedy = f"call it {similar!r} where that is meant, which differs in case only"
            raise UserError(f"{source}: class {name!r} has {only}{note}; {remedy}")
