"""Interpolants at their ends, between them, and with a time for each token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.flows.interpolants import (
    interpolate,
    linear,
    mask_anchored,
    masked_bridge,
    variance_preserving,
)


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
