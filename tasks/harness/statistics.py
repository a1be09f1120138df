"""How sure a score is: bootstrap intervals and paired tests, from additive statistics a segment.

A corpus score here is a function of statistics that are *summed* over segments (BLEU's n-gram counts, entity counts,
...), so that a resample costs one row of a matrix product and no text is scored twice.

Sources: B. Efron, R. Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13 (percentile intervals);
P. Koehn, "Statistical Significance Tests for Machine Translation Evaluation" (2004), for corpus scores;
S. Riezler, J. Maxwell, "On Some Pitfalls in Automatic Evaluation and Significance Testing for MT" (2005), for approximate
randomisation, which they found to err less often than the bootstrap's test.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from septet.tasks.harness.metrics import Metric

RESAMPLES = 1000  # Koehn (2004), section 3
CONFIDENCE = 0.95
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


def interval(scores: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Percentile interval of resampled scores, (resamples,) -> (low, high)."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(scores, [tail, 1 - tail])
    return float(low), float(high)


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
        segment's pair is swapped or not by a fair coin. Its least value is 1 / (resamples + 1).
    """
    total_a, total_b = statistics_a.sum(0), statistics_b.sum(0)
    value = float(metric.aggregate(total_a) - metric.aggregate(total_b))
    low, high = interval(
        metric.aggregate(resample(statistics_a, seed, resamples))
        - metric.aggregate(resample(statistics_b, seed, resamples))
    )
    surplus = statistics_a - statistics_b
    generator = np.random.default_rng(seed)
    as_extreme = 0
    for rows in _blocks(resamples, len(surplus)):
        moved = generator.integers(2, size=(rows, len(surplus))).astype(float) @ surplus
        differences = metric.aggregate(total_a - moved) - metric.aggregate(total_b + moved)
        as_extreme += int((np.abs(differences) >= abs(value) - 1e-9).sum())  # rounding of the sums is not evidence
    return {"value": value, "low": low, "high": high, "p_value": (as_extreme + 1) / (resamples + 1)}


def _blocks(resamples: int, num_segments: int) -> Iterator[int]:
    """Numbers of resamples that add up to `resamples`, each small enough for one matrix of weights."""
    block = max(1, WEIGHTS_PER_BLOCK // num_segments)
    for start in range(0, resamples, block):
        yield min(block, resamples - start)
