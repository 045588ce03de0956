"""Autoregressive sampling with cached keys and values, in one compiled loop."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flm_jax.core.network import Network
from flm_jax.core.types import Key, Params
from flm_jax.denoiser.head import Readout, logits
from flm_jax.samplers.base import Given, Samples
from flm_jax.samplers.categorical import Choice, DrawnConfig, choose
from flm_jax.samplers.watching import show


@dataclasses.dataclass(frozen=True)
class AutoregressiveConfig(DrawnConfig):
    """One token after the other, from left to right."""


def sample_autoregressive(
    key: Key, net: Network, params: Params, *, given: Given, choice: Choice
) -> Samples:
    """Generates one token after the other, each by a network call of one position.

    Args:
      key: key of the draws; position l uses fold_in(key, l).
      net: a causal network.
      given: prescribed tokens, kept exactly. Generated tokens see the tokens before them alone, so
        an infill does not depend on what follows it.
      choice: temperature and top-p.

    Returns:
      Samples with calls = L; steps_tokens holds the result alone, [1, B, L].
    """
    rows, length = given.tokens.shape
    table, head = net.table(params), net.readout(params)

    def step(carry, now):
        cache, x_BD, text = carry
        position, tokens, held = now
        features, cache = net.extend(params, cache, x_BD, position)
        logits_BV = logits(Readout(features, *head), net)[:, 0]
        drawn, confidence = choose(jax.random.fold_in(key, position), logits_BV, choice)
        tokens = jnp.where(held, tokens, drawn)
        text = text.at[:, position].set(tokens)
        x_BD = show(position, text, table[tokens], position < length - 1)
        return (cache, x_BD, text), jnp.where(held, 1.0, confidence)

    first = jnp.full((rows, length), -1, jnp.int32)
    start = (net.cache(rows, length), jnp.zeros((rows, net.dim), table.dtype), first)
    by_position = (jnp.arange(length), given.tokens.T, given.mask.T)
    (_, _, tokens), confidence = jax.lax.scan(step, start, by_position)
    calls = jnp.asarray(length, jnp.int32)
    return Samples(tokens, tokens[None], confidence.T[None], calls)


def sample(
    key: Key,
    params: Params,
    given: Given,
    extra: dict | None = None,
    *,
    net: Network,
    cfg: AutoregressiveConfig,
    **unused: Any,
) -> Samples:
    """Samples with the signature of `samplers.registry.Sampler`; see `sample_autoregressive`."""
    del extra, unused
    return sample_autoregressive(key, net, params, given=given, choice=cfg.choice)
