"""Ray's workers find this package by PYTHONPATH: only the rooms are sent to a cluster."""

import os
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parent.parent)
_PATHS = os.environ.get("PYTHONPATH", "").split(os.pathsep)
os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, _PATHS), _ROOT])
