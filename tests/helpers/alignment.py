"""A tiny masked network and the batch on which it is aligned."""

import jax
import jax.numpy as jnp

from flm_jax.models.llama import LlamaConfig, llama

NET = llama(LlamaConfig(11, 6, 16, 2, 2, 2, 0.0, 0.0, 0.0, "float32", "none", True))
PARAMS = NET.init(jax.random.key(1))
TOKENS = jax.random.randint(jax.random.key(3), (4, 6), 0, 11)
MASKED = jnp.broadcast_to(jnp.arange(6)[None] >= 3, (4, 6))
