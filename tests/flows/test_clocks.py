"""Clocks are the decoding error they are named for, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.flows.clocks import decoding_clock, identity_clock, t_to_tau, tau_to_t
from flm_jax.flows.flow import onehot_flow
from flm_jax.flows.interpolants.linear import Linear
from helpers.networks import exact_tau


def test_identity_clock_is_the_identity():
    t = jnp.linspace(0.0, 1.0, 11)
    np.testing.assert_allclose(t_to_tau(identity_clock(), t), t, atol=1e-6)
    np.testing.assert_allclose(tau_to_t(identity_clock(), t), t, atol=1e-6)
    slope = jax.jvp(lambda s: tau_to_t(identity_clock(), s), (t[1:-1],), (jnp.ones(9),))[1]
    np.testing.assert_allclose(slope, 1.0, atol=1e-5)


def test_the_slope_at_the_ends_is_that_from_within():
    """Where every jump in one call starts and ends; a clip would halve it there."""
    ends, within = jnp.asarray([0.0, 1.0]), jnp.asarray([1e-4, 1.0 - 1e-4])
    for clock in (identity_clock(), decoding_clock(2)):
        slope = jax.vmap(jax.grad(lambda t, clock=clock: t_to_tau(clock, t)))
        np.testing.assert_allclose(slope(ends), slope(within), atol=1e-3)
        np.testing.assert_array_equal(t_to_tau(clock, jnp.asarray([-0.5, 1.5])), [0.0, 1.0])


VOCABULARIES = [2, 97, 50257]


def middle_times(vocab_size):
    """Times at tau = .1, .3, .5, .7, .9."""
    taus = jnp.asarray([0.1, 0.3, 0.5, 0.7, 0.9])
    return taus, np.asarray(tau_to_t(decoding_clock(vocab_size), taus), np.float64)


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_clock_ends_order_and_round_trips(vocab_size):
    clock = decoding_clock(vocab_size)
    grid = jnp.linspace(0.0, 1.0, 20_001)
    tau, t = t_to_tau(clock, grid), tau_to_t(clock, grid)
    assert (tau[0], tau[-1], t[0], t[-1]) == (0.0, 1.0, 0.0, 1.0)
    # Where 1 - tau is below the resolution of float32 its last bit may waver.
    assert jnp.diff(tau).min() >= -6e-8
    assert jnp.diff(t).min() > 0
    # A step of float32 in t moves tau by up to 6e-8 times its slope, about 14 at V = 50257.
    np.testing.assert_allclose(t_to_tau(clock, t), grid, rtol=0, atol=2e-6)
    resolved = (tau > 1e-3) & (tau < 1 - 1e-3)
    np.testing.assert_allclose(tau_to_t(clock, tau)[resolved], grid[resolved], rtol=0, atol=2e-5)


@pytest.mark.parametrize("vocab_size", VOCABULARIES)
def test_clock_value_and_derivatives(vocab_size):
    """Values within 2e-6 and slopes within 0.1% of central differences of the exact integral."""
    clock = decoding_clock(vocab_size)
    taus, t = middle_times(vocab_size)
    for tau_i, t_i in zip(taus, t):
        assert abs(exact_tau(t_i, vocab_size) - tau_i) < 2e-6
        slope = exact_tau(t_i + 1e-4, vocab_size) - exact_tau(t_i - 1e-4, vocab_size)
        slope /= 2e-4
        got = jax.grad(lambda t: t_to_tau(clock, t))(jnp.float32(t_i))
        np.testing.assert_allclose(got, slope, rtol=1e-3)
        _, inverse = jax.jvp(lambda tau: tau_to_t(clock, tau), (tau_i,), (jnp.float32(1),))
        np.testing.assert_allclose(inverse, 1 / slope, rtol=1e-3)


def test_clock_under_jit_and_clipping():
    clock = decoding_clock(97)
    taus = jnp.linspace(0.0, 1.0, 13).reshape(13, 1)
    for convert in (tau_to_t, t_to_tau):
        np.testing.assert_array_equal(jax.jit(convert)(clock, taus), convert(clock, taus))
    outside = jnp.asarray([-0.5, 1.5])
    assert tau_to_t(clock, outside).tolist() == [0.0, 1.0]
    assert t_to_tau(clock, outside).tolist() == [0.0, 1.0]


def test_clock_is_the_decoding_error():
    """1 - tau is V/(V-1) times the rate at which argmax decodes noisy one-hot tokens wrongly.

    40,000 draws: standard error 0.0025, bound 4 of them.
    """
    vocab_size, num = 64, 40_000
    t = tau_to_t(decoding_clock(vocab_size), jnp.asarray([0.5]))
    eps = jax.random.normal(jax.random.key(0), (1, num, vocab_size))
    tokens = jax.random.randint(jax.random.key(1), (1, num), 0, vocab_size)
    x_t = Linear().at(t, jax.nn.one_hot(tokens, vocab_size), eps)
    error = jnp.mean(jnp.argmax(x_t, axis=-1) != tokens)
    np.testing.assert_allclose(1 - vocab_size / (vocab_size - 1) * error, 0.5, rtol=0, atol=0.01)


def test_clock_of_embedded_states_is_their_decoding_error():
    """Nearest embedding in the metric of the noise, of 1024 tokens seen through 256 numbers.

    Leverages of one table spread about their mean, hence the bound of .03, of which the standard
    error of 20,000 draws is a tenth; the clock of x_t itself is wrong by .4 here.
    """
    vocab_size, dim, num = 1024, 256, 20_000
    table = jax.random.normal(jax.random.key(0), (vocab_size, dim))
    tokens = jax.random.randint(jax.random.key(1), (1, num), 0, vocab_size)
    flow = onehot_flow(decoding_clock(vocab_size, dim))
    t = flow.t(jnp.asarray([0.5]))
    y_t, _ = flow.states(jax.random.key(2), t, tokens, table)
    whitened = lambda vectors: flow.noise.whitened(vectors, table)
    seen, clean = whitened(y_t[0]), t[0] * whitened(table)
    distance = jnp.sum(jnp.square(clean), axis=1)[None] - 2 * seen @ clean.T
    error = jnp.mean(jnp.argmin(distance, axis=1) != tokens[0])
    np.testing.assert_allclose(1 - vocab_size / (vocab_size - 1) * error, 0.5, rtol=0, atol=0.03)
    assert t_to_tau(decoding_clock(vocab_size), t)[0] > 0.9


def test_clock_of_embedded_states_is_that_of_one_hot_ones_later():
    """tau at r is tau of one-hot states at r sqrt(D/V), slopes included; none where D >= V."""
    clock, plain = decoding_clock(1024, 64), decoding_clock(1024)
    taus = jnp.linspace(0.02, 0.98, 25)
    t, sooner = tau_to_t(clock, taus), tau_to_t(plain, taus)
    np.testing.assert_allclose(t / (1 - t), 4 * sooner / (1 - sooner), rtol=1e-4)
    slope = lambda at: jax.vmap(jax.grad(lambda t: t_to_tau(at, t)))
    factor = 4 / jnp.square(4 - 3 * t)  # dt of x_t over dt of y_t
    np.testing.assert_allclose(slope(clock)(t), slope(plain)(sooner) * factor, rtol=1e-3)
    np.testing.assert_array_equal(decoding_clock(64, 128).t, decoding_clock(64).t)


def test_clock_needs_two_tokens():
    with pytest.raises(UserError, match="at least 2"):
        decoding_clock(1)
