"""Random times for training: low-discrepancy draws over the global batch, and pairs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.core.types import Key, Times


class Rows(NamedTuple):
    """Which rows of the global batch a (micro)batch holds: [start, start + B) of `total`."""

    start: int | jax.Array
    total: int

    def fold(self, key: Key) -> Key:
        """A key of these rows alone."""
        return jax.random.fold_in(key, self.start)


def stratified_uniform(key: Key, num: int, rows: Rows) -> Times:
    """One draw in each of rows.total equal strata of [0, 1], cyclically shifted as a whole.

    Args:
      key: the same for every (micro)batch of one global batch.
      num: rows here, B.
      rows: their place in the global batch.

    Returns:
      float32 [B] in [0, 1). Each row is U(0, 1); the global batch is low-discrepancy.
    """
    shift = jax.random.uniform(jax.random.fold_in(key, 0))
    jitter = jax.random.uniform(rows.fold(jax.random.fold_in(key, 1)), (num,))
    return jnp.mod((rows.start + jnp.arange(num) + jitter) / rows.total + shift, 1.0)


def kronecker_uniform(key: Key, num: int, rows: Rows) -> Times:
    """One draw for each row, low-discrepancy over the global batch, and with `stratified_uniform`.

    Row i has frac(i (sqrt(5) - 1) / 2 + shift) with a common shift. Two stratified draws would
    rise together along the rows; these do not.

    Args:
      key: the same for every (micro)batch of one global batch.
      num: rows here, B; rows: their place in the global batch.

    Returns:
      float32 [B] in [0, 1). Each row is U(0, 1).
    """
    index = (rows.start + jnp.arange(num)).astype(jnp.uint32)
    # Multiples of the golden ratio modulo 1, exactly, in 32 bits; float32 keeps the upper 24.
    turned = (index * jnp.uint32(2654435769)) >> jnp.uint32(8)
    return jnp.mod(turned.astype(jnp.float32) * 2.0**-24 + jax.random.uniform(key), 1.0)


def evenly_chosen(key: Key, num: int, rows: Rows, share: float) -> jax.Array:
    """A fixed number of rows of the global batch, spread evenly: bool [B].

    Row i is chosen where i share + u passes a whole number, with a common u ~ U(0, 1): total times
    share rows in all where that is whole, as published (8 of 256), else one of the two numbers
    beside it. Each row is chosen with probability `share`.

    Args:
      key: the same for every (micro)batch of one global batch.
      num: rows here, B; rows: their place in the global batch.
    """
    place = (rows.start + jnp.arange(num + 1)) * jnp.float32(share) + jax.random.uniform(key)
    passed = jnp.floor(place)
    return passed[1:] > passed[:-1]


def time_pairs(key: Key, num: int, rows: Rows, boundary: float) -> tuple[Times, Times]:
    """Clock times tau_s <= tau_t for flow-map training (arXiv 2602.16813v3).

    d ~ U(0, 1), tau_s = r (1-d) with r ~ U(0, 1), tau_t = tau_s + d; a share `boundary` of the
    rows, of a fixed number, is the whole interval (0, 1). d and r are low-discrepancy over the
    global batch, each alone and together.

    Returns:
      tau_s, tau_t, float32 [B].
    """
    d_key, r_key, b_key = jax.random.split(key, 3)
    d = stratified_uniform(d_key, num, rows)
    tau_s = kronecker_uniform(r_key, num, rows) * (1.0 - d)
    whole = evenly_chosen(b_key, num, rows, boundary)
    return jnp.where(whole, 0.0, tau_s), jnp.where(whole, 1.0, jnp.minimum(tau_s + d, 1.0))
