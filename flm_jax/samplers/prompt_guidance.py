"""Classifier-free guidance of any-order flows: away from the answer without the prompt.

Source: arXiv 2207.12598, with the probabilities of tokens as in arXiv 2412.10193. A flow trained
with clean context answers with a prompt (given positions clean, at time 1) and without (all
positions at the time of the state); both answers are combined at the free positions.
"""

from typing import Any

import jax.numpy as jnp

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.types import Key, Params
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import summary
from flm_jax.denoiser.mixture import Part, mixture
from flm_jax.flows.flow import Flow
from flm_jax.samplers.base import Given, held_times
from flm_jax.samplers.guidance import GREEDY, Denoiser, picker, plain, settled


def check_by_prompt(net: Network, objective: Any) -> None:
    """Refuses guidance by prompts of a flow that was not trained both with and without them.

    Args:
      net: network of the flow.
      objective: settings of its objective; None if they are not known.
    """
    require(
        net.any_order,
        "guidance by weak_prompt needs a flow that reads clean prompts; train it with "
        "config.objective.context, 0.5 for example.",
    )
    require(
        not getattr(objective, "prompt", 0) or objective.context_dropout > 0.0,
        f"got guidance by weak_prompt of a flow with config.objective.prompt = "
        f"{getattr(objective, 'prompt', 0)}, which never saw a text without its prompt; train it "
        "with config.objective.context_dropout, 0.1 for example.",
    )


def prompt_guided(
    net: Network,
    params: Params,
    eta: float,
    flow: Flow,
    given: Given,
    *,
    weak_prompt: str,
    product: bool,
) -> Denoiser:
    """Returns the denoiser p(x | y, prompt)^eta p(x | y)^(1 - eta), or the sum of both.

    Args:
      net: any-order network on a path without anchor.
      eta: weight of guidance; 1 for none.
      weak_prompt: states of given positions in the second call: "noised", the path of the given
        tokens at the time of the state; "free", states that the second call itself carries from
        noise, as if they were to be written.
      product: whether probabilities are combined as a normalised product, so that logits are
        extrapolated; else as a sum, so that velocities are, which leaves the simplex.
    """
    whole, table = plain(net, params, flow, given), net.table(params)
    nothing = given._replace(mask=jnp.zeros_like(given.mask))
    written = weak_prompt == "free"

    def ask(xi, y_t, t, taus, key: Key | None = None, choice=GREEDY):
        seen = flow.held(y_t, held_times(net, given, t), given.tokens, given.mask, xi, table)
        blind = y_t
        if not written:
            time = held_times(net, nothing, t)
            blind = flow.held(y_t, time, given.tokens, given.mask, xi, table)
        first = forward(net, params, seen, *(held_times(net, given, tau) for tau in taus))
        second = forward(net, params, blind, *(held_times(net, nothing, tau) for tau in taus))
        parts = [Part(eta, first, net), Part(1.0 - eta, second, net)]
        delta, found = mixture(parts, table, picker(key, choice), product=product)
        if written:
            own = summary(second, table, net)[0]
            delta = jnp.where(given.mask[..., None], own, delta)
        return (blind if written else seen), delta, settled(given, found, key, choice)

    return whole._replace(ask=ask, calls=2, self_conditioned=False)
