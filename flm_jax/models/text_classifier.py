"""A small classifier of texts, clean or soft: an example of a differentiable reward."""

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
    """vocab_size V, length L; dim: width; window: neighbouring tokens that a layer sees, odd."""

    vocab_size: int
    length: int
    dim: int = 64
    window: int = 5


class Classifier(NamedTuple):
    """init: key -> parameters; table: parameters -> [V, dim]; logit: (parameters, x) -> [B].

    `logit` is log-odds of the label for texts x = probs @ table, [B, L, dim].
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
    """Two convolutions over positions, pooled; texts of at most cfg.length tokens."""
    init, bind = pure(lambda rngs: _Net(cfg, rngs))
    return Classifier(init, lambda params: params["table"], lambda params, x: bind(params)(x))
