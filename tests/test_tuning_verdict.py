"""The verdict on a sweep, and that terminal, page and W&B give the same one."""

import html
from pathlib import Path
from typing import Any

import pytest

from tests.support.sweeps import write_sweep
from tuning import ending
from tuning.record.record import SweepRecord
from tuning.record.verdict import judge
from tuning.review.page import render_page
from tuning.wandb import sweep as wandb_sweep


def test_answer_names_depth_lead_and_certainty(tmp_path: Path) -> None:
    sweep = SweepRecord.read(write_sweep(tmp_path / "sweep", lead=0.3))
    verdict = judge(sweep)
    assert verdict.headline == "Thaw from layer2 on."
    assert verdict.best is not None and verdict.top1 is not None
    assert verdict.best == sweep.trials[0]
    assert verdict.top1.low < verdict.top1.mean < verdict.top1.high
    found = verdict.comparison
    assert found is not None and found.is_certain
    assert sweep.frozen_of(found.rival) != sweep.frozen_of(verdict.best)
    assert found.wins is not None and found.losses is not None
    assert (found.wins - found.losses) / 320 == pytest.approx(found.lead)
    assert "significant (p < 0.001)" in verdict.lead
    assert "optimistic" in verdict.cautions[0]


def test_answer_says_what_it_cannot_tell_apart(tmp_path: Path) -> None:
    out = write_sweep(tmp_path / "sweep", lead=0.0, val_per_class=4, predictions=False)
    verdict = judge(SweepRecord.read(out))
    assert ", or t" in verdict.headline
    assert "not significant on 32 validation images" in verdict.lead
    assert verdict.comparison is not None and verdict.comparison.wins is None


class FakeRun:
    """A W&B run that keeps its summary and alerts."""

    def __init__(self) -> None:
        self.summary: dict[str, Any] = {}

    def summarize(self, values: dict[str, Any]) -> None:
        self.summary |= values

    def alert(self, title: str, text: str) -> None:
        assert text == self.summary["sweep/answer"]

    def log_table(self, *_: Any) -> None: ...

    def try_to(self, *_: Any) -> None: ...


@pytest.mark.parametrize(
    "options",
    [
        {"lead": 0.3},
        {"lead": 0.0, "val_per_class": 4, "predictions": False},
        {"trials": 6, "kind": "chance"},
    ],
)
def test_terminal_page_and_wandb_give_the_same_answer(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
) -> None:
    record = SweepRecord.read(write_sweep(tmp_path / "sweep", **options))
    answer = judge(record).text
    tracked: Any = FakeRun()
    ending.print_answer(record)
    content = render_page(record)
    assert record.manifest is not None
    wandb_sweep.log_sweep(tracked, record.manifest, record, content)
    page = html.unescape(content.decode())

    assert f"Answer:       {answer}\n" in capsys.readouterr().out
    assert tracked.summary["sweep/answer"] == answer
    assert judge(record).headline in page and judge(record).lead in page
    assert judge(record).text == f"{judge(record).headline} {judge(record).lead}"
