"""How sure a score is: bootstrap intervals, paired tests and their power, from additive statistics a segment.

A corpus score here is a function of statistics that are *summed* over segments (BLEU's n-gram counts, entity counts,
...), so that a resample costs one row of a matrix product and no text is scored twice.

Sources: B. Efron, "Better Bootstrap Confidence Intervals" (1987), for the intervals;
P. Koehn, "Statistical Significance Tests for Machine Translation Evaluation" (2004), for corpus scores;
S. Riezler, J. Maxwell, "On Some Pitfalls in Automatic Evaluation and Significance Testing for MT" (2005), for approximate
randomisation, which they found to err less often than the bootstrap's test; D. Card et al., "With Little Power Comes Great
Responsibility" (2020), for the difference that a test set can show.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from septet.data.errors import UserError

if TYPE_CHECKING:
    from septet.tasks.harness.metrics import Metric

RESAMPLES = 1000  # Koehn (2004), section 3
CONFIDENCE = 0.95
POWER = 0.8  # Card et al. (2020), after Cohen: how often a test should find a difference that is there
ROUNDING = 1e-9  # points: sums that round otherwise are the same
WEIGHTS_PER_BLOCK = 2**22  # 32 MiB of float64


def resample(statistics: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Summed statistics of `resamples` samples of the segments, drawn with replacement.

    Args:
        statistics: (num_segments, k), additive over segments.
        seed: the same seed and number of segments draw the same segments, so that two systems can be paired.

    Returns:
        (resamples, k).
    """
    num_segments = len(statistics)
    generator = np.random.default_rng(seed)
    sums = []
    for rows in _blocks(resamples, num_segments):
        drawn = generator.integers(num_segments, size=(rows, num_segments))
        drawn += num_segments * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * num_segments)  # multinomial, a row a resample
        sums.append(weights.reshape(rows, num_segments).astype(float) @ statistics)
    return np.concatenate(sums)


def interval(scores: np.ndarray, value: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Bias-corrected percentile interval (Efron 1987, section 3), (low, high).

    Plain percentiles miss a score whose resamples lie to one side of it, such as macro-F1 with a rare class, which is lower
    the fewer rows there are. The share of resamples below the value says by how much the percentiles are to be moved.

    Args:
        scores: (resamples,); those without a score (NaN) are left out.
        value: the score of the rows as they are.
    """
    scores = scores[~np.isnan(scores)]
    if not len(scores):
        return math.nan, math.nan
    below = (scores < value - ROUNDING).mean() + (np.abs(scores - value) <= ROUNDING).mean() / 2
    normal = NormalDist()
    bias = normal.inv_cdf(min(max(below, 0.5 / len(scores)), 1 - 0.5 / len(scores)))
    tail = normal.inv_cdf((1 + confidence) / 2)
    low, high = np.quantile(scores, [normal.cdf(2 * bias - tail), normal.cdf(2 * bias + tail)])
    return float(low), float(high)


def over_seeds(scores: Sequence[float]) -> dict[str, float]:
    """Summary of one system that was trained with several seeds.

    Returns:
        {"mean", "sd" (of a single seed's score, n - 1), "low", "high" (95 % interval of the mean by Student's t),
        "seeds"}. It says how training varies; how the test set does is in each score's own interval.

    Raises:
        UserError: fewer than two scores, or one that is not finite.
    """
    from scipy.stats import t

    if len(scores) < 2 or not np.isfinite(scores).all():
        raise UserError(
            f"scores {list(scores)}: a summary over seeds needs two or more finite ones; train with more seeds"
        )
    mean, deviation = float(np.mean(scores)), float(np.std(scores, ddof=1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(scores) - 1)) * deviation / math.sqrt(len(scores))
    return {"mean": mean, "sd": deviation, "low": mean - half, "high": mean + half, "seeds": len(scores)}


def compare(
    metric: Metric, statistics_a: np.ndarray, statistics_b: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, float]:
    """System A minus system B on the same segments.

    Args:
        statistics_a, statistics_b: (num_segments, k) each, of the same segments in the same order and with the same
            columns (`metrics.difference` sees to both).

    Returns:
        `value`, the difference of the corpus scores; `low` and `high`, its 95 % interval by paired bootstrap; `p_value`,
        two-sided, of the hypothesis that the systems' outputs are exchangeable, by approximate randomisation: each
        segment's pair is swapped or not by a fair coin. Its least value is 1 / (resamples + 1). `detectable`, the smallest
        true difference that such a test would find at the 5 % level four times in five: (z_0.975 + z_0.8) standard
        deviations of the difference (Card et al. 2020), which the paired bootstrap gives.
    """
    total_a, total_b = statistics_a.sum(0), statistics_b.sum(0)
    value = float(metric.aggregate(total_a) - metric.aggregate(total_b))
    resampled = metric.aggregate(resample(statistics_a, seed, resamples))
    resampled = resampled - metric.aggregate(resample(statistics_b, seed, resamples))
    low, high = interval(resampled, value)
    surplus, normal = statistics_a - statistics_b, NormalDist()
    generator = np.random.default_rng(seed)
    as_extreme = 0
    for rows in _blocks(resamples, len(surplus)):
        moved = generator.integers(2, size=(rows, len(surplus))).astype(float) @ surplus
        differences = metric.aggregate(total_a - moved) - metric.aggregate(total_b + moved)
        as_extreme += int((np.abs(differences) >= abs(value) - ROUNDING).sum())
    return {
        "value": value,
        "low": low,
        "high": high,
        "p_value": (as_extreme + 1) / (resamples + 1),
        "detectable": float(
            (normal.inv_cdf((1 + CONFIDENCE) / 2) + normal.inv_cdf(POWER)) * np.nanstd(resampled, ddof=1)
        ),
    }


def _blocks(resamples: int, num_segments: int) -> Iterator[int]:
    """Numbers of resamples that add up to `resamples`, each small enough for one matrix of weights."""
    block = max(1, WEIGHTS_PER_BLOCK // num_segments)
    for start in range(0, resamples, block):
        yield min(block, resamples - start)
