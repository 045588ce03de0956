"""Learnt states of the distribution of gamma from older versions, converted to this version's."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.flows.gamma_fit import increasing, logistic_knots
from flm_jax.flows.gamma_state import KNOTS, GammaConfig, GammaState, fresh_state


class OlderState(NamedTuple):
    """State from before cross entropies were binned by the hidden fraction, float32.

    Attributes:
      total, count: [bins], decayed sums of cross entropies (nats) and of examples.
      examples: number of examples seen in total.
      shape: (mu, b, a) of the last accepted fit, which is the distribution itself unless empirical.
      knots: [101] quantiles of an empirical distribution.
      r2, ready: the same as in `GammaState`.
    """

    total: Float[Array, "k"]
    count: Float[Array, "k"]
    examples: jax.Array
    shape: Float[Array, "3"]
    knots: Float[Array, "n"]
    r2: jax.Array
    ready: jax.Array


def older_state(cfg: GammaConfig) -> OlderState:
    """Returns the state before any batch."""
    zero, zeros = jnp.zeros(()), jnp.zeros(cfg.bins)
    return OlderState(zeros, zeros, zero, jnp.zeros(3), jnp.zeros(KNOTS), zero, zero)


def as_now(state: OlderState, cfg: GammaConfig) -> GammaState:
    """Converts a state without its statistics, which only further training would need."""
    knots = logistic_knots if cfg.learnt == "logistic" else lambda shape, cfg: state.knots
    known = fresh_state(cfg)._replace(examples=state.examples, r2=state.r2, ready=state.ready)
    if not state.ready:
        return known
    return known._replace(
        shape=jnp.asarray(state.shape),
        knots=increasing(jnp.asarray(knots(jnp.asarray(state.shape), cfg)), cfg),
    )
