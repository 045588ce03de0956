"""Array aliases and plain records that every package may use."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

Key = PRNGKeyArray
Params = dict[str, Any]
Tokens = Int[Array, "*b l"]
States = Float[Array, "b l d"]
Logits = Float[Array, "b l v"]
Times = Float[Array, "..."]
Metrics = dict[str, jax.Array]

Config = dict[str, Any]


class Tracker(NamedTuple):
    """Statistics that an objective gathers and uses, besides its trained parameters.

    The metrics of the objective then hold, under "observed", the sums that a batch adds;
    microbatches share them.

    Attributes:
      fresh: function that returns the statistics at step 0.
      update: function from (statistics, observed, step) to the new statistics.
    """

    fresh: Callable[[], Any]
    update: Callable[[Any, Any, jax.Array], Any]
