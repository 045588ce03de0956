"""Rotary embeddings of positions."""

import functools

import jax
import jax.numpy as jnp


def rotary_angles(
    length: int,
    head_dim: int,
    base: float = 10_000.0,
    condense: float = 1.0,
    rounded: str = "float32",
) -> tuple[jax.Array, jax.Array]:
    """Tables cos and sin [L, K/2] of rotary embeddings at positions (0..L-1) / condense, float32.

    Args:
      length, head_dim: L and K.
      base: base of the frequencies.
      condense: divisor of the positions.
      rounded: type to which values are rounded, float32 or bfloat16; the tables are float32.
    """
    # Constants of a program: XLA would compute the sine of each number of each row and head anew.
    # They are computed here even where a program is compiled for a device that is absent.
    with jax.ensure_compile_time_eval(), jax.default_device(jax.local_devices()[0]):
        return _rotary_tables(length, head_dim, base, condense, rounded)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _rotary_tables(
    length: int, head_dim: int, base: float, condense: float, rounded: str
) -> tuple[jax.Array, jax.Array]:
    frequencies = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = (jnp.arange(length, dtype=jnp.float32) / condense)[:, None] * frequencies[None]
    kind = jnp.finfo(rounded)

    def table(x_LK: jax.Array) -> jax.Array:
        # Two casts would do, but compilers may leave both out.
        return jax.lax.reduce_precision(x_LK, exponent_bits=kind.nexp, mantissa_bits=kind.nmant)

    return table(jnp.cos(angles)), table(jnp.sin(angles))


def rotate(x_BLHK: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Applies rotary embedding, pairing features k and k + K/2; angles [L, K/2] or [B, L, K/2]."""
    cos, sin = (a.reshape(-1, *a.shape[-2:])[:, :, None].astype(x_BLHK.dtype) for a in angles)
    first, second = jnp.split(x_BLHK, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
