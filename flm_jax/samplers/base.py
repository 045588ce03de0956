"""What the samplers share: start, given tokens, read-out, grid, result."""

import dataclasses
from fractions import Fraction
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flm_jax.core.errors import UserError, require
from flm_jax.core.network import Network
from flm_jax.core.settings import check_values
from flm_jax.core.types import Times


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Settings of a sampler; values that a setting does not allow are refused when it is made."""

    def __post_init__(self):
        check_values(self, "sampler")


class Given(NamedTuple):
    """What is prescribed of rows that are to be written: of a prompt, an infill, a length.

    Attributes:
      tokens: int32 [B, L].
      mask: bool [B, L], True where the token is given.
      visible: bool [B, L], True where the network may look; None for everywhere. What is not
        visible is given.
    """

    tokens: Int[Array, "b l"]
    mask: Bool[Array, "b l"]
    visible: Bool[Array, "b l"] | None = None


@dataclasses.dataclass(frozen=True)
class Share:
    """Network calls of a row as a share of the tokens that it has to write, rounded up."""

    numerator: int
    denominator: int

    def __post_init__(self):
        require(
            0 < self.numerator <= self.denominator,
            f"got a share of {self} calls a token; expected more than 0 and at most 1, such as "
            "1/4.",
        )

    def __str__(self) -> str:
        return f"{self.numerator}/{self.denominator}"

    def calls(self, tokens: int) -> int:
        """Network calls of a row that has so many tokens to write."""
        return -(-self.numerator * tokens // self.denominator)


# Network calls of a row: a number, or a share of the tokens that it has to write.
Steps = int | Share


def read_steps(text: str) -> Steps:
    """A number of network calls, "64", or a share of the tokens to write, "1/4" or "0.25".

    Raises:
      UserError: neither.
    """
    part = "/" in text or "." in text
    try:
        found = Fraction(text) if part else int(text)
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"got steps={text}; expected a whole number of network calls such as 64, or a share of "
            "the tokens to write such as 1/4 or 0.25."
        ) from error
    return Share(*found.as_integer_ratio()) if part else int(found)


def plain_steps(steps: Steps) -> int | str:
    """What `read_steps` reads, as records hold it."""
    return str(steps) if isinstance(steps, Share) else steps


def most_calls(steps: Steps, length: int) -> int:
    """Network calls of a row of which all `length` tokens are to be written."""
    return steps.calls(length) if isinstance(steps, Share) else steps


def calls_of(steps: Steps, tokens: Int[Array, "b"], length: int) -> Int[Array, "b"]:
    """Network calls of rows with so many tokens to write, at most `length` each."""
    calls = [most_calls(steps, count) for count in range(length + 1)]
    return jnp.asarray(calls, jnp.int32)[tokens]


def calls_of_rows(steps: Steps, given: Given) -> Int[Array, "b"]:
    """Network calls of each row, [B]; 1 of a row that is all given."""
    free = jnp.sum(~given.mask, axis=1)
    return jnp.maximum(calls_of(steps, free, given.mask.shape[1]), 1)


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


def nothing_given(num: int, length: int) -> Given:
    """Unconditional sampling."""
    return Given(jnp.zeros((num, length), jnp.int32), jnp.zeros((num, length), bool))


def held_times(net: Network, given: Given, time: Times | float) -> Times:
    """A time, scalar or [B], as the network takes it.

    [B]; of an any-order network [B, L], with given positions at time 1.
    """
    time = jnp.broadcast_to(time, given.mask.shape[:1])
    return jnp.where(given.mask, 1.0, time[:, None]) if net.any_order else time
