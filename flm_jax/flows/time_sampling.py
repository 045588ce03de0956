"""Random times for training: low-discrepancy draws over the global batch, and pairs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.core.types import Key, Times


class Rows(NamedTuple):
    """Indices of a (micro)batch in the global batch: [start, start + B) of `total` rows."""

    start: int | jax.Array
    total: int

    def fold(self, key: Key) -> Key:
        """Derives a key for these rows."""
        return jax.random.fold_in(key, self.start)


def stratified_uniform(key: Key, num: int, rows: Rows) -> Times:
    """Draws one number in each of rows.total equal strata of [0, 1], with a common cyclic shift.

    Args:
      key: key, the same for every (micro)batch of a global batch.
      num: number of rows B.
      rows: indices of these rows in the global batch.

    Returns:
      float32 [B] in [0, 1). Each row is U(0, 1); the global batch is low-discrepancy.
    """
    # The shift makes each row U(0, 1); without it row i would always lie in stratum i. It has the
    # key of the whole batch, the jitter one of these rows, so that microbatches fit together.
    shift = jax.random.uniform(jax.random.fold_in(key, 0))
    jitter = jax.random.uniform(rows.fold(jax.random.fold_in(key, 1)), (num,))
    return jnp.mod((rows.start + jnp.arange(num) + jitter) / rows.total + shift, 1.0)


def kronecker_uniform(key: Key, num: int, rows: Rows) -> Times:
    """Draws low-discrepancy numbers over the batch, also jointly with `stratified_uniform`.

    Row i has frac(i (sqrt(5) - 1) / 2 + shift) with a common shift. Two stratified draws would
    increase together along the rows; these do not.

    Args:
      key: key, the same for every (micro)batch of a global batch.
      num: number of rows B.
      rows: indices of these rows in the global batch.

    Returns:
      float32 [B] in [0, 1). Each row is U(0, 1).
    """
    index = (rows.start + jnp.arange(num)).astype(jnp.uint32)
    # Multiples of the golden ratio modulo 1, exactly, in 32 bits; float32 keeps the upper 24.
    turned = (index * jnp.uint32(2654435769)) >> jnp.uint32(8)
    return jnp.mod(turned.astype(jnp.float32) * 2.0**-24 + jax.random.uniform(key), 1.0)


def evenly_chosen(key: Key, num: int, rows: Rows, share: float) -> jax.Array:
    """Chooses a fixed number of rows of the global batch, spread evenly: bool [B].

    Row i is chosen if i share + u passes an integer, with a common u ~ U(0, 1): total times share
    rows if that is an integer, as published (8 of 256), else one of the two nearest integers. Each
    row is chosen with probability `share`.

    Args:
      key: key, the same for every (micro)batch of a global batch.
      num: number of rows B.
      rows: indices of these rows in the global batch.
      share: fraction of the rows.
    """
    place = (rows.start + jnp.arange(num + 1)) * jnp.float32(share) + jax.random.uniform(key)
    passed = jnp.floor(place)
    return passed[1:] > passed[:-1]


def time_pairs(key: Key, num: int, rows: Rows, boundary: float) -> tuple[Times, Times]:
    """Draws clock times tau_s <= tau_t for flow-map training (arXiv 2602.16813v3).

    With d ~ U(0, 1) and r ~ U(0, 1), tau_s = r (1-d) and tau_t = tau_s + d; a fraction `boundary`
    of the rows, a fixed number, has the full interval (0, 1). d and r are low-discrepancy over the
    global batch, each alone and jointly.

    Returns:
      tau_s, tau_t, float32 [B].
    """
    d_key, r_key, b_key = jax.random.split(key, 3)
    d = stratified_uniform(d_key, num, rows)
    tau_s = kronecker_uniform(r_key, num, rows) * (1.0 - d)
    whole = evenly_chosen(b_key, num, rows, boundary)
    # r (1 - d) + d may round to more than 1.
    return jnp.where(whole, 0.0, tau_s), jnp.where(whole, 1.0, jnp.minimum(tau_s + d, 1.0))
