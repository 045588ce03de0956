"""States of masked diffusion, and the choice of hidden positions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from flm_jax.core.types import Key, States, Times


def masked_states(
    tokens: Int[Array, "b l"],
    masked: Bool[Array, "b l"],
    table: Float[Array, "v d"],
    anchor: Float[Array, "m d"],
) -> States:
    """States [B, L, D], float32: E[x_l] where visible, the anchor m_l where masked; L <= M."""
    return jnp.where(masked[..., None], anchor[None, : tokens.shape[1]], table[tokens])


def mean_progress(t: Float[Array, "b l"], visible: Shaped[Array, "b l"] | None) -> Times:
    """Mean progress [B] over the visible positions; over all if `visible` is None."""
    if visible is None:
        return jnp.mean(t, axis=1)
    return jnp.sum(t * visible, axis=1) / jnp.maximum(jnp.sum(visible, axis=1), 1)


def after(prompt: int, mask: Shaped[Array, "b l"]) -> Bool[Array, "b l"]:
    """Mask of the positions after the first `prompt` ones; only the shape of `mask` is used."""
    return jnp.broadcast_to(jnp.arange(mask.shape[1])[None] >= prompt, mask.shape)


def free_positions(batch: dict[str, jax.Array], prompt: int) -> Bool[Array, "b l"]:
    """Mask of the positions that may be hidden: valid ones outside the prompt.

    Args:
      batch: "mask" [B, L], 1 where valid; optionally "prompt" [B, L], 1 where tokens are
        prescribed.
      prompt: number of first positions of each row, which are prescribed as well.
    """
    free = batch["mask"].astype(bool)
    free = free & after(prompt, free) if prompt else free
    return free & ~batch["prompt"].astype(bool) if "prompt" in batch else free


def written_positions(batch: dict[str, jax.Array], prompt: int) -> Bool[Array, "b l"]:
    """Mask of the positions that a sampler generates: all but the prompt, past the text's end too.

    Arguments are as in `free_positions`.
    """
    return free_positions(batch | {"mask": jnp.ones_like(batch["mask"])}, prompt)


def hide_below(
    draws: Float[Array, "b l"], share: Times, free: Bool[Array, "b l"]
) -> Bool[Array, "b l"]:
    """Mask of free positions whose draw in [0, 1) is below the fraction [B] of their row."""
    return free & (draws < share[:, None])


def hide_independently(key: Key, share: Times, free: Bool[Array, "b l"]) -> Bool[Array, "b l"]:
    """Hides each free position with the probability [B] of its row."""
    return hide_below(jax.random.uniform(key, free.shape), share, free)


def at_least_one(
    key: Key, hidden: Bool[Array, "b l"], free: Bool[Array, "b l"]
) -> Bool[Array, "b l"]:
    """Adds one free position, drawn uniformly, to each row without hidden positions."""
    one = highest(jax.random.uniform(key, free.shape), free, jnp.ones(len(free), jnp.int32))
    return jnp.where(jnp.any(hidden, axis=1, keepdims=True), hidden, one)


def random_subset(key: Key, count: Int[Array, "b"], length: int) -> Bool[Array, "b l"]:
    """Draws sets of `count` positions of each row uniformly."""
    # The argsort of an argsort gives each position its rank; here among uniform numbers.
    order = jnp.argsort(jax.random.uniform(key, (count.shape[0], length)), axis=1)
    return jnp.argsort(order, axis=1) < count[:, None]


def highest(
    scores: Float[Array, "b l"], among: Bool[Array, "b l"], count: Int[Array, "b"]
) -> Bool[Array, "b l"]:
    """The `count` positions of each row with the highest scores `among` those allowed.

    Of equal scores the first position counts.
    """
    order = jnp.argsort(jnp.where(among, -scores, jnp.inf), axis=1, stable=True)
    return among & (jnp.argsort(order, axis=1) < count[:, None])
