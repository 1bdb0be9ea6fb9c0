"""Compare runs in W&B's local files with their run folders.

The truth is config.json, metrics.jsonl and result.json.

problems = check_runs(Path(config.out))
assert not any(problems.values())
"""

from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isclose, isnan
from pathlib import Path
from typing import Any, NamedTuple

from cluster.io.markers import flatten
from cluster.io.records import read_object
from cluster.secrets import known_secrets
from tests.support.wandb.files import Json, Record, read_record
from trainers import metrics
from trainers.run.rows import Row, read_rows
from trainers.tracking.local_runs import TrackedFolder, find_folders
from trainers.tracking.wandb_internals import is_offline

TRIAL = "trial"
TRAININGS = ("train", TRIAL, "head")
ENDED_WELL = ("finished", "pruned")
"""States whose exit code is 0."""
TOLERANCE = 1e-3
"""Relative: a run resumed with another number of workers sums in another order."""
VARYING = ("time/", "ingest/", "system/")
"""Prefixes of metrics that differ where a resumed run repeats steps."""
NO_CONFIG = ("data_fingerprint",)
"""Fields of a sweep's config.json that are not its config."""


@dataclass(frozen=True)
class Expected:
    """A table, picture or artifact that W&B must have of a run."""

    key: str
    """Of the history; of an artifact, its type."""
    job_types: tuple[str, ...]
    is_artifact: bool = False
    if_validated: bool = False
    """Only of runs that measured validation images."""
    if_saved: bool = False
    """Only of runs that have ended an epoch, and so have a checkpoint."""
    aliases: tuple[str, ...] = field(default=())
    """That its versions must have, together."""


EXPECTED = (
    Expected("data/augmentation", (*TRAININGS, "sweep")),
    Expected("val/predictions", TRAININGS, if_validated=True),
    Expected("val/mistakes", TRAININGS, if_validated=True),
    Expected("val/confusion", TRAININGS, if_validated=True),
    Expected("dataset", (*TRAININGS, "evaluate", "sweep"), is_artifact=True),
    Expected("model", TRAININGS, is_artifact=True, if_saved=True, aliases=("best", "latest")),
    Expected("{split}/mistakes", ("evaluate",)),
    Expected("{split}/confusion", ("evaluate",)),
    Expected("{split}/per_class", ("evaluate",)),
    Expected("model", ("evaluate",), is_artifact=True),
    Expected("evaluation", ("evaluate",), is_artifact=True),
    Expected("sweep/leaderboard", ("sweep",)),
    Expected("sweep/importance", ("sweep",)),
    Expected("sweep/sharing", ("sweep",)),
)
"""What is expected of which run; `{split}` is the split that an evaluation measured."""


class Evidence(NamedTuple):
    """A run's folder and its W&B files."""

    folder: TrackedFolder
    record: Record
    config: Json | None
    rows: list[Row]
    result: Json | None

    @property
    def job_type(self) -> str:
        return self.record.run.get("job_type", "")


Check = Callable[[Evidence], Iterator[str]]


def check_runs(path: Path) -> dict[str, list[str]]:
    """Return what is wrong with each run of a training or sweep, by the last name of its folder.

    Each trial of a sweep must have a run.
    """
    folders = [folder.path for folder in find_folders(path, str(path))]
    trials = [trial for trial in path.glob("trials/*") if trial.is_dir()]
    return {folder.name: check_run(folder) for folder in sorted({*folders, *trials})}


def check_run(path: Path) -> list[str]:
    """Compare a run in W&B with its folder, and return what is wrong."""
    folder = TrackedFolder(str(path), path)
    if not folder.sessions:
        return ["there is no run of W&B"]
    offline = [session for session in folder.sessions if is_offline(session)]
    if len(offline) > 1:  # each holds all rows, and W&B would show them twice
        return [f"there are {len(offline)} offline runs"]
    try:
        record = read_record(folder)
    except ValueError as error:
        return [str(error)]
    evidence = Evidence(
        folder,
        record,
        config=_read_json(path / "config.json"),
        rows=read_rows(str(path)),
        result=_read_json(path / "result.json"),
    )
    return [problem for check in CHECKS for problem in check(evidence)]


def _read_json(file: Path) -> Json | None:
    return read_object(str(file)) if file.exists() else None


def check_names(evidence: Evidence) -> Iterator[str]:
    """Whether the run can be found: project, group, job type, name and tags."""
    run, config = evidence.record.run, evidence.config
    wanted = {"project": run.get("project"), "job type": run.get("job_type"),
              "name": run.get("display_name"), "tags": run.get("tags")}  # fmt: skip
    if evidence.job_type in (TRIAL, "head", "sweep") or (
        config is not None and config.get("track", {}).get("group")
    ):
        wanted["group"] = run.get("run_group")
    for name in [name for name, value in wanted.items() if not value]:
        yield f"it has no {name}"
    if (run_id := run.get("run_id")) != evidence.folder.id:
        yield f"its id is {run_id}, not {evidence.folder.id}: W&B takes its rows, yet no artifacts"
    if config is not None and evidence.job_type in TRAININGS:
        tags = {
            config["model"]["backbone"],
            config["model"]["init"],
            *config["track"].get("tags", ()),
        }
        lacking = sorted(tags - set(run.get("tags", ())))
        if not any(tag.startswith("data:") for tag in run.get("tags", ())):
            lacking.append("data:FINGERPRINT")
        if lacking:
            yield f"it lacks the tags {', '.join(lacking)}"


def check_config(evidence: Evidence) -> Iterator[str]:
    """Whether the config is config.json, nested, and set once a session."""
    record = evidence.record
    if not record.config:
        yield "it has no config"
        return
    if record.num_configs > len(evidence.folder.sessions):
        yield f"its config was set {record.num_configs} times"
    if evidence.config is not None:
        logged, truth = (flatten(config) for config in (record.config, evidence.config))
        names = (truth | logged).keys() - NO_CONFIG
        differing = sorted(name for name in names if logged.get(name) != truth.get(name))
        if differing:
            yield f"its config differs from config.json: {', '.join(differing[:3])}"


def check_axes(evidence: Evidence) -> Iterator[str]:
    """Whether charts are drawn over optimizer steps and epochs."""
    for axis in sorted({metrics.GLOBAL_STEP, metrics.EPOCH} - evidence.record.axes):
        yield f"the axis {axis} is not defined"


def check_rows(evidence: Evidence) -> Iterator[str]:
    """Whether each row of metrics.jsonl is in the history, once, as it is."""
    history = [item for item in evidence.record.history if metrics.TRAIN_LOSS in item]
    logged = {item[metrics.GLOBAL_STEP]: item for item in history}
    truth = {row[metrics.GLOBAL_STEP]: row for row in evidence.rows}
    for what, steps in (
        ("rows of metrics.jsonl are not in the history", [s for s in truth if s not in logged]),
        ("rows of the history are not in metrics.jsonl", [s for s in logged if s not in truth]),
        (
            "rows of the history differ from metrics.jsonl",
            [s for s in truth if s in logged and not _agree(truth[s], logged[s])],
        ),
    ):
        if steps:
            yield f"{len(steps)} {what}: global_step {_enumerate(steps)}"
    counts = Counter(item[metrics.GLOBAL_STEP] for item in history)
    doubled = [step for step, count in counts.items() if count > 1]
    # Online, the steps between a checkpoint and a kill are logged by both sessions.
    if doubled and len(evidence.folder.sessions) == 1:
        yield f"rows are there twice: global_step {_enumerate(doubled)}"


def check_end(evidence: Evidence) -> Iterator[str]:
    """Whether W&B knows how the run ended, as result.json does."""
    state, code = evidence.record.summary.get("state"), evidence.record.exit_code
    if code is None:
        yield "it was not finished: its driver was killed, or is at work"
        return
    if state is None:
        yield "its summary has no state"
    elif (state in ENDED_WELL) != (code == 0):
        yield f"its state is {state}, yet its exit code {code}"
    result = evidence.result
    if result is None:
        if evidence.job_type in TRAININGS and state == "finished":
            yield "its state is finished, yet there is no result.json"
    elif (result["diverged"] or result["lost"]) and state in ENDED_WELL:
        reason = result["diverged"] or result["lost"]
        yield f"its state is {state}, yet result.json says: {reason}"
    elif not (result["diverged"] or result["lost"]) and state not in (None, *ENDED_WELL):
        yield f"its state is {state}, yet result.json says that it ended well"


def check_summary(evidence: Evidence) -> Iterator[str]:
    """Whether the summary has the best val/top1, not the last."""
    top1s = [row[metrics.VAL_TOP1] for row in evidence.rows if metrics.VAL_TOP1 in row]
    summary = evidence.record.summary.get(metrics.VAL_TOP1)
    best = summary.get("max") if isinstance(summary, dict) else None
    if top1s and (best is None or not isclose(best, max(top1s), rel_tol=TOLERANCE)):
        yield f"its summary has val/top1 {summary}, not max {max(top1s):.4f}"


def check_expected(evidence: Evidence) -> Iterator[str]:
    """Whether the tables, pictures and artifacts are there, and their files."""
    record = evidence.record
    split = record.config.get("split", "")
    validated = any(metrics.VAL_TOP1 in row for row in evidence.rows)
    saved = any(metrics.EPOCH_S in row for row in evidence.rows)
    for item in EXPECTED:
        if evidence.job_type not in item.job_types or record.exit_code is None:
            continue
        if (item.if_validated and not validated) or (item.if_saved and not saved):
            continue
        key = item.key.format(split=split)
        if item.is_artifact:
            found = [artifact for artifact in record.artifacts if artifact["type"] == key]
            aliases = {alias for artifact in found for alias in artifact.get("aliases", ())}
            if not found:
                yield f"it names no artifact of type {key}"
            elif lacking := set(item.aliases) - aliases:
                yield f"no {key} artifact is {' or '.join(sorted(lacking))}"
        elif not any(name.startswith(key) for row in record.history for name in row):
            yield f"{key} is not there"


def check_files(evidence: Evidence) -> Iterator[str]:
    """Whether the files of artifacts exist: W&B keeps them elsewhere until they are uploaded."""
    for artifact in evidence.record.artifacts if evidence.folder.missing else ():
        entries = artifact.get("manifest", {}).get("contents", [])
        files = [entry["local_path"] for entry in entries if "local_path" in entry]
        if gone := [file for file in files if not Path(file).exists()]:
            yield f"the file of artifact {artifact['name']} is gone: {gone[0]}"


CHECKS: tuple[Check, ...] = (
    check_names, check_config, check_axes, check_rows, check_end, check_summary, check_expected,
    check_files,
)  # fmt: skip


def find_secrets(path: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Look for keys and passwords of an environment in all files below a folder."""
    secrets = {
        form: name
        for value, name in known_secrets(environment).items()
        for form in (value.encode(), b64encode(value.encode()))
    }
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        content = file.read_bytes()
        for secret in [secret for secret in secrets if secret in content]:
            yield f"{file.relative_to(path)} holds the value of {secrets[secret]}"


def _agree(row: Row, item: Json) -> bool:
    """Whether a row of the history has all that a row of metrics.jsonl has."""
    return all(
        key in item and (key.startswith(VARYING) or _equal(value, item[key]))
        for key, value in row.items()
        if value is not None
    )


def _equal(value: Any, logged: Any) -> bool:
    if not isinstance(value, float):
        return value == logged
    number = float(logged)  # NaN and infinity are texts to the reader
    return isclose(value, number, rel_tol=TOLERANCE, abs_tol=1e-6) or (
        isnan(value) and isnan(number)
    )


def _enumerate(steps: list[int]) -> str:
    shown = ", ".join(str(step) for step in sorted(steps)[:5])
    return shown if len(steps) <= 5 else f"{shown}, ..."
