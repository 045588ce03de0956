"""What the samplers share: start, given tokens, read-out, grid, result."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.settings import check_values
from flm_jax.core.types import Times


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Settings of a sampler; values that a setting does not allow are refused when it is made."""

    def __post_init__(self):
        check_values(self, "sampler")


class Given(NamedTuple):
    """Prescribed tokens of a prompt or an infill: tokens int32 [B, L], mask bool [B, L]."""

    tokens: Int[Array, "b l"]
    mask: Bool[Array, "b l"]


class Samples(NamedTuple):
    """Result of a sampler.

    Attributes:
      tokens: [B, L], argmax of the last denoiser output, or drawn from it; given positions are
        exactly as given.
      steps_tokens: [K, B, L], the same read-out after each network call.
      steps_confidence: [K, B, L], the largest probability at each; where tokens are drawn, that of
        the token drawn.
      calls: int32 scalar, network calls made, where these are not K; else None.
      steps_progress: [K, B, L], t of each position after each call, where each has its own; else
        None.
    """

    tokens: Int[Array, "b l"]
    steps_tokens: Int[Array, "k b l"]
    steps_confidence: Float[Array, "k b l"]
    calls: Int[Array, ""] | None = None
    steps_progress: Float[Array, "k b l"] | None = None


def check_blocks(cfg: Any, net: Network, steps: int, objective: Any) -> None:
    """Refuses blocks that are longer than the model's sequences."""
    del steps, objective
    require(
        cfg.block_length <= net.max_length,
        f"got block_length={cfg.block_length}; expected 0 (one block) to {net.max_length} tokens.",
    )


class Blocks(NamedTuple):
    """Positions written in turn from the left: `number` blocks of `size`, `calls` for each."""

    size: int
    number: int
    calls: int


def in_blocks(steps: int, length: int, block_length: int) -> Blocks:
    """Splits `steps` calls over blocks of `block_length` positions; 0 for one block.

    Raises:
      UserError: steps that do not divide over the blocks.
    """
    size = block_length or length
    number = -(-length // size)
    require(
        steps % number == 0,
        f"{steps} steps do not divide over {number} blocks of {size} tokens; give a multiple of "
        f"{number}, or another block length.",
    )
    return Blocks(size, number, steps // number)


def nothing_given(num: int, length: int) -> Given:
    """Unconditional sampling."""
    return Given(jnp.zeros((num, length), jnp.int32), jnp.zeros((num, length), bool))


def held_times(net: Network, given: Given, time: Times | float) -> Times:
    """A time, scalar or [B], as the network takes it.

    [B]; of an any-order network [B, L], with given positions at time 1.
    """
    time = jnp.broadcast_to(time, given.mask.shape[:1])
    return jnp.where(given.mask, 1.0, time[:, None]) if net.any_order else time
