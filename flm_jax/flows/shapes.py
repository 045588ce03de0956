"""Reshapes times, weights and positions to broadcast with states [B, L, D]."""

import jax
import jax.numpy as jnp

from flm_jax.core.types import Times


def over_features(t: Times) -> Times:
    """Reshapes times [B] or [B, L] to [B, 1, 1] or [B, L, 1], to multiply states [B, L, D]."""
    return t[..., None] if t.ndim == 2 else t[:, None, None]


def over_positions(t: Times, shape: tuple[int, ...]) -> Times:
    """Broadcasts times or weights [B] or [B, L] to [B, L] = `shape`."""
    return jnp.broadcast_to(t if t.ndim == 2 else t[:, None], shape)


def positions_of(rows: jax.Array) -> jax.Array:
    """Index of each position of arrays [B, L, ...] in its row, int32 [B, L]."""
    return jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape[:2])
