"""Clean context in training: some positions have time 1 beside noisy ones (arXiv 2606.24773).

Such training makes a flow any-order: whatever tokens are prescribed, the network transports the
others from noise to their distribution given these. Clean positions do not count in the loss.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from flm_jax.core.types import Key, Times
from flm_jax.flows.masking import random_subset
from flm_jax.flows.time_sampling import Rows

_STREAM = 2**31 - 3  # apart from the keys that an objective splits off
_DROPOUT = 2**31 - 4


@dataclasses.dataclass(frozen=True)
class ContextConfig:
    """Choice of the positions that are kept clean.

    Attributes:
      share: fraction of the rows with a random clean context: n positions, n uniform in 0..L-1, and
        all sets of n positions equally likely.
      prompt: number of first positions of each row that are always clean.
      dropout: fraction of the rows in which nothing is clean, whatever the others say.
    """

    share: float
    prompt: int
    dropout: float


def clean_context(
    key: Key, batch: dict[str, jax.Array], cfg: ContextConfig, rows: Rows
) -> Bool[Array, "b l"] | None:
    """Draws the mask of clean positions; None if the configuration and the data have none.

    Args:
      key: key of the objective, from which a separate stream is derived.
      batch: "tokens" [B, L]; "prompt" bool [B, L], if present, is clean but for `cfg.dropout`.
    """
    num, length = batch["tokens"].shape
    clean = batch["prompt"].astype(bool) if "prompt" in batch else None
    if cfg.prompt:
        first = jnp.broadcast_to(jnp.arange(length) < cfg.prompt, (num, length))
        clean = first if clean is None else clean | first
    if cfg.share:
        row_key, set_key = jax.random.split(rows.fold(jax.random.fold_in(key, _STREAM)))
        # One number decides both: below the share, uniform in [0, 1) when divided by it.
        u = jax.random.uniform(row_key, (num,)) / cfg.share
        count = jnp.where(u < 1.0, jnp.floor(u * length), 0.0).astype(jnp.int32)
        chosen = random_subset(set_key, count, length)
        clean = chosen if clean is None else clean | chosen
    if cfg.dropout and clean is not None:
        own = rows.fold(jax.random.fold_in(key, _DROPOUT))
        clean = clean & (jax.random.uniform(own, (num, 1)) >= cfg.dropout)
    return clean


def at_clean(clean: Bool[Array, "b l"] | None, *times: Times) -> tuple[Times, ...]:
    """Expands times [B] of rows to [B, L], 1 where clean; unchanged if `clean` is None."""
    if clean is None:
        return times
    return tuple(jnp.where(clean, 1.0, t[:, None]) for t in times)


def counted(mask: jax.Array, clean: Bool[Array, "b l"] | None) -> jax.Array:
    """The mask [B, L] of positions that count: valid and not clean."""
    return mask if clean is None else mask * ~clean
