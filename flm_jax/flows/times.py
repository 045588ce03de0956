"""Random times for training: low-discrepancy draws and pairs for flow maps."""

import jax
import jax.numpy as jnp

from flm_jax.types import Key, Times


def stratified_uniform(key: Key, num: int, offset: int | jax.Array = 0, total: int = 0) -> Times:
    """`num` draws, one uniform in each stratum [(offset+i)/total, (offset+i+1)/total) of [0, 1].

    Args:
      key: shared by all draws with the same `total`; offsets must then not overlap.
      num: how many, the rows of this (micro)batch.
      offset: index of the first row in the global batch.
      total: rows of the global batch; 0 means `num`.

    Returns:
      float32 [num]; over a whole batch the draws are low-discrepancy, each row in turn U(0, 1)
      given the shared shift.
    """
    total = total or num
    shift = jax.random.uniform(jax.random.fold_in(key, 0))
    jitter = jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, 1), offset), (num,))
    rows = offset + jnp.arange(num)
    return jnp.mod((rows + jitter) / total + shift, 1.0)
