"""Array aliases that every package may use."""

from typing import Any

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
