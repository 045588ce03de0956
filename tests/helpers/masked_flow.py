"""A tiny masked diffusion network, and its adaptation to a masked flow."""

import dataclasses

import jax

from flm_jax.models.llama import LlamaConfig, llama
from flm_jax.models.lora import AdapterConfig, join, split

KEY = jax.random.key(0)
SIZES = LlamaConfig(11, 6, 16, 2, 2, 2, 0.0, 0.0, 0.0, "float32", "none", True)
ADAPTERS = AdapterConfig(2, 4.0, 2, 2.0, 0.0, 8)
BASE, NET = llama(SIZES), llama(dataclasses.replace(SIZES, adapters=ADAPTERS))
BASE_PARAMS = BASE.init(jax.random.key(1))
PARAMS = join(BASE_PARAMS, split(NET.init(jax.random.key(2)))[1])
TOKENS = jax.random.randint(jax.random.key(3), (4, 6), 0, 11)
