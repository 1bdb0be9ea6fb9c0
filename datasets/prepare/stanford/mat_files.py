"""The .mat files of Stanford Cars: names of classes, and annotations of images."""

import io
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyarrow import fs
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from cluster.io import filesystems, storage
from cluster.io.errors import UserError

_CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
_DAMAGE = (
    *(ValueError, TypeError, LookupError, OSError, OverflowError, MemoryError),
    *(NotImplementedError, MatReadError, zlib.error),
)
"""Exceptions that scipy raised on damaged files, and on files of MATLAB 7.3."""


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """What is written of an image."""

    name: str
    """Of the file."""
    split: str
    label: int
    box: list[int]


@dataclass(frozen=True, kw_only=True)
class MatFile:
    """A file of annotations; all its methods raise a UserError where what they read is missing."""

    root: str
    uri: str
    info: fs.FileInfo
    variables: dict[str, np.ndarray]

    def read_names(self) -> tuple[str, ...]:
        return tuple(map(str, self._find("class_names")))

    def has_labels(self) -> bool:
        return "class" in (self._find("annotations").dtype.names or ())

    def read_annotations(self, num_classes: int, split: str | None = None) -> list[Annotation]:
        """Read them in their order.

        Args:
            split: of all images; by default each annotation says whether it is a test image.
        """
        entries = self._find("annotations")
        fields = entries.dtype.names or ()
        name = "relative_im_path" if "relative_im_path" in fields else "fname"
        wanted = (name, "class", *_CORNERS, *(() if split else ("test",)))
        if missing := [field for field in wanted if field not in fields]:
            raise self._refuse(f"its annotations have no field {missing[0]}")
        try:
            return [_read_annotation(entry, name, split, num_classes) for entry in entries]
        except (ValueError, TypeError, OverflowError) as error:
            raise self._refuse(f"an annotation can't be read ({error})") from None

    def _find(self, name: str) -> np.ndarray:
        if name not in self.variables:
            raise self._refuse(f"it has no variable {name}")
        return self.variables[name]

    def _refuse(self, reason: str) -> UserError:
        return UserError(f"root is {self.root!r}: {self.uri}: {reason}; {_remedy(self.uri)} again")


def read_mat(root: str, folder: str, name: str) -> MatFile:
    """Read a file of `folder`; `root` is named where that fails.

    Raises:
        UserError: where it is missing or damaged.
    """
    uri = storage.join(folder, name)
    if not storage.exists(uri):
        raise UserError(f"root is {root!r}: {uri} is missing; {_remedy(uri)} there")
    file_system, path = filesystems.resolve(uri)
    with filesystems.explaining(uri):
        info = file_system.get_file_info(path)
    content = storage.read_bytes(uri)
    try:
        found = loadmat(io.BytesIO(content), squeeze_me=True)
    except _DAMAGE as error:
        raise UserError(
            f"root is {root!r}: {uri} is damaged, or no MATLAB file ({error}); {_remedy(uri)} again"
        ) from None
    variables = {key: np.ravel(value) for key, value in found.items() if key[0] != "_"}
    return MatFile(root=root, uri=uri, info=info, variables=variables)


def _read_annotation(
    entry: Any, name_field: str, split: str | None, num_classes: int
) -> Annotation:
    name, number = entry[name_field], int(entry["class"])
    if not isinstance(name, str):
        raise ValueError(f"its {name_field} is {name!r}")
    if not 1 <= number <= num_classes:  # as MATLAB counts
        raise ValueError(f"the class of {name} is {number} of {num_classes}")
    return Annotation(
        name=name.rpartition("/")[2],
        split=split or ("test" if int(entry["test"]) else "train"),
        label=number - 1,
        box=[int(entry[corner]) for corner in _CORNERS],
    )


def _remedy(uri: str) -> str:
    if uri.endswith("cars_annos.mat"):
        return "download cars_annos.mat of Stanford Cars"
    return "unpack the devkit of Stanford Cars (car_devkit.tgz)"
