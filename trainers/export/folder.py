"""The folder of an export: it replaces an earlier export there, and no other file.

config.json, written first, lists the files; README.md, the model card, is written last.
"""

import json
from collections.abc import Sequence
from typing import Any

from cluster.io import storage
from cluster.io.errors import require
from cluster.io.records import read_json
from trainers.export.config import QUANTIZED, ExportConfig
from trainers.export.formats import EXPORTERS

CARD, CONFIG, MARK = "README.md", "config.json", {"exported_by": "Thaw"}
HF_FILES, HF_CARD = ("hf/model.safetensors", "hf/config.json"), f"hf/{CARD}"
FILES = {
    **{name: (exporter.file,) for name, exporter in EXPORTERS.items()},
    **{name: (file,) for name, file in QUANTIZED.items()},
    "hf": (*HF_FILES, HF_CARD),
}
"""By format."""


def list_files(config: ExportConfig) -> list[str]:
    """Return the names of the files to write, beside CONFIG and CARD."""
    return [file for name in FILES if name in config.formats for file in FILES[name]]


def find_earlier(out: str, files: Sequence[str]) -> list[str]:
    """Return the files of an earlier export in a folder.

    Args:
        files: to write.

    Raises:
        UserError: where one of them, CONFIG or CARD is there and no export wrote it.
    """
    earlier = _read_list(out)
    others = (name for name in (CONFIG, CARD, *files) if name not in earlier)
    kept = next((name for name in others if storage.exists(storage.join(out, name))), None)
    require(kept is None, "out", out, f"it has a {kept} that no export wrote; use another folder")
    return earlier


def _read_list(out: str) -> list[str]:
    try:
        config = read_json(storage.join(out, CONFIG))
    except (FileNotFoundError, ValueError):  # no JSON
        return []
    if not isinstance(config, dict) or not config.items() >= MARK.items():
        return []
    names = [file for files in FILES.values() for file in files]
    listed = config.get("files", names)  # an older Thaw lists none
    found = [name for name in names if isinstance(listed, list) and name in listed]
    return [CARD, CONFIG, *found]


def publish(
    staged: str, out: str, described: dict[str, Any], files: Sequence[str], earlier: Sequence[str]
) -> None:
    """Replace an earlier export by what lies in another folder.

    Args:
        described: content of config.json.
        earlier: as of `find_earlier`.
    """
    for name in earlier:  # the card first: from here on there is no whole export
        if name != CONFIG:
            storage.delete_file(storage.join(out, name))
    text = json.dumps({**MARK, "files": list(files), **described}, indent=1)
    storage.write_bytes(storage.join(out, CONFIG), text.encode())
    for name in (*files, CARD):
        content = storage.read_bytes(storage.join(staged, name))
        storage.write_bytes(storage.join(out, name), content)
