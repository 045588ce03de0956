"""Drawing tokens from logits: temperature, top-p, Gumbel noise that does not cut tails."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flm_jax.core.errors import require
from flm_jax.core.settings import setting
from flm_jax.core.types import Key
from flm_jax.samplers.base import SamplerConfig

_LEAST_TEMPERATURE = 1e-20


@dataclasses.dataclass(frozen=True)
class Choice:
    """How a token is drawn from softmax(logits).

    Attributes:
      temperature: logits are divided by it; 0 takes the most probable token, and so does less than
        1e-20, by which float32 logits cannot be divided.
      top_p: share in (0, 1] of the probability, after the temperature, that is kept.
    """

    temperature: float
    top_p: float

    def __post_init__(self):
        require(
            0.0 <= self.temperature < float("inf"),
            f"temperature is {self.temperature}; expected 0 (most probable token) or more.",
        )
        if self.temperature < _LEAST_TEMPERATURE:
            object.__setattr__(self, "temperature", 0.0)
        require(0.0 < self.top_p <= 1.0, f"top_p is {self.top_p}; expected a share in (0, 1].")


@dataclasses.dataclass(frozen=True)
class DrawnConfig(SamplerConfig):
    """Settings of samplers that draw tokens from probabilities."""

    temperature: float = setting(
        1.0, "temperature of drawn tokens; 0 for the most probable ones", range="[0, inf)"
    )
    top_p: float = setting(
        1.0, "fraction of the probability, after the temperature, that is kept", range="(0, 1]"
    )

    @property
    def choice(self) -> Choice:
        """How tokens are drawn."""
        return Choice(self.temperature, self.top_p)


def keep_top(logits: Float[Array, "*b v"], top_p: float) -> Float[Array, "*b v"]:
    """Logits with -inf outside the nucleus (arXiv 1904.09751).

    That is the smallest set of most probable tokens whose probabilities add up to at least top_p;
    never empty. Of equal probabilities the first token counts.
    """
    order = jnp.argsort(-logits, axis=-1, stable=True)
    probs = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    kept = jnp.take_along_axis(before < top_p, jnp.argsort(order, axis=-1), axis=-1)
    return jnp.where(kept, logits, -jnp.inf)


def gumbel(key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Standard Gumbel noise, float32, from uniform numbers of 64 bits.

    float32 noise as commonly computed, from 23 bits, ends at 15.9 and is coarse near there: a token
    that is much less probable than another is drawn too seldom or never, and over large
    vocabularies the entropy falls (arXiv 2409.02908). This one reaches 44, as float64 would.
    """
    return jax.random.gumbel(key, shape, mode="highest")


def choose(
    key: Key, logits: Float[Array, "*b v"], choice: Choice
) -> tuple[Int[Array, "*b"], Float[Array, "*b"]]:
    """Draws one token from each distribution, by the maximum of logits and Gumbel noise.

    Returns:
      Tokens, and their probabilities under softmax(logits), without temperature and top-p.
    """
    scores = logits
    if choice.temperature > 0.0:
        scores = logits / choice.temperature
        if choice.top_p < 1.0:
            scores = keep_top(scores, choice.top_p)
        scores = scores + gumbel(key, logits.shape)
    tokens = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    picked = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return tokens, jnp.exp(picked - jax.nn.logsumexp(logits, axis=-1))
