"""Intervals of means and of shares cover the truth as often as they say."""

import numpy as np
import pytest

from flm_jax.metrics.intervals import interval, share_interval


def test_the_interval_of_a_share_holds_it_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    for true in (0.5, 0.99):
        spans = [share_interval(k / 400, 400) for k in rng.binomial(400, true, 4000)]
        assert 0.92 < np.mean([low <= true <= high for low, high in spans]) < 0.975
    ends = [(share_interval(0.0, n)[0], share_interval(1.0, n)[1]) for n in range(1, 2000)]
    assert set(ends) == {(0.0, 1.0)}


def test_bootstrap_of_a_mean_is_the_normal_interval():
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 2, 400), rng.normal(0, 1, 900)
    value, low, high = interval(np.mean, x, draws=4000)
    assert value == x.mean()
    half = 1.96 * x.std() / 20
    assert high - value == pytest.approx(half, rel=0.08)
    assert value - low == pytest.approx(half, rel=0.08)
    gap = interval(lambda a, b: a.mean() - b.mean(), x, y, draws=4000)
    assert gap.high - gap.low == pytest.approx(
        2 * 1.96 * np.sqrt(x.var() / 400 + y.var() / 900), rel=0.08
    )
    assert interval(np.mean, x) == interval(np.mean, x)
    assert interval(np.mean, x) != interval(np.mean, x, seed=1)
    narrow = interval(np.mean, x, level=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.6745 * x.std() / 20, rel=0.12)


def test_bootstrap_of_means_covers_the_truth():
    rng = np.random.default_rng(0)
    found = [interval(np.mean, rng.exponential(size=80), draws=200) for _ in range(300)]
    covered = np.mean([low <= 1 <= high for _, low, high in found])
    assert 0.89 < covered < 0.98
