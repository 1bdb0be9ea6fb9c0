"""Means and intervals over seeds, against numbers computed by hand."""

import pytest

from cluster.io.statistics import estimate
from tuning.promote import print_seeds, summarize


def test_several_seeds_have_an_interval_of_t() -> None:
    """Deviation 0.01; t(0.975) with 2 degrees of freedom is 4.3027: half is 0.0248."""
    found = estimate([0.94, 0.95, 0.96], num_images=817)

    assert found.mean == pytest.approx(0.95)
    assert (found.low, found.high) == pytest.approx((0.95 - 0.024841, 0.95 + 0.024841), abs=1e-6)


def test_an_interval_stays_between_0_and_1_and_equal_seeds_have_none() -> None:
    """Half of 0.9 and 1.0 is 12.706 x 0.05."""
    assert estimate([0.9, 1.0], num_images=10).high == 1.0
    assert estimate([0.9, 1.0], num_images=10).low == pytest.approx(0.95 - 0.635310, abs=1e-6)
    equal = estimate([0.75, 0.75], num_images=8)
    assert equal.low == equal.mean == equal.high == 0.75


def test_one_seed_has_wilsons_interval_over_the_images() -> None:
    """8 of 10 with z = 1.96: centre (0.8 + z²/20) / (1 + z²/10), as in Wilson 1927."""
    found = estimate([0.8], num_images=10)

    assert (found.low, found.high) == pytest.approx((0.490162, 0.943318), abs=1e-5)


def test_the_table_says_which_interval_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    tests = [{"test/top1": 0.5, "test/top5": 1.0, "num_images": 10}]
    winner = {"test/top1": 0.4, "test/top5": 0.9, "best_epoch": 7}
    summary = {
        **summarize(tests),
        "seeds": [{"seed": 0, "time/total_s": 61.4, **tests[0]}],
        "winner": winner,
    }
    print_seeds(summary)
    print_seeds({**summary, "winner": dict.fromkeys(winner)})
    with_winner, without = capsys.readouterr().out.split("\n\n")

    assert [line.split()[:3] for line in with_winner.splitlines()[1:]] == [
        ["seed", "top-1", "top-5"],
        ["0", "0.500", "1.000"],
        ["mean", "0.500", "1.000"],
        ["95%", "0.237-0.763", "0.722-1.000"],
        ["winner", "0.400", "0.900"],
    ]
    assert "Wilson over the images" in with_winner and "top-1 +0.100 since" in with_winner
    assert "winner" not in without
