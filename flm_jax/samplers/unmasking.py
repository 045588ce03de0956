"""Generation of a sequence part by part, shared by the samplers that never change a token again."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.samplers.base import Given, Samples, Steps, calls_of, most_calls
from flm_jax.samplers.watching import show

Seen = tuple[jax.Array, jax.Array]


class Schedule(NamedTuple):
    """Calls in which the positions of each row are unmasked: block after block, from the left.

    Attributes:
      place: int32 [B, L], block of each position, counted from the first block of the row that has
        positions to generate; `blocks` at prescribed positions.
      total: int32 [B, N], number of positions to generate in each block.
      ends: int32 [B, N], number of network calls of the row after which each block is complete.
    """

    place: Int[Array, "b l"]
    total: Int[Array, "b n"]
    ends: Int[Array, "b n"]

    @property
    def blocks(self) -> int:
        """Number of blocks N, larger than any block's index."""
        return self.ends.shape[1]

    def at(self, call: jax.Array) -> Int[Array, "b"]:
        """Block in which each row is at a call; `blocks` when it is done."""
        return jnp.sum(self.ends <= call, axis=1)

    def span(self, block: Int[Array, "b"]) -> tuple[Int[Array, "b"], Int[Array, "b"]]:
        """First call of a block of each row, and its number of calls; 0 after the last block."""
        # A 0 before the first block, and the last end again behind the last, whose rows are done.
        ends = jnp.pad(self.ends, ((0, 0), (1, 0)))
        ends = jnp.pad(ends, ((0, 0), (0, 1)), mode="edge")
        first, last = (_pick(ends, block + more) for more in (0, 1))
        return first, last - first

    def todo(self, block: Int[Array, "b"]) -> Int[Array, "b"]:
        """Number of positions to generate in a block of each row; 0 after the last block."""
        return _pick(jnp.pad(self.total, ((0, 0), (0, 1))), block)

    def due(self, calls: jax.Array) -> Int[Array, "b"]:
        """Number of positions of each row that are generated after this number of calls."""
        block = self.at(calls)
        first, parts = self.span(block)
        whole = jnp.pad(jnp.cumsum(self.total, axis=1), ((0, 0), (1, 0)))
        # All of the blocks before, and of this one an even part for each of its calls so far, of
        # which the first todo % parts have one position more.
        todo, done = self.todo(block), calls - first
        parts = jnp.maximum(parts, 1)
        return _pick(whole, block) + done * (todo // parts) + jnp.minimum(done, todo % parts)


def _pick(x_BN: jax.Array, index_B: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_BN, index_B[:, None], axis=1)[:, 0]


def _counts(place: Int[Array, "b l"], blocks: int) -> Int[Array, "b n"]:
    """Number of positions in each of N blocks."""
    return jnp.sum(place[..., None] == jnp.arange(blocks)[None, None], axis=1, dtype=jnp.int32)


def _numbered(net: Network, mask: Bool[Array, "b l"], size: int, blocks: int):
    """Block of each position as in `Schedule.place`, [B, L], and number of blocks [B].

    Blocks start at the end of a row's prompt; for a network with block-causal attention they are
    its own blocks, which start at the row's start: it was trained to see one block complete before
    it generates the next.
    """
    free = ~mask
    first = jnp.argmax(free, axis=1)[:, None] * (net.block_length == 0)
    place = jnp.clip((jnp.arange(mask.shape[1])[None] - first) // size, 0)
    holds = _counts(jnp.where(free, place, blocks), blocks) > 0
    # Blocks that are prescribed throughout are skipped: the others are numbered by their ranks.
    rank = jnp.cumsum(holds, axis=1, dtype=jnp.int32) - 1
    place = jnp.take_along_axis(rank, place, axis=1)
    return jnp.where(free, place, blocks), jnp.sum(holds, axis=1, dtype=jnp.int32)


def schedule(net: Network, given: Given, steps: Steps, block_length: int) -> Schedule:
    """Spreads the network calls of each row over its blocks.

    Each block has one call, and the remaining calls are spread in proportion to its positions to
    generate; the blocks and calls of a row depend on that row alone. With fewer calls than blocks,
    the last call covers all blocks that are left.

    Args:
      net: network to sample from, see `Network.block_length`.
      given: prescribed positions.
      steps: number of network calls of a row, or their fraction of the tokens to generate.
      block_length: number of positions in a block; 0 for a single block.
    """
    length = given.mask.shape[1]
    size = block_length or length
    blocks = -(-length // size)
    place, number = _numbered(net, given.mask, size, blocks)
    free = jnp.sum(~given.mask, axis=1, dtype=jnp.int32)
    calls = calls_of(steps, free, length)
    place = jnp.where(given.mask, blocks, jnp.minimum(place, calls[:, None] - 1))
    total = _counts(place, blocks)
    extra = jnp.maximum(calls - number, 0)[:, None] * jnp.cumsum(total, axis=1)
    # One call for each block plus its part of the others, rounded up (- -x // y).
    ends = jnp.arange(1, blocks + 1)[None] - -extra // jnp.maximum(free, 1)[:, None]
    return Schedule(place, total, jnp.minimum(ends, calls[:, None]))


def check_calls(net: Network, given: Given, steps: Steps, block_length: int) -> None:
    """Refuses rows with fewer network calls than blocks; for concrete arrays.

    Raises:
      UserError: there is such a row.
    """
    if not block_length:
        return
    free = ~np.asarray(given.mask)
    first = np.argmax(free, axis=1)[:, None] * (net.block_length == 0)
    place = (np.arange(free.shape[1])[None] - first) // block_length
    blocks = np.array([len(np.unique(row[own])) for row, own in zip(place, free)])
    calls = np.array([most_calls(steps, int(count)) for count in free.sum(axis=1)])
    short = np.flatnonzero(calls < blocks)
    row = short[0] if len(short) else 0
    require(
        not len(short),
        f"steps={steps} are {calls[row]} network calls for the {blocks[row]} blocks of "
        f"{block_length} tokens that a row has to write; expected at least one call a block.",
    )


class Partial(NamedTuple):
    """A sequence that is partly generated.

    Attributes:
      tokens: int32 [B, L].
      masked: bool [B, L], True where no token is fixed yet.
      seen: last predictions (tokens, confidence), each [B, L].
      calls: int32 scalar, number of network calls so far.
      kept: state passed from one call to the next, such as a cache.
    """

    tokens: jax.Array
    masked: jax.Array
    seen: Seen
    calls: jax.Array
    kept: Any


def reveal_in_steps(
    given: Given,
    steps: Steps,
    predict: Callable[[Partial, jax.Array], tuple[Seen, Any]],
    plan: Callable[[Partial, jax.Array], tuple[jax.Array, Any]],
    reveal: Callable[[Partial, jax.Array, Any], jax.Array],
    kept: Any = None,
) -> Samples:
    """Unmasks positions step by step, in one loop; a step that unmasks none makes no call.

    Args:
      given: prescribed tokens, present from the start and never changed.
      steps: number of steps, as network calls of a row; static.
      predict: function from (partial, step) to the predictions of one network call, (tokens,
        confidence), each [B, L], and the state for the next call.
      plan: function from (partial, step) to whether this step unmasks anything, and the data that
        `reveal` needs.
      reveal: function from (partial, confidence, plan) to the positions [B, L] that take their
        predicted tokens.
      kept: state for the first call.

    Returns:
      Samples. A step without a call repeats the predictions of the call before.
    """

    def step(partial: Partial, k):
        wanted, details = plan(partial, k)

        def call(partial: Partial) -> Partial:
            seen, kept = predict(partial, k)
            now = partial.masked & reveal(partial, seen[1], details)
            tokens = jnp.where(now, seen[0], partial.tokens)
            return Partial(tokens, partial.masked & ~now, seen, partial.calls + 1, kept)

        partial = jax.lax.cond(wanted, call, lambda partial: partial, partial)
        follows = wanted & jnp.any(partial.masked)
        tokens = show(k, partial.seen[0], partial.tokens, follows)
        return partial._replace(tokens=tokens), partial.seen

    confidence = jnp.where(given.mask, 1.0, 0.0)
    first = Partial(given.tokens, ~given.mask, (given.tokens, confidence), jnp.int32(0), kept)
    last, seen = jax.lax.scan(step, first, jnp.arange(most_calls(steps, given.mask.shape[1])))
    return Samples(last.tokens, *seen, last.calls)


def even_share(total: jax.Array, parts: jax.Array | int, part: jax.Array) -> jax.Array:
    """Number of `total` items in part `part` of `parts` when they are spread evenly."""
    return total // parts + (part < total % parts)
