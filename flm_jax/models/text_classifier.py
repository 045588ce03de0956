"""A small classifier of hard or soft texts: an example of a differentiable reward."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flm_jax.core.types import Key, Params
from flm_jax.models.functional import pure
from flm_jax.models.layers import gelu


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """Settings of the classifier.

    Attributes:
      vocab_size: vocabulary size V.
      length: largest number of tokens L.
      dim: width.
      window: number of neighbouring tokens that a layer sees, odd.
    """

    vocab_size: int
    length: int
    dim: int = 64
    window: int = 5


class Classifier(NamedTuple):
    """A classifier as pure functions.

    Attributes:
      init: function from a key to parameters.
      table: function from parameters to the embedding table [V, dim].
      logit: function from (parameters, texts x = probs @ table, [B, L, dim]) to the log-odds of the
        label, [B].
    """

    init: Callable[[Key], Params]
    table: Callable[[Params], jax.Array]
    logit: Callable[[Params, jax.Array], jax.Array]


class _Net(nnx.Module):
    def __init__(self, cfg: ClassifierConfig, rngs: nnx.Rngs):
        shape = (cfg.vocab_size, cfg.dim)
        self.table = nnx.Param(jax.random.normal(rngs.params(), shape))
        self.position = nnx.Param(0.1 * jax.random.normal(rngs.params(), (cfg.length, cfg.dim)))
        conv = lambda: nnx.Conv(cfg.dim, cfg.dim, (cfg.window,), rngs=rngs)
        self.first, self.second = conv(), conv()
        self.hidden = nnx.Linear(2 * cfg.dim, cfg.dim, rngs=rngs)
        self.out = nnx.Linear(cfg.dim, 1, rngs=rngs)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b"]:
        x = x + self.position[...][None, : x.shape[1]]
        x = x + gelu(self.first(x))
        x = x + gelu(self.second(x))
        # The mean asks what there is throughout, the maximum whether there is something at all.
        pooled = jnp.concatenate([jnp.mean(x, axis=1), jnp.max(x, axis=1)], axis=-1)
        return self.out(gelu(self.hidden(pooled)))[:, 0]


def classifier(cfg: ClassifierConfig) -> Classifier:
    """Builds two convolutions over positions with pooling; texts have at most cfg.length tokens."""
    init, bind = pure(lambda rngs: _Net(cfg, rngs))
    return Classifier(init, lambda params: params["table"], lambda params, x: bind(params)(x))
