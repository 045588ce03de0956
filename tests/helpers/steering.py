"""Steered samples of the tiny and the exact network, and a reward of one token."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from flm_jax.samplers.adaptive import AdaptiveConfig
from flm_jax.samplers.euler import EulerConfig, FlowMapConfig
from flm_jax.samplers.flow import sample_flow
from flm_jax.samplers.guides import Guides
from flm_jax.samplers.heun import HeunConfig
from flm_jax.samplers.marginal_bridge import MarginalBridgeConfig
from flm_jax.samplers.reward_guidance import Reward
from helpers.networks import FLOW, FREE, KEY, exact_network, tiny_network

# A reward of the share of token 1 in a text, in the one-hot space.
ONES = Reward(lambda params: jnp.eye(params["size"].shape[0]), lambda params, x: x[..., 1].sum(1))
REWARD = {"reward": {"size": jnp.zeros(11)}}


SOLVERS = {
    "euler": EulerConfig,
    "heun": HeunConfig,
    "adaptive": AdaptiveConfig,
    "marginal_bridge": MarginalBridgeConfig,
}


def flow_settings(two_time, solver="euler", **fields):
    """Settings of a sampler of a flow, or of a flow map."""
    return (FlowMapConfig if two_time else SOLVERS[solver])(**fields)


@functools.lru_cache
def steered_program(net, steps, cfg, guides, exact=False):
    flow = exact_network()[1] if exact else FLOW
    how = {"flow": flow, "steps": steps, "cfg": cfg, "guides": guides}
    return jax.jit(functools.partial(sample_flow, net=net, **how))


def steered(two_time, cfg=None, *, steps=3, given=FREE, temperature=0.0, extra=None):
    """Samples of the random network of `helpers.networks`; its dropout rate is 0.5."""
    net, params = tiny_network(two_time)
    cfg = dataclasses.replace(cfg or flow_settings(two_time), temperature=temperature)
    run = steered_program(net, steps, cfg, Guides(net, ONES))
    return run(KEY, params, given, REWARD | (extra or {}))
