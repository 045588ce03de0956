"""Tokens and softened states of one-hot Gaussian states, tile by tile: [B, L, V] is never held.

The states are w = (r onehot(x) + eps) / sqrt(1 + r^2), eps ~ N(0, I_V), for some signal r over
noise; see `flows.uniform_noise`.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flm_jax.core.types import Key, States, Times
from flm_jax.denoiser.tiled import over_tiles
from flm_jax.flows.shapes import positions_of


def _noise(key: Key, places: Int[Array, "b t"], number: int) -> Float[Array, "b t v"]:
    """Noise of a tile; each tile has its own key."""
    # places[0, 0] is the tile's first position: the draws depend on the tiling, their law does
    # not.
    return jax.random.normal(jax.random.fold_in(key, places[0, 0]), (*places.shape, number))


def largest_entries(
    key: Key, tokens: Int[Array, "b l"], ratios: Sequence[Times], number: int, tile: int
) -> list[Int[Array, "b l"]]:
    """Largest entries argmax w of states with the same noise, for each r [B].

    Args:
      key: key of the noise.
      tokens: clean tokens x.
      ratios: values of r, each [B].
      number: vocabulary size V, the number of entries of the noise.
      tile: number of positions of a row at a time; 0 for all.
    """

    def body(_, rows):
        tokens, places = rows
        clean, eps = jax.nn.one_hot(tokens, number), _noise(key, places, number)
        found = [jnp.argmax(r[:, None, None] * clean + eps, axis=-1) for r in ratios]
        return None, [index.astype(jnp.int32) for index in found]

    return over_tiles(body, None, (tokens, positions_of(tokens)), tile)[1]


def softened(
    key: Key,
    tokens: Int[Array, "b l"],
    ratio: Times,
    temperature: float,
    table: Float[Array, "v d"],
    *,
    number: int,
    tile: int,
) -> tuple[States, Int[Array, "b l"]]:
    """Returns softmax(w / temperature) @ E, float32, differentiable in E, and argmax w.

    Arguments are as in `largest_entries`; rows of `table` beyond the first `number` are no tokens.
    """

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def body(_, rows):
        tokens, places = rows
        r = ratio[:, None, None]
        w = r * jax.nn.one_hot(tokens, number) + _noise(key, places, number)
        # Only here is w scaled by 1/sqrt(1 + r^2): its argmax does not depend on that.
        probs = jax.nn.softmax(w / (temperature * jnp.sqrt(1.0 + r * r)), axis=-1)
        states = jnp.matmul(probs, table[:number], precision=jax.lax.Precision.HIGH)
        return None, (states, jnp.argmax(w, axis=-1).astype(jnp.int32))

    return over_tiles(body, None, (tokens, positions_of(tokens)), tile)[1]
