"""Writing a sequence part by part: what the samplers that never take a token back share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.samplers.base import Given, Samples

Seen = tuple[jax.Array, jax.Array]


class Partial(NamedTuple):
    """A sequence that is partly written.

    Attributes:
      tokens: int32 [B, L].
      masked: bool [B, L], True where not written yet.
      seen: the last read-out (tokens, confidence), each [B, L].
      calls: int32 scalar, network calls so far.
    """

    tokens: jax.Array
    masked: jax.Array
    seen: Seen
    calls: jax.Array


def reveal_in_steps(
    given: Given,
    steps: int,
    predict: Callable[[Partial, jax.Array], Seen],
    plan: Callable[[Partial, jax.Array], tuple[jax.Array, Any]],
    reveal: Callable[[Partial, jax.Array, Any], jax.Array],
) -> Samples:
    """Writes positions in `steps` steps, in one loop; a step that writes none makes no call.

    Args:
      given: written from the start and never changed.
      steps: K >= 1; static.
      predict: (partial, step) -> read-out of one network call, (tokens, confidence), each [B, L].
      plan: (partial, step) -> whether this step writes anything, and what `reveal` needs for it.
      reveal: (partial, confidence, plan) -> positions [B, L] that take their predicted tokens.

    Returns:
      Samples. The read-out of a step without a call is that of the call before.
    """

    def step(partial: Partial, k):
        wanted, details = plan(partial, k)

        def call(partial: Partial) -> Partial:
            seen = predict(partial, k)
            now = partial.masked & reveal(partial, seen[1], details)
            tokens = jnp.where(now, seen[0], partial.tokens)
            return Partial(tokens, partial.masked & ~now, seen, partial.calls + 1)

        partial = jax.lax.cond(wanted, call, lambda partial: partial, partial)
        return partial, partial.seen

    confidence = jnp.where(given.mask, 1.0, 0.0)
    first = Partial(given.tokens, ~given.mask, (given.tokens, confidence), jnp.int32(0))
    last, seen = jax.lax.scan(step, first, jnp.arange(steps))
    return Samples(last.tokens, *seen, last.calls)


def even_share(total: jax.Array, parts: int, part: jax.Array) -> jax.Array:
    """How many of `total` things part `part` of `parts` takes when they are spread evenly."""
    return total // parts + (part < total % parts)
