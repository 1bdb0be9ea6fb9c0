"""Totals become means over all images of all ranks, whatever each rank has seen."""

import pytest
import torch

from trainers import metrics
from trainers.metrics import GRAD_NORM, TRAIN_SUMS, Sums, means_of


def scalars(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_sums_are_means_over_images_and_the_rest_means_over_steps():
    sums = Sums(("count", "lost", "loss_sum", GRAD_NORM), "cpu")
    sums.add({**scalars(count=3, lost=1, loss_sum=6.0), GRAD_NORM: torch.tensor(10.0)})
    sums.add({**scalars(count=1, lost=0, loss_sum=4.0), GRAD_NORM: torch.tensor(20.0)})
    expected = {"loss": 2.5, GRAD_NORM: 15.0, "count": 4, "lost": 1, "steps": 2}
    assert means_of(sums.reduce(1)) == expected
    assert means_of(sums.reduce(1)) == expected  # reading changes nothing


def test_many_small_losses_keep_their_precision():
    sums = Sums(("count", "lost", "loss_sum"), "cpu")
    for _ in range(2000):
        sums.add(scalars(count=10_000_000, lost=0, loss_sum=1e7 + 1))
    assert means_of(sums.reduce(1))["loss"] == pytest.approx(1 + 1e-7, abs=1e-12)


def test_a_phase_that_lost_all_its_images_has_means_of_zero():
    sums = Sums(("count", "lost", "loss_sum", "top1_sum"), "cpu")
    sums.add(scalars(count=0, lost=8, loss_sum=0, top1_sum=0))
    assert means_of(sums.reduce(1)) == {
        "loss": 0,
        "top1": 0,
        "count": 0,
        "lost": 8,
        "steps": 1,
    }


def test_a_phase_without_steps_is_an_error():
    with pytest.raises(AssertionError, match="without a single step"):
        means_of(Sums(TRAIN_SUMS, "cpu").reduce(1))


def test_every_metric_is_named_once_as_phase_and_quantity():
    names = [
        value for name, value in vars(metrics).items() if name.isupper() and type(value) is str
    ]
    assert len(names) == len(set(names)) == 32
    phases = {name.partition("/")[0] for name in names if "/" in name}
    assert phases == {"train", "val", "test", "optim", "clip", "time", "ingest", "frozen", "system"}
