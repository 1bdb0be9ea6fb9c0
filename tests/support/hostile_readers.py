"""Every file of ours that is read back, with what reads it, for fuzzing.

python -m tests.support.hostile_readers SECONDS     random bytes by atheris, where it is installed
"""

import json
import logging
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from inspect import isfunction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.io import fields, records, storage
from datasets import manifest, manifest_file, shards
from datasets.config import IngestConfig
from datasets.passes import features
from datasets.prepare.exclude import parse_list
from tests.conftest import ROOT
from tests.support.calibration import CALIBRATION
from tests.support.data import write_shards
from tests.support.sweeps import write_sweep, write_test
from trainers.config import FinetuneConfig, ModelConfig
from trainers.run import calibration, checkpoint, combination, ensemble, evaluations, rows
from trainers.run import folder as run_folder
from trainers.run.checkpoint import TrainingProgress
from trainers.tracking import local_runs
from trainers.tracking.wandb_internals import STARTED_ON
from tuning import commands, winner
from tuning.advice import advice, front
from tuning.advice.quadrants import Quadrant, Stage
from tuning.combine import combinations
from tuning.record import files, leaderboard, record, states
from tuning.record.verdict import judge
from tuning.sharing import cache, reuse

MAX_SENTENCE = 2000
LOOKED_AT = (fields, records, manifest, manifest_file, shards, run_folder, rows, checkpoint)
"""Whose branches atheris follows: all that a reader does before it trusts a value."""


@dataclass(frozen=True)
class Reader:
    """A file below a folder, what it holds when it is good, and what reads it there."""

    file: str
    good: bytes
    read: Callable[[str], Any]


def as_json(values: Any) -> bytes:
    return json.dumps(values).encode()


def list_readers(scratch: Path) -> dict[str, Reader]:
    """Write what a run and a sweep leave behind, and return a reader for each file."""
    data = scratch / "data"
    data.mkdir()
    write_shards(str(data))
    sweep = Path(write_sweep(scratch / "sweep", trials=3, data=str(data)))
    winner = leaderboard.read_leaderboard(str(sweep))
    assert winner is not None
    run = Path(winner[0][0].run)
    write_test(run, ("a", "b"), "f", epoch=1)

    training = FinetuneConfig(
        data=str(data), ingest=IngestConfig(size_px=32), model=ModelConfig(init="he")
    )
    progress = TrainingProgress(
        epoch=2,
        global_step=14,
        classes=("a", "b"),
        row={"epoch": 2, "global_step": 14, "val/top1": 0.5},
        totals={"count": 3.0},
        unreadable=("one",),
        files={"model.safetensors": {"bytes": 3, "sha256": "0" * 64}},
    )
    result = {
        "epochs": 2,
        "global_step": 14,
        "best_epoch": 1,
        "val/top1": 0.5,
        "val/best_top1": 0.5,
        "time/total_s": 3.5,
        "checkpoint": "/elsewhere/checkpoints/step-00000014",
        "diverged": None,
        "lost": None,
    }
    quadrant = Quadrant(
        images_per_class=3.0,
        little_per_class=100,
        chance=0.5,
        gap_closed=0.8,
        rival=None,
        freeze_depths=(5, 4),
    )
    stage = Stage(
        name="stem",
        depth=1,
        num_features=3,
        strength=1.0,
        top1=0.5,
        low=0.1,
        high=0.9,
        p_better=0.5,
    )
    advised = advice.Advice(
        data=str(data),
        fingerprint="f",
        backbone="resnet50",
        init="imagenet",
        weights=None,
        normalization="auto",
        size_px=32,
        verdict=quadrant,
        stages=(stage,),
    )
    part = features.Part("part-0.parquet", 0, (3,), 10)
    known = reuse.RecordedRun(run=str(run), num_epochs=1, clipnorm=None, peak_norm=1.0, sha256="0")
    shares = {"test/top1": 0.5, "test/top5": 0.9}
    estimate = {"mean": 0.5, "low": 0.4, "high": 0.6}
    combined = {
        "weights": ["0" * 64],
        "tried": [{"kind": "soup", "trials": ["a"], "share": None, "top1": 0.5, "gain": estimate}],
        "is_cut": False,
    }
    trial = {"trial": "a", "backbone": "lenet5", "weights": "he", "license": None}
    trial |= {"best_epoch": 1, "total_s": 2.5, "val_top1": 0.5}
    of_run = {"kind": "soup", "name": "soup of 1 trials", "trials": [trial], "share": None}
    promoted = {
        "run": str(run),
        "epochs": 3,
        "train_on": "train+val",
        "num_images": 9,
        "confidence": 0.95,
        "interval": "t over 3 seeds",
        "seeds": [{"seed": 0, **shares}],
        "winner": shares,
    } | dict.fromkeys(shares, estimate)

    def of_sweep(file: str) -> bytes:
        return (sweep / file).read_bytes()

    sink = pa.BufferOutputStream()
    left_out = [{"path": "a.jpg", "reason": "truncated: by 3 bytes"}] * 9
    pq.write_table(pa.Table.from_pylist(left_out, shards.QUARANTINE_SCHEMA), sink)
    quarantine = sink.getvalue().to_pybytes()

    def read_ranking(folder: str) -> Any:
        storage.write_bytes(advice.advice_uri(f"{folder}/lenet5"), as_json(advised.to_dict()))
        return front.find_advice(folder)

    ranking = {"networks": [{"name": "lenet5", "on_front": True}]}
    space = b"[[axis]]\nfield = 'optim.momentum'\nrange = [0.5, 0.9]\nwhen = { seed = [1] }\n"
    step = "checkpoints/step-00000014/progress.json"
    return {
        "manifest": Reader(
            "manifest.json", (data / "manifest.json").read_bytes(), manifest_file.read_manifest
        ),
        "manifest that may be another's": Reader(
            "manifest.json", (data / "manifest.json").read_bytes(), manifest_file.is_prepared
        ),
        "schema version": Reader(
            "manifest.json",
            (data / "manifest.json").read_bytes(),
            manifest_file.read_schema_version,
        ),
        "quarantine": Reader("quarantine.parquet", quarantine, shards.read_quarantine),
        "exclude list": Reader("exclude.csv", b"path,split\na.jpg,train\n", _read_exclude_list),
        "config": Reader("config.json", as_json(training.to_dict()), run_folder.read_config),
        "rows": Reader("metrics.jsonl", (run / "metrics.jsonl").read_bytes(), rows.epoch_rows),
        "session": Reader(
            f"run-1-a/{STARTED_ON}",
            as_json({"host": "node-3", "folder": "/home/me"}),
            lambda folder: [local_runs.read_start(Path(folder, "run-1-a"))],
        ),
        "result": Reader("result.json", as_json(result), _read_result),
        "progress": Reader(step, as_json(asdict(progress)), checkpoint.latest_progress),
        "checkpoint": Reader(step, as_json(asdict(progress)), checkpoint.read_latest),
        "calibration": Reader(
            "checkpoints/step-00000014/calibration.json",
            as_json(asdict(CALIBRATION)),
            lambda folder: calibration.read_calibration(folder, 14),
        ),
        "evaluation": Reader(
            "evaluation_test.json",
            (run / "evaluation_test.json").read_bytes(),
            lambda folder: evaluations.read_evaluation(folder, "test", epoch=1, fingerprint="f"),
        ),
        "trials": Reader("trials.json", of_sweep("trials.json"), states.read_trials),
        "leaderboard": Reader(
            "leaderboard.json", of_sweep("leaderboard.json"), leaderboard.read_leaderboard
        ),
        "sweep config": Reader("config.json", of_sweep("config.json"), files.read_sweep_config),
        "advice": Reader("advice.json", as_json(advised.to_dict()), advice.read_advice),
        "ranking": Reader("backbones.json", as_json(ranking), read_ranking),
        "space": Reader(
            "space.toml", space, lambda folder: commands.read_space(f"{folder}/space.toml")
        ),
        "origin": Reader(reuse.COPIED, as_json(vars(known)), reuse.read_origin),
        "known results": Reader(
            "known.json", as_json(vars(known)), lambda folder: reuse.find_known(folder, training)
        ),
        "features": Reader(
            "view-0000/index.json",
            as_json({"shape": [2, 3], "parts": [asdict(part)]}),
            lambda folder: features.read_view(folder, 0),
        ),
        "combined": Reader(
            "combined/combined.json", as_json(combined), combinations.read_combinations
        ),
        "ensemble": Reader(
            "ensemble.json", as_json({"backbones": ["lenet5"]}), ensemble.read_ensemble
        ),
        "combination": Reader("combination.json", as_json(of_run), combination.read_combination),
        "cache": Reader(
            "features/0/facts.json", as_json({"backbone": "resnet50"}), cache.list_entries
        ),
    } | {
        f"review: {file}": Reader(file, good, _review(sweep, file))
        for file, good in {
            "config.json": of_sweep("config.json"),
            "started.json": of_sweep("started.json"),
            "trials.json": of_sweep("trials.json"),
            "leaderboard.json": of_sweep("leaderboard.json"),
            "promoted/promoted.json": as_json(promoted),
        }.items()
    }


def _read_exclude_list(folder: str) -> Any:
    uri = storage.join(folder, "exclude.csv")
    return parse_list(uri, storage.read_bytes(uri))


def _read_result(run: str) -> Any:
    return run_folder.read_result(run), run_folder.is_over(run)


def _review(sweep: Path, file: str) -> Callable[[str], Any]:
    """Read the whole sweep, as its page does, with one file from another path."""
    good = (sweep / file).read_bytes() if (sweep / file).exists() else None

    def read(folder: str) -> Any:
        place = sweep / file
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(Path(folder, file).read_bytes())
        try:
            found = record.SweepRecord.read(str(sweep))
            read_findings_of(found)
            return found
        finally:
            if good is None:
                place.unlink()
            else:
                place.write_bytes(good)

    return read


def read_findings_of(found: Any) -> None:
    """Write what a page and a report say of a sweep."""
    for write in (judge, winner.reproduce, winner.list_next):
        write(found)


def try_reader(reader: Reader, content: bytes, folder: Path) -> Any:
    """Read a file of that content: a value, or the sentence of a ValueError or OSError of ours.

    Any other exception travels; so does a ValueError that a library raised, or one that is no
    sentence.
    """
    place = folder / reader.file
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    try:
        return reader.read(str(folder))
    except (ValueError, OSError) as error:
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        said = str(error)
        if not raised_in.is_relative_to(ROOT) or "\n" in said or len(said) > MAX_SENTENCE:
            raise AssertionError(f"no sentence of ours: {said[:500]!r}") from error
        return said


def main(seconds: str = "60") -> None:
    """Let atheris look for bytes that a reader stumbles over; it sees which branches they take."""
    import atheris  # pyright: ignore[reportMissingImports] optional: pip install atheris

    logging.disable(logging.CRITICAL)  # that a checkpoint is passed over, time and again
    with TemporaryDirectory() as scratch, TemporaryDirectory() as folder:
        for function in (f for module in LOOKED_AT for f in vars(module).values()):
            if isfunction(function) and function.__module__.split(".")[0] in (
                "datasets",
                "trainers",
            ):
                atheris.instrument_func(function)
        readers = list_readers(Path(scratch))
        names = list(readers)

        def try_bytes(content: bytes) -> None:
            if content:
                number = content[0] % len(names)
                try_reader(readers[names[number]], content[1:], Path(folder, str(number)))

        corpus = Path(scratch, "corpus")
        corpus.mkdir()
        for number, name in enumerate(names):
            (corpus / str(number)).write_bytes(bytes([number]) + readers[name].good)
        atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", str(corpus)], try_bytes)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
