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
    return hidden_means(key, flow, t, table[tokens], hidden, table, anchor)


def hidden_means(
    key: Key,
    flow: Flow,
    t: Times,
    means: States,
    hidden: Bool[Array, "b l"],
    table: Float[Array, "v d"],
    anchor: Float[Array, "m d"],
) -> States:
    """Draws the states of `hidden_states` for mean embeddings [B, L, D] instead of tokens."""
    noise = flow.noise.draw(key, table, means.shape[:2])
    start = jnp.broadcast_to(anchor[None, : means.shape[1]], means.shape)
    return jnp.where(hidden[..., None], flow.path.at(t, means, noise, start), means)


def with_corrupted_context(
    key: Key,
    flow: Flow,
    t: Times,
    states: States,
    tokens: Int[Array, "b l"],
    hidden: Bool[Array, "b l"],
    table: Float[Array, "v d"],
    anchor: Float[Array, "m d"],
) -> States:
    """Returns states [B, L, D] whose positions that are not hidden are drawn from the path at t."""
    everything = jnp.ones_like(hidden)
    drawn = hidden_states(key, flow, t, tokens, everything, table, anchor)
    return jnp.where(hidden[..., None], states, drawn)
