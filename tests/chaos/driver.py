"""A room's own command line, with a saboteur in its workers: `python -m <room> ...` otherwise.

usage: THAW_CHAOS=PLAN python -m tests.chaos.driver ROOM ARGUMENT ...
"""

import importlib
import json
import os
import sys

from cluster.entry import run_room
from tests.chaos.sabotage import Plan, sabotaged_loop, sabotaged_trial

PLAN_VAR = "THAW_CHAOS"


def main(room: str) -> None:
    values = json.loads(os.environ[PLAN_VAR])
    point = values.pop("point")
    plan = Plan(**values, point=point and (point[0], point[1]))
    entry = importlib.import_module(f"{room}.__main__")
    importlib.import_module("trainers.launch").train_loop_per_worker = sabotaged_loop(plan)
    if room == "tuning":
        # Only in what the trials' processes are sent: there, `tuning.trial` is the real one.
        importlib.import_module("tuning.trial").train_trial = sabotaged_trial(plan)
    run_room(entry.main)


if __name__ == "__main__":
    del sys.argv[0]
    main(sys.argv[0])
