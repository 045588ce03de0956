"""Random subsets and highest-ranked positions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.flows.masking import highest, random_subset


@pytest.mark.parametrize("seed", range(3))
def test_subsets_have_their_size_and_are_uniform(seed):
    count = jnp.asarray([0, 1, 3, 5] * 500)
    chosen = np.asarray(random_subset(jax.random.key(seed), count, 5))
    np.testing.assert_array_equal(chosen.sum(axis=1), count)
    np.testing.assert_allclose(chosen[2::4].mean(axis=0), 0.6, atol=0.1)


def test_highest_takes_the_best_of_those_allowed():
    scores = jnp.asarray([[0.1, 0.9, 0.5, 0.7]])
    among = jnp.asarray([[True, False, True, True]])
    for count, want in ((0, []), (1, [3]), (2, [2, 3]), (9, [0, 2, 3])):
        got = highest(scores, among, jnp.asarray([count]))
        assert np.flatnonzero(got[0]).tolist() == want
