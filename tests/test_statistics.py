"""Intervals cover as often as they say, and paired tests tell equal systems from different ones."""

from statistics import NormalDist

import numpy as np
import pytest

from septet.data.errors import UserError
from septet.tasks.harness.metrics import FAMILIES, get
from septet.tasks.harness.statistics import compare, interval, over_seeds, resample

ACCURACY = get("qa", "exact_match")  # a mean of 0/1 over segments


def rows(correct):
    """Statistics (num_segments, 3) of segments that are right or wrong."""
    correct = np.asarray(correct, dtype=float)
    return np.stack([correct, correct, np.ones_like(correct)], axis=1)


def test_resamples_are_sums_over_segments_drawn_with_replacement(monkeypatch):
    statistics = np.eye(7)  # the sums are then how often each segment was drawn
    whole = resample(statistics, seed=3, resamples=50)
    assert (whole.sum(1) == 7).all() and whole.max() > 1 and (whole == whole.round()).all()
    monkeypatch.setattr("septet.tasks.harness.statistics.WEIGHTS_PER_BLOCK", 7 * 10)
    assert (resample(statistics, seed=3, resamples=50) == whole).all()  # the blocks' size changes nothing
    assert (resample(statistics, seed=4, resamples=50) != whole).any()


def test_interval_covers_the_true_score_about_95_times_in_100():
    generator, truth, covered, trials = np.random.default_rng(0), 0.7, 0, 300
    for trial in range(trials):
        statistics = rows(generator.random(200) < truth)
        value = float(ACCURACY.aggregate(statistics.sum(0)))
        low, high = interval(ACCURACY.aggregate(resample(statistics, seed=trial, resamples=400)), value)
        covered += low <= 100 * truth <= high
    assert 0.91 <= covered / trials <= 0.985  # 0.95 and three standard errors of 0.0126


def test_interval_has_the_width_that_theory_gives_a_proportion():
    correct = np.arange(1000) % 5 != 0
    low, high = interval(ACCURACY.aggregate(resample(rows(correct), resamples=4000)), 80)
    assert (high - low) / 2 == pytest.approx(100 * 1.96 * (0.8 * 0.2 / 1000) ** 0.5, rel=0.05)


def test_identical_systems_do_not_differ():
    statistics = rows(np.random.default_rng(0).random(100) < 0.5)
    nothing = {"value": 0.0, "low": 0.0, "high": 0.0, "detectable": 0.0}
    assert compare(ACCURACY, statistics, statistics) == nothing | {"p_value": 1.0}


def test_clearly_different_systems_differ_and_the_sign_is_a_minus_b():
    generator = np.random.default_rng(0)
    good, bad = rows(generator.random(300) < 0.8), rows(generator.random(300) < 0.5)
    result = compare(ACCURACY, good, bad)
    assert result["p_value"] == 1 / 1001 and 0 < result["low"] < result["value"] < result["high"]
    reverse = compare(ACCURACY, bad, good)
    assert reverse["value"] == -result["value"] and reverse["p_value"] == result["p_value"]


def test_p_value_is_that_of_the_sign_test_on_zeros_and_ones():
    # 12 segments of which A alone gets 9 and B alone 3: swapping is tossing 12 coins, two-sided 2 * P(X <= 3) = 598/4096.
    a, b = rows([1] * 9 + [0] * 3 + [1] * 20), rows([0] * 9 + [1] * 3 + [1] * 20)
    assert compare(ACCURACY, a, b, resamples=20_000)["p_value"] == pytest.approx(598 / 4096, abs=0.01)


def test_p_values_are_uniform_when_nothing_differs():
    generator, bleu = np.random.default_rng(1), get("ner", "entity_f1")
    p_values = []
    for trial in range(200):
        gold = generator.poisson(2, size=60) + 1.0
        a, b = (np.stack([generator.binomial(gold.astype(int), 0.6), gold, gold], axis=1) for _ in range(2))
        p_values.append(compare(bleu, a, b, seed=trial, resamples=200)["p_value"])
    assert 0.01 <= np.mean(np.array(p_values) <= 0.05) <= 0.10
    assert 0.4 <= np.mean(p_values) <= 0.6


def test_resamples_without_a_score_are_left_out():
    assert interval(np.array([np.nan, 1.0, 2.0, 3.0, np.nan]), 2.0) == interval(np.array([1.0, 2.0, 3.0]), 2.0)
    assert np.isnan(interval(np.array([np.nan]), 2.0)).all()


def test_interval_is_corrected_for_the_bias_of_its_resamples():
    scores = np.arange(10_000) / 100
    assert interval(scores, 49.995) == pytest.approx((2.5, 97.5), abs=0.02)  # the median: plain percentiles
    normal = NormalDist()
    bias = normal.inv_cdf(0.7)  # seven in ten resamples lie below the value
    expected = [100 * normal.cdf(2 * bias + sign * 1.959964) for sign in (-1, 1)]
    assert interval(scores, 69.995) == pytest.approx(expected, abs=0.02)
    assert interval(np.full(50, 0.1 + 0.2), 0.3) == (0.1 + 0.2, 0.1 + 0.2)  # what rounds otherwise is the same


def test_the_detectable_difference_is_that_of_a_known_spread():
    correct = np.arange(1000) % 2 == 0  # a standard deviation of 0.5 a segment
    other = np.arange(1000) % 4 < 2  # right on half of the same segments: that of the difference is sqrt(1/2)
    spread = 100 / 1000**0.5 * 0.5**0.5 * (1.959964 + 0.841621)
    assert compare(ACCURACY, rows(correct), rows(other), resamples=4000)["detectable"] == pytest.approx(
        spread, rel=0.05
    )


def test_a_difference_of_the_detectable_size_is_found_four_times_in_five():
    generator, found, trials = np.random.default_rng(0), 0, 300
    detectable = (1.959964 + 0.841621) * 100 * (2 * 0.6 * 0.4 / 400) ** 0.5
    for trial in range(trials):
        better, worse = (rows(generator.random(400) < 0.6 + sign * detectable / 200) for sign in (1, -1))
        found += compare(ACCURACY, better, worse, seed=trial, resamples=400)["p_value"] <= 0.05
    assert 0.73 <= found / trials <= 0.87  # 0.8 and three standard errors of 0.023


def test_summary_over_seeds_is_students():
    from scipy.stats import ttest_1samp

    scores = [80.0, 82.0, 81.0, 85.0]
    low, high = ttest_1samp(scores, 0).confidence_interval(0.95)
    expected = {"mean": 82.0, "sd": float(np.std(scores, ddof=1)), "low": low, "high": high, "seeds": 4}
    assert over_seeds(scores) == pytest.approx(expected)


@pytest.mark.parametrize("scores", [[], [80.0], [80.0, float("nan")]])
def test_one_seed_says_nothing_of_seeds(scores):
    with pytest.raises(UserError, match="needs two or more finite ones"):
        over_seeds(scores)


METRICS = [(family, metric) for family, metrics in FAMILIES.items() for metric in metrics]


@pytest.mark.parametrize(("family", "metric"), METRICS, ids=lambda value: getattr(value, "name", value))
def test_aggregates_are_the_same_one_by_one_and_at_once(family, metric):
    wide = {"bleu": 10, "chrf": 42, "chrf++": 42}.get(metric.name)
    columns = wide or {"regression": 8, "multilabel": 8, "qa": 7, "ner": 4, "summarization": 5}.get(family, 3)
    sums = np.sort(np.random.default_rng(0).integers(1, 100, size=(5, columns)).astype(float), axis=1)
    assert metric.aggregate(sums) == pytest.approx([float(metric.aggregate(row)) for row in sums])
