"""Every path in closed form: ends, what a step keeps, its slopes and the inverses of its times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.flows.interpolants.base import Interpolant
from flm_jax.flows.interpolants.linear import Linear
from flm_jax.flows.interpolants.mask_anchored import MaskAnchored
from flm_jax.flows.interpolants.masked_bridge import MaskedBridge, MaskedBridgeOde
from flm_jax.flows.interpolants.variance_preserving import VariancePreserving

ALL = [Linear(), VariancePreserving(), MaskedBridge(0.2), MaskedBridgeOde(0.3), MaskAnchored()]
NOISY = ALL[:4]
INSIDE = np.linspace(0.02, 0.98, 13)
each_path = pytest.mark.parametrize("path", ALL, ids=lambda path: type(path).__name__)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def assert_close(got, want, tolerance):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    "path, start",
    [
        (Linear(), (0, 0, 1)),
        (VariancePreserving(), (0, 0, 1)),
        (MaskedBridge(0.2), (0, 1, 0)),
        (MaskedBridgeOde(0.2), (0, 1, 0)),
        (MaskAnchored(), (0, 1, 0)),
    ],
)
def test_paths_start_at_noise_or_anchor_and_end_at_data(path, start):
    for t, want in ((0.0, start), (1.0, (1, 0, 0))):
        got = [float(c) for c in path.coefficients(jnp.float32(t))]
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-7)
    assert path.anchored == (start[1] == 1)


def test_coefficients_between_the_ends():
    t = jnp.asarray([0.3])
    a, _, c = VariancePreserving().coefficients(t)
    np.testing.assert_allclose(a**2 + c**2, 1.0, rtol=1e-6)
    for kind in (MaskedBridge, MaskedBridgeOde):
        np.testing.assert_allclose(kind(0.2).coefficients(t)[2] ** 2, 0.04 * 0.3 * 0.7, rtol=1e-6)


def test_times_per_token():
    """Times [B, L] act position by position; constant ones equal times [B]."""
    keys = jax.random.split(jax.random.key(0), 3)
    clean, noise, anchor = (jax.random.normal(k, (2, 3, 4)) for k in keys)
    t = jnp.asarray([[0.0, 0.25, 1.0], [0.5, 0.5, 0.5]])
    got = MaskedBridge(0.2).at(t, clean, noise, anchor)
    for b in range(2):
        for position in range(3):
            u = float(t[b, position])
            want = u * clean[b, position] + (1 - u) * anchor[b, position]
            want += 0.2 * np.sqrt(u * (1 - u)) * noise[b, position]
            np.testing.assert_allclose(got[b, position], want, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(
        Linear().at(t, clean, noise)[1], Linear().at(jnp.asarray([0.1, 0.5]), clean, noise)[1]
    )


def pairs_of(path):
    """All s <= t of a grid with both ends; the ODE of the bridge cannot start at its anchor."""
    grid = np.linspace(0.0, 1.0, 9)
    s, t = (x.ravel() for x in np.meshgrid(grid, grid))
    keep = (s <= t) & ((s > 0) | (not isinstance(path, MaskedBridgeOde)))
    return jnp.asarray(s[keep]), jnp.asarray(t[keep])


@pytest.mark.parametrize("stochasticity", [0.0, 0.5, 1.0])
@each_path
def test_a_step_keeps_the_marginal(float64, path, stochasticity):
    """With the exact denoised state: the mean's weights of data and anchor, and the variance."""
    s, t = pairs_of(path)
    w = path.weights(s, t, stochasticity)
    (a_s, b_s, c_s), (a_t, b_t, c_t) = path.coefficients(s), path.coefficients(t)
    assert_close(a_s * w.state + w.clean, a_t, 1e-12)
    assert_close(b_s * w.state + w.anchor, b_t, 1e-12)
    assert_close((c_s * w.state) ** 2 + w.noise**2, c_t**2, 1e-12)
    if not path.redraws:
        apart = np.asarray(s < t)
        assert_close(w.noise[apart], (stochasticity * c_t)[apart], 1e-12)
    kept = path.retained(t) / jnp.where(s < 1.0, path.retained(s), 1.0)
    assert_close((w.state - kept * (1 - stochasticity**2) ** 0.5)[s < t], 0.0, 1e-12)


@each_path
def test_a_step_is_its_weights(float64, path):
    """y_t of times [B] and [B, L]; the anchor and fresh noise enter where the path has them."""
    keys = jax.random.split(jax.random.key(1), 4)
    y, clean, anchor, noise = (jax.random.normal(k, (2, 3, 4), jnp.float64) for k in keys)
    times = jnp.asarray([0.2, 0.4]), jnp.asarray([0.5, 0.9])
    for s, t in (times, [jnp.repeat(x[:, None], 3, axis=1) for x in times]):
        for g in (0.0, 0.6):
            got = path.step(y, clean, s, t, anchor=anchor, noise=noise, stochasticity=g)
            w = [np.asarray(x).reshape(2, -1, 1) for x in path.weights(s, t, g)]
            want = w[0] * y + w[1] * clean + w[2] * anchor + w[3] * noise
            assert_close(got, want, 1e-12)
    if not path.anchored:
        assert_close(path.weights(*times).anchor, 0.0, 1e-12)
    assert_close(path.step(y, clean, times[0], jnp.ones(2), anchor=anchor), clean, 1e-12)


@each_path
def test_a_step_of_no_length_changes_nothing(path):
    """In float32 and exactly, both ends of the path included."""
    t = jnp.asarray([0.0, 0.3, 0.7, 1.0])
    y = jax.random.normal(jax.random.key(0), (4, 2, 3))
    far = jnp.full_like(y, 1e3)
    for stochasticity in (0.0, 0.5):
        for got, want in zip(path.weights(t, t, stochasticity), (1.0, 0.0, 0.0, 0.0)):
            np.testing.assert_array_equal(got, jnp.full(4, want))
        got = path.step(y, far, t, t, anchor=far, noise=far, stochasticity=stochasticity)
        np.testing.assert_array_equal(got, y)


@pytest.mark.parametrize("path", ALL[:3] + ALL[4:], ids=lambda path: type(path).__name__)
def test_a_stochastic_jump_goes_beyond_its_end(float64, path):
    t = jnp.asarray(INSIDE)
    for g in (0.0, 0.5, 1.0):
        beyond = path.overshoot(t, g)
        assert_close(path.retained(beyond), (1 - g**2) ** 0.5 * path.retained(t), 1e-12)
        assert (beyond >= t - 1e-12).all() and (beyond <= 1.0).all()


def test_a_path_that_states_no_stochastic_jumps_says_so():
    with pytest.raises(UserError, match="got gamma=0.5, a fraction of fresh noise, .* expected 0"):
        Interpolant.overshoot(Linear(), jnp.asarray([0.5]), 0.5)


@each_path
def test_slopes_are_those_of_the_coefficients(float64, path):
    """1/beta of beta = a' - a kappa'/kappa, by central differences."""
    t, h = jnp.asarray(INSIDE), 1e-6
    a, _, c = path.coefficients(t)
    kappa = path.retained(t)
    slope = lambda of: (of(t + h) - of(t - h)) / (2 * h)
    beta = slope(lambda t: path.coefficients(t)[0]) - a * slope(path.retained) / kappa
    np.testing.assert_allclose(path.slowness(t) * beta, 1.0, rtol=1e-7)
    assert_close(path.retained(jnp.ones(1)), 0.0, 1e-15)
    assert_close(path.slowness(jnp.ones(1)), 0.0, 1e-15)
    if not (path.redraws or isinstance(path, MaskAnchored)):
        np.testing.assert_array_equal(kappa, c)


@each_path
def test_odds_and_their_inverse(float64, path):
    t = jnp.concatenate([jnp.zeros(1), jnp.asarray(INSIDE), jnp.asarray([0.999])])
    odds = path.odds(t)
    later = np.asarray(t) > 0
    want = path.coefficients(t)[0][later] / path.retained(t)[later]
    np.testing.assert_allclose(odds[later], want, rtol=1e-12)
    assert odds[0] == 0.0 and (jnp.diff(odds) > 0).all()
    assert_close(path.time_of(odds), t, 1e-12)


@pytest.mark.parametrize("path", NOISY, ids=lambda path: type(path).__name__)
def test_gamma_and_time_are_inverse(float64, path):
    t = jnp.concatenate([jnp.asarray([1e-4]), jnp.asarray(INSIDE), jnp.asarray([0.9999])])
    a, _, c = path.coefficients(t)
    np.testing.assert_allclose(path.gamma(t), np.log(c**2 / a**2), rtol=0, atol=1e-9)
    assert_close(path.time_at(path.gamma(t)), t, 1e-12)
    gamma = jnp.linspace(-10.0, 14.0, 25)
    assert_close(path.gamma(path.time_at(gamma)), gamma, 1e-9)


@pytest.mark.parametrize("path", [Linear(), VariancePreserving()])
def test_velocity_and_denoiser_round_trip(float64, path):
    keys = jax.random.split(jax.random.key(1), 2)
    y, denoised = (jax.random.normal(k, (13, 2, 3), jnp.float64) for k in keys)
    t = jnp.asarray(INSIDE)
    velocity = path.velocity(y, denoised, t)
    assert_close(path.denoiser_from_velocity(y, velocity, t), denoised, 1e-12)
    if isinstance(path, Linear):
        assert_close(velocity, (denoised - y) / (1 - t)[:, None, None], 1e-12)


@pytest.mark.parametrize("path", [MaskedBridge(0.2), MaskAnchored()])
def test_velocity_of_straight_anchored_paths_points_to_the_data(float64, path):
    """(D - y)/(1-t), whatever the anchor; with D = x it is x - m on the path without noise."""
    keys = jax.random.split(jax.random.key(2), 3)
    y, clean, anchor = (jax.random.normal(k, (13, 2, 3), jnp.float64) for k in keys)
    t = jnp.asarray(INSIDE)
    want = (clean - y) / (1 - t)[:, None, None]
    assert_close(path.velocity(y, clean, t, anchor), want, 1e-10)
    wide = t[:, None, None]
    on = wide * clean + (1 - wide) * anchor
    assert_close(path.velocity(on, clean, t, anchor), clean - anchor, 1e-10)


@each_path
def test_drift_is_finite_up_to_the_end(path):
    t, ones = jnp.asarray([0.5, 1.0]), jnp.ones((2, 1, 3))
    assert jnp.isfinite(path.drift(ones, ones, t, 0.5 * ones)).all()


def ornstein_uhlenbeck(s, t):
    """Weights of the linear path's bridge from arXiv 2605.13681: OU time of equal SNR, rescaled."""
    scale = lambda t: np.sqrt(t**2 + (1 - t) ** 2)
    horizon = lambda t: -np.log(t / scale(t))  # X_h = e^-h x + sqrt(1 - e^-2h) xi
    h_s, h_t = horizon(s), horizon(t)
    kept = np.sinh(h_t) / np.sinh(h_s)
    moved = np.sinh(h_s - h_t) / np.sinh(h_s)
    variance = 2 * np.sinh(h_s - h_t) * kept
    return kept * scale(t) / scale(s), moved * scale(t), variance * scale(t) ** 2


def test_the_linear_bridge_is_the_papers(float64):
    """The pairs and the tolerance of its authors' check, and its limits."""
    pairs = np.array(
        [(1e-4, 1e-3), (0.01, 0.1), (0.05, 0.2), (0.1, 0.5), (0.2, 0.8), (0.55, 0.9), (0.8, 0.95)]
        + [(0.95, 0.999)]
    )
    w = Linear().bridge_weights(*(jnp.asarray(x) for x in pairs.T))
    for got, want in zip((w.state, w.clean, w.noise**2), ornstein_uhlenbeck(*pairs.T)):
        assert_close(got, want, 1e-10)
    ends = np.array([(0.0, 0.25), (0.1, 0.1), (0.4, 1.0), (0.0, 0.0)])
    w = Linear().bridge_weights(*(jnp.asarray(x) for x in ends.T))
    assert_close(w.state, [0, 1, 0, 1], 1e-15)
    assert_close(w.clean, [0.25, 0, 1, 0], 1e-15)
    assert_close(w.noise, [0.75, 0, 0, 0], 1e-15)


@pytest.mark.parametrize("path", NOISY, ids=lambda path: type(path).__name__)
def test_a_bridge_is_the_law_given_both_ends(float64, path):
    """Conditioning of a Gaussian: noise is added from t to s, independently of what came before."""
    s, t = (x[1:-1] for x in pairs_of(path))
    inside = (s > 0) & (t < 1)
    s, t = s[inside], t[inside]
    w = path.bridge_weights(s, t)
    (a_s, b_s, c_s), (a_t, b_t, c_t) = (map(np.asarray, path.coefficients(x)) for x in (s, t))
    # Of both times given E[x] and m: covariance (a_s/a_t) c_t^2, if the noise is Markov backwards;
    # a Brownian bridge, which redraws, has its own covariance sigma^2 s (1-t).
    cov = 0.04 * np.asarray(s * (1 - t)) if path.redraws else a_s / a_t * c_t**2
    gain = cov / c_s**2
    assert_close(w.state, gain, 1e-12)
    assert_close(w.clean, a_t - gain * a_s, 1e-12)
    assert_close(w.anchor, b_t - gain * b_s, 1e-12)
    assert_close(w.noise**2, c_t**2 - gain * cov, 1e-12)
    if path.redraws:
        return
    for k in range(0, len(s), 5):  # the step whose fresh share is 1 - (u_s/u_t)^2
        share = float(np.sqrt(max(1 - (path.odds(s[k]) / path.odds(t[k])) ** 2, 0.0)))
        want = path.weights(s[k], t[k], share)
        assert_close([x[k] for x in w], want, 1e-9)
