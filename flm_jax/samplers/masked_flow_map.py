"""Sampler of the flow maps of masked flows: one to a few jumps, with prompts that stay clean.

It starts at the highest gamma, where the answer is the mask embedding with noise drawn there, and
jumps along a grid uniform in the quantiles of gamma; the last call gives the tokens.
"""

import dataclasses
from typing import Any

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Params
from flm_jax.flows.flow import Flow
from flm_jax.samplers.base import Given, Samples
from flm_jax.samplers.categorical import DrawnConfig
from flm_jax.samplers.euler import carry
from flm_jax.samplers.guidance import plain


@dataclasses.dataclass(frozen=True)
class MaskedFlowMapConfig(DrawnConfig):
    """Jumps of the flow map of a masked flow, on a grid uniform in the quantiles of gamma."""

    temperature: float = setting(
        0.0,
        "Temperature at which tokens are drawn from the last logits; 0 for the most probable ones.",
        range="[0, inf)",
    )
    gamma: float = setting(
        0.0,
        "Fraction of fresh noise after each jump; 1 is consistency sampling.",
        range="[0, 1]",
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
    cfg: MaskedFlowMapConfig,
    **unused: Any,
) -> Samples:
    """Samples with the signature of `samplers.registry.Sampler`, in `steps` network calls.

    Args:
      key: key of the noise and of drawn tokens.
      params: parameters of `net`, a two-time network with an anchor.
      given: prescribed tokens, clean from the start and never changed.
      extra: under "times" the state of learnt times, in training.
      flow: probability-flow ODE of the masked bridge.
      cfg: settings.
    """
    del unused
    flow = flow.settled((extra or {}).get("times"))
    denoiser = plain(net, params, flow, given)
    xi = denoiser.noise(key)
    how = {"flow": flow, "steps": steps, "stochasticity": cfg.gamma, "choice": cfg.choice}
    return carry(key, xi, denoiser, **how)
