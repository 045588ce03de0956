"""A tiny masked diffusion network, and its adaptation to a masked flow."""

import dataclasses

import jax

from flm_jax.flows.flow import Flow, GammaTold
from flm_jax.flows.gamma_state import GammaConfig
from flm_jax.flows.interpolants.masked_bridge import MaskedBridge
from flm_jax.flows.noise import UnitNoise
from flm_jax.flows.noise_schedule import LearntTimes
from flm_jax.models.llama import LlamaConfig, llama
from flm_jax.models.lora import AdapterConfig, join, split

KEY = jax.random.key(0)
SIZES = LlamaConfig(11, 6, 16, 2, 2, 2, 0.0, 0.0, 0.0, "float32", "none", True)
ADAPTERS = AdapterConfig(2, 4.0, 2, 2.0, 0.0, 8)
BASE, NET = llama(SIZES), llama(dataclasses.replace(SIZES, adapters=ADAPTERS))
BASE_PARAMS = BASE.init(jax.random.key(1))
PARAMS = join(BASE_PARAMS, split(NET.init(jax.random.key(2)))[1])
TOKENS = jax.random.randint(jax.random.key(3), (4, 6), 0, 11)


LAW = GammaConfig()


def bridge_flow(law=LAW):
    """The masked bridge of sigma 0.2 with a law of gamma."""
    path = MaskedBridge(0.2)
    told = GammaTold(path, law.low, law.high)
    return Flow(path, UnitNoise(), LearntTimes(law, told), told)


FLOW = bridge_flow()
