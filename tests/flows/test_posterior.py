"""The token posterior of a noisy state is Bayes' rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

from flm_jax.flows.noise import OneHotNoise
from helpers.networks import TINY, VOCAB, posterior_probs, tiny_states


@pytest.mark.parametrize("vocab_size, dim", [(7, 12), (12, 12), (30, 12)])
@pytest.mark.parametrize("t", [0.1, 0.4, 0.7])
def test_it_is_bayes_rule(vocab_size, dim, t):
    """Of true states: against the density of the Gaussian on the span of E, in float64."""
    rng = np.random.default_rng(vocab_size)
    table = rng.standard_normal((vocab_size, dim))
    tokens = rng.integers(0, vocab_size, (4, 5))
    noise = rng.standard_normal((4, 5, vocab_size)) @ table
    y_t = t * table[tokens] + (1 - t) * noise
    cov = (1 - t) ** 2 * table.T @ table
    log_p = np.stack(
        [multivariate_normal(t * row, cov, allow_singular=True).logpdf(y_t) for row in table], -1
    )
    want = np.exp(log_p - log_p.max(-1, keepdims=True))
    want /= want.sum(-1, keepdims=True)
    times = jnp.full((4, 5), t)
    got = posterior_probs(*(jnp.asarray(x, jnp.float32) for x in (y_t, times, table)))
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-3)
    assert np.ptp(want) > 0.01


@pytest.mark.parametrize("vocab_size, dim", [(7, 12), (30, 12)])
def test_what_it_multiplies_is_white(vocab_size, dim):
    """And the product is the pseudo-inverse of E."""
    table = jax.random.normal(jax.random.key(0), (vocab_size, dim))
    whiten, kernel = OneHotNoise().whitening(table)
    seen = table @ whiten
    np.testing.assert_allclose(seen.T @ seen, jnp.eye(min(vocab_size, dim)), atol=1e-4)
    np.testing.assert_allclose(whiten @ kernel, jnp.linalg.pinv(table), atol=1e-4)


def test_noise_says_nothing_and_a_clean_token_all():
    table = jax.random.normal(jax.random.key(0), (VOCAB, TINY.dim))
    tokens = jnp.arange(VOCAB)[None]
    np.testing.assert_allclose(
        posterior_probs(tiny_states(), jnp.zeros(3), table), 1 / VOCAB, rtol=1e-6
    )
    clean = posterior_probs(table[tokens], jnp.ones(1), table)
    np.testing.assert_array_equal(clean, jax.nn.one_hot(tokens, VOCAB))
    moved = lambda y, t: posterior_probs(y, t, table)
    for t in (0.0, 1.0):
        _, rate = jax.jvp(moved, (table[tokens], jnp.full(1, t)), (table[tokens], jnp.ones(1)))
        assert jnp.isfinite(rate).all()
