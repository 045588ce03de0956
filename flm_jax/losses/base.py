"""Definitions that all losses share: the form of an objective, and weights over valid tokens."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from flm_jax.core.types import Key, Metrics, Params
from flm_jax.flows.time_sampling import Rows


def number_of(mask: Shaped[Array, "b l"]) -> jax.Array:
    """Number of positions that count, float32."""
    return jnp.sum(mask.astype(jnp.float32))


def token_weights(mask: Shaped[Array, "b l"]) -> Float[Array, "b l"]:
    """Weights of the mean over valid positions: mask / sum(mask), float32."""
    mask = mask.astype(jnp.float32)
    return mask / jnp.maximum(jnp.sum(mask), 1.0)


def row_means(
    values: Float[Array, "b l"], mask: Shaped[Array, "b l"]
) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """Mean of each row over the positions that count, 0 where none does, and their number."""
    mask = mask.astype(jnp.float32)
    number = jnp.sum(mask, axis=1)
    return jnp.sum(mask * values, axis=1) / jnp.maximum(number, 1.0), number


class Frozen(NamedTuple):
    """Parameters that an objective uses without training them.

    Attributes:
      teacher: parameters of the teacher, {} without one.
      average: averaged parameters of the trained model.
      tracked: statistics of a `Tracker`, None without one.
      other: parameters of the network that is trained alternately with this one (see `Auxiliary`),
        or of the renewed teacher (see `Renewal`); {} without one.
      step: int32, number of steps taken before, for objectives that change during training.
    """

    teacher: Params
    average: Params
    tracked: Any = None
    other: Params = {}
    step: jax.Array | int = 0


# objective(params, frozen, batch, key, rows) -> (loss, metrics). The loss is a mean over positions;
# under "counted" the metrics hold their number, by which the parts of a batch are weighted: the
# gradient of a batch then does not depend on the number of its microbatches. Without it all parts
# count alike.
Objective = Callable[[Params, Frozen, dict[str, jax.Array], Key, Rows], tuple[jax.Array, Metrics]]


class Auxiliary(NamedTuple):
    """A network that is trained beside the model, for the model's objective alone.

    Each of the two networks has the other's parameters in `Frozen.other`.

    Attributes:
      objective: loss of its parameters.
      updates: number of its updates in each step, all before the model's one; every update has its
        own part of the batch.
      lead: number of first steps, in which it alone is trained.
      lr: peak learning rate; 0 for the model's.
      initial: function from parameters that are initialised like the model's, by the teacher, to
        its own.
    """

    objective: Objective
    updates: int
    lead: int
    lr: float
    initial: Callable[[Params], Params] = lambda params: params


class Renewal(NamedTuple):
    """A teacher that is renewed during training; at first it is the initial model.

    The objective has its parameters in `Frozen.other`.

    Attributes:
      every: number of steps between renewals.
      average: whether the new teacher has the model's averaged parameters; else it has the current
        ones.
      restart: whether the model continues from its averaged parameters too.
    """

    every: int
    average: bool
    restart: bool
