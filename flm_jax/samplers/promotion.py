"""Online token promotion of masked flows (arXiv 2606.27617): which hidden positions become context.

A position is promoted when its token has at least the confidence asked for. Where fewer than
`least` have it, the most confident ones make up the number.
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
    """Hidden positions that become context.

    Args:
      tokens, confidence: the candidate of each position, and its probability.
      hidden: positions that are not context yet.
      threshold: confidence from which a position is promoted.
      least: positions of each row to promote at least, as far as it has hidden ones; 0 for none.
      eos: how candidates that end the text are treated: "free" as any other; "separate" as well,
        but where `least` is made up, they and the others give each a part in proportion to their
        numbers; "ordered" only when all before them is context; "never" as of confidence 0.
      eos_id: the end of text; -1 where there is none.
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
    """Positions before which every other one is written: the first gap stops all after it."""
    before = jnp.pad(written, ((0, 0), (1, 0)), constant_values=True)[:, :-1]
    return jnp.cumprod(before.astype(jnp.int32), axis=1) > 0
