"""The law of times of a flow, what a network is told of it, and its states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flm_jax.build.families.flow_map import ROUTES
from flm_jax.core.network import Network
from flm_jax.flows.clocks import decoding_clock
from flm_jax.flows.flow import Flow, GammaTold, onehot_flow
from flm_jax.flows.gamma_fit import gumbel_cdf, gumbel_fit, gumbel_quantile
from flm_jax.flows.gamma_state import GammaConfig, bin_centers, fresh_state
from flm_jax.flows.interpolants.linear import Linear
from flm_jax.flows.interpolants.masked_bridge import MaskedBridge
from flm_jax.flows.interpolants.variance_preserving import VariancePreserving
from flm_jax.flows.noise import OneHotNoise, UnitNoise
from flm_jax.flows.noise_schedule import LearntTimes
from flm_jax.flows.posterior import posterior_features, posterior_kernel
from flm_jax.flows.settings import EMBEDDING_LAW
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.distillation.base import Pairs
from flm_jax.losses.distillation.semigroup import SemigroupConfig

PATHS = [Linear(), VariancePreserving(), MaskedBridge(0.2)]
LAW = EMBEDDING_LAW


def embedding_flow(path=None, shape=(3.0, 1.2, 1.0), ready=1.0):
    path = path or VariancePreserving()
    told = GammaTold(path, LAW.low, LAW.high)
    state = fresh_state(LAW)._replace(shape=jnp.asarray(shape), ready=jnp.asarray(ready))
    return Flow(path, UnitNoise(), LearntTimes(LAW, told, state), told)


@pytest.mark.parametrize("path", PATHS)
def test_progress_of_gamma_is_told(path):
    told = GammaTold(path, -4.0, 8.0)
    tau = jnp.linspace(0.0, 1.0, 33)
    t = told.t(tau)
    assert np.all(np.diff(t) > 0)
    np.testing.assert_allclose(told.tau(t), tau, atol=2e-5)
    a, _, c = path.coefficients(t)
    np.testing.assert_allclose(2 * np.log(c / a), 8.0 - 12.0 * tau, rtol=1e-4, atol=1e-4)
    # Past the ends: pure noise, and clean tokens.
    np.testing.assert_allclose(told.tau(jnp.array([1e-9, 1.0])), [0.0, 1.0], atol=1e-6)


def test_sampling_is_spaced_by_the_quantiles_of_the_learnt_law():
    flow = embedding_flow()
    grid = flow.grid(10)
    assert grid[0] == 0.0 and grid[-1] == 1.0
    gamma = LAW.high - (LAW.high - LAW.low) * np.asarray(grid)
    np.testing.assert_allclose(
        stats.gumbel_r.cdf(gamma[1:-1], 3.0, 1.2), 1 - np.linspace(0, 1, 11)[1:-1], atol=1e-4
    )
    tau = flow.times.quantile(jnp.linspace(0.05, 0.95, 19))
    np.testing.assert_allclose(flow.times.share(tau), np.linspace(0.05, 0.95, 19), atol=1e-4)
    np.testing.assert_allclose(flow.between(tau[0], tau[-1], 0.5), tau[9], atol=1e-4)
    # Before anything is learnt it is uniform.
    np.testing.assert_allclose(embedding_flow(ready=0.0).grid(4), np.linspace(0, 1, 5), atol=1e-5)


def test_training_draws_the_mixture():
    """A tenth is uniform, the rest the learnt law."""
    flow = embedding_flow()
    tau = np.asarray(flow.draw_times(jax.random.key(0), 8192, Rows(0, 8192)))
    gamma = LAW.high - (LAW.high - LAW.low) * tau
    for cut in (1.0, 3.0, 6.0):
        flat = (cut - LAW.low) / (LAW.high - LAW.low)
        want = 0.1 * flat + 0.9 * stats.gumbel_r.cdf(cut, 3.0, 1.2)
        assert abs((gamma < cut).mean() - want) < 0.005


def test_a_gumbel_law_is_fitted_to_a_cross_entropy():
    cfg = GammaConfig(low=-5.0, high=14.0, learnt="gumbel")
    gamma, shape = bin_centers(cfg), jnp.array([4.7, 0.85, 1.0])
    values = 0.1 + 7.0 * gumbel_cdf(shape, gamma)
    found, r2, rises = gumbel_fit(gamma, values, jnp.ones_like(gamma), cfg)
    np.testing.assert_allclose(found, shape, rtol=1e-3)
    assert r2 > 0.9999 and rises
    assert not gumbel_fit(gamma, -values, jnp.ones_like(gamma), cfg).found
    np.testing.assert_allclose(
        gumbel_cdf(shape, gumbel_quantile(shape, jnp.float32(0.3))), 0.3, rtol=1e-5
    )


def test_states_have_the_moments_of_their_path():
    flow, table = embedding_flow(), jax.random.normal(jax.random.key(1), (5, 3))
    tokens = jnp.tile(jnp.array([[1, 4]]), (20000, 1))
    t = jnp.full(20000, 0.4)
    y, view = flow.states(jax.random.key(2), t, tokens, table, table)
    np.testing.assert_array_equal(y, view)
    a, _, c = (float(x) for x in flow.path.coefficients(jnp.float32(0.4)))
    np.testing.assert_allclose(np.mean(y, axis=0), a * table[tokens[0]], atol=0.03)
    np.testing.assert_allclose(np.cov(np.asarray(y[:, 0]).T), c**2 * np.eye(3), atol=0.03)


@pytest.mark.parametrize("path", PATHS[:2])
@pytest.mark.parametrize("noise", [UnitNoise(), OneHotNoise()])
def test_the_posterior_is_bayes_rule(path, noise):
    """Against densities of the noise in R^D."""
    told = GammaTold(path, -4.0, 8.0)
    flow = Flow(path, noise, onehot_flow(decoding_clock(5)).times, told)
    table = np.asarray(jax.random.normal(jax.random.key(3), (5, 2)), np.float64)
    y = np.random.default_rng(0).normal(size=(1, 4, 2))
    for t in (0.2, 0.6):
        a, _, c = (float(x) for x in path.coefficients(jnp.float32(t)))
        cov = c**2 * (np.eye(2) if isinstance(noise, UnitNoise) else table.T @ table)
        density = [stats.multivariate_normal(a * row, cov).pdf(y[0]) for row in table]
        want = (np.array(density) / np.sum(density, axis=0)).T
        single = jnp.asarray(table, jnp.float32)
        found = posterior_features(flow, jnp.asarray(y, jnp.float32), jnp.full(1, t), single)
        got = jax.nn.softmax(found @ posterior_kernel(flow, single), axis=-1)
        np.testing.assert_allclose(got[0], want, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("path", PATHS[:2])
def test_clean_positions_are_clean_in_every_call_of_the_semigroup_route(path):
    """A split of their interval, from 1 to 1, is at 1: the second call reads E[x] there."""
    flow, seen = embedding_flow(path), []
    table = jax.random.normal(jax.random.key(5), (5, 3))

    def features(params, x_s, s, t, *, key=None):
        seen.append(x_s)
        return x_s

    readout = lambda params: (table.T, jnp.zeros(5))
    net = Network(lambda key: {}, features, readout, lambda params: table, 5, 3, 2, two_time=True)
    clean = jnp.array([[True, False]])
    tokens = jnp.array([[1, 4]])
    tau_s, tau_t = jnp.where(clean, 1.0, 0.3), jnp.where(clean, 1.0, 0.6)
    s, t = (jnp.where(clean, 1.0, flow.t(tau)) for tau in (tau_s, tau_t))
    y_s, _ = flow.states(jax.random.key(6), s, tokens, table)
    route = ROUTES["semigroup"](SemigroupConfig())
    pairs = Pairs((y_s, None), tau_s, tau_t, s, t, jnp.ones((1, 2)))
    more = {"teacher": None, "split_key": jax.random.key(7), "key": None}
    route.loss_at({}, {}, pairs, net=net, flow=flow, **more)
    np.testing.assert_array_equal(seen[1][0, 0], table[1])
    assert np.abs(seen[1][0, 1] - y_s[0, 1]).max() > 0.01
