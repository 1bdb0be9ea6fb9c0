"""The end of a sweep: the winner's test, the answer, and the best trials combined."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from cluster.runtime import Resources
from trainers import metrics
from trainers.evaluation.measures import Measures
from trainers.run.folder import is_over, read_config
from tuning.advice.score import score_advice
from tuning.budget.deadline import BudgetClock
from tuning.combine.combinations import combined_uri, describe_combinations, read_combinations
from tuning.combine.combine import combine
from tuning.config import TuningConfig
from tuning.record.leaderboard import print_leaderboard
from tuning.record.record import SweepRecord
from tuning.record.results import CUT, FAILED, KILLED, RUNNING, TrialResult
from tuning.record.states import TrialStates
from tuning.record.verdict import judge
from tuning.search import count_trials
from tuning.shared import Shared
from tuning.wandb.sweep_run import SweepRun
from tuning.winner import evaluate_once, promote_command, train_longer


def read_ended(config: TuningConfig) -> SweepRecord:
    """Read the record of a sweep that has ended."""
    return replace(SweepRecord.read(config.out), config=config)


def end_killed(config: TuningConfig, num_trials: int) -> list[TrialResult]:
    """End a sweep whose earlier sessions have left no leaderboard; return the trials that have an
    epoch or have failed, by rank. Those that have not ended are cut."""
    trials = [
        replace(row, state=CUT) if row.state in (RUNNING, KILLED) else row
        for row in SweepRecord.read(config.out).trials
        if row.num_epochs or row.state == FAILED
    ]
    if trials:
        TrialStates(config.out, num_trials=num_trials).end()
    return [replace(row, rank=rank) for rank, row in enumerate(trials, start=1)]


def is_whole(config: TuningConfig, trials: Sequence[TrialResult]) -> bool:
    """Whether a leaderboard has all trials of its sweep, none of them to be tried again: one that
    diverged would diverge again."""
    return len(trials) >= count_trials(config) and all(
        row.state != CUT and (row.state != FAILED or is_over(row.run)) for row in trials
    )


def is_closed(record: SweepRecord) -> bool:
    """Whether the winner of a sweep was tested and its best trials were combined."""
    is_tested = record.winner is None or record.test is not None or not _tests(record)
    return is_tested and (not _combines(record) or read_combinations(record.out) is not None)


def _tests(record: SweepRecord) -> bool:
    return record.has_test_split and record.config.evaluate_winner


def _combines(record: SweepRecord) -> bool:
    return record.manifest is not None and record.config.combine


def describe_cut(record: SweepRecord) -> str | None:
    """Write which trials the end of the sweep has cut in one line; None where it has cut none."""
    num_cut = sum(row.state == CUT for row in record.trials)
    num_missing = record.num_trials - len(record.trials)
    if not num_cut and not num_missing:
        return None
    why, how = (
        ("Stopped:      in W&B", "again")
        if record.ended_by_user
        else ("Budget:       spent", "with a larger budget")
    )
    return (
        f"{why}; {num_cut} trials were stopped, and {num_missing} of {record.num_trials} not "
        f"started; run the same command {how} to resume"
    )


def close(
    record: SweepRecord,
    resources: Resources,
    clock: BudgetClock,
    shared: Shared | None = None,
    tracked: SweepRun | None = None,
) -> dict[str, Any]:
    """Print the answer, test the winner and combine the best trials; log to W&B.

    Args:
        shared: of a sweep that has just ended.
        tracked: its run.
    """
    winner, tests = record.winner, _tests(record)
    device = record.config.base.cluster.device
    print_answer(record)
    if winner and tests and record.test is None:
        prefix = shared and shared.prefix_of(read_config(winner.run))
        evaluate_once(winner.run, device=device, prefix=prefix, on_measured=_print_test)
        record = replace(record)  # which reads the test
    combined = None
    if record.manifest is not None and _combines(record):
        combined = combine(
            record.out, record.trials, record.manifest, resources, left_s=clock.whole_left_s
        )
    for found in combined.kept if combined and tests else ():
        if clock.whole_left_s > 0:
            evaluate_once(combined_uri(record.out, found.kind), device=device)
    for line in describe_combinations(record.out, combined) if combined else ():
        print(f"Combined:     {line}")
    if tracked is not None and (command := tracked.log(record)) is not None:
        record = replace(record, sync=[command])
    for command in record.sync:
        print(f"Sync W&B:     {command}")
    return {
        "out": record.out,
        "answer": judge(record).text,
        "winner": winner.to_dict() if winner else None,
        "test": record.test,
        "combined": asdict(combined) if combined else None,
        "sharing": record.savings.to_dict(),
        "trials": [row.to_dict() for row in record.trials],
    }


def print_answer(record: SweepRecord) -> None:
    """Print the leaderboard, the answer, the next commands, and the winner's test where known."""
    out, winner, verdict = record.out, record.winner, judge(record)
    print()
    print_leaderboard(record.trials, record.base)
    print(f"\nAnswer:       {verdict.text}")
    print(f"Leaderboard:  {out}/leaderboard.json, leaderboard.csv")
    print(f"Review:       python -m tuning review --out {shlex.quote(out)}")
    if winner is not None:
        print(f"Winner:       {winner.run}")
        print(f"Train longer: {train_longer(winner, out)}")
        if not record.config.promote and (command := promote_command(record)) is not None:
            print(f"Promote:      {command}")
    if (advice := score_advice(record)) is not None:
        print(f"Advice:       {advice}")
    if (line := describe_cut(record)) is not None:
        print(line)
    for line in record.savings.describe():
        print(f"Shared:       {line}")
    if (test := record.test) is not None:
        _print_top1(test[metrics.TEST_TOP1], test[metrics.TEST_TOP5], test["num_images"])


def _print_test(measures: Measures) -> None:
    _print_top1(measures.top1, measures.top5, measures.num_images)


def _print_top1(top1: float, top5: float, num_images: int) -> None:
    print(
        f"Test split:   top-1 {top1:.3f}, top-5 {top5:.3f} on {num_images} images, evaluated once, "
        "for the winner only"
    )
