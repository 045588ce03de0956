"""Noisy states of flows from an anchor, together with tokens that stay visible."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flm_jax.core.types import Key, States, Times
from flm_jax.flows.flow import Flow


def hidden_states(
    key: Key,
    flow: Flow,
    t: Times,
    tokens: Int[Array, "b l"],
    hidden: Bool[Array, "b l"],
    table: Float[Array, "v d"],
    anchor: Float[Array, "m d"],
) -> States:
    """Draws states [B, L, D] whose hidden positions are on the path; float32.

    Args:
      key: key of the noise.
      flow: flow with an anchored path.
      t: times [B] or [B, L], which are not read at visible positions.
      tokens: clean tokens.
      hidden: mask of positions on the path.
      table: embedding table E.
      anchor: mask embedding of each position, [M, D] with M >= L.
    """
    clean = table[tokens]
    noise = flow.noise.draw(key, table, tokens.shape)
    start = jnp.broadcast_to(anchor[None, : tokens.shape[1]], clean.shape)
    return jnp.where(hidden[..., None], flow.path.at(t, clean, noise, start), clean)
