"""Totals become means over all images of all ranks, whatever each rank has seen."""

import json
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from tests.conftest import join_gloo
from trainers import metrics
from trainers.config import OptimConfig
from trainers.metrics import EVAL_SUMS, GRAD_NORM, TRAIN_SUMS, Sums, means_of
from trainers.step import StepSettings, eval_step


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
    sums = Sums(EVAL_SUMS, "cpu")
    sums.add(scalars(count=0, lost=8, loss_sum=0, top1_sum=0, top5_sum=0))
    assert means_of(sums.reduce(1)) == {
        "loss": 0,
        "top1": 0,
        "top5": 0,
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
    assert len(names) == len(set(names)) == 25
    phases = {name.partition("/")[0] for name in names if "/" in name}
    assert phases == {"train", "val", "test", "optim", "clip", "time", "ingest"}


def evaluate_on_rank(rank: int, folder: str) -> None:
    """Rank 0 evaluates two batches, of 5 and 2 images; rank 1 has none."""
    join_gloo(rank, folder)
    network = nn.Sequential(nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = DistributedDataParallel(network).eval()
    settings = StepSettings(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), optim=OptimConfig())
    sums = Sums(EVAL_SUMS, "cpu")
    for num_images in (5, 2) if rank == 0 else ():
        images_BHWC = torch.zeros(num_images, 4, 4, 3, dtype=torch.uint8)
        images_BHWC[..., 0] = 255
        labels_B = torch.arange(num_images) % 3
        sums.add(eval_step(model, images_BHWC, labels_B, settings=settings))
    Path(folder, f"{rank}.json").write_text(json.dumps(means_of(sums.reduce(2))))
    distributed.destroy_process_group()


def test_two_ranks_reduce_to_the_same_means_though_one_saw_nothing(tmp_path: Path):
    spawn(evaluate_on_rank, (str(tmp_path),), nprocs=2)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found[0] == found[1]
    assert found[0]["count"] == 7 and found[0]["steps"] == 2
    assert found[0]["top1"] == pytest.approx(3 / 7)  # labels 0 1 2 0 1 and 0 1, always answered 0
    assert found[0]["top5"] == 1
