"""The sampler of continuous flows: combines solver or jumps, noise, guidance and reward."""

from typing import Any

import jax.numpy as jnp

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.types import Key, Params
from flm_jax.denoiser.head import tempered
from flm_jax.denoiser.self_conditioning import fixed_point
from flm_jax.flows.flow import Flow
from flm_jax.samplers import adaptive, euler
from flm_jax.samplers.adaptive import AdaptiveConfig
from flm_jax.samplers.base import Given, Samples
from flm_jax.samplers.bigram import with_chain
from flm_jax.samplers.guidance import Denoiser, Weak, autoguided, plain
from flm_jax.samplers.guides import NO_GUIDES, Guides
from flm_jax.samplers.heun import HeunConfig, heun
from flm_jax.samplers.marginal_bridge import MarginalBridgeConfig, bridge_steps
from flm_jax.samplers.onehot import check_onehot, sample_onehot
from flm_jax.samplers.prompt_guidance import check_by_prompt, prompt_guided
from flm_jax.samplers.reward_guidance import make_nudge
from flm_jax.samplers.steering import GuidedConfig


def check_flow(cfg: GuidedConfig, net: Network, steps: int, objective: Any) -> None:
    """Refuses settings that a network does not support, before anything is compiled."""
    if getattr(objective, "prediction", "probabilities") != "probabilities":
        return check_onehot(cfg, objective.prediction)
    require(
        not isinstance(cfg, AdaptiveConfig) or steps >= adaptive.MIN_ADAPTIVE_CALLS,
        f"got steps={steps} with sampler adaptive, where they bound the network calls; expected at "
        f"least {adaptive.MIN_ADAPTIVE_CALLS}, for example 256.",
    )
    if cfg.by_prompt:
        check_by_prompt(net, objective)
        drawn = getattr(cfg, "end", "") == "drawn" or isinstance(cfg, euler.RenoisingConfig)
        require(
            cfg.weak_prompt != "free" or not drawn,
            "got weak_prompt=free with steps towards drawn tokens, the given ones included; "
            "expected weak_prompt=noised.",
        )
    if iterations := getattr(cfg, "iterations", 0):
        fixed_point(net, iterations)  # refuses a network that takes no estimate
        return None
    plainly = isinstance(cfg, euler.EulerConfig) and cfg.guidance == 1.0 and not cfg.reward_scale
    require(
        plainly or not net.self_conditioned,
        "a self-conditioned flow carries its estimate along plain Euler steps alone; with another "
        "solver, guidance or a reward give iterations=2, for example.",
    )
    return None


def make_denoiser(
    net: Network,
    params: Params,
    flow: Flow,
    given: Given,
    cfg: GuidedConfig,
    guides: Guides,
    extra: dict,
) -> Denoiser:
    """Returns the guided denoiser, or the plain one if guidance is 1."""
    if cfg.guidance == 1.0:
        return plain(net, params, flow, given)
    how = {"flow": flow, "given": given, "product": cfg.product}
    if cfg.by_prompt:
        return prompt_guided(net, params, cfg.guidance, weak_prompt=cfg.weak_prompt, **how)
    weak = Weak(tempered(guides.weak, cfg.denoiser_temperature), extra.get("weak"))
    return autoguided(net, params, weak, cfg.guidance, **how)


def sample_flow(
    key: Key,
    params: Params,
    given: Given,
    extra: dict | None = None,
    *,
    net: Network,
    flow: Flow,
    steps: int,
    cfg: GuidedConfig,
    guides: Guides = NO_GUIDES,
    objective: Any = None,
) -> Samples:
    """Draws noise and transports it to data with the settings `cfg`.

    Args:
      key: key of noise, dropout and drawn tokens.
      params: parameters of `net`.
      given: prescribed tokens [B, L], which are kept exactly.
      extra: parameters of the networks in `guides`, and under "times" the state of learnt times
        since the flow was built.
      net, flow: denoiser, and the flow for which it was trained.
      steps: number of evaluations of the denoiser ("adaptive": the largest number); static. Each
        takes one network call, or `cfg.iterations` calls; guidance adds one to each, and a reward
        as many again with their gradient.
      cfg: settings: `EulerConfig`, `HeunConfig`, `AdaptiveConfig`, `MarginalBridgeConfig`,
        `FlowMapConfig` or `RenoisingConfig`.
      guides: networks that `cfg` names.
      objective: settings of the objective; an output that is not a probability distribution is
        sampled in R^V.

    Returns:
      Samples; prescribed positions are kept exactly.
    """
    extra = extra or {}
    flow = flow.settled(extra.get("times"))
    prediction = getattr(objective, "prediction", "probabilities")
    if prediction != "probabilities":
        how = {"flow": flow, "steps": steps, "given": given, "prediction": prediction}
        return sample_onehot(key, net, params, **how)
    net = tempered(net, cfg.denoiser_temperature)
    iterations = getattr(cfg, "iterations", 0)
    each = max(iterations, 1)
    net = fixed_point(net, each) if iterations else net
    denoiser = make_denoiser(net, params, flow, given, cfg, guides, extra)
    # Iterations are of the model itself, which the second call without a prompt is too.
    denoiser = denoiser._replace(calls=denoiser.calls + (each - 1) * (2 if cfg.by_prompt else 1))
    xi = denoiser.noise(key)
    choice = with_chain(cfg.choice, cfg, extra)
    common = {"flow": flow, "steps": steps, "choice": choice}
    if isinstance(cfg, AdaptiveConfig):
        more = {"given": given, "tolerance": cfg.tolerance}
        return adaptive.adaptive(key, xi, denoiser, **common, **more)
    nudge, calls = None, denoiser.calls
    if scale := getattr(cfg, "reward_scale", 0.0):
        table = denoiser.table
        nudge = make_nudge(net, params, flow, guides.reward, extra["reward"], scale, table, given)
        calls += each
    if isinstance(cfg, HeunConfig):
        found = heun(key, xi, denoiser, **common)
    elif isinstance(cfg, MarginalBridgeConfig):
        more = {"end": cfg.end, "bridge_noise": cfg.bridge_noise}
        found = bridge_steps(key, xi, denoiser, **common, **more)
    else:
        drawn = isinstance(cfg, euler.RenoisingConfig)
        gamma = 1.0 if drawn else getattr(cfg, "gamma", 0.0)
        more = {"drawn": drawn, "nudge": nudge}
        found = euler.carry(key, xi, denoiser, stochasticity=gamma, **more, **common)
    return found if calls == 1 else found._replace(calls=jnp.asarray(calls * steps, jnp.int32))
