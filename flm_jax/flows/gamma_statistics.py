"""The mean cross entropy over gamma and over the hidden fraction, gathered while a flow trains."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.core.types import Times
from flm_jax.flows.gamma_state import RATIO_EDGES, GammaConfig, GammaState


def observe(
    gamma: Times,
    values: Float[Array, "b"],
    weights: Float[Array, "b"],
    share: Float[Array, "b"] | None,
    cfg: GammaConfig,
) -> Float[Array, "r k 3"]:
    """Sums of 1, of values and of their squares over the rows in each cell.

    Args:
      gamma: gamma of each row.
      values: mean cross entropy of each row, nats.
      weights: 0 for rows that are left out (their values may be anything), else 1.
      share: hidden fraction of each row; None for flows without hidden positions, for which it is
        1.

    Returns:
      float32 [19, bins, 3], by hidden fraction and gamma; values at the ends and beyond are in the
      first or last bin.
    """
    # Replaced here, since a weight of 0 times NaN is NaN.
    values = jnp.where(weights > 0.0, values, 0.0)
    edges = jnp.linspace(cfg.low, cfg.high, cfg.bins + 1)
    share = jnp.ones_like(gamma) if share is None else share
    columns = _within(gamma, edges)
    rows = _within(share, jnp.asarray(RATIO_EDGES, gamma.dtype))
    moments = weights[:, None] * jnp.stack([jnp.ones_like(values), values, values**2], axis=1)
    return jnp.einsum("br,bk,bm->rkm", rows, columns, moments, precision=jax.lax.Precision.HIGHEST)


def _within(x: Times, edges: Float[Array, "n"]) -> Float[Array, "b k"]:
    """One-hot bins between ascending edges, [B, number of bins]."""
    bins = edges.shape[0] - 1
    index = jnp.clip(jnp.searchsorted(edges, x, side="right") - 1, 0, bins - 1)
    return jax.nn.one_hot(index, bins, dtype=x.dtype)


def gathered(
    state: GammaState, sums: Float[Array, "r k 3"], due: jax.Array, cfg: GammaConfig
) -> GammaState:
    """Adds the sums of one batch to a state; `due` says whether a fit follows."""
    state = state._replace(examples=state.examples + jnp.sum(sums[..., 0]))
    if cfg.decays == "batch":
        return state._replace(cells=cfg.decay * state.cells + sums)
    fresh = state.fresh + sums
    return state._replace(
        cells=jnp.where(due, cfg.decay * state.cells + fresh, state.cells),
        fresh=jnp.where(due, 0.0, fresh),
    )


class Curve(NamedTuple):
    """Mean cross entropy over gamma.

    Attributes:
      number: [bins], number of rows in each bin of gamma, after decay; 0 where no cell has enough.
      values: [bins], their mean cross entropy, nats; 0 where no cell has enough.
    """

    number: Float[Array, "k"]
    values: Float[Array, "k"]


def curve(state: GammaState, cfg: GammaConfig) -> Curve:
    """Curve that a fit uses: the hidden fractions of cfg, and cells with enough rows."""
    number, total = state.cells[..., 0], state.cells[..., 1]
    used = jnp.asarray(cfg.ratios)[:, None] & (number >= cfg.least_cell)
    number, total = (jnp.sum(jnp.where(used, x, 0.0), axis=0) for x in (number, total))
    seen = number > 0.0
    return Curve(number, jnp.where(seen, total / jnp.where(seen, number, 1.0), 0.0))
