"""The masked bridge: its times, moments, and steps from bridge to bridge."""

import jax.numpy as jnp
import numpy as np

from flm_jax.flows.flow import GammaTold
from flm_jax.flows.gamma_state import GammaConfig
from flm_jax.flows.interpolants.masked_bridge import MaskedBridge
from flm_jax.flows.noising import hidden_states
from helpers.masked_flow import FLOW, KEY

PATH = MaskedBridge(0.2)
LOW, HIGH = GammaConfig().low, GammaConfig().high


# The bridge.
def test_gamma_and_t_are_inverse():
    gamma = jnp.linspace(LOW, HIGH, 41)
    np.testing.assert_allclose(PATH.gamma(PATH.time_at(gamma)), gamma, atol=2e-4)
    t = PATH.time_at(gamma)
    np.testing.assert_allclose(t, 0.04 / (np.exp(gamma) + 0.04), rtol=1e-5)
    told = GammaTold(PATH, LOW, HIGH)
    np.testing.assert_allclose(told.tau(jnp.array([0.0, 1.0])), [0.0, 1.0], atol=1e-5)
    np.testing.assert_allclose(told.progress(jnp.array([HIGH, -2.0, LOW])), [0.0, 0.5, 1.0])
    np.testing.assert_allclose(told.gamma(told.progress(gamma)), gamma, atol=1e-5)


def test_mean_and_variance_of_the_bridge():
    rng = np.random.default_rng(0)
    table = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    anchor = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
    tokens = jnp.tile(jnp.array([[1, 4]]), (40_000, 1))
    hidden = jnp.tile(jnp.array([[True, False]]), (40_000, 1))
    z = hidden_states(KEY, FLOW, jnp.full(40_000, 0.3), tokens, hidden, table, anchor)
    np.testing.assert_array_equal(z[:, 1], np.tile(table[4], (40_000, 1)))
    want = 0.7 * anchor[0] + 0.3 * table[1]
    np.testing.assert_allclose(z[:, 0].mean(0), want, atol=4 * 0.2 * np.sqrt(0.21 / 40_000))
    np.testing.assert_allclose(z[:, 0].var(0), 0.04 * 0.21, rtol=0.04)


def test_two_moments_of_a_step_carry_the_bridge_to_the_bridge():
    """Mean and variance at t' of a step from the bridge at t are those of the bridge at t'."""
    clean, m, t, t2 = 1.7, -0.4, 0.35, 0.8
    shape = lambda x: jnp.full((1, 1, 1), x)

    def moments(z, t2):
        times = jnp.array([t]), jnp.array([t2])
        mean = PATH.step(shape(z), shape(clean), *times, anchor=shape(m))
        return mean, PATH.weights(*times).noise ** 2

    mean, variance = moments((1 - t) * m + t * clean, t2)
    np.testing.assert_allclose(mean, (1 - t2) * m + t2 * clean, rtol=1e-6)
    carried = ((1 - t2) / (1 - t)) ** 2 * 0.04 * t * (1 - t)
    np.testing.assert_allclose(variance + carried, 0.04 * t2 * (1 - t2), rtol=1e-6)
    np.testing.assert_allclose(variance, 0.04 * (t2 - t) * (1 - t2) / (1 - t), rtol=1e-6)
    mean, _ = moments(0.3, t2)
    velocity = PATH.velocity(shape(0.3), shape(clean), jnp.array([t]), shape(m))
    np.testing.assert_allclose(mean, shape(0.3) + (t2 - t) * velocity, rtol=1e-6)
    mean, variance = moments(0.3, 1.0)
    np.testing.assert_allclose([mean[0, 0, 0], variance[0]], [clean, 0.0], atol=1e-7)
