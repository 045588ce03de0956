"""Weighted sums of the outputs of several networks, and tokens drawn from them, tile by tile.

A guided denoiser is sum_k w_k softmax(logits_k) with weights that add up to 1 and may be negative.
Its embedding is linear in it; its tokens need all V entries of a position at a time, for a tile of
`net.loss_tile` positions.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.core.network import Network
from flm_jax.core.types import States
from flm_jax.denoiser.head import Readout, embed_probs
from flm_jax.denoiser.tiled import head_logits, over_tiles, standing

# (positions [T], unnormalised logarithms [B, T, V]) -> arrays [B, T, ...]: tokens and their
# probabilities, or candidates of each position.
Pick = Callable[[jax.Array, jax.Array], Any]


class Part(NamedTuple):
    """One output of a sum: its weight, its features [B, L, D] with head, and its network."""

    weight: float
    out: Readout
    net: Network


def mixture(
    parts: Sequence[Part], table: Float[Array, "v w"], pick: Pick, product: bool = False
) -> tuple[States, Any]:
    """Expected embedding and tokens of p = sum_k w_k softmax(logits_k), for samplers.

    Args:
      parts: outputs over one vocabulary; the first determines the number of positions in a tile.
      table: embeddings [V, W] of any width.
      pick: function that chooses tokens from the logits of a single part, or for several parts from
        the logarithms of max(p, 0).
      product: whether p is the normalised product of softmax(logits_k)^w_k instead of the sum.

    Returns:
      p @ table, float32 [B, L, W]; and the arrays of `pick`, each [B, L, ...].
    """
    positions = jnp.arange(parts[0].out.features.shape[1], dtype=jnp.int32)[None]

    def body(_, rows):
        features, where = rows
        logits = [
            head_logits(
                h, (part.out.kernel, part.out.bias), part.net.logit_softcap, part.net.tokens
            )
            for part, h in zip(parts, features)
        ]
        if product:
            scores = sum(part.weight * x for part, x in zip(parts, logits))
            probs = jax.nn.softmax(scores, axis=-1)
            return None, (embed_probs(probs, table), pick(where[0], scores))
        probs = sum(part.weight * jax.nn.softmax(x, axis=-1) for part, x in zip(parts, logits))
        tiny = jnp.finfo(jnp.float32).tiny
        # A single part keeps its logits, whose tail the floor of the logarithm would cut off.
        scores = logits[0]
        if len(parts) > 1:
            scores = jnp.log(jnp.maximum(probs, tiny))
        # Without this the floor would give padding columns a small probability.
        if len(parts) > 1 and (tokens := parts[0].net.tokens):
            scores = jnp.where(standing(scores.shape[-1], tokens), scores, -jnp.inf)
        return None, (embed_probs(probs, table), pick(where[0], scores))

    rows = (tuple(part.out.features for part in parts), positions)
    return over_tiles(body, None, rows, parts[0].net.loss_tile)[1]


def product_embedding(parts: Sequence[Part], table: Float[Array, "v w"]) -> States:
    """Expected embedding p @ table of the normalised product of softmax(logits_k)^w_k."""

    def unread(places, scores):
        return jnp.zeros(scores.shape[:2], jnp.int32), jnp.zeros(scores.shape[:2])

    return mixture(parts, table, unread, product=True)[0]
