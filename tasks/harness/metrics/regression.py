"""A number for a text: correlations and errors, as scipy and scikit-learn compute them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import numpy as np

from septet.data.errors import UserError
from septet.tasks.harness.metrics.core import Metric, fixed, warn


def _numbers(values: Sequence[float], what: str) -> np.ndarray:
    for row, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise UserError(
                f"row {row}: the {what} is {value!r}; it must be a finite number; mend the row, or leave it out"
            )
    return np.asarray(values, dtype=float)


def _moments(predictions: Sequence[float], references: Sequence[float], languages: Sequence[str]) -> np.ndarray:
    """(num_segments, 8): 1; prediction, reference, their squares and product, both about their means, which keeps digits;
    error, absolute and squared."""
    mine, theirs = _numbers(predictions, "prediction"), _numbers(references, "reference")
    for what, values in (("predictions", mine), ("references", theirs)):
        if np.ptp(values) == 0:
            warn(f"correlation: all {what} are {values[0]:g}; a constant goes along with nothing, so it is 0")
    error = mine - theirs
    mine, theirs = mine - mine.mean(), theirs - theirs.mean()
    return np.stack(
        [np.ones_like(mine), mine, theirs, mine**2, theirs**2, mine * theirs, np.abs(error), error**2], axis=1
    )


def _pearson(sums: np.ndarray) -> np.ndarray:
    count, x, y, xx, yy, xy = (sums[..., column] for column in range(6))
    count = np.maximum(count, 1)
    spread = _spread(count, x, xx) * _spread(count, y, yy)
    return 100 * np.divide(xy - x * y / count, np.sqrt(spread), out=np.zeros_like(spread), where=spread > 0)


def _spread(count: np.ndarray, total: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Sum of squares about the mean; 0 where it is but the rounding of its parts."""
    found = squares - total**2 / count
    return np.where(found > 1e-12 * squares, found, 0)


def _spearman_influence(
    predictions: Sequence[float], references: Sequence[float], languages: Sequence[str]
) -> np.ndarray:
    """(num_segments, 2): 1, and the correlation of the ranks plus the segment's influence on it (mean 0), -1 to 1.

    Ranks belong to the whole set, so that no statistics add up to their correlation. Its linear part does: what each segment
    moves it by, as a jackknife would find (Croux & Dehon 2010, "Influence Functions of the Spearman and Kendall Correlation
    Measures", at the empirical distribution). The value is exact, its resamples are to first order.
    """
    from scipy.stats import rankdata, spearmanr

    mine, theirs = _numbers(predictions, "prediction"), _numbers(references, "reference")
    count = len(mine)
    if np.ptp(mine) == 0 or np.ptp(theirs) == 0:
        return np.column_stack([np.ones(count), np.zeros(count)])
    ranks = [(rankdata(values) - 0.5) / count for values in (mine, theirs)]
    spread = math.sqrt(12 * ranks[0].var() * 12 * ranks[1].var())  # 1 without ties
    x, y = (rank - 0.5 for rank in ranks)
    influence = 12 * (x * y + _mean_above(mine, y) + _mean_above(theirs, x)) / spread
    value = float(spearmanr(mine, theirs).statistic)
    return np.column_stack([np.ones(count), value + influence - influence.mean()])


def _mean_above(values: np.ndarray, of: np.ndarray) -> np.ndarray:
    """For each row the sum of `of` over the rows with a greater value, and half of those with an equal one, over all rows."""
    order = np.argsort(values, kind="stable")
    sums = np.concatenate([[0.0], np.cumsum(of[order])])
    below, up_to = (np.searchsorted(values[order], values, side=side) for side in ("left", "right"))
    return (sums[-1] - (sums[below] + sums[up_to]) / 2) / len(values)


def _spearman(sums: np.ndarray) -> np.ndarray:
    return 100 * np.clip(sums[..., 1] / np.maximum(sums[..., 0], 1), -1, 1)


METRICS = (
    Metric("pearson", _moments, _pearson, fixed("pearson|x100"), joint=True),  # about the same means
    Metric("spearman", _spearman_influence, _spearman, fixed("spearman|ties:mean-rank|x100")),
    Metric(
        "mae", _moments, lambda sums: sums[..., 6] / sums[..., 0], fixed("absolute-error|mean"), higher_is_better=False
    ),
    Metric(
        "rmse",
        _moments,
        lambda sums: np.sqrt(sums[..., 7] / sums[..., 0]),
        fixed("squared-error|root-mean"),
        higher_is_better=False,
    ),
)
