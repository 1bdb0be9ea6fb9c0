"""Stanford Cars as downloaded: cars_train/, cars_test/ and devkit/*.mat."""

import io
import zlib
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from cluster.io import filesystems, storage
from cluster.io.errors import UserError
from datasets.prepare.config import PrepareConfig
from datasets.prepare.listing import Listing, hash_files, list_visible, read_files

NO_ANNOTATION = "no annotation in devkit/"


def list_stanford(config: PrepareConfig) -> Listing:
    """List Stanford Cars by its devkit: official split, class names and bounding boxes.

    Source: Krause et al., "3D Object Representations for Fine-Grained Categorization", 2013.
    """
    assert config.root is not None
    list_visible("root", config.root)
    devkit = _find_folder(config.root, "devkit")
    names = _read_mat(devkit, "cars_meta.mat")["class_names"]
    annotations = {"train": _read_mat(devkit, "cars_train_annos.mat")["annotations"]}
    if storage.exists(storage.join(config.root, "cars_test")):
        annotations["test"] = _read_test_annotations(config.root)
    rows, files, unused = [], [], []
    for split, annotated in annotations.items():
        folder = _find_folder(config.root, f"cars_{split}")
        found = list_visible("root", folder)
        files += found
        path = filesystems.resolve(folder)[1]
        known = {str(entry["fname"]) for entry in annotated}
        unused += [(info.path, NO_ANNOTATION) for info in found if info.base_name not in known]
        rows += [
            {
                "split": split,
                "label": int(entry["class"]) - 1,  # MATLAB counts from 1
                "path": f"{path}/{entry['fname']}",
                "folder": folder,
                "box": [int(entry[f"bbox_{corner}"]) for corner in ("x1", "y1", "x2", "y2")],
            }
            for entry in annotated
        ]
    return Listing(
        classes=tuple(str(name) for name in names),
        references=pa.Table.from_pylist(rows),
        read=read_files,
        version=hash_files(files),
        unused=tuple(unused),
    )


def _find_folder(root: str, name: str) -> str:
    """Return ROOT/NAME, or ROOT/NAME/NAME as Kaggle's archive unpacks."""
    folder = storage.join(root, name)
    doubled = storage.join(folder, name)
    return doubled if storage.exists(doubled) else folder


def _read_mat(folder: str, name: str) -> dict[str, Any]:
    uri = storage.join(folder, name)
    if not storage.exists(uri):
        raise UserError(
            f"root is {folder.split('/devkit')[0]!r}: {uri} is missing; unpack the devkit of "
            "Stanford Cars (car_devkit.tgz) there"
        )
    content = storage.read_bytes(uri)
    try:
        matrices = loadmat(io.BytesIO(content), squeeze_me=True)
    except (ValueError, TypeError, NotImplementedError, MatReadError, zlib.error) as error:
        raise UserError(
            f"root is {folder.split('/devkit')[0]!r}: {uri} is damaged, or no MATLAB file "
            f"({error}); unpack the devkit of Stanford Cars (car_devkit.tgz) again"
        ) from None
    return {key: np.atleast_1d(value) for key, value in matrices.items() if key[0] != "_"}


def _read_test_annotations(root: str) -> np.ndarray:
    name = "cars_test_annos_withlabels.mat"
    devkit = _find_folder(root, "devkit")
    for folder in (devkit, root):  # a separate download, often put beside the devkit
        if storage.exists(storage.join(folder, name)):
            return _read_mat(folder, name)["annotations"]
    annotations = _read_mat(devkit, "cars_test_annos.mat")["annotations"]
    if "class" not in (annotations.dtype.names or ()):
        raise UserError(
            f"root is {root!r}: cars_test_annos.mat has no labels; put {name} into devkit/, or "
            "move cars_test/ away to prepare the training images only"
        )
    return annotations
