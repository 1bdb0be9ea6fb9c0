"""Small zip and tar archives."""

import io
import tarfile
import zipfile
from pathlib import Path
from typing import Literal


def pack(path: Path, files: dict[str, bytes]) -> None:
    """Write an archive of the kind that its suffix says; names in a tar begin with `./`."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return
    modes: dict[str, Literal["w", "w:gz", "w:xz"]] = {".tar": "w", ".gz": "w:gz", ".xz": "w:xz"}
    with tarfile.open(path, modes[path.suffix]) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
