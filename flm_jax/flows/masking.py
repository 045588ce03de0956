"""States of masked diffusion: clean tokens, and anchors in the place of hidden ones."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flm_jax.core.types import Key, States


def masked_states(
    tokens: Int[Array, "b l"],
    masked: Bool[Array, "b l"],
    table: Float[Array, "v d"],
    anchor: Float[Array, "m d"],
) -> States:
    """E[x_l] where visible, the anchor m_l where masked, float32 [B, L, D]; L <= M."""
    return jnp.where(masked[..., None], anchor[None, : tokens.shape[1]], table[tokens])


def random_subset(key: Key, count: Int[Array, "b"], length: int) -> Bool[Array, "b l"]:
    """Uniformly drawn sets of `count` positions of each row."""
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
