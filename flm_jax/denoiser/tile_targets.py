"""Targets of tiled cross entropies: tokens, mixtures of outputs, their normalised products."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flm_jax.core.types import Times
from flm_jax.denoiser.logit_gradients import OneHot
from flm_jax.denoiser.tile_plan import Plan
from flm_jax.denoiser.tiled import Target, log_partition, planned_logits
from flm_jax.flows.shapes import over_positions


def laid_out(targets: Sequence[tuple[Times, Any]], shape: tuple[int, ...]) -> Target:
    """Heads and rows of weighted readouts, as the functions below read them; without gradient.

    Args:
      targets: pairs (weight [B] or [B, L], readout).
      shape: (B, L).
    """
    heads, rows = [], []
    for w, q in jax.lax.stop_gradient(list(targets)):
        heads.append((q.kernel, q.bias))
        rows += [over_positions(w, shape), q.features]
    return tuple(heads), tuple(rows)


def one_hot_target(logits: jax.Array, log_z: jax.Array, target: Target, plan: Plan):
    """Target concentrated on tokens, `OneHot`, and this device's part of the cross entropies."""
    tokens = target[1][0]
    width = logits.shape[-1]
    if not plan.vocab_axes:
        picked = jnp.take_along_axis(logits, tokens[..., None], axis=-1)
        return OneHot(tokens, jnp.ones(tokens.shape, bool)), (log_z - picked)[..., 0]
    column = tokens[..., None] - jax.lax.axis_index(plan.vocab_axes) * width
    picked = jnp.take_along_axis(logits, jnp.clip(column, 0, width - 1), axis=-1)
    inside = (column >= 0) & (column < width)
    # Where another device has the token no column matches: q and the value are 0 here.
    ce = jnp.where(inside, log_z - picked, 0.0)[..., 0]
    return OneHot(column[..., 0], inside[..., 0]), ce


def token_target(logits: jax.Array, log_z: jax.Array, target: Target, plan: Plan):
    """`one_hot_target` as a mask q [B, T, V]."""
    q, ce = one_hot_target(logits, log_z, target, plan)
    return q.dense(logits.shape[-1]), ce


def mixture_target(logits: jax.Array, log_z: jax.Array, target: Target, plan: Plan):
    """Target sum_k w_k softmax(logits_k), from rows (w_1, features_1, w_2, features_2, ...)."""
    heads, rows = target
    q = jnp.zeros_like(logits)
    for head, w, features in zip(heads, rows[::2], rows[1::2]):
        other = planned_logits(features, head, plan)
        other_log_z = log_partition(other, plan.vocab_axes, plan.softcap)
        q = q + w[..., None] * jnp.exp(other - other_log_z)
    return q, jnp.sum(q * (log_z - logits), axis=-1)


def product_target(logits: jax.Array, log_z: jax.Array, target: Target, plan: Plan):
    """Target prod_k softmax(logits_k)^w_k, normalised, from rows as for `mixture_target`."""
    heads, rows = target
    scores = jnp.zeros_like(logits)
    for head, w, features in zip(heads, rows[::2], rows[1::2]):
        scores = scores + w[..., None] * planned_logits(features, head, plan)
    # Weights below 0 leave the range of the soft cap.
    q = jnp.exp(scores - log_partition(scores, plan.vocab_axes))
    return q, jnp.sum(q * (log_z - logits), axis=-1)
