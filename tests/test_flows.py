"""Clocks, interpolants and the algebra of flow maps, against closed forms.

The flow of a data set of a few equally likely sequences x^k in the one-hot space has an exact
denoiser, D_t(x) = sum_k w_k onehot(x^k), w = softmax_k(t <x, onehot(x^k)> / (1-t)^2) (all x^k have
the same norm). Its flow map is found by RK4; float64 throughout.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from flm_jax.core.errors import UserError
from flm_jax.flows import flow_map
from flm_jax.flows.clocks import decoding_clock, t_to_tau, tau_to_t
from flm_jax.flows.gaussian_noise import leverages, whitened
from flm_jax.flows.interpolants import (
    interpolate,
    linear,
    mask_anchored,
    masked_bridge,
    variance_preserving,
)
from flm_jax.flows.noising import hold_given, noisy_states

VOCABULARIES = [2, 97, 50257]


def exact_tau(t, vocab_size):
    """The definition, by adaptive quadrature."""
    shift = t / (1 - t)
    correct = lambda z: stats.norm.pdf(z) * np.exp((vocab_size - 1) * stats.norm.logcdf(z + shift))
    right = integrate.quad(correct, -12, 12, points=[0.0], epsabs=1e-12, limit=400)[0]
    return 1 - vocab_size / (vocab_size - 1) * (1 - right)


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
    x_t = interpolate(linear, t, jax.nn.one_hot(tokens, vocab_size), eps)
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
    clock = decoding_clock(vocab_size, dim)
    t = tau_to_t(clock, jnp.asarray([0.5]))
    y_t, _ = noisy_states(jax.random.key(2), t, tokens, table)
    seen, clean = whitened(y_t[0], table), t[0] * whitened(table, table)
    distance = jnp.sum(jnp.square(clean), axis=1)[None] - 2 * seen @ clean.T
    error = jnp.mean(jnp.argmin(distance, axis=1) != tokens[0])
    np.testing.assert_allclose(1 - vocab_size / (vocab_size - 1) * error, 0.5, rtol=0, atol=0.03)
    assert t_to_tau(decoding_clock(vocab_size), t)[0] > 0.9


@pytest.mark.parametrize("vocab_size, dim, rank", [(40, 12, 12), (7, 12, 7)])
def test_leverages_sum_to_the_rank(vocab_size, dim, rank):
    """As of the exact pseudo-inverse, and whatever basis the table is written in."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((vocab_size, dim)) * rng.uniform(0.5, 2.0, (vocab_size, 1))
    found = leverages(jnp.asarray(table, jnp.float32))
    np.testing.assert_allclose(found.sum(), rank, rtol=1e-4)
    np.testing.assert_allclose(found, np.diag(table @ np.linalg.pinv(table)), rtol=1e-3)
    turned = jnp.asarray(table @ rng.standard_normal((dim, dim)), jnp.float32)
    np.testing.assert_allclose(leverages(turned), found, rtol=1e-2)


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


@pytest.mark.parametrize(
    "interpolant, start, end",
    [
        (linear, (0, 0, 1), (1, 0, 0)),
        (variance_preserving, (0, 0, 1), (1, 0, 0)),
        (masked_bridge(0.2), (0, 1, 0), (1, 0, 0)),
        (mask_anchored, (0, 1, 0), (1, 0, 0)),
    ],
)
def test_interpolants_start_at_noise_or_anchor_and_end_at_data(interpolant, start, end):
    for t, want in ((0.0, start), (1.0, end)):
        got = [float(c) for c in interpolant(jnp.float32(t))]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-7)


def test_interpolant_coefficients_between_the_ends():
    t = jnp.asarray([0.3])
    a, _, c = variance_preserving(t)
    np.testing.assert_allclose(a**2 + c**2, 1.0, rtol=1e-6)
    np.testing.assert_allclose(masked_bridge(0.2)(t)[2] ** 2, 0.04 * 0.3 * 0.7, rtol=1e-6)


def test_times_per_token():
    """Times [B, L] act position by position; constant ones equal times [B]."""
    keys = jax.random.split(jax.random.key(0), 3)
    clean, noise, anchor = (jax.random.normal(k, (2, 3, 4)) for k in keys)
    t = jnp.asarray([[0.0, 0.25, 1.0], [0.5, 0.5, 0.5]])
    got = interpolate(masked_bridge(0.2), t, clean, noise, anchor)
    for b in range(2):
        for position in range(3):
            u = float(t[b, position])
            want = u * clean[b, position] + (1 - u) * anchor[b, position]
            want += 0.2 * np.sqrt(u * (1 - u)) * noise[b, position]
            np.testing.assert_allclose(got[b, position], want, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(
        interpolate(linear, t, clean, noise)[1],
        interpolate(linear, jnp.asarray([0.1, 0.5]), clean, noise)[1],
    )


def test_clean_states_at_the_end_and_given_positions():
    table = jax.random.normal(jax.random.key(0), (40, 3))
    tokens = jnp.asarray([[1, 7], [39, 0]])
    y_1, none = noisy_states(jax.random.key(1), jnp.ones(2), tokens, table)
    np.testing.assert_array_equal(y_1, table[tokens])
    assert none is None
    xi, y_t = jax.random.normal(jax.random.key(2), (2, 2, 2, 3))
    mask = jnp.asarray([[True, False], [False, True]])
    held = hold_given(y_t, jnp.asarray([0.25, 0.5]), tokens, mask, xi, table)
    np.testing.assert_array_equal(held[0, 1], y_t[0, 1])
    np.testing.assert_array_equal(held[1, 0], y_t[1, 0])
    np.testing.assert_allclose(held[0, 0], 0.25 * table[1] + 0.75 * xi[0, 0], rtol=1e-6)
    np.testing.assert_allclose(held[1, 1], 0.5 * table[0] + 0.5 * xi[1, 1], rtol=1e-6)


# For the exact flow.
DATA = [[0, 1, 2], [0, 3, 4], [2, 1, 4]]
VOCAB = 5


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def full(t, rows):
    return jnp.full(rows, t, jnp.float64)


def exact_denoiser(x, t):
    """D_t(x) for states [B, L, V] and one time t < 1."""
    sequences = jax.nn.one_hot(jnp.asarray(DATA), VOCAB, dtype=x.dtype)
    scores = t / (1 - t) ** 2 * jnp.einsum("blv,klv->bk", x, sequences)
    return jnp.einsum("bk,klv->blv", jax.nn.softmax(scores, axis=-1), sequences)


def exact_velocity(x, t):
    return flow_map.velocity(x, exact_denoiser(x, t), full(t, x.shape[0]))


@functools.partial(jax.jit, static_argnames="steps")
def exact_flow_map(x, s, t, steps=400):
    """X_st(x) by RK4 on steps uniform in t, s <= t < 1."""
    h = (t - s) / steps

    def step(i, x):
        now = s + h * i
        k1 = exact_velocity(x, now)
        k2 = exact_velocity(x + h / 2 * k1, now + h / 2)
        k3 = exact_velocity(x + h / 2 * k2, now + h / 2)
        k4 = exact_velocity(x + h * k3, now + h)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

    return jax.lax.fori_loop(0, steps, step, x)


def exact_two_time_denoiser(x, s, t):
    """delta_st through the average velocity (X_st - x) / (t - s)."""
    average = (exact_flow_map(x, s, t) - x) / (t - s)
    return flow_map.two_time_denoiser(x, average, full(s, x.shape[0]))


def noise(rows=4):
    return jax.random.normal(jax.random.key(5), (rows, len(DATA[0]), VOCAB), jnp.float64)


def assert_close(got, want, tolerance):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=0, atol=tolerance)


def state_at(s):
    return exact_flow_map(noise(), 0.0, s)


def test_denoiser_is_the_posterior_mean(float64):
    """Bayes' rule written out with Gaussian densities."""
    x, t = noise(), 0.6
    sequences = np.eye(VOCAB)[np.asarray(DATA)]
    density = [stats.norm.pdf(np.asarray(x), t * y, 1 - t).prod((1, 2)) for y in sequences]
    weights = np.stack(density, 1) / np.sum(density, axis=0)[:, None]
    assert_close(exact_denoiser(x, t), np.einsum("bk,klv->blv", weights, sequences), 1e-10)


def test_velocity_denoiser_and_average_velocity_round_trip(float64):
    x, s = state_at(0.3), full(0.3, 4)
    denoised = exact_denoiser(x, 0.3)
    b_s = flow_map.velocity(x, denoised, s)
    assert_close(b_s, (denoised - x) / 0.7, 1e-12)
    assert_close(flow_map.denoiser_from_velocity(x, b_s, s), denoised, 1e-12)
    delta = exact_two_time_denoiser(x, 0.3, 0.8)
    v_st = flow_map.average_velocity(x, delta, s)
    assert_close(flow_map.two_time_denoiser(x, v_st, s), delta, 1e-12)
    assert_close(flow_map.flow_map(x, delta, s, full(0.8, 4)), x + 0.5 * v_st, 1e-12)


def test_flow_map_matches_the_integral_of_its_denoiser(float64):
    x, s, t = state_at(0.2), 0.2, 0.7
    delta = exact_two_time_denoiser(x, s, t)
    assert_close(
        flow_map.flow_map(x, delta, full(s, 4), full(t, 4)), exact_flow_map(x, s, t), 1e-12
    )
    # In r = t / (1-t) the flow of x / (1-t) has velocity D: delta is the plain average of D in r.
    r = np.linspace(s / (1 - s), t / (1 - t), 201)
    path = [exact_denoiser(exact_flow_map(x, s, q / (1 + q), 50), q / (1 + q)) for q in r]
    assert_close(delta, integrate.simpson(np.stack(path), x=r, axis=0) / (r[-1] - r[0]), 1e-7)


def test_identity_at_equal_times(float64):
    x, s = state_at(0.4), full(0.4, 4)
    anything = jnp.full_like(x, 1e3)
    np.testing.assert_array_equal(flow_map.flow_map(x, anything, s, s), x)
    assert [float(w[0]) for w in flow_map.flow_map_weights(full(1.0, 1), full(1.0, 1))] == [
        1.0,
        0.0,
    ]
    assert flow_map.semigroup_weight(s, s, s).tolist() == [0.0] * 4


def test_flow_map_to_the_end_is_the_denoiser(float64):
    """X_s1 = delta_s1, and it is the limit of X_st."""
    x, s = state_at(0.5), full(0.5, 4)
    delta = exact_two_time_denoiser(x, 0.5, 0.9)
    np.testing.assert_array_equal(flow_map.flow_map(x, delta, s, full(1.0, 4)), delta)
    ended = exact_denoiser(exact_flow_map(x, 0.5, 0.9), 0.9)
    assert_close(exact_flow_map(x, 0.5, 0.9999, 4000), ended, 1e-3)
    assert_close(ended, jnp.round(ended), 1e-3)


def test_semigroup(float64):
    x, (s, u, t) = state_at(0.15), (0.15, 0.4, 0.85)
    delta_su = exact_two_time_denoiser(x, s, u)
    x_u = flow_map.flow_map(x, delta_su, full(s, 4), full(u, 4))
    delta_ut = exact_two_time_denoiser(x_u, u, t)
    x_t = flow_map.flow_map(x_u, delta_ut, full(u, 4), full(t, 4))
    assert_close(x_t, exact_flow_map(x, s, t), 1e-7)
    gamma = flow_map.semigroup_weight(*(full(time, 4) for time in (s, u, t)))[:, None, None]
    assert_close(gamma * delta_su + (1 - gamma) * delta_ut, exact_two_time_denoiser(x, s, t), 1e-7)


def test_two_time_denoiser_is_on_the_simplex(float64):
    x = state_at(0.1)
    for t in (0.3, 0.6, 0.9):
        delta = exact_two_time_denoiser(x, 0.1, t)
        assert_close(delta.sum(-1), 1.0, 1e-9)
        assert delta.min() > -1e-9
        assert delta.max() < 1 + 1e-9


def test_euler_is_of_first_order(float64):
    """Halving the step halves the error: slope of log2(error) within 0.1 of -1."""
    x, end = noise(), 0.8
    reference = exact_flow_map(x, 0.0, end, 2000)

    def error(steps):
        grid = np.linspace(0.0, end, steps + 1)
        y = x
        for s, t in zip(grid[:-1], grid[1:]):
            y = flow_map.flow_map(y, exact_denoiser(y, s), full(s, 4), full(t, 4))
        return float(jnp.sqrt(jnp.mean((y - reference) ** 2)))

    errors = np.log2([error(k) for k in (128, 256, 512)])
    np.testing.assert_allclose(np.diff(errors), -1.0, rtol=0, atol=0.1)
