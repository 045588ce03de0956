"""Random numbers of the sampler of masked flows."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from flm_jax.core.network import Network
from flm_jax.core.types import Key, States
from flm_jax.denoiser.head import Readout
from flm_jax.denoiser.mixture import Part, mixture
from flm_jax.flows.flow import Flow
from flm_jax.samplers.base import Given
from flm_jax.samplers.categorical import Choice, choose

_PICKS = 2**31 - 1  # apart from the places of runs and steps


class Draws(NamedTuple):
    """Random numbers of a sampler, as functions of the run and the step (int32 scalars).

    Attributes:
      start: function from the run to the noise [B, L, D] with which it begins.
      context: function from (run, step) to the noise that corrupts the context.
      walk: function from (run, step) to the noise of a step.
      pick: function from (run, logits readout) to (tokens, their probabilities), [B, L].
    """

    start: Callable[..., States]
    context: Callable[..., States]
    walk: Callable[..., States]
    pick: Callable[..., tuple[jax.Array, jax.Array]]


def picked(
    logits: Float[Array, "*b v"], key: Key, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Draws tokens from softmax(logits / temperature), with their probabilities under it.

    Temperature 0 takes the most probable tokens, with their probabilities under softmax(logits).
    """
    if Choice(temperature, 1.0).temperature == 0.0:
        return choose(key, logits, Choice(0.0, 1.0))
    return choose(key, logits / temperature, Choice(1.0, 1.0))


def make_draws(
    key: Key,
    net: Network,
    table: jax.Array,
    flow: Flow,
    given: Given,
    steps: int,
    temperature: float,
) -> Draws:
    """Makes independent draws for every run of `steps` steps.

    Args:
      table: embedding table E.
      given: prescribed tokens, whose shape is that of the noise.
      temperature: temperature at which tokens are drawn.
    """
    draw = lambda key: flow.noise.draw(key, table, given.tokens.shape)
    # Of the steps of a run, the walk and the context have a half each; the start comes behind them.
    at = lambda run, step: jax.random.fold_in(key, run * (steps + 1) + step)

    def pick(run, out: Readout):
        own = jax.random.fold_in(jax.random.fold_in(key, _PICKS), run)
        # A key for each position, so that samples do not depend on the tiles.
        one = lambda position, x: picked(x, jax.random.fold_in(own, position), temperature)
        return mixture([Part(1.0, out, net)], table, jax.vmap(one, (0, 1), 1))[1]

    return Draws(
        start=lambda run: draw(at(run, steps)),
        context=lambda run, step: draw(jax.random.split(at(run, step))[1]),
        walk=lambda run, step: draw(jax.random.split(at(run, step))[0]),
        pick=pick,
    )
