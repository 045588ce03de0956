"""The algebra of velocity, denoisers and flow maps on an exact flow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from flm_jax.flows import flow_map

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
