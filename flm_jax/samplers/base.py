"""Types and functions that all samplers share: prescribed tokens, step counts and results."""

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
    """Settings of a sampler; invalid values are refused when an instance is created."""

    def __post_init__(self):
        check_values(self, "sampler")


class Given(NamedTuple):
    """Prescribed tokens of rows that are to be generated: a prompt, an infill or a length.

    Attributes:
      tokens: int32 [B, L].
      mask: bool [B, L], True where the token is prescribed.
      visible: bool [B, L], True at positions that the network may attend to; None for all.
        Positions that are not visible are prescribed.
    """

    tokens: Int[Array, "b l"]
    mask: Bool[Array, "b l"]
    visible: Bool[Array, "b l"] | None = None


@dataclasses.dataclass(frozen=True)
class Share:
    """Number of network calls as a fraction of the tokens to generate, rounded up."""

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
        """Number of network calls of a row with this number of tokens to generate."""
        return -(-self.numerator * tokens // self.denominator)


# Network calls of a row: a number, or a share of the tokens that it has to write.
Steps = int | Share


def read_steps(text: str) -> Steps:
    """Parses a number of network calls, "64", or a fraction of the tokens to generate, "1/4".

    Raises:
      UserError: the text is neither of them, nor a decimal fraction such as "0.25".
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
    """Returns steps in the form that records hold and `read_steps` parses."""
    return str(steps) if isinstance(steps, Share) else steps


def most_calls(steps: Steps, length: int) -> int:
    """Number of network calls of a row of `length` tokens, all of which are generated."""
    return steps.calls(length) if isinstance(steps, Share) else steps


def calls_of(steps: Steps, tokens: Int[Array, "b"], length: int) -> Int[Array, "b"]:
    """Number of network calls of rows with these numbers of tokens to generate, up to `length`."""
    # A table from Python's exact fractions: float32 would round some shares up by one call.
    calls = [most_calls(steps, count) for count in range(length + 1)]
    return jnp.asarray(calls, jnp.int32)[tokens]


def calls_of_rows(steps: Steps, given: Given) -> Int[Array, "b"]:
    """Number of network calls of each row, [B]; 1 for a row that is entirely prescribed."""
    free = jnp.sum(~given.mask, axis=1)
    return jnp.maximum(calls_of(steps, free, given.mask.shape[1]), 1)


class Samples(NamedTuple):
    """Result of a sampler.

    Attributes:
      tokens: [B, L], argmax of the last denoiser output, or drawn from it; prescribed positions are
        kept exactly.
      steps_tokens: [K, B, L], tokens read in the same way after each network call.
      steps_confidence: [K, B, L], largest probability after each call; for drawn tokens, the
        probability of the drawn token.
      calls: int32 scalar, number of network calls if it is not K; else None.
      steps_progress: [K, B, L], t of each position after each call, if positions have their own;
        else None.
    """

    tokens: Int[Array, "b l"]
    steps_tokens: Int[Array, "k b l"]
    steps_confidence: Float[Array, "k b l"]
    calls: Int[Array, ""] | None = None
    steps_progress: Float[Array, "k b l"] | None = None


def nothing_given(num: int, length: int) -> Given:
    """Returns empty prescriptions, for unconditional sampling."""
    return Given(jnp.zeros((num, length), jnp.int32), jnp.zeros((num, length), bool))


def held_times(net: Network, given: Given, time: Times | float) -> Times:
    """Broadcasts a time, scalar or [B], to the form that the network takes.

    This is [B], and for an any-order network [B, L], with prescribed positions at time 1.
    """
    time = jnp.broadcast_to(time, given.mask.shape[:1])
    return jnp.where(given.mask, 1.0, time[:, None]) if net.any_order else time
