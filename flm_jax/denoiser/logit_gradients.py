"""Gradients of cross entropies in the logits of one tile, in as few passes over it as possible."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.denoiser.tile_plan import Plan

# Caps up to which exp(l - c) is no subnormal number for any logit l.
_SAFE_CAP = 40.0


class OneHot(NamedTuple):
    """Targets that are one column each.

    Attributes:
      column: column of each position, int32 [B, T]; anything where another device has it.
      inside: whether this device has the column, bool [B, T].
    """

    column: jax.Array
    inside: jax.Array

    def dense(self, width: int) -> jax.Array:
        """The targets as a mask [B, T, width]."""
        index = jax.lax.broadcasted_iota(jnp.int32, (1, 1, width), 2)
        return (index == self.column[..., None]) & self.inside[..., None]


def safely_capped(softcap: float) -> bool:
    """Whether exp(l - c) of capped logits can be computed without looking for the largest."""
    return 0.0 < softcap <= _SAFE_CAP


def logit_gradients(
    logits: jax.Array,
    log_z: jax.Array,
    q: jax.Array | OneHot,
    weights: jax.Array,
    plan: Plan,
    exact: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """Gradients of sum(weights * ce) in the logits before their cap.

    Args:
      logits: capped logits, float32 [B, T, V].
      log_z: their logsumexp, [B, T, 1].
      q: targets, [B, T, V] or columns.
      weights: weights [B, T].
      plan: plan of the logits.
      exact: whether the products that follow are of float32 numbers.

    Returns:
      Gradients [B, T, V], float32, and a factor [B, T, 1] that they lack; None for 1.
    """
    # d/dl of c tanh(l / c) is 1 - tanh^2, read off the capped logits.
    slope = 1.0 - jnp.square(logits / plan.softcap) if plan.softcap else None
    if not (exact and isinstance(q, OneHot) and safely_capped(plan.softcap)):
        q = q.dense(logits.shape[-1]) if isinstance(q, OneHot) else q
        # exp(logits) anew instead of the exponentials of log_z: no second [B, T, V] array is kept.
        gradients = weights[..., None] * (jnp.exp(logits - log_z) - q)
        return (gradients if slope is None else gradients * slope), None
    # With the exponentials of log_z, which are known before it: one array and one pass less.
    parts, mass = jnp.exp(logits - plan.softcap), jnp.exp(log_z - plan.softcap)
    row, position = (jax.lax.broadcasted_iota(jnp.int32, weights.shape, axis) for axis in (0, 1))
    place = (row, position, jnp.where(q.inside, q.column, 0))
    own = 1.0 - jnp.square(logits[place] / plan.softcap)
    off = jnp.where(q.inside, -mass[..., 0] * own, 0.0)
    return (parts * slope).at[place].add(off), weights[..., None] / mass
