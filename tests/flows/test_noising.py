"""Noisy states at the end of the flow, at given positions, and through two tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.flows.clocks import decoding_clock
from flm_jax.flows.flow import onehot_flow
from helpers.networks import table_of


def test_clean_states_at_the_end_and_given_positions():
    table, flow = jax.random.normal(jax.random.key(0), (40, 3)), onehot_flow(decoding_clock(40))
    tokens = jnp.asarray([[1, 7], [39, 0]])
    y_1, none = flow.states(jax.random.key(1), jnp.ones(2), tokens, table)
    np.testing.assert_array_equal(y_1, table[tokens])
    assert none is None
    xi, y_t = jax.random.normal(jax.random.key(2), (2, 2, 2, 3))
    mask = jnp.asarray([[True, False], [False, True]])
    held = flow.held(y_t, jnp.asarray([0.25, 0.5]), tokens, mask, xi, table)
    np.testing.assert_array_equal(held[0, 1], y_t[0, 1])
    np.testing.assert_array_equal(held[1, 0], y_t[1, 0])
    np.testing.assert_allclose(held[0, 0], 0.25 * table[1] + 0.75 * xi[0, 0], rtol=1e-6)
    np.testing.assert_allclose(held[1, 1], 0.5 * table[0] + 0.5 * xi[1, 1], rtol=1e-6)


@pytest.mark.parametrize("vocab_size", [9, 200])
def test_states_through_two_tables_of_different_width(vocab_size):
    table, other = table_of(vocab_size, 6), table_of(vocab_size, 4, seed=3)
    tokens = jnp.asarray([[0, 3, 8]])
    for in_vocabulary in (False, True):
        flow = onehot_flow(decoding_clock(vocab_size), in_vocabulary)
        pair = flow.states(jax.random.key(0), jnp.ones(1), tokens, table, other)
        for view, e in zip(pair, (table, other)):
            np.testing.assert_allclose(view, e[tokens], rtol=1e-5, atol=1e-6)
