"""Aggregates and intervals against numbers worked out by hand, and against simulations whose truth is known."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import stats

from routing_marl import statistics
from routing_marl.errors import UserError
from routing_marl.results import SCHEMA
from routing_marl.statistics import (
    area_under_curve,
    bootstrap_interval,
    caveat,
    half_interval,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    score_matrix,
    student_interval,
    time_to_accuracy,
)

matrices = npst.arrays(
    float, st.tuples(st.integers(2, 7), st.integers(1, 5)), elements=st.floats(0, 1, allow_nan=False, width=16)
)


def rows(entries):
    """Rows of a results table: (method, seed, epoch, task, accuracy, wall_s)."""
    columns = ("method", "seed", "epoch", "task", "accuracy", "wall_s")
    base = {**dict.fromkeys(SCHEMA, 0.0), "suite": "toy", "run": "", "settings": "", "split": "test"}
    made = [{**base, **dict(zip(columns, entry, strict=True))} for entry in entries]
    return pd.DataFrame(made).assign(loss=lambda frame: 1 - frame["accuracy"]).astype(SCHEMA)


# -- the matrix of scores --------------------------------------------------------------------------------------------

MATRIX = [("a", s, e, t, 0.1 * s + 0.01 * t + 0.001 * e, 1.0) for e in (1, 2) for s in (7, 3) for t in (-1, 1, 0)]


def test_the_matrix_has_a_row_per_seed_and_a_column_per_task_of_the_last_epoch():
    np.testing.assert_allclose(score_matrix(rows(MATRIX)), [[0.302, 0.312], [0.702, 0.712]])
    np.testing.assert_allclose(score_matrix(rows(MATRIX), "loss"), [[0.698, 0.688], [0.298, 0.288]])


def test_what_is_no_matrix_is_refused():
    with pytest.raises(UserError, match="rows of several methods: a, b; select one"):
        score_matrix(rows([*MATRIX, ("b", 3, 2, 0, 0.5, 1.0)]))
    with pytest.raises(UserError, match="not all runs have a test accuracy for each task"):
        score_matrix(rows([*MATRIX, ("a", 4, 2, 0, 0.5, 1.0)]))
    with pytest.raises(UserError, match="not all runs have a test accuracy for each task"):
        score_matrix(rows([*MATRIX, ("a", 4, 2, -1, 0.5, 1.0)]))
    with pytest.raises(UserError, match="not all runs have a train accuracy"):
        score_matrix(rows(MATRIX), split="train")


# -- single numbers --------------------------------------------------------------------------------------------------


def test_interquartile_mean_by_hand():
    scores = np.array([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 100.0]])  # of eight, two are cut off at either end
    assert interquartile_mean(scores) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert interquartile_mean(np.array([[1.0, 2.0, 9.0]])) == pytest.approx(4)  # of three, a quarter is none


@given(matrices)
def test_interquartile_mean_lies_in_the_middle_and_moves_with_the_scores(scores):
    flat = np.sort(scores.ravel())
    middle = interquartile_mean(scores)
    assert flat[0] - 1e-9 <= middle <= flat[-1] + 1e-9
    assert interquartile_mean(2 * scores + 1) == pytest.approx(2 * middle + 1)


@pytest.mark.parametrize(
    ("values", "level", "expected"),
    [
        ([0.0, 2.0], 0.95, 12.7062),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0.95, 2.776445 * math.sqrt(2.5 / 5)),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0.9, 2.131847 * math.sqrt(2.5 / 5)),
        ([7.0, 7.0, 7.0], 0.95, 0.0),
    ],
)
def test_half_interval_by_hand(values, level, expected):
    assert half_interval(pd.Series(values), level) == pytest.approx(expected, rel=1e-5)
    mean, low, high = student_interval(values, level)
    assert (low, high) == pytest.approx((mean - expected, mean + expected), rel=1e-5)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_fewer_than_two_values_have_no_interval(values):
    assert math.isnan(half_interval(pd.Series(values, dtype=float)))
    assert math.isnan(student_interval(values).low)


CURVES = rows(
    [
        ("a", 0, 1, -1, 0.5, 10.0),
        ("a", 0, 2, -1, 0.9, 20.0),
        ("a", 0, 4, -1, 0.7, 40.0),
        ("a", 0, 1, 0, 0.99, 10.0),  # a task alone reaches it; that does not count
        ("a", 1, 1, -1, 0.2, 11.0),
        ("a", 1, 2, -1, 0.6, 22.0),
        ("b", 0, 3, -1, 0.8, 33.0),
    ]
)


def test_time_to_accuracy_by_hand():
    assert time_to_accuracy(CURVES, 0.7).tolist() == [2, math.inf, 3]
    assert time_to_accuracy(CURVES, 0.5, unit="wall_s").tolist() == [10, 22, 33]
    assert time_to_accuracy(CURVES, 0.25, metric="loss").tolist() == [2, math.inf, 3]
    keys = [("toy", "a", "", 0), ("toy", "a", "", 1), ("toy", "b", "", 0)]
    assert time_to_accuracy(CURVES, 0.7).index.tolist() == keys


def test_area_under_the_curve_by_hand():
    # Trapezoids over epochs 1 to 4: (0.5 + 0.9) / 2 * 1 + (0.9 + 0.7) / 2 * 2 = 2.3, of 3.
    assert area_under_curve(CURVES).tolist() == pytest.approx([2.3 / 3, 0.4, 0.8])
    assert area_under_curve(CURVES.sample(frac=1, random_state=0)).tolist() == pytest.approx([2.3 / 3, 0.4, 0.8])


def test_few_seeds_have_a_caveat():
    assert "nothing can be said" in caveat(1)
    assert caveat(4).startswith("4 seeds") and "take 5 or more" in caveat(4)
    assert caveat(5) is None


# -- two methods -----------------------------------------------------------------------------------------------------


def test_probability_of_improvement_by_hand():
    ours = np.array([[1.0, 5.0], [3.0, 5.0]])
    theirs = np.array([[2.0, 5.0], [0.0, 6.0], [3.0, 4.0]])
    # Task 0: 1 beats 0; 3 beats 2 and 0 and ties with 3: 3.5 of 6. Task 1: 5 ties with 5, beats 4: 1.5 of 3.
    found = probability_of_improvement(ours, theirs)
    assert found.estimate == pytest.approx((3.5 / 6 + 1.5 / 3) / 2)
    assert found.low <= found.estimate <= found.high


@settings(max_examples=40)
@given(matrices, matrices)
def test_probability_of_improvement_is_a_mann_whitney_statistic_and_has_two_sides(a, b):
    tasks = min(a.shape[1], b.shape[1])
    a, b = a[:, :tasks], b[:, :tasks]
    ours = probability_of_improvement(a, b, n_resamples=10).estimate
    assert ours == pytest.approx(1 - probability_of_improvement(b, a, n_resamples=10).estimate)
    by_scipy = [stats.mannwhitneyu(x, y).statistic / (len(x) * len(y)) for x, y in zip(a.T, b.T, strict=True)]
    assert ours == pytest.approx(np.mean(by_scipy))


def test_scores_on_other_tasks_don_t_compare():
    with pytest.raises(UserError, match="2 tasks against 3"):
        probability_of_improvement(np.zeros((2, 2)), np.zeros((2, 3)))


# -- profiles --------------------------------------------------------------------------------------------------------


def test_performance_profile_by_hand():
    scores = np.array([[0.1, 0.5], [0.5, 0.9]])
    profile = performance_profile(scores, np.array([0.0, 0.1, 0.4, 0.5, 0.9]))
    np.testing.assert_allclose(profile.share, [1, 0.75, 0.75, 0.25, 0])
    # The samples of two runs are the first twice, the second twice, or both.
    np.testing.assert_allclose(profile.low, [1, 0.5, 0.5, 0, 0])
    np.testing.assert_allclose(profile.high, [1, 1, 1, 0.5, 0])
    assert np.isnan(performance_profile(scores[:1], np.array([0.5])).low).all()


# -- intervals -------------------------------------------------------------------------------------------------------


def test_the_bootstrap_draws_runs_or_scores_within_their_strata(monkeypatch):
    """Against all samples of three runs, or of three runs for each of two tasks, each as often as the other."""
    monkeypatch.setattr(statistics, "_widened_level", lambda rows, level: level)
    scores = np.random.default_rng(0).random((3, 2))
    draws = np.array([*itertools.product(range(3), repeat=3)])
    together = scores[draws].reshape(27, -1).max(1) + scores[draws].reshape(27, -1).min(1)
    apart = [
        max(scores[i, 0].max(), scores[j, 1].max()) + min(scores[i, 0].min(), scores[j, 1].min())
        for i in draws
        for j in draws
    ]

    def statistic(values, axis):
        return values.max(axis) + values.min(axis)

    for resample, exact in (("runs", together), ("scores", apart)):
        found = bootstrap_interval(scores, statistic, resample=resample, level=0.6, n_resamples=20000)
        np.testing.assert_allclose(found[1:], np.quantile(exact, [0.2, 0.8]), atol=1e-9)
        assert found.estimate == scores.max() + scores.min()
    suites = [scores, scores + 10]  # each suite keeps its share: the smallest and the largest come from one each
    found = bootstrap_interval(suites, statistic, level=0.6, n_resamples=20000)
    ends = [low + high for low in scores[draws].reshape(27, -1).min(1) for high in scores[draws].max((1, 2)) + 10]
    np.testing.assert_allclose(found[1:], np.quantile(ends, [0.2, 0.8]), atol=1e-9)


def test_the_interval_of_a_mean_is_as_long_as_student_s():
    values = stats.norm.ppf((np.arange(30) + 0.5) / 30)  # as normal as thirty numbers can be
    _, low, high = bootstrap_interval(values[:, None], np.mean)
    _, left, right = student_interval(values)
    assert (high - low) / (right - left) == pytest.approx(1, abs=0.03)


def test_strata_of_unlike_spread_have_the_freedom_of_welch():
    """Degrees of freedom as scipy counts them for two samples."""
    a, b = np.array([1.0, 2.0, 4.0]), np.array([0.0, 10.0, 20.0, 50.0, 0.0])
    freedom = stats.ttest_ind(a, b, equal_var=False).df
    variances = a.var(ddof=1) / 3, b.var(ddof=1) / 5
    shrunk = (variances[0] * 2 / 3 + variances[1] * 4 / 5) / sum(variances)
    expected = 2 * stats.norm.cdf(stats.t.ppf(0.975, freedom) / math.sqrt(shrunk)) - 1
    assert statistics._widened_level([a, b], 0.95) == pytest.approx(expected)


def test_one_run_has_no_interval_and_equal_ones_have_an_empty_one():
    assert np.isnan(bootstrap_interval(np.ones((1, 3)))[1:]).all()
    assert bootstrap_interval(np.ones((4, 3)), n_resamples=50) == (1, 1, 1)
    assert bootstrap_interval(np.eye(4), seed=1, n_resamples=50) == bootstrap_interval(
        np.eye(4), seed=1, n_resamples=50
    )


TASKS = np.linspace(0.3, 0.9, 10)
"""Ten tasks of unlike difficulty."""


def shared_network(rng, n=10):
    """Runs that are good or bad at all tasks at once."""
    return TASKS + 0.05 * rng.standard_normal((n, 1)) + 0.05 * rng.standard_normal((n, 10))


def independent(rng, n=10):
    return TASKS + 0.05 * rng.standard_normal((n, 10))


def ceiling(rng, n=10):
    """Scores in [0, 1], skewed as accuracies are."""
    return rng.beta(8, 2, (n, 1)) * 0.5 + 0.5 * rng.beta(2 + 6 * TASKS, 2, (n, 10))


def coverage(simulate, statistic, truth, n_truths, **options):
    found = [
        bootstrap_interval(simulate(np.random.default_rng(seed)), statistic, n_resamples=1000, **options)
        for seed in range(n_truths)
    ]
    return np.mean([low <= truth <= high for _, low, high in found])


def truth_of(simulate, statistic):
    return statistic(simulate(np.random.default_rng(2**32), 100_000).ravel())


def test_a_95_percent_interval_covers_95_percent_of_a_thousand_means():
    assert 0.92 <= coverage(shared_network, np.mean, truth_of(shared_network, np.mean), 1000) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("simulate", [shared_network, independent, ceiling])
@pytest.mark.parametrize("statistic", [np.mean, interquartile_mean])
def test_95_percent_intervals_cover(simulate, statistic):
    assert 0.92 <= coverage(simulate, statistic, truth_of(simulate, statistic), 1000) <= 0.98


def test_resampling_scores_is_for_tasks_that_share_nothing():
    """The paper's strata on runs whose tasks share a network: three in ten of its intervals miss."""
    truth = TASKS.mean()
    assert 0.92 <= coverage(independent, np.mean, truth, 300, resample="scores") <= 0.98
    assert coverage(shared_network, np.mean, truth, 100, resample="scores") < 0.75


@pytest.mark.slow
def test_95_percent_intervals_of_the_probability_of_improvement_cover():
    delta = 0.02  # the difference of two scores has standard deviation 0.1
    truth, hits = stats.norm.cdf(delta / 0.1), 0
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        ours, theirs = shared_network(rng) + delta, shared_network(rng)
        _, low, high = probability_of_improvement(ours, theirs, n_resamples=1000)
        hits += low <= truth <= high
    assert 0.92 <= hits / 1000 <= 0.98


@pytest.mark.slow
def test_95_percent_intervals_of_student_and_of_a_profile_cover():
    threshold = np.array([0.6])
    share = (shared_network(np.random.default_rng(2**32), 100_000) > 0.6).mean()
    students = profiles = 0
    for seed in range(1000):
        scores = shared_network(np.random.default_rng(seed))
        _, low, high = student_interval(scores.mean(1))
        students += low <= TASKS.mean() <= high
        profile = performance_profile(scores, threshold, n_resamples=1000)
        profiles += profile.low[0] <= share <= profile.high[0]
    assert 0.92 <= students / 1000 <= 0.98 and 0.92 <= profiles / 1000 <= 0.98
