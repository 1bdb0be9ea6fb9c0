"""`--help` of every command, without the modules that take seconds to import."""

import json
import subprocess
import sys
from importlib import import_module

import pytest

from tests.conftest import ROOT

HEAVY = ("ray", "torch", "pyarrow", "pandas", "wandb", "matplotlib", "numpy")
PRINT_HELP = """
import contextlib, io, json, sys
from importlib import import_module

verbs, room = sys.argv[2:], import_module(f"{sys.argv[1]}.__main__")
texts = {}
for verb in [*verbs, ""]:
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        room.main([*verb.split(), "--help"])
    texts[verb] = text.getvalue()
print(json.dumps([texts, sorted(sys.modules)]))
"""


@pytest.mark.parametrize("room", ["cluster", "datasets", "trainers", "tuning"])
def test_help_imports_no_heavy_module(room: str) -> None:
    verbs = list(import_module(f"{room}.__main__").VERBS)
    command = [sys.executable, "-c", PRINT_HELP, room, *verbs]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    texts, modules = json.loads(run.stdout)

    assert not {name.partition(".")[0] for name in modules} & set(HEAVY)
    for verb in verbs:
        assert f"python -m {room}" in texts[verb]
        assert verb in texts[""]
