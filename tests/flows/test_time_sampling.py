"""Training times cover the unit interval evenly, alone, together and in microbatches."""

import jax
import numpy as np
from scipy import stats

from flm_jax.flows.time_sampling import Rows, kronecker_uniform, stratified_uniform
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
