"""Draws tokens from logits: temperature, top-p, and Gumbel noise that does not cut off tails."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key
from flm_jax.denoiser.head import Readout, read
from flm_jax.samplers.base import SamplerConfig

_LEAST_TEMPERATURE = 1e-20


@dataclasses.dataclass(frozen=True)
class Choice:
    """Rule by which a token is drawn from softmax(logits).

    Attributes:
      temperature: divisor of the logits; 0 takes the most probable token, and so does a value below
        1e-20, by which float32 logits cannot be divided.
      top_p: fraction in (0, 1] of the probability mass, after the temperature, that is kept.
      chain: `samplers.bigram.Chain` that joins the tokens of neighbouring positions; None to choose
        each token by itself.
    """

    temperature: float
    top_p: float
    chain: Any = None

    def __post_init__(self):
        require(
            0.0 <= self.temperature < float("inf"),
            f"temperature is {self.temperature}; expected 0 (most probable token) or more.",
        )
        if self.temperature < _LEAST_TEMPERATURE:
            object.__setattr__(self, "temperature", 0.0)
        require(0.0 < self.top_p <= 1.0, f"top_p is {self.top_p}; expected a share in (0, 1].")

    def scores(self, logits: Float[Array, "*b v"]) -> Float[Array, "*b v"]:
        """Returns the logits from which tokens are drawn; for temperatures above 0."""
        scores = logits / self.temperature
        return keep_top(scores, self.top_p) if self.top_p < 1.0 else scores


@dataclasses.dataclass(frozen=True)
class DrawnConfig(SamplerConfig):
    """Settings of samplers that draw tokens from probabilities."""

    temperature: float = setting(
        1.0,
        "Temperature at which tokens are drawn; 0 for the most probable ones.",
        range="[0, inf)",
    )
    top_p: float = setting(
        1.0,
        "Fraction of the probability mass, after the temperature, that is kept (nucleus sampling).",
        range="(0, 1]",
    )

    @property
    def choice(self) -> Choice:
        """Rule by which tokens are drawn."""
        return Choice(self.temperature, self.top_p)


def keep_top(logits: Float[Array, "*b v"], top_p: float) -> Float[Array, "*b v"]:
    """Sets logits outside the nucleus to -inf (arXiv 1904.09751).

    The nucleus is the smallest set of most probable tokens whose probabilities sum to at least
    top_p; it is never empty. Of equal probabilities the first token counts.
    """
    falling = -jnp.sort(-logits, axis=-1)
    probs = jax.nn.softmax(falling, axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    number = jnp.sum(before < top_p, axis=-1, keepdims=True)
    last = jnp.take_along_axis(falling, number - 1, axis=-1)
    # Of those that equal the last one kept, as many as the number allows.
    equal = logits == last
    room = number - jnp.sum(logits > last, axis=-1, keepdims=True)
    kept = (logits > last) | (equal & (jnp.cumsum(equal, axis=-1) <= room))
    return jnp.where(kept, logits, -jnp.inf)


def gumbel(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Draws standard Gumbel noise, float32, from uniform numbers of 64 bits.

    float32 noise as commonly computed, from 23 bits, ends at 15.9 and is coarse near there: a token
    that is much less probable than another is drawn too rarely or never, and over large
    vocabularies the entropy falls (arXiv 2409.02908). This noise reaches 44, like float64 noise.
    """
    return jax.random.gumbel(key, shape, mode="highest")


def choose(
    key: Key, logits: Float[Array, "*b v"], choice: Choice
) -> tuple[Int[Array, "*b"], Float[Array, "*b"]]:
    """Draws one token from each distribution, as the maximum of logits plus Gumbel noise.

    Returns:
      Tokens, and their probabilities under softmax(logits), without temperature and top-p.
    """
    return _chosen(logits, choice, lambda: gumbel(key, logits.shape))


def _chosen(logits: jax.Array, choice: Choice, noise: Callable[[], jax.Array]):
    scores = choice.scores(logits) + noise() if choice.temperature > 0.0 else logits
    tokens = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    return tokens, probability_of(logits, tokens)


def probability_of(logits: Float[Array, "*b v"], tokens: Int[Array, "*b"]) -> Float[Array, "*b"]:
    """Probability of tokens under softmax(logits)."""
    picked = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return jnp.exp(picked - jax.nn.logsumexp(logits, axis=-1))


def position_noise(
    key: Key, rows: Int[Array, "b t"], places: Int[Array, "b t"], number: int
) -> Float[Array, "b t v"]:
    """Draws Gumbel noise with one key per position, so that it is independent of the others."""

    def one(row: jax.Array, place: jax.Array) -> jax.Array:
        return gumbel(jax.random.fold_in(jax.random.fold_in(key, row), place), (number,))

    return jax.vmap(jax.vmap(one))(rows, places)


def choose_at(
    key: Key, out: Readout, net: Network, places: Int[Array, "b l"], choice: Choice
) -> tuple[Int[Array, "b l"], Float[Array, "b l"]]:
    """Draws tokens at some positions of each row from a network's output, tile by tile.

    Args:
      key: key of the draws; each position of a row has its own noise, whichever other positions are
        read.
      out: features [B, L, D] and head.
      net: network to which the head belongs.
      places: positions of the features in their rows.
      choice: temperature and top-p.
    """
    rows = jnp.broadcast_to(jnp.arange(places.shape[0])[:, None], places.shape)

    def pick(logits: jax.Array, rows: jax.Array, places: jax.Array):
        noise = lambda: position_noise(key, rows, places, logits.shape[-1])
        return _chosen(logits, choice, noise)

    return read(out, net, pick, rows, places)
