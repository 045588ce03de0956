"""Noisy states of flows from an anchor, beside tokens that stay visible."""

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
    """Draws states [B, L, D] of which the hidden positions are on the path; float32.

    Args:
      key: used for the noise alone.
      flow: of an anchored path.
      t: times [B] or [B, L]; those of visible positions are not read.
      tokens: clean data; hidden: positions on the path.
      table, anchor: E, and the mask embedding of each position, M >= L.
    """
    clean = table[tokens]
    noise = flow.noise.draw(key, table, tokens.shape)
    start = jnp.broadcast_to(anchor[None, : tokens.shape[1]], clean.shape)
    return jnp.where(hidden[..., None], flow.path.at(t, clean, noise, start), clean)
