"""Velocities, steps and the routes of distillation on flows that are known exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from flm_jax.flows.flow import Flow, GammaTold, Uniform
from flm_jax.flows.interpolants.linear import Linear
from flm_jax.flows.interpolants.masked_bridge import MaskedBridgeOde
from flm_jax.flows.interpolants.variance_preserving import VariancePreserving
from flm_jax.flows.noise import UnitNoise

# The exact flow of three sequences on the linear path.
LINEAR = Linear()
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
    return LINEAR.velocity(x, exact_denoiser(x, t), full(t, x.shape[0]))


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
    return LINEAR.denoiser_from_velocity(x, average, full(s, x.shape[0]))


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
    b_s = LINEAR.velocity(x, denoised, s)
    assert_close(b_s, (denoised - x) / 0.7, 1e-12)
    assert_close(LINEAR.denoiser_from_velocity(x, b_s, s), denoised, 1e-12)
    delta = exact_two_time_denoiser(x, 0.3, 0.8)
    v_st = LINEAR.velocity(x, delta, s)
    assert_close(LINEAR.denoiser_from_velocity(x, v_st, s), delta, 1e-12)
    assert_close(LINEAR.step(x, delta, s, full(0.8, 4)), x + 0.5 * v_st, 1e-12)


def test_flow_map_matches_the_integral_of_its_denoiser(float64):
    x, s, t = state_at(0.2), 0.2, 0.7
    delta = exact_two_time_denoiser(x, s, t)
    assert_close(LINEAR.step(x, delta, full(s, 4), full(t, 4)), exact_flow_map(x, s, t), 1e-12)
    # In r = t / (1-t) the flow of x / (1-t) has velocity D: delta is the plain average of D in r.
    r = np.linspace(s / (1 - s), t / (1 - t), 201)
    path = [exact_denoiser(exact_flow_map(x, s, q / (1 + q), 50), q / (1 + q)) for q in r]
    assert_close(delta, integrate.simpson(np.stack(path), x=r, axis=0) / (r[-1] - r[0]), 1e-7)


def test_identity_at_equal_times(float64):
    x, s = state_at(0.4), full(0.4, 4)
    anything = jnp.full_like(x, 1e3)
    np.testing.assert_array_equal(LINEAR.step(x, anything, s, s), x)
    weights = LINEAR.weights(full(1.0, 1), full(1.0, 1))
    assert [float(w[0]) for w in weights] == [1.0, 0.0, 0.0, 0.0]
    assert LINEAR.semigroup_weight(s, s, s).tolist() == [0.0] * 4


def test_flow_map_to_the_end_is_the_denoiser(float64):
    """X_s1 = delta_s1, and it is the limit of X_st."""
    x, s = state_at(0.5), full(0.5, 4)
    delta = exact_two_time_denoiser(x, 0.5, 0.9)
    np.testing.assert_array_equal(LINEAR.step(x, delta, s, full(1.0, 4)), delta)
    ended = exact_denoiser(exact_flow_map(x, 0.5, 0.9), 0.9)
    assert_close(exact_flow_map(x, 0.5, 0.9999, 4000), ended, 1e-3)
    assert_close(ended, jnp.round(ended), 1e-3)


def test_semigroup(float64):
    x, (s, u, t) = state_at(0.15), (0.15, 0.4, 0.85)
    delta_su = exact_two_time_denoiser(x, s, u)
    x_u = LINEAR.step(x, delta_su, full(s, 4), full(u, 4))
    delta_ut = exact_two_time_denoiser(x_u, u, t)
    x_t = LINEAR.step(x_u, delta_ut, full(u, 4), full(t, 4))
    assert_close(x_t, exact_flow_map(x, s, t), 1e-7)
    gamma = LINEAR.semigroup_weight(*(full(time, 4) for time in (s, u, t)))[:, None, None]
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
            y = LINEAR.step(y, exact_denoiser(y, s), full(s, 4), full(t, 4))
        return float(jnp.sqrt(jnp.mean((y - reference) ** 2)))

    errors = np.log2([error(k) for k in (128, 256, 512)])
    np.testing.assert_allclose(np.diff(errors), -1.0, rtol=0, atol=0.1)


# The exact flow of Gaussian data, in closed form: y_t has mean a mu + b m, variance a^2 v + c^2,
# and the probability flow carries it in units of its standard deviation.
ODES = [LINEAR, VariancePreserving(), MaskedBridgeOde(0.3)]
MEAN, VARIANCE, ANCHOR = (
    np.asarray(x)[None, None]
    for x in ([0.7, -1.1, 0.2, 0.0], [0.3, 2.0, 1.0, 1e-3], [0.4, 0.1, -0.6, 1.0])
)
odes = pytest.mark.parametrize("path", ODES, ids=lambda path: type(path).__name__)


def anchor():
    return jnp.asarray(ANCHOR)


def moments(path, t):
    """Mean and standard deviation of y_t, t [B]."""
    a, b, c = (x[:, None, None] for x in path.coefficients(t))
    return a * MEAN + b * ANCHOR, jnp.sqrt(a**2 * VARIANCE + c**2)


def gaussian_denoiser(path, y, t):
    """E[x | y_t]."""
    a = path.coefficients(t)[0][:, None, None]
    mean, deviation = moments(path, t)
    return MEAN + a * VARIANCE / deviation**2 * (y - mean)


def gaussian_map(path, y, s, t):
    (mean_s, deviation_s), (mean_t, deviation_t) = moments(path, s), moments(path, t)
    return mean_t + deviation_t / deviation_s * (y - mean_s)


def gaussian_two_time(path, y, s, t):
    """D_st, of which the step from s to t is the exact flow map."""
    w = [x[:, None, None] for x in path.weights(s, t)]
    return (gaussian_map(path, y, s, t) - w[0] * y - w[2] * ANCHOR) / w[1]


def three_times():
    """s < u < t for eight rows, and states at s."""
    rng = np.random.default_rng(6)
    times = np.sort(rng.uniform(0.05, 0.95, (3, 8)), axis=0)
    return (*map(jnp.asarray, times), jnp.asarray(rng.standard_normal((8, 2, 4))))


@odes
def test_velocity_is_the_slope_of_the_exact_path(float64, path):
    s, _, _, y = three_times()
    h = 1e-5
    slope = (gaussian_map(path, y, s, s + h) - gaussian_map(path, y, s, s - h)) / (2 * h)
    got = path.velocity(y, gaussian_denoiser(path, y, s), s, anchor())
    np.testing.assert_allclose(got, slope, rtol=1e-7, atol=1e-7)
    if not path.anchored:
        found = path.denoiser_from_velocity(y, slope, s)
        assert_close(found, gaussian_denoiser(path, y, s), 1e-7)


@odes
def test_the_two_time_denoiser_becomes_the_denoiser_and_the_map(float64, path):
    """D_st -> D_s as t -> s, and D_s1 = X_s1."""
    s, _, _, y = three_times()
    near = gaussian_two_time(path, y, s, s + 1e-6)
    assert_close(near, gaussian_denoiser(path, y, s), 1e-3)
    ones = jnp.ones(8)
    assert_close(gaussian_two_time(path, y, s, ones), gaussian_map(path, y, s, ones), 1e-9)


@odes
def test_the_semigroup_route_holds(float64, path):
    s, u, t, y = three_times()
    for end in (t, jnp.ones(8)):
        weight = path.semigroup_weight(s, u, end)[:, None, None]
        landed = path.step(y, gaussian_two_time(path, y, s, u), s, u, anchor=anchor())
        assert_close(landed, gaussian_map(path, y, s, u), 1e-9)
        first, second = (gaussian_two_time(path, *now) for now in ((y, s, u), (landed, u, end)))
        got = weight * first + (1 - weight) * second
        assert_close(got, gaussian_two_time(path, y, s, end), 1e-9)
        assert (weight >= 0).all() and (weight <= 1).all()
    assert_close(path.semigroup_weight(s, s, s), 0.0, 0.0)


@odes
def test_the_lagrangian_route_holds(float64, path):
    s, _, t, y = three_times()
    two_time = lambda t: gaussian_two_time(path, y, s, t)
    delta, slope = jax.jvp(two_time, (t,), (jnp.ones(8),))
    landed = path.step(y, delta, s, t, anchor=anchor())
    rate = path.lagrangian_rate(s, t)[:, None, None]
    assert np.abs(rate * slope).max() > 0.01
    assert_close(gaussian_denoiser(path, landed, t) - rate * slope, delta, 1e-8)
    assert_close(path.lagrangian_rate(s, jnp.ones(8)), 0.0, 1e-12)


@pytest.mark.parametrize("bound", [1.0, 3.0, 1e6])
@odes
def test_the_eulerian_route_holds(float64, path, bound):
    """Its target is D_st at the exact map, up to the end t = 1, where G alone is left."""
    s, _, t, y = three_times()
    denoised = gaussian_denoiser(path, y, s)
    direction = (path.drift(y, denoised, s, anchor()), path.slowness(s))
    for end in (t, jnp.ones(8)):
        two_time = functools.partial(gaussian_two_time, path, t=end)
        delta, along = jax.jvp(lambda y, s, of=two_time: of(y, s), (y, s), direction)
        share, factor = (x[:, None, None] for x in path.eulerian_rates(s, end, bound))
        got = share * denoised + (1 - share) * delta + factor * along
        assert_close(got, delta, 1e-8 + 3e-13 * bound)  # rounding of w_x/w_y
        w = path.weights(s, end)
        assert (factor[:, 0, 0] <= bound * w.clean + 1e-12).all() and (share <= 1).all()
    assert np.abs(factor).min() > 0


@odes
def test_steps_are_of_first_order_on_gaussian_data(float64, path):
    """Euler's method in the odds: halving the steps halves the error, within 0.1."""
    s, _, _, y = three_times()
    start, end = jnp.full(8, 0.05), jnp.full(8, 0.9)
    want = gaussian_map(path, y, start, end)

    def error(steps):
        odds = jnp.linspace(path.odds(start[:1])[0], path.odds(end[:1])[0], steps + 1)
        grid, at = path.time_of(odds), y
        for now, later in zip(grid[:-1], grid[1:]):
            times = jnp.full(8, now), jnp.full(8, later)
            at = path.step(at, gaussian_denoiser(path, at, times[0]), *times, anchor=anchor())
        return float(jnp.sqrt(jnp.mean((at - want) ** 2)))

    errors = np.log2([error(k) for k in (256, 512)])
    np.testing.assert_allclose(np.diff(errors), -1.0, rtol=0, atol=0.1)


@odes
def test_the_slope_of_told_gamma_holds_up_to_both_ends(path):
    """dtau/dt is 1 over dt/dtau, at tau = 0 and 1 as well: jumps over all of the flow meet both."""
    told = GammaTold(path, -4.0, 8.0)
    tau = jnp.asarray([0.0, 0.01, 0.5, 0.99, 1.0])
    want = 1.0 / jax.vmap(jax.grad(told.t))(tau)
    flow = Flow(path, UnitNoise(), Uniform(), told)
    for slope in (flow.slope, jax.jit(flow.slope)):
        np.testing.assert_allclose(slope(told.t(tau)), want, rtol=1e-4)
    assert jnp.isfinite(flow.slope(jnp.asarray([0.0, 1.0]))).all()
