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
    """Statistics that an objective gathers and uses, besides what it trains.

    Its metrics then hold, under "observed", what a batch adds: sums, which microbatches share.

    Attributes:
      fresh: () -> statistics at step 0.
      update: (statistics, observed, step) -> statistics.
    """

    fresh: Callable[[], Any]
    update: Callable[[Any, Any, jax.Array], Any]
