"""Interpolants y_l = a(t) E[x_l] + b(t) m + c(t) xi_l in the embedded space R^D.

Each function maps times to the coefficients (a, b, c) of clean data, anchor and noise.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from flm_jax.core.types import States, Times

Coefficients = tuple[Times, Times, Times]
Interpolant = Callable[[Times], Coefficients]


def linear(t: Times) -> Coefficients:
    """x_t = t x_1 + (1-t) x_0 (arXiv 2602.16813v3); one-hot when the noise has covariance E^T E."""
    return t, jnp.zeros_like(t), 1.0 - t


def variance_preserving(t: Times) -> Coefficients:
    """x_t = sin(pi t / 2) x_1 + cos(pi t / 2) x_0, unit variance for unit-variance data."""
    angle = 0.5 * jnp.pi * t
    return jnp.sin(angle), jnp.zeros_like(t), jnp.cos(angle)


def masked_bridge(sigma: float) -> Interpolant:
    """Brownian bridge from the mask embedding m, N((1-t) m + t x_1, sigma^2 t (1-t) I).

    Source: arXiv 2606.27617, with sigma = 0.2. The noise is N(0, I).
    """

    def coefficients(t: Times) -> Coefficients:
        return t, 1.0 - t, sigma * jnp.sqrt(t * (1.0 - t))

    return coefficients


def mask_anchored(t: Times) -> Coefficients:
    """x_t = t x_1 + (1-t) m, without noise (arXiv 2606.29066)."""
    return t, 1.0 - t, jnp.zeros_like(t)


def over_features(t: Times) -> Times:
    """Times [B] or [B, L] as [B, 1, 1] or [B, L, 1], to multiply states [B, L, D]."""
    return t[..., None] if t.ndim == 2 else t[:, None, None]


def over_positions(t: Times, shape: tuple[int, ...]) -> Times:
    """Times, or weights, [B] or [B, L] as [B, L] = `shape`."""
    return jnp.broadcast_to(t if t.ndim == 2 else t[:, None], shape)


def interpolate(
    interpolant: Interpolant,
    t: Times,
    clean: States,
    noise: jax.Array | float = 0.0,
    anchor: jax.Array | float = 0.0,
) -> States:
    """States y [B, L, D] at times t [B] or [B, L]; `clean` is E[x], `noise` xi, `anchor` m."""
    a, b, c = (over_features(w) for w in interpolant(jnp.asarray(t, jnp.float32)))
    return a * clean + b * anchor + c * noise
