"""Training times cover the unit interval evenly, alone, together and in microbatches."""

import jax
import numpy as np
import pytest
from scipy import stats

from flm_jax.flows.time_sampling import (
    Rows,
    evenly_chosen,
    kronecker_uniform,
    stratified_uniform,
    time_pairs,
)
from helpers.masked_flow import KEY


def test_draws_are_low_discrepancy_alone_and_together():
    n = 256
    u = np.asarray(stratified_uniform(KEY, n, Rows(0, n)))
    v = np.asarray(kronecker_uniform(jax.random.key(9), n, Rows(0, n)))
    assert stats.kstest(v, "uniform").statistic < 0.02
    assert abs(np.corrcoef(u, v)[0, 1]) < 0.05
    counts = np.histogram2d(u, v, bins=8, range=[[0, 1], [0, 1]])[0]
    assert counts.min() >= 2 and counts.max() <= 6  # 4 on average; independent draws: 0 to 12
    halves = [kronecker_uniform(jax.random.key(9), n // 2, Rows(s, n)) for s in (0, n // 2)]
    np.testing.assert_array_equal(np.concatenate(halves), v)


def test_stratified_times_cover_the_global_batch_from_microbatches():
    from flm_jax.flows.time_sampling import stratified_uniform

    key = jax.random.key(3)
    parts = [stratified_uniform(key, 8, Rows(start, 32)) for start in range(0, 32, 8)]
    shift = jax.random.uniform(jax.random.fold_in(key, 0))
    strata = np.floor(np.mod(np.concatenate(parts) - shift, 1.0) * 32 + 1e-4)
    assert len(set(strata.tolist())) >= 31  # one row may sit on the rounding of an edge


@pytest.mark.parametrize(
    "total, share, numbers",
    [(256, 1 / 32, {8}), (64, 1 / 32, {2}), (10, 0.25, {2, 3}), (8, 0.0, {0}), (8, 1.0, {8})],
)
def test_a_fixed_number_of_rows_is_chosen(total, share, numbers):
    keys = jax.random.split(jax.random.key(0), 200)
    chosen = np.asarray(
        jax.vmap(lambda key: evenly_chosen(key, total, Rows(0, total), share))(keys)
    )
    assert set(chosen.sum(1).tolist()) == numbers
    assert abs(chosen.mean(0) - share).max() < 4 * np.sqrt(share * (1 - share) / 200) + 1e-6
    halves = [evenly_chosen(keys[0], total // 2, Rows(s, total), share) for s in (0, total // 2)]
    np.testing.assert_array_equal(np.concatenate(halves), chosen[0])


def test_pairs_are_low_discrepancy_but_for_the_boundary():
    total = 256
    s, t = (np.asarray(x) for x in time_pairs(KEY, total, Rows(0, total), 1 / 32))
    whole = (s == 0.0) & (t == 1.0)
    assert whole.sum() == 8
    d = (t - s)[~whole]
    r = s[~whole] / (1.0 - d)
    for draws in (d, r):
        assert stats.kstest(draws, "uniform").statistic < 0.03  # independent draws: about 0.05
    assert abs(np.corrcoef(d, r)[0, 1]) < 0.05
