"""Confidence intervals and significance tests for shares of correct images, and for scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np
import scipy  # imports scipy.stats, which takes a second, where it is used

CONFIDENCE = 0.95
SIGNIFICANCE = 0.05
NUM_SAMPLES = 10_000
"""Of `bootstrap_difference`."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean share of correct images and its 95 percent interval."""

    mean: float
    low: float
    high: float

    @property
    def is_gain(self) -> bool:
        """Whether a difference is above zero, in the whole interval."""
        return self.low > 0

    def describe_gain(self) -> str:
        return f"{self.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def estimate(shares: Sequence[float], num_images: int) -> Estimate:
    """Return the mean of shares of correct images, one per seed, and its interval.

    Several seeds: Student's t over the seeds, cut at 0 and 1; it measures how the mean varies with
    the seed on these images. One seed: Wilson's interval over the images.
    """
    if len(shares) == 1:
        return wilson(shares[0], num_images)
    mean = fmean(shares)
    quantile = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, len(shares) - 1))
    half = quantile * stdev(shares) / math.sqrt(len(shares))
    return Estimate(mean=mean, low=max(0.0, mean - half), high=min(1.0, mean + half))


def wilson(share: float, num_images: int) -> Estimate:
    """Return a share of correct images and Wilson's interval."""
    test = scipy.stats.binomtest(round(share * num_images), num_images)
    interval = test.proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(mean=share, low=float(interval.low), high=float(interval.high))


def count_discordant(first_N: np.ndarray, second_N: np.ndarray) -> tuple[int, int]:
    """Count the images that only the first classifier got right, and only the second.

    Args:
        first_N: whether the first classifier was right, image by image.
        second_N: the same of the second classifier.
    """
    return int((first_N & ~second_N).sum()), int((second_N & ~first_N).sum())


def mcnemar(
    first_only: int, second_only: int, alternative: Literal["two-sided", "greater"] = "two-sided"
) -> float:
    """Return the p value of McNemar's exact test of two classifiers on the same images.

    Args:
        first_only: images that only the first got right.
        second_only: images that only the second got right.
        alternative: `greater` tests whether the first is better.
    """
    discordant = first_only + second_only
    if not discordant:
        return 1.0
    return float(scipy.stats.binomtest(first_only, discordant, alternative=alternative).pvalue)


def fisher(first: float, second: float, num_images: int) -> float:
    """Return the two-sided p value of Fisher's exact test of two shares of `num_images` each."""
    counts = [round(share * num_images) for share in (first, second)]
    result: Any = scipy.stats.fisher_exact([[count, num_images - count] for count in counts])
    return float(result.pvalue)


def is_above_chance(top1: float, class_counts: Sequence[int]) -> bool:
    """Return whether an accuracy is above that of always predicting the most frequent class.

    The bound is the one-sided 95 percent quantile of a binomial over the images.
    """
    num_images = sum(class_counts)
    bound = scipy.stats.binom.ppf(CONFIDENCE, num_images, max(class_counts) / num_images)
    return bool(round(top1 * num_images) > bound)


def auc(positive_P: np.ndarray, negative_N: np.ndarray) -> Estimate:
    """Return the area under the ROC curve of two samples of scores, and DeLong's interval.

    It is the chance that a positive has a higher score than a negative; ties count half.
    """
    num_positive, num_negative = len(positive_P), len(negative_N)
    ranks = scipy.stats.rankdata(np.concatenate([positive_P, negative_N]))
    # The share of the other sample below each score.
    above_P = (ranks[:num_positive] - scipy.stats.rankdata(positive_P)) / num_negative
    below_N = (ranks[num_positive:] - scipy.stats.rankdata(negative_N)) / num_positive
    variance = above_P.var(ddof=1) / num_positive + below_N.var(ddof=1) / num_negative
    half = float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    mean = float(above_P.mean())
    return Estimate(mean=mean, low=max(0.0, mean - half), high=min(1.0, mean + half))


def bootstrap_difference(first_N: np.ndarray, second_N: np.ndarray) -> Estimate:
    """Return by how much more images the second classifier gets right, as a share, and the
    percentile interval over resampled images.

    Args:
        first_N, second_N: as of `count_discordant`.
    """
    num_images = len(first_N)
    losses, wins = count_discordant(first_N, second_N)
    shares = np.array([losses, wins, num_images - losses - wins]) / num_images
    counts = np.random.default_rng(0).multinomial(num_images, shares, NUM_SAMPLES)
    differences = (counts[:, 1] - counts[:, 0]) / num_images
    low, high = np.quantile(differences, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(mean=(wins - losses) / num_images, low=float(low), high=float(high))
