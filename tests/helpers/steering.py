"""Steered samples of the tiny and the exact network, and a reward of one token."""

import functools

import jax
import jax.numpy as jnp

from flm_jax.samplers.categorical import Choice
from flm_jax.samplers.flow import NONE, sample_flow
from flm_jax.samplers.guides import Guides
from flm_jax.samplers.reward_guidance import Reward
from helpers.networks import CLOCK, FREE, KEY, exact_network, tiny_network

# A reward of the share of token 1 in a text, in the one-hot space.
ONES = Reward(lambda params: jnp.eye(params["size"].shape[0]), lambda params, x: x[..., 1].sum(1))
REWARD = {"reward": {"size": jnp.zeros(11)}}


@functools.lru_cache
def steered_program(net, steps, steering, choice, guides, exact=False):
    clock = exact_network()[1] if exact else CLOCK
    how = {"clock": clock, "steps": steps, "steering": steering, "choice": choice, "guides": guides}
    return jax.jit(functools.partial(sample_flow, net=net, **how))


def steered(two_time, steering=NONE, *, steps=3, given=FREE, temperature=0.0, extra=None):
    """Samples of the random network of `helpers.networks`; its dropout rate is 0.5."""
    net, params = tiny_network(two_time)
    guides = Guides(net, ONES)
    run = steered_program(net, steps, steering, Choice(temperature), guides)
    return run(KEY, params, given, REWARD | (extra or {}))
