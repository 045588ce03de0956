"""Posterior refinement of an any-order flow map (arXiv 2606.24773).

Each call predicts all positions at once, jointly, by a jump X_0t from fresh noise (t = 1) with
the written tokens as clean context (per-token times s in {0, 1}); some predictions are written, the
rest is noised again. Two positions written by one call were predicted from one noise, so they fit
each other as far as the flow map is right; masked diffusion would draw them independently.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Params
from flm_jax.flows.flow import Flow
from flm_jax.flows.masking import highest
from flm_jax.samplers.base import Given, SamplerConfig, Samples
from flm_jax.samplers.guidance import plain
from flm_jax.samplers.unmasking import Partial, even_share, reveal_in_steps

BUDGETS = ("topk", "uniform")


@dataclasses.dataclass(frozen=True)
class PosteriorRefinementConfig(SamplerConfig):
    """Posterior refinement of an any-order flow map; steps bound the network calls."""

    budget: str = setting(
        "topk",
        "positions that a call writes: topk (the most probable predictions) or uniform (random)",
        choices=BUDGETS,
    )
    threshold: float = setting(
        1.0,
        "probability above which predictions are written beyond the budget; 1 for none",
        range="[0, 1]",
    )
    until: float = setting(
        1.0,
        "clock time at which each jump ends; 1 for joint samples, 0 for the most probable tokens",
        range="[0, 1]",
    )


def check_any_order(cfg: Any, net: Network, steps: int, objective: Any) -> None:
    """Refuses a flow map that was not trained with random clean context."""
    del cfg, steps
    require(
        net.two_time and objective.context > 0.0,
        "sampler posterior_refinement needs a flow map trained with random clean context; train it "
        "with config.model.two_time = True and config.objective.context > 0.",
    )


def sample(
    key: Key,
    params: Params,
    given: Given,
    extra: dict | None = None,
    *,
    net: Network,
    flow: Flow,
    steps: int,
    cfg: PosteriorRefinementConfig,
    **unused: Any,
) -> Samples:
    """`sample_refined` as `samplers.registry.Sampler` has it."""
    del extra, unused
    how = {"budget": cfg.budget, "threshold": cfg.threshold, "until": cfg.until}
    return sample_refined(key, net, params, flow=flow, steps=steps, given=given, **how)


def sample_refined(
    key: Key,
    net: Network,
    params: Params,
    *,
    flow: Flow,
    steps: int,
    given: Given,
    budget: str,
    threshold: float,
    until: float,
) -> Samples:
    """Writes L positions in at most `steps` network calls, the free ones of a row spread evenly.

    Args:
      key: the first call's noise is that of `sample_euler` with this key; with steps = 1 so are
        the samples of its one step.
      net: an any-order flow map (two times).
      flow: the flow that it maps.
      steps: K >= 1, static. With K at least the number of free positions each call writes one.
      given: prescribed tokens, clean context from the start and never changed.
      budget: which positions a call writes: "topk", those with the largest probability of their
        predicted token; "uniform", random ones, which favours no token over another.
      threshold: predictions of more than this probability are written as well, beyond the budget;
        1 for none. A row then ends early; calls that find nothing left to write are not made.
      until: clock time in [0, 1] that each jump ends at; its denoiser delta_0,until is read out. 1
        for the tokens that the noise leads to, which fit each other; 0 for the most probable token
        of each position by itself, whatever the noise, with its probability as confidence.

    Returns:
      Samples; calls counts the network calls that were made for the batch.
    """
    total = jnp.sum(~given.mask, axis=1)

    def predict(partial: Partial, k):
        # The first noise is that of the plain sampler: one call of either gives the same tokens.
        now = jnp.where(k == 0, key, jax.random.fold_in(key, k))
        denoiser = plain(net, params, flow, Given(partial.tokens, ~partial.masked))
        xi, zero = denoiser.noise(now), jnp.zeros(())
        seen = denoiser.ask(xi, denoiser.start(xi), flow.t(zero), (zero, zero + until))[2]
        return seen, None

    def plan(partial: Partial, k):
        count = even_share(total, steps, k)
        order_key = jax.random.fold_in(jax.random.fold_in(key, steps), k)
        return jnp.any(partial.masked & (count > 0)[:, None]), (count, order_key)

    def reveal(partial: Partial, confidence, details):
        count, order_key = details
        random = jax.random.uniform(order_key, confidence.shape)
        chosen = highest(confidence if budget == "topk" else random, partial.masked, count)
        return chosen | (confidence > threshold)

    return reveal_in_steps(given, steps, predict, plan, reveal)
