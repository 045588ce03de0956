"""Conversions between velocity, denoiser, two-time denoiser and flow map of the linear flow.

Source: arXiv 2602.16813v3. Arguments x, and everything denoiser-like, are states [B, L, D] (a
distribution `probs` over tokens enters as probs @ E: every map here is linear in it); times are
interpolant times t, [B] or [B, L], with s <= u <= t.
"""

import jax.numpy as jnp

from flm_jax.core.types import States, Times
from flm_jax.flows.interpolants import over_features


def _divide(numerator: Times, denominator: Times) -> Times:
    """numerator / denominator, and 0 where the denominator vanishes (an interval of length 0)."""
    safe = jnp.where(denominator > 0.0, denominator, 1.0)
    return jnp.where(denominator > 0.0, numerator / safe, 0.0)


def velocity(x_t: States, denoised: States, t: Times) -> States:
    """b_t(x) = (D_t(x) - x) / (1-t), for t < 1."""
    return (denoised - x_t) / over_features(1.0 - t)


def denoiser_from_velocity(x_t: States, b_t: States, t: Times) -> States:
    """D_t(x) = x + (1-t) b_t(x)."""
    return x_t + over_features(1.0 - t) * b_t


def average_velocity(x_s: States, delta_st: States, s: Times) -> States:
    """v_st(x) = (delta_st(x) - x) / (1-s), for s < 1; at t = s the velocity b_s."""
    return velocity(x_s, delta_st, s)


def two_time_denoiser(x_s: States, v_st: States, s: Times) -> States:
    """delta_st(x) = x + (1-s) v_st(x), a point of the simplex for the true average velocity."""
    return denoiser_from_velocity(x_s, v_st, s)


def flow_map_weights(s: Times, t: Times) -> tuple[Times, Times]:
    """Weights (w_x, w_delta) of X_st(x) = w_x x + w_delta delta_st(x); (1, 0) at s = t."""
    w_delta = _divide(t - s, 1.0 - s)
    return 1.0 - w_delta, w_delta


def flow_map(x_s: States, delta_st: States, s: Times, t: Times) -> States:
    """X_st(x) = (1-t)/(1-s) x + (t-s)/(1-s) delta_st(x); the identity at s = t."""
    w_x, w_delta = flow_map_weights(s, t)
    return over_features(w_x) * x_s + over_features(w_delta) * delta_st


def semigroup_weight(s: Times, u: Times, t: Times) -> Times:
    """gamma = (1-t)(u-s) / ((1-u)(t-s)) in delta_st = gamma delta_su + (1-gamma) delta_ut(X_su).

    Follows from X_st = X_ut(X_su). In [0, 1]; 0 at s = t, where it does not matter.
    """
    return _divide((1.0 - t) * (u - s), (1.0 - u) * (t - s))
