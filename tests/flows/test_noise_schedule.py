"""Distributions of gamma: mixtures, quantiles, known curves recovered, statistics, refits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.optimize import isotonic_regression

from flm_jax.core.errors import UserError
from flm_jax.flows import gamma_fit, gamma_law, gamma_statistics
from flm_jax.flows.gamma_state import (
    GammaConfig,
    bin_centers,
    fresh_state,
    inherited,
    state_of_knots,
)
from flm_jax.flows.noise_schedule import update_state
from flm_jax.flows.settings import EMBEDDING_LAW
from flm_jax.flows.time_sampling import Rows
from helpers.laws import observed
from helpers.masked_flow import FLOW, KEY

LOW, HIGH = GammaConfig().low, GammaConfig().high
SHAPE = jnp.array([-1.0, 0.5, 2.0])
FLAT = stats.uniform(LOW, HIGH - LOW).cdf
NORMAL = stats.norm(-2.5, 2.0).cdf


def learnt_cdf(gamma):
    return (1 / (1 + np.exp(-(gamma + 1) / 0.5))) ** 2


@pytest.mark.parametrize(
    "before, law",
    [
        (None, lambda g: 0.3 * FLAT(g) + 0.3 * NORMAL(g) + 0.4 * learnt_cdf(g)),
        ("normal", lambda g: 0.3 * FLAT(g) + 0.7 * NORMAL(g)),
        ("uniform", lambda g: 0.7 * FLAT(g) + 0.3 * NORMAL(g)),
    ],
)
def test_the_three_parts_of_the_mixture(before, law):
    """Before there is a learnt law, its fraction goes to one of the others."""
    cfg, n = GammaConfig(uniform=0.3, normal=0.3, before=before or "normal"), 4096
    state = fresh_state(cfg)
    if before is None:
        state = state_of_knots(gamma_fit.logistic_knots(SHAPE, cfg), cfg)
    gamma = np.asarray(gamma_law.draw_gamma(KEY, n, Rows(0, n), cfg, state))
    inside = np.sort(gamma[(gamma > LOW + 1e-4) & (gamma < HIGH - 1e-4)])
    below = (gamma <= LOW + 1e-4).mean()
    found = below + np.arange(1, len(inside) + 1) / n
    # Independent draws: about 0.02. Knots are linear between, also in the outer hundredths.
    assert np.abs(found - law(inside)).max() < 0.004
    halves = [gamma_law.draw_gamma(KEY, n // 2, Rows(s, n), cfg, state) for s in (0, n // 2)]
    both = np.sort(np.concatenate(halves))
    np.testing.assert_allclose(both, np.sort(gamma), atol=0.05)  # also from its halves


def test_a_gumbel_law_is_drawn_exactly():
    """Embedding flows have it without knots; the uniform has all until it is there."""
    cfg, u = EMBEDDING_LAW, jnp.linspace(0.02, 0.98, 25)
    state = fresh_state(cfg)._replace(shape=jnp.array([3.0, 1.2, 1.0]))
    flat = gamma_law.mixture_quantile(u, cfg, state)
    np.testing.assert_allclose(flat, cfg.low + (cfg.high - cfg.low) * u, atol=1e-5)
    gamma = gamma_law.mixture_quantile(u, cfg, state._replace(ready=jnp.ones(())))
    want = 0.1 * (gamma - cfg.low) / (cfg.high - cfg.low)
    np.testing.assert_allclose(want + 0.9 * stats.gumbel_r.cdf(gamma, 3.0, 1.2), u, atol=1e-6)


def test_sampling_spaces_its_gammas_by_the_mixture():
    state = state_of_knots(gamma_fit.logistic_knots(SHAPE, GammaConfig()), GammaConfig())
    gamma = FLOW.settled(state).times.sampling_gammas(12, -6.0, 0.9)
    assert gamma.shape == (13,) and gamma[-1] == -6.0 and np.all(np.diff(gamma) <= 0.0)
    law = 0.1 * (gamma + 6) / 12 + 0.2 * NORMAL(gamma) + 0.7 * learnt_cdf(gamma)
    np.testing.assert_allclose(law[:-1], np.linspace(0.9, 1e-6, 13)[:-1], atol=0.007)  # a hundredth


def test_the_logistic_quantile_is_the_inverse():
    shape, u = jnp.array([-2.0, 0.7, 3.0]), jnp.linspace(0.01, 0.99, 25)
    found = gamma_fit.logistic_cdf(shape, gamma_fit.logistic_quantile(shape, u))
    np.testing.assert_allclose(found, u, atol=1e-5)


@pytest.mark.parametrize("shape", [(-2.0, 0.8, 1.0), (-2.0, 0.6, 0.5), (0.5, 1.0, 2.0)])
def test_a_known_curve_is_recovered(shape):
    """Where it comes near both of its ends, and noise is small: the fit goes by its logits."""
    gamma = bin_centers(GammaConfig(bins=64))
    f = gamma_fit.logistic_cdf(jnp.array(shape), gamma)
    noise = 1e-5 * jax.random.normal(KEY, f.shape)
    fit = jax.jit(functools.partial(gamma_fit.logistic_fit, least_scale=0.0))
    found = fit(gamma, 3.0 * f + 0.2 + noise, jnp.ones(64))
    assert found.found and found.r2 > 0.995
    np.testing.assert_allclose(gamma_fit.logistic_cdf(found.shape, gamma), f, atol=0.03)
    bounded = gamma_fit.logistic_fit(gamma, 3.0 * f, jnp.ones(64), least_scale=1.0)
    assert not bounded.found or bounded.shape[1] >= 1.0


def test_points_left_out_do_not_count():
    gamma = bin_centers(GammaConfig(bins=32))
    values = 3.0 * gamma_fit.logistic_cdf(SHAPE, gamma)
    wild = values.at[::3].set(-7.0)
    seen = jnp.ones(32).at[::3].set(0.0)
    kept = seen > 0
    some = gamma_fit.logistic_fit(gamma[kept], values[kept], jnp.ones(21), 0.0)
    found = gamma_fit.logistic_fit(gamma, wild, seen, 0.0)
    np.testing.assert_allclose(found.shape, some.shape, atol=1e-4)
    some, _ = gamma_fit.empirical_knots(gamma[kept], values[kept], jnp.ones(21), GammaConfig())
    found, _ = gamma_fit.empirical_knots(gamma, wild, seen, GammaConfig())
    np.testing.assert_allclose(found, some, atol=1e-4)


def test_isotonic_regression():
    rng = np.random.default_rng(0)
    values = np.linspace(0, 2, 30) + rng.normal(size=30) * 0.5
    weights = rng.uniform(0.5, 2.0, 30)
    want = isotonic_regression(values, weights=weights).x
    found = gamma_fit.isotonic(jnp.array(values), jnp.array(weights))
    np.testing.assert_allclose(found, want, atol=1e-6)


def test_rows_are_counted_by_gamma_and_hidden_fraction():
    cfg = GammaConfig(bins=8, least_cell=2.0, ratio_low=0.5)
    gamma = jnp.array([-9.5, -9.5, -9.5, 5.5, 6.0, 0.5, 0.5])
    share = jnp.array([0.97, 0.96, 0.62, 1.0, 0.99, 0.97, 0.3])
    values = jnp.array([1.0, 2.0, 3.0, 4.0, 5.0, jnp.nan, 1.0])
    weights = jnp.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0])
    sums = gamma_statistics.observe(gamma, values, weights, share, cfg)
    assert sums[18, 0].tolist() == [2.0, 3.0, 5.0] and sums[18, 7].tolist() == [2.0, 9.0, 41.0]
    assert (
        sums[11, 0].tolist() == [1.0, 3.0, 9.0] and sums[5, 5, 0] == 1.0 and sums[..., 0].sum() == 6
    )
    # The cell of one row is left out, and that of a fraction below a half.
    found = gamma_statistics.curve(fresh_state(cfg)._replace(cells=2.0 * sums), cfg)
    assert found.number.tolist() == [6.0] + 6 * [0.0] + [4.0]
    found = gamma_statistics.curve(fresh_state(cfg)._replace(cells=sums), cfg)
    assert found.number.tolist() == [2.0] + 6 * [0.0] + [2.0]
    assert found.values.tolist() == [1.5] + 6 * [0.0] + [4.5]
    whole = gamma_statistics.observe(gamma, values, weights, None, cfg)
    np.testing.assert_array_equal(whole[-1], sums.sum(axis=0))


@pytest.mark.parametrize("decays, want", [("fit", 450.0), ("batch", 196.875)])
def test_sums_decay_before_each_fit_or_with_each_batch(decays, want):
    """6 batches of 100 rows in each bin: 300 / 2 + 300, and 100 (1 + 1/2 + ... + 1/32)."""
    cfg = GammaConfig(refit_every=3, decay=0.5, decays=decays)
    saw = observed(lambda g: jnp.ones_like(g), cfg, rows=100.0)
    state, update = fresh_state(cfg), jax.jit(lambda s, k: update_state(s, saw, k, cfg))
    for k in range(6):
        state = update(state, k)
    np.testing.assert_allclose(state.cells[-1, :, 0], want, rtol=1e-6)
    assert state.examples == 6 * 100 * cfg.bins and not state.fresh.any()


def rise(cfg, place=-2.0, rows=400.0):
    return observed(lambda g: 2.0 * jax.nn.sigmoid(g - place), cfg, rows)


def test_refits_come_when_due_and_only_good_ones_count():
    cfg = GammaConfig(refit_every=3, knot_rate=0.1)
    saw = observed(lambda g: jnp.sin(3.0 * g), cfg)
    update = jax.jit(lambda s, o, k: update_state(s, o, k, cfg))
    state = fresh_state(cfg)
    for k in range(2):
        state = update(state, rise(cfg), k)
        assert state.ready == 0
    state = update(state, rise(cfg), 2)
    assert state.ready == 1 and state.r2 > 0.99 and state.examples == 3 * 400 * cfg.bins
    np.testing.assert_allclose(state.shape, [-2.0, 1.0, 1.0], atol=0.1)
    np.testing.assert_allclose(state.knots[50], -2.0, atol=0.05)
    bad = update(fresh_state(cfg), saw, 2)
    assert bad.ready == 0 and bad.r2 < 0.95
    kept = update(state._replace(cells=0.0 * saw), saw, 5)
    np.testing.assert_array_equal(kept.knots, state.knots)
    np.testing.assert_array_equal(kept.shape, state.shape)
    assert kept.ready == 1
    # Each good one moves the knots by a part.
    moved = update(state._replace(cells=0.0 * saw), rise(cfg, 2.0), 5)
    np.testing.assert_allclose(moved.knots[50] - state.knots[50], 0.1 * 4.0, atol=0.02)


@pytest.mark.parametrize(
    "more", [{"least_examples": 1e6}, {"least_r2": 1.0}, {"least_cell": 500.0}]
)
def test_what_is_too_little_is_not_fitted(more):
    cfg = GammaConfig(refit_every=1, **more)
    assert update_state(fresh_state(cfg), rise(cfg), jnp.int32(0), cfg).ready == 0


@pytest.mark.parametrize("bins, ready", [(7, 0.0), (8, 1.0)])
def test_a_fit_needs_eight_bins(bins, ready):
    cfg = GammaConfig(refit_every=1, least_examples=0.0)
    seen = jnp.zeros(cfg.bins).at[jnp.linspace(0, cfg.bins - 1, bins).astype(int)].set(1.0)
    few = rise(cfg) * seen[None, :, None]
    assert update_state(fresh_state(cfg), few, jnp.int32(0), cfg).ready == ready


def test_the_empirical_curve_needs_examples_and_moves_slowly():
    cfg = GammaConfig(learnt="empirical", normal=0.0, refit_every=1, knot_rate=0.05)
    update = jax.jit(lambda s, o: update_state(s, o, jnp.int32(0), cfg))
    assert update(fresh_state(cfg), rise(cfg, rows=30.0)).ready == 0  # 3840 rows of 4096
    state = update(fresh_state(cfg), rise(cfg))
    assert state.ready == 1
    np.testing.assert_allclose(state.knots[50], -2.0, atol=0.1)
    moved = update(state._replace(cells=0.0 * state.cells), rise(cfg, 2.0))
    np.testing.assert_allclose(moved.knots[50] - state.knots[50], 0.05 * 4.0, atol=0.02)


def test_a_curve_is_inherited_without_its_statistics():
    cfg = GammaConfig(refit_every=1)
    state = update_state(fresh_state(cfg), rise(cfg), jnp.int32(0), cfg)
    other = GammaConfig(bins=134)
    found = inherited(state, other)
    assert found.ready == 1 and found.examples == 0 and not found.cells.any()
    np.testing.assert_array_equal(found.knots, state.knots)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, fresh_state(other))


def test_hidden_fractions_without_a_bin_are_refused():
    with pytest.raises(UserError, match="ratio_low 0.98 and ratio_high 1.0; expected the middle"):
        GammaConfig(ratio_low=0.98)
