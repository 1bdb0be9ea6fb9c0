"""Stanford Cars as downloaded, of either release:

    ROOT/{cars_train,cars_test}/    ROOT/devkit/*.mat, or ROOT/car_devkit/
    ROOT/car_ims/                   ROOT/cars_annos.mat

Each folder may hold one of its own name, as archives are often unpacked.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from cluster.io import filesystems, storage
from cluster.io.errors import UserError
from datasets.prepare.config import PrepareConfig
from datasets.prepare.listing import Listing, hash_files, list_visible, read_files
from datasets.prepare.stanford.mat_files import Annotation, MatFile, read_mat

NO_ANNOTATION = "no annotation in devkit/"
OTHER_RELEASE = "of another release: cars_train/ is read, not car_ims/"
_WITH_LABELS = re.compile(r"cars_test_annos_withlabels.*\.mat")  # some copies add " (1)"


@dataclass(frozen=True, kw_only=True)
class Release:
    """Where the images are, and what is known of them."""

    classes: tuple[str, ...]
    annotations: dict[str, list[Annotation]]
    """By the URI of their folder."""
    files: tuple[MatFile, ...]
    reason: str
    """Why an image without annotation is not used."""


def list_stanford(config: PrepareConfig) -> Listing:
    """List Stanford Cars by its annotations: official split, class names and bounding boxes.

    Source: Krause et al., "3D Object Representations for Fine-Grained Categorization", 2013.
    """
    assert config.root is not None
    list_visible("root", config.root)
    folders = (storage.join(config.root, name) for name in ("cars_train", "cars_test"))
    is_first = any(map(storage.exists, folders))
    one_folder = _find_folder(config.root, "car_ims")
    if is_first or not storage.exists(one_folder):
        release = _read_release_of_folders(config.root)
    else:
        release = _read_release_of_one_folder(config.root, one_folder)
    rows, infos, unused = [], [file.info for file in release.files], []
    for folder, annotations in release.annotations.items():
        found = list_visible("root", folder)
        infos += found
        known = {annotation.name for annotation in annotations}
        unused += [(info.path, release.reason) for info in found if info.base_name not in known]
        rows += _refer_to(folder, annotations)
    if is_first and storage.exists(one_folder):
        unused += [(info.path, OTHER_RELEASE) for info in list_visible("root", one_folder)]
    return Listing(
        classes=release.classes,
        references=pa.Table.from_pylist(rows),
        read=read_files,
        version=hash_files(infos),
        unused=tuple(unused),
    )


def _refer_to(folder: str, annotations: Sequence[Annotation]) -> Iterator[dict]:
    path = filesystems.resolve(folder)[1]
    for annotation in annotations:
        yield {
            "split": annotation.split,
            "label": annotation.label,
            "path": f"{path}/{annotation.name}",
            "folder": folder,
            "box": annotation.box,
        }


def _read_release_of_folders(root: str) -> Release:
    devkit = _find_devkit(root, "cars_meta.mat", storage.join(root, "devkit"))
    meta, train = (read_mat(root, devkit, f"cars_{name}.mat") for name in ("meta", "train_annos"))
    classes = meta.read_names()
    files, annotations = [meta, train], {"train": train.read_annotations(len(classes), "train")}
    if storage.exists(storage.join(root, "cars_test")):
        test = _read_test_file(root, devkit)
        files.append(test)
        annotations["test"] = test.read_annotations(len(classes), "test")
    return Release(
        classes=classes,
        annotations={_find_folder(root, f"cars_{name}"): of for name, of in annotations.items()},
        files=tuple(files),
        reason=NO_ANNOTATION,
    )


def _read_release_of_one_folder(root: str, folder: str) -> Release:
    """Read the release whose images are all in one folder, and whose annotations in one file."""
    file = read_mat(root, _find_devkit(root, "cars_annos.mat", root), "cars_annos.mat")
    classes = file.read_names()
    return Release(
        classes=classes,
        annotations={folder: file.read_annotations(len(classes))},
        files=(file,),
        reason="no annotation in cars_annos.mat",
    )


def _find_folder(root: str, name: str) -> str:
    """Return ROOT/NAME, or ROOT/NAME/NAME as Kaggle's archive unpacks."""
    folder = storage.join(root, name)
    doubled = storage.join(folder, name)
    return doubled if storage.exists(doubled) else folder


def _list_devkits(root: str) -> list[str]:
    """List where annotations are unpacked or downloaded to."""
    below = ("devkit", "devkit/devkit", "car_devkit/devkit", "car_devkit")
    return [*(storage.join(root, name) for name in below), root]


def _find_devkit(root: str, name: str, default: str) -> str:
    """Return the folder that has a file."""
    devkits = _list_devkits(root)
    found = (folder for folder in devkits if storage.exists(storage.join(folder, name)))
    return next(found, default)


def _read_test_file(root: str, devkit: str) -> MatFile:
    for folder in (devkit, *_list_devkits(root)):  # a separate download
        names = filter(_WITH_LABELS.fullmatch, storage.list_names(folder))
        if (name := min(names, key=len, default=None)) is not None:
            return read_mat(root, folder, name)
    file = read_mat(root, devkit, "cars_test_annos.mat")
    if not file.has_labels():
        raise UserError(
            f"root is {root!r}: cars_test_annos.mat has no labels; put "
            "cars_test_annos_withlabels.mat into devkit/, or move cars_test/ away to prepare the "
            "training images only"
        )
    return file
