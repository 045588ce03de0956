"""Network calls of samplers that generate in blocks: on full rows, or on a block with cached keys.

Where attention is causal over blocks, generated blocks are final: keys and values of the blocks
before the current one are computed once, and a call on the current block alone gives the same as a
call on the full row. Otherwise all keys change with every token, and keys outside a window of each
row are reused from an earlier call (Fast-dLLM, arXiv 2505.22618): the window is the current block
and all positions after it (prefix), or the block alone (dual).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Params
from flm_jax.denoiser.forward import forward, forward_window, vocabulary_head
from flm_jax.denoiser.head import Readout
from flm_jax.flows.shapes import positions_of
from flm_jax.samplers.base import Given, SamplerConfig, Steps
from flm_jax.samplers.unmasking import Schedule

CACHES = ("auto", "none", "prefix", "dual")


@dataclasses.dataclass(frozen=True)
class BlocksConfig(SamplerConfig):
    """Settings of samplers that generate blocks one after the other."""

    block_length: int = setting(
        0,
        "Length of a block; blocks are generated one after the other from the end of the "
        "prompt. 0 for a single block.",
        unit="tokens",
        range="[0, inf)",
    )
    threshold: float = setting(
        1.0,
        "Probability above which predictions are unmasked beyond the budget; 1 for none.",
        range="[0, 1]",
    )
    cache: str = setting(
        "auto",
        "Positions whose keys and values are cached between calls: none; prefix, those before"
        " the block; dual, all but the block's; auto for prefix where attention is causal "
        "over blocks, which changes nothing, and none elsewhere.",
        choices=CACHES,
    )
    refresh: int = setting(
        0,
        "Number of calls after which a cache that is not exact is recomputed within a block; "
        "0 for never.",
        unit="calls",
        range="[0, inf)",
    )


def check_blocks(cfg: BlocksConfig, net: Network, steps: Steps, objective: Any) -> None:
    """Refuses blocks that are longer than the model's sequences, and caches that do not fit it."""
    del steps
    require(
        cfg.block_length <= net.max_length,
        f"got block_length={cfg.block_length}; expected 0 (one block) to {net.max_length} tokens.",
    )
    cache_of(cfg, net, objective.time_conditioning)


def cache_of(cfg: BlocksConfig, net: Network, time_conditioning: bool) -> str:
    """Kind of cache that a sampler uses: none, exact, prefix or dual.

    Args:
      cfg: settings of the blocks.
      net: network to sample from.
      time_conditioning: whether the network is conditioned on the progress, on which then all keys
        depend.

    Raises:
      UserError: a cache that this network does not support.
    """
    causal = net.block_length
    fits = cfg.block_length and (not causal or cfg.block_length % causal == 0)
    if cfg.cache == "auto":
        able = net.window is not None and causal and fits and not time_conditioning
        return "exact" if able else "none"
    if cfg.cache == "none":
        return "none"
    require(
        net.window is not None and not time_conditioning,
        f"got cache={cfg.cache} for a model that is "
        f"{'told the time' if net.window is not None else 'no llama'}; expected a llama that is "
        "not, or cache=none.",
    )
    require(
        bool(fits),
        f"got cache={cfg.cache} with block_length={cfg.block_length}; expected "
        f"{f'a multiple of {causal}, over which the model is causal' if causal else '1 or more'}.",
    )
    require(
        not (causal and (cfg.cache == "dual" or cfg.refresh)),
        f"got cache={cfg.cache}, refresh={cfg.refresh} for a model that sees blocks causally; "
        "expected cache=prefix, which is exact there, and refresh=0.",
    )
    return "exact" if causal else cfg.cache


class Kept(NamedTuple):
    """Cached keys and values.

    Attributes:
      cache: cache of `Network.window`.
      first: int32 [B]; for an exact cache the number of positions of each row, from its start, that
        are final; else the first position of the block for which the row's cache was computed, -1
        for none.
      age: int32 [B], number of calls of a row since then.
    """

    cache: Params
    first: jax.Array
    age: jax.Array


class Call(NamedTuple):
    """Output of a network at some positions.

    Attributes:
      out: features [B, W, D] with the head.
      places: int32 [B, W], positions in their row; entries beyond the row are undefined.
      kept: state for the next call; None without a cache.
    """

    out: Readout
    places: jax.Array
    kept: Kept | None

    def spread(self, values: jax.Array, rest: jax.Array) -> jax.Array:
        """Scatters values [B, W, ...] to their positions; `rest` [B, L, ...] holds the others."""
        if self.kept is None:
            return values
        # A window may reach past its row; JAX drops what is set beyond the end.
        return rest.at[jnp.arange(len(values))[:, None], self.places].set(values)


class Asker(NamedTuple):
    """A network as a sampler in blocks calls it.

    Attributes:
      start: function from states [B, L, D] to the state for the first call.
      call: function from (state of the call before, states [B, L, D], network times [B], block [B]
        in which each row is, see `Schedule`) to a Call.
    """

    start: Callable[[jax.Array], Kept | None]
    call: Callable[[Kept | None, jax.Array, jax.Array, jax.Array], Call]


def asker(
    net: Network,
    params: Params,
    given: Given,
    plan: Schedule | None,
    cfg: BlocksConfig | None,
    time_conditioning: bool,
) -> Asker:
    """Returns the calls of a network; without settings they are on full rows.

    Args:
      net, params: network and its parameters.
      given: prescribed tokens, and the positions that attention may see.
      plan: schedule that says which positions form the blocks.
      cfg: settings of blocks and cache; None for full rows.
      time_conditioning: the same as for `cache_of`.
    """
    kind = cache_of(cfg, net, time_conditioning) if cfg else "none"
    if kind == "none":
        return _whole(net, params, given)
    if kind == "exact":
        return _exact(net, params, given, plan, cfg.block_length)
    return _refreshed(net, params, given, plan, cfg, kind)


def _whole(net: Network, params: Params, given: Given) -> Asker:
    places = positions_of(given.tokens)

    def call(kept, states, told, block) -> Call:
        out = forward(net, params, states, told, told, visible=given.visible)
        return Call(out, places, None)

    return Asker(lambda states: None, call)


def _first(plan: Schedule, block: jax.Array) -> jax.Array:
    """First position of the block in which each row is, [B]; 0 when it is done."""
    # The argmax of booleans is the first true one.
    found = jnp.argmax(plan.place == block[:, None], axis=1)
    return jnp.where(block < plan.blocks, found, 0).astype(jnp.int32)


def _windows(net: Network, params: Params, given: Given) -> Callable[..., tuple[Readout, Params]]:
    """Returns (cache, states [B, L, D], first position [B], W) -> readout of W positions, cache.

    A width of None stands for all positions of a row.
    """
    rows = given.tokens.shape[0]
    none = jnp.zeros(rows)

    def run(cache, states, first, width):
        if width is None:
            return forward_window(net, params, cache, states, none, visible=given.visible)
        places = places_of(first, width)
        own = jnp.take_along_axis(states, places[..., None], axis=1, mode="clip")
        return forward_window(net, params, cache, own, none, places=places, visible=given.visible)

    return run


def places_of(first: jax.Array, width: int) -> jax.Array:
    """Returns `width` consecutive positions [B, W] from each first one."""
    return first[:, None] + jnp.arange(width)[None]


def _exact(net: Network, params: Params, given: Given, plan: Schedule, size: int) -> Asker:
    """Calls for networks with block-causal attention.

    A call covers the current block. Before a row starts its next block, the completed one is called
    once more for its keys, and so are prescribed blocks in between.
    """
    rows, length = given.tokens.shape
    window = _windows(net, params, given)

    def start(states) -> Kept:
        # Positions are settled up to the first block that is written.
        block = jnp.min(plan.place, axis=1)
        _, cache = window(net.cache(rows, length), states, None, None)
        return Kept(cache, _first(plan, block) // size * size, jnp.zeros(rows, jnp.int32))

    def call(kept, states, told, block) -> Call:
        aim = _first(plan, block) // size * size

        def settle(kept: Kept) -> Kept:
            _, cache = window(kept.cache, states, kept.first, size)
            return kept._replace(cache=cache, first=jnp.minimum(kept.first + size, aim))

        # Rows that have caught up compute their current block anew in the meantime, which changes
        # nothing. The first position of a row that is done is 0, so that it never holds up the
        # others.
        behind = lambda kept: jnp.any(kept.first < aim)
        kept = jax.lax.while_loop(behind, settle, kept._replace(first=jnp.minimum(kept.first, aim)))
        out, cache = window(kept.cache, states, aim, size)
        return Call(out, places_of(aim, size), kept._replace(cache=cache))

    return Asker(start, call)


def _refreshed(
    net: Network, params: Params, given: Given, plan: Schedule, cfg: BlocksConfig, kind: str
) -> Asker:
    """Calls for networks in which all positions attend to each other.

    A row's cache is recomputed, by a call on full rows, when it starts a block, and after
    cfg.refresh calls. The block's own output always comes from a call on its window, so that a row
    does not depend on the times at which others recompute theirs.
    """
    rows, length = given.tokens.shape
    window, size = _windows(net, params, given), cfg.block_length
    # Doubled: with few widths lax.switch compiles few branches, and no window is twice what is
    # needed.
    widths = [size]
    while kind == "prefix" and widths[-1] < length:
        widths.append(min(2 * widths[-1], length))

    def start(states) -> Kept:
        return Kept(net.cache(rows, length), jnp.full(rows, -1), jnp.zeros(rows, jnp.int32))

    def call(kept, states, told, block) -> Call:
        first, going = _first(plan, block), block < plan.blocks
        due = kept.first != first
        if cfg.refresh:
            due |= kept.age >= cfg.refresh
        due &= going

        def anew(old: Params) -> Params:
            _, new = window(old, states, None, None)
            # Rows lie on the second axis, behind the blocks.
            own = lambda x: due.reshape(1, -1, *[1] * (x.ndim - 2))
            return jax.tree.map(lambda new, old: jnp.where(own(old), new, old), new, old)

        cache = jax.lax.cond(jnp.any(due), anew, lambda old: old, kept.cache)

        def of_width(width: int):
            def run(cache):
                out, cache = window(cache, states, first, width)
                return out.features[:, :size], cache

            return run

        # The narrowest window that reaches the end of all rows that are written.
        needed = jnp.max(jnp.where(going, length - first, size)) if kind == "prefix" else size
        which = jnp.sum(jnp.asarray(widths) < needed)
        features, cache = jax.lax.switch(which, [of_width(width) for width in widths], cache)
        age = jnp.where(due, 1, kept.age + 1)
        now = Kept(cache, jnp.where(going, first, kept.first), age)
        return Call(Readout(features, *vocabulary_head(net, params)), places_of(first, size), now)

    return Asker(start, call)
