"""Multi-head attention over [B, L, H, K] behind one function."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def rotary_angles(
    length: int, head_dim: int, base: float = 10_000.0
) -> tuple[jax.Array, jax.Array]:
    """cos and sin tables [L, K/2] of rotary embeddings at positions 0..L-1, float32."""
    frequencies = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies[None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BLHK: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary embedding in the half-split convention: feature k pairs with k + K/2."""
    cos, sin = (a[None, :, None, :].astype(x_BLHK.dtype) for a in angles)
    first, second = jnp.split(x_BLHK, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(
    q_BLHK: Float[Array, "b l h k"],
    k_BLHK: Float[Array, "b l h k"],
    v_BLHK: Float[Array, "b l h k"],
    *,
    softcap: float = 0.0,
) -> Float[Array, "b l h k"]:
    """Bidirectional softmax attention, scores scaled by K^-1/2, float32 softmax.

    Args:
      q_BLHK, k_BLHK, v_BLHK: queries, keys, values.
      softcap: c > 0 caps the scores as c * tanh(score / c); 0 for none.
    """
    if not softcap:
        return jax.nn.dot_product_attention(q_BLHK, k_BLHK, v_BLHK)
    scale = q_BLHK.shape[-1] ** -0.5
    scores_BHLM = jnp.einsum(
        "blhk,bmhk->bhlm", q_BLHK * scale, k_BLHK, preferred_element_type=jnp.float32
    )
    scores_BHLM = softcap * jnp.tanh(scores_BHLM / softcap)
    weights_BHLM = jax.nn.softmax(scores_BHLM, axis=-1).astype(v_BLHK.dtype)
    return jnp.einsum("bhlm,bmhk->blhk", weights_BHLM, v_BLHK)
