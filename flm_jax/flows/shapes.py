"""Times, weights and places of rows or positions, shaped to meet states [B, L, D]."""

import jax
import jax.numpy as jnp

from flm_jax.core.types import Times


def over_features(t: Times) -> Times:
    """Times [B] or [B, L] as [B, 1, 1] or [B, L, 1], to multiply states [B, L, D]."""
    return t[..., None] if t.ndim == 2 else t[:, None, None]


def over_positions(t: Times, shape: tuple[int, ...]) -> Times:
    """Times, or weights, [B] or [B, L] as [B, L] = `shape`."""
    return jnp.broadcast_to(t if t.ndim == 2 else t[:, None], shape)


def positions_of(rows: jax.Array) -> jax.Array:
    """Where in its row each position of arrays [B, L, ...] stands, int32 [B, L]."""
    return jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape[:2])
