"""Distributions of gamma: mixtures, quantiles, known curves recovered, refits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.optimize import isotonic_regression

from flm_jax.flows import noise_schedule
from flm_jax.flows.noise_schedule import GammaConfig
from flm_jax.flows.time_sampling import Rows
from helpers.masked_flow import KEY

LOW, HIGH = GammaConfig().low, GammaConfig().high


def test_the_three_parts_of_the_mixture():
    cfg, n = GammaConfig(uniform=0.3, normal=0.3), 4096
    state = noise_schedule.fresh_state(cfg)._replace(
        shape=jnp.array([-1.0, 0.5, 2.0]), ready=jnp.ones(())
    )
    gamma = np.asarray(noise_schedule.draw_gamma(KEY, n, Rows(0, n), cfg, state))
    flat = lambda g: np.clip((g - LOW) / (HIGH - LOW), 0, 1)
    law = lambda g: (
        0.3 * flat(g)
        + 0.3 * stats.norm.cdf(g, -2.5, 2.0)
        + 0.4 * (1 / (1 + np.exp(-(g + 1) / 0.5))) ** 2
    )
    inside = gamma[(gamma > LOW) & (gamma < HIGH)]
    points = np.sort(inside)
    below = (gamma <= LOW).mean()
    found = below + np.arange(1, len(points) + 1) / n
    assert np.abs(found - law(points)).max() < 0.003  # independent draws: about 0.02
    unready = noise_schedule.draw_gamma(
        KEY, n, Rows(0, n), cfg, state._replace(ready=jnp.zeros(()))
    )
    share = ((np.asarray(unready) > 2.0).mean(), 0.7 * 0.25 + 0.3 * stats.norm.sf(2.0, -2.5, 2.0))
    np.testing.assert_allclose(*share, atol=0.01)


def test_the_logistic_quantile_is_the_inverse():
    shape, u = jnp.array([-2.0, 0.7, 3.0]), jnp.linspace(0.01, 0.99, 25)
    np.testing.assert_allclose(
        noise_schedule.logistic_cdf(shape, noise_schedule.logistic_quantile(shape, u)), u, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(-2.0, 0.8, 1.0), (-4.0, 1.5, 0.3), (0.5, 0.4, 4.0)])
def test_a_known_curve_is_recovered(shape):
    gamma = noise_schedule.bin_centers(GammaConfig())
    f = noise_schedule.logistic_cdf(jnp.array(shape), gamma)
    noise = 0.02 * jax.random.normal(KEY, f.shape)
    fit = jax.jit(functools.partial(noise_schedule.fit_law, cfg=GammaConfig()))
    found, r2, scale = fit(gamma, 3.0 * f + 0.2 + noise, jnp.ones(64))
    assert r2 > 0.995
    fitted = scale * noise_schedule.logistic_cdf(
        found, gamma
    )  # up to a constant, which is fitted too
    np.testing.assert_allclose(fitted - fitted.mean(), 3.0 * (f - f.mean()), atol=0.05)


def observed(curve, cfg):
    gamma = noise_schedule.bin_centers(cfg)
    return noise_schedule.observe(gamma, curve(gamma), jnp.ones(cfg.bins), cfg)


def test_refits_come_when_due_and_only_good_ones_count():
    cfg = GammaConfig(refit_every=3)
    rise = observed(lambda g: 2.0 * jax.nn.sigmoid(g + 2.0), cfg)
    saw = observed(lambda g: jnp.sin(3.0 * g), cfg)
    update = jax.jit(lambda s, o, k: noise_schedule.update_state(s, o, k, cfg))
    state = noise_schedule.fresh_state(cfg)
    for k in range(2):
        state = update(state, rise, k)
        assert state.ready == 0
    state = update(state, rise, 2)
    assert state.ready == 1 and state.r2 > 0.99 and state.examples == 3 * cfg.bins
    np.testing.assert_allclose(state.shape, [-2.0, 1.0, 1.0], atol=0.1)
    bad = update(noise_schedule.fresh_state(cfg), saw, 2)
    assert bad.ready == 0 and bad.r2 < 0.95
    kept = update(state._replace(total=saw[0], count=saw[1]), saw, 5)
    np.testing.assert_array_equal(kept.shape, state.shape)
    assert kept.ready == 1


def test_isotonic_regression():
    rng = np.random.default_rng(0)
    values = np.linspace(0, 2, 30) + rng.normal(size=30) * 0.5
    weights = rng.uniform(0.5, 2.0, 30)
    want = isotonic_regression(values, weights=weights).x
    np.testing.assert_allclose(
        noise_schedule.isotonic(jnp.array(values), jnp.array(weights)), want, atol=1e-5
    )


def test_the_empirical_curve_needs_examples_and_moves_slowly():
    cfg = GammaConfig(learnt="empirical", normal=0.0, refit_every=1)
    rise = observed(lambda g: 2.0 * jax.nn.sigmoid(g + 2.0), cfg)
    update = jax.jit(lambda s, o: noise_schedule.update_state(s, o, jnp.int32(0), cfg))
    state = update(noise_schedule.fresh_state(cfg), rise)
    assert state.ready == 0  # 64 examples of 4096
    state = update(state._replace(examples=jnp.float32(4096)), rise)
    assert state.ready == 1
    np.testing.assert_allclose(state.knots[50], -2.0, atol=0.3)
    shifted = observed(lambda g: 2.0 * jax.nn.sigmoid(g - 2.0), cfg)
    moved = update(state._replace(total=shifted[0], count=shifted[1]), shifted)
    np.testing.assert_allclose(moved.knots[50] - state.knots[50], 0.05 * 4.0, atol=0.06)
