"""What every loss shares: the form of an objective, and weights over valid tokens."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from flm_jax.core.types import Key, Metrics, Params
from flm_jax.flows.time_sampling import Rows


def number_of(mask: Shaped[Array, "b l"]) -> jax.Array:
    """How many positions count, float32."""
    return jnp.sum(mask.astype(jnp.float32))


def token_weights(mask: Shaped[Array, "b l"]) -> Float[Array, "b l"]:
    """Weights of the mean over valid positions: mask / sum(mask), float32."""
    mask = mask.astype(jnp.float32)
    return mask / jnp.maximum(jnp.sum(mask), 1.0)


class Frozen(NamedTuple):
    """Parameters that an objective uses without training them.

    Attributes:
      teacher: those of the teacher, {} without one.
      average: the averaged ones of the model that is trained.
      tracked: what a `Tracker` holds, None without one.
    """

    teacher: Params
    average: Params
    tracked: Any = None


# objective(params, frozen, batch, key, rows) -> (loss, metrics). The loss is a mean over positions;
# under "counted" the metrics hold their number, by which the parts of a batch are weighted: the
# gradient of a batch then does not depend on the number of its microbatches. Without it all parts
# count alike.
Objective = Callable[[Params, Frozen, dict[str, jax.Array], Key, Rows], tuple[jax.Array, Metrics]]
