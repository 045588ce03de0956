"""Sampling of the flow maps of masked flows, with a map that is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.samplers.base import Given
from flm_jax.samplers.guidance import plain
from flm_jax.samplers.masked_flow_map import MaskedFlowMapConfig, sample
from helpers.bridge_map import FIRST, LENGTH, PATH, RIGHT, TABLE, bridge_flow, exact_map

ROWS = 2048
# The first position is given, token 1.
GIVEN = Given(
    jnp.ones((ROWS, LENGTH), jnp.int32),
    jnp.broadcast_to(jnp.arange(LENGTH) == 0, (ROWS, LENGTH)),
)


@functools.cache
def tokens(steps, gamma=0.0):
    how = {"net": exact_map(), "flow": bridge_flow(), "steps": steps}
    cfg = MaskedFlowMapConfig(gamma=gamma)
    made = jax.jit(lambda key: sample(key, RIGHT, GIVEN, cfg=cfg, **how))(jax.random.key(0))
    assert made.steps_tokens.shape == (steps, ROWS, LENGTH)
    return np.asarray(made.tokens)


def test_one_call_draws_the_law_from_noise_at_the_first_time():
    """Answers spread as the law says, each position on its own; what is given stays."""
    found = tokens(1)
    assert (found[:, 0] == 1).all()
    shares = (found[:, 1:] == 0).mean(axis=0)
    np.testing.assert_allclose(shares, FIRST, atol=0.04)
    both = (found[:, 1:] == 0).all(axis=1).mean()
    np.testing.assert_allclose(both, FIRST**2, atol=0.04)


def test_more_calls_of_an_exact_map_change_nothing():
    """Its jumps compose; with fresh noise the tokens are others of the same law."""
    assert (tokens(1) == tokens(4)).mean() > 0.998
    for gamma in (0.5, 1.0):
        found = tokens(4, gamma)
        assert (found[:, 1:] != tokens(1)[:, 1:]).any()
        np.testing.assert_allclose((found[:, 1:] == 0).mean(axis=0), FIRST, atol=0.04)


def test_given_positions_are_clean_in_every_call():
    """Whatever the state held there, and whatever time the network is told."""
    denoiser = plain(exact_map(), RIGHT, bridge_flow(), GIVEN)
    xi, tau = denoiser.noise(jax.random.key(1)), jnp.asarray(0.5)
    y_t, _, (found, sure) = denoiser.ask(xi, xi, bridge_flow().t(tau), (tau, tau))
    np.testing.assert_array_equal(y_t[:, 0], jnp.broadcast_to(TABLE[1], (ROWS, 1)))
    np.testing.assert_array_equal(y_t[:, 1:], xi[:, 1:])
    assert (found[:, 0] == 1).all() and (sure[:, 0] == 1.0).all()


def test_overshoot_is_the_time_from_which_noise_leads_back():
    t, g = jnp.asarray([0.1, 0.5, 0.9]), 0.6
    further = PATH.overshoot(t, g)
    np.testing.assert_allclose(PATH.odds(further), PATH.odds(t) / (1 - g**2) ** 0.5, rtol=1e-5)
    # A jump to t', scaled until a is that of t, has the weights that `weights` gives.
    s = jnp.full(3, 0.05)
    straight, back = PATH.weights(s, further), t / further
    np.testing.assert_allclose(PATH.weights(s, t, g).state, back * straight.state, rtol=1e-4)
    np.testing.assert_allclose(PATH.weights(s, t, g).clean, back * straight.clean, rtol=1e-4)
    assert (PATH.overshoot(t, 1.0) == 1.0).all()


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match="gamma"):
        MaskedFlowMapConfig(gamma=1.5)
