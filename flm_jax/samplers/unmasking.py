"""Writing a sequence part by part: what the samplers that never take a token back share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.samplers.base import Given, Samples, Steps, calls_of, most_calls

Seen = tuple[jax.Array, jax.Array]


class Schedule(NamedTuple):
    """When the positions of each row are written: block after block, from the left.

    Attributes:
      place: int32 [B, L], block of each position, counted from the first block of the row that has
        something to write; `blocks` where nothing is to be written.
      total: int32 [B, N], positions to write in each block.
      ends: int32 [B, N], network calls of the row after which each block is written.
    """

    place: Int[Array, "b l"]
    total: Int[Array, "b n"]
    ends: Int[Array, "b n"]

    @property
    def blocks(self) -> int:
        """N, more than any block's place."""
        return self.ends.shape[1]

    def at(self, call: jax.Array) -> Int[Array, "b"]:
        """The block that each row is in at a call; `blocks` where it is done."""
        return jnp.sum(self.ends <= call, axis=1)

    def span(self, block: Int[Array, "b"]) -> tuple[Int[Array, "b"], Int[Array, "b"]]:
        """First call of a block of each row, and how many it has; none past the last block."""
        ends = jnp.pad(self.ends, ((0, 0), (1, 0)))
        ends = jnp.pad(ends, ((0, 0), (0, 1)), mode="edge")
        first, last = (_pick(ends, block + more) for more in (0, 1))
        return first, last - first

    def todo(self, block: Int[Array, "b"]) -> Int[Array, "b"]:
        """Positions to write in a block of each row; none past the last block."""
        return _pick(jnp.pad(self.total, ((0, 0), (0, 1))), block)

    def due(self, calls: jax.Array) -> Int[Array, "b"]:
        """Positions of each row that are written after so many calls."""
        block = self.at(calls)
        first, parts = self.span(block)
        whole = jnp.pad(jnp.cumsum(self.total, axis=1), ((0, 0), (1, 0)))
        todo, done = self.todo(block), calls - first
        parts = jnp.maximum(parts, 1)
        return _pick(whole, block) + done * (todo // parts) + jnp.minimum(done, todo % parts)


def _pick(x_BN: jax.Array, index_B: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x_BN, index_B[:, None], axis=1)[:, 0]


def _counts(place: Int[Array, "b l"], blocks: int) -> Int[Array, "b n"]:
    """Positions in each of N blocks."""
    return jnp.sum(place[..., None] == jnp.arange(blocks)[None, None], axis=1, dtype=jnp.int32)


def _numbered(net: Network, mask: Bool[Array, "b l"], size: int, blocks: int):
    """Block of each position as `Schedule.place`, [B, L], and how many each row has, [B].

    Blocks begin where a row begins to be written, at the end of its prompt; of a network that sees
    blocks they are its own, which begin at the row's start: it was trained to see a block written
    before it writes the next.
    """
    free = ~mask
    first = jnp.argmax(free, axis=1)[:, None] * (net.block_length == 0)
    place = jnp.clip((jnp.arange(mask.shape[1])[None] - first) // size, 0)
    holds = _counts(jnp.where(free, place, blocks), blocks) > 0
    rank = jnp.cumsum(holds, axis=1, dtype=jnp.int32) - 1
    place = jnp.take_along_axis(rank, place, axis=1)
    return jnp.where(free, place, blocks), jnp.sum(holds, axis=1, dtype=jnp.int32)


def schedule(net: Network, given: Given, steps: Steps, block_length: int) -> Schedule:
    """Spreads the network calls of each row over its blocks.

    A block has one call, and of the others as many as it has of the positions to write; a row's
    blocks and calls depend on that row alone. Where there are fewer calls than blocks, the last
    call is of all blocks that are left.

    Args:
      net: what is sampled, see `Network.block_length`.
      given: prescribed positions.
      steps: network calls of a row, or their share of the tokens to write.
      block_length: positions in a block; 0 for one block.
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
    ends = jnp.arange(1, blocks + 1)[None] - -extra // jnp.maximum(free, 1)[:, None]
    return Schedule(place, total, jnp.minimum(ends, calls[:, None]))


def check_calls(net: Network, given: Given, steps: Steps, block_length: int) -> None:
    """Refuses rows with fewer network calls than blocks; for concrete arrays.

    Raises:
      UserError: such a row.
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
    """A sequence that is partly written.

    Attributes:
      tokens: int32 [B, L].
      masked: bool [B, L], True where not written yet.
      seen: the last read-out (tokens, confidence), each [B, L].
      calls: int32 scalar, network calls so far.
      kept: what a call leaves to the next one.
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
    """Writes positions step by step, in one loop; a step that writes none makes no call.

    Args:
      given: written from the start and never changed.
      steps: how many, as network calls of a row; static.
      predict: (partial, step) -> read-out of one network call, (tokens, confidence), each [B, L],
        and what it leaves to the next one.
      plan: (partial, step) -> whether this step writes anything, and what `reveal` needs for it.
      reveal: (partial, confidence, plan) -> positions [B, L] that take their predicted tokens.
      kept: what the first call goes on from.

    Returns:
      Samples. The read-out of a step without a call is that of the call before.
    """

    def step(partial: Partial, k):
        wanted, details = plan(partial, k)

        def call(partial: Partial) -> Partial:
            seen, kept = predict(partial, k)
            now = partial.masked & reveal(partial, seen[1], details)
            tokens = jnp.where(now, seen[0], partial.tokens)
            return Partial(tokens, partial.masked & ~now, seen, partial.calls + 1, kept)

        partial = jax.lax.cond(wanted, call, lambda partial: partial, partial)
        return partial, partial.seen

    confidence = jnp.where(given.mask, 1.0, 0.0)
    first = Partial(given.tokens, ~given.mask, (given.tokens, confidence), jnp.int32(0), kept)
    last, seen = jax.lax.scan(step, first, jnp.arange(most_calls(steps, given.mask.shape[1])))
    return Samples(last.tokens, *seen, last.calls)


def even_share(total: jax.Array, parts: jax.Array | int, part: jax.Array) -> jax.Array:
    """How many of `total` things part `part` of `parts` takes when they are spread evenly."""
    return total // parts + (part < total % parts)
