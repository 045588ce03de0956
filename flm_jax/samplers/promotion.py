"""Online token promotion of masked flows (arXiv 2606.27617): hidden positions become context.

A position is promoted when its token reaches the confidence threshold. If fewer than `least` reach
it, the most confident positions are promoted as well up to that number.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flm_jax.flows.masking import highest

EOS_POLICIES = ("free", "separate", "ordered", "never")


def promoted(
    tokens: Int[Array, "b l"],
    confidence: Float[Array, "b l"],
    hidden: Bool[Array, "b l"],
    *,
    threshold: float,
    least: int,
    eos: str,
    eos_id: int,
) -> Bool[Array, "b l"]:
    """Mask of the hidden positions that become context.

    Args:
      tokens, confidence: candidate of each position, and its probability.
      hidden: positions that are not context yet.
      threshold: confidence from which a position is promoted.
      least: smallest number of positions to promote in each row, if it has as many hidden ones; 0
        for none.
      eos: treatment of candidates that end the text: "free" like any other; "separate" likewise,
        but in making up `least` they and the other candidates each contribute in proportion to
        their numbers; "ordered" only when all positions before them are context; "never" as if
        their confidence were 0.
      eos_id: end-of-text token; -1 where there is none.
    """
    ends = hidden & (tokens == eos_id) & (eos_id >= 0)
    if eos == "never":
        confidence = jnp.where(ends, 0.0, confidence)
    sure = hidden & (confidence >= threshold)
    if eos == "ordered":
        sure = sure & (~ends | _written_before(~hidden | sure))
    if not least:
        return sure
    wanted = jnp.minimum(least, jnp.sum(hidden, axis=1))
    if eos == "separate":
        # Rounds half to even, as the authors' code does.
        share = jnp.sum(ends, axis=1) / jnp.maximum(jnp.sum(hidden, axis=1), 1)
        quota = jnp.round(wanted * share).astype(jnp.int32)
        best = highest(confidence, ends, quota)
        best = best | highest(confidence, hidden & ~ends, wanted - quota)
    else:
        best = highest(confidence, hidden, wanted)
    short = jnp.sum(sure, axis=1) < wanted
    return jnp.where(short[:, None], sure | best, sure)


def _written_before(written: Bool[Array, "b l"]) -> Bool[Array, "b l"]:
    """Positions before which all others are context: the first gap stops all after it."""
    before = jnp.pad(written, ((0, 0), (1, 0)), constant_values=True)[:, :-1]
    return jnp.cumprod(before.astype(jnp.int32), axis=1) > 0
