"""Intervals and significance tests, against numbers computed by hand."""

import pytest

from cluster.io.statistics import estimate, fisher, is_above_chance, mcnemar


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


@pytest.mark.parametrize(
    ("wins", "losses", "expected"),
    [
        # Twice P(X >= 10) of a binomial(12, 1/2): 2 * (66 + 12 + 1) / 4096.
        (10, 2, 158 / 4096),
        (2, 10, 158 / 4096),
        (5, 0, 2 / 32),
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_by_hand(wins: int, losses: int, expected: float) -> None:
    assert mcnemar(wins, losses) == pytest.approx(expected)


def test_fisher_by_hand() -> None:
    """3 of 3 against 0 of 3: two of the 20 ways to spread 3 right answers are that uneven."""
    assert fisher(1.0, 0.0, 3) == pytest.approx(0.1)
    assert fisher(0.5, 0.5, 10) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("val_top1", "class_counts", "expected"),
    [
        # Binomial(80, 1/4): P(X <= 25) = 0.920 and P(X <= 26) = 0.950, so 26 is the bound.
        (26 / 80, (20, 20, 20, 20), False),
        (27 / 80, (20, 20, 20, 20), True),
        (0.25, (20, 20, 20, 20), False),
        (0.0, (20, 20, 20, 20), False),
        # Always answering the commonest class is right in 9 of 10 cases; P(X <= 95) = 0.976.
        (0.95, (90, 10), False),
        (0.96, (90, 10), True),
    ],
)
def test_learned_is_above_the_bound_of_chance(
    val_top1: float, class_counts: tuple[int, ...], expected: bool
) -> None:
    assert is_above_chance(val_top1, class_counts) is expected
