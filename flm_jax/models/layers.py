"""What the transformers share: norm, dropout, activation, and what the backward pass may keep."""

import jax
import jax.numpy as jnp
from flax import nnx

from flm_jax.models.attention import keep_kernels
from flm_jax.types import Key

_policies = jax.checkpoint_policies
REMAT = {
    "none": None,
    # With attention kernels no product is computed twice; the scores of XLA's attention, the only
    # products with batch dimensions, are: keeping [B, H, L, L] would defeat the purpose.
    "matmuls": _policies.save_from_both_policies(
        _policies.dots_with_no_batch_dims_saveable, keep_kernels
    ),
    "full": _policies.nothing_saveable,
}


def dropout(x: jax.Array, rate: float, key: Key | None) -> jax.Array:
    """Inverted dropout; no key, or rate 0, switches it off."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def layer_norm(dim: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with a weight and no bias, computed in float32."""
    return nnx.LayerNorm(dim, epsilon=1e-5, use_bias=False, dtype=jnp.float32, rngs=rngs)


def rms_norm(dim: int, rngs: nnx.Rngs, param_dtype=jnp.float32, eps: float = 1e-5) -> nnx.RMSNorm:
    """RMSNorm with a weight, computed in float32; eps within the root."""
    return nnx.RMSNorm(dim, epsilon=eps, dtype=jnp.float32, param_dtype=param_dtype, rngs=rngs)


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """GELU in its tanh form.

    Left to itself, differentiation keeps four intermediates of the MLP's width for the backward
    pass, a third of all that a block keeps; by this rule it keeps the slope alone.
    """
    return jax.nn.gelu(x, approximate=True)


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    wide = x.astype(jnp.float32)
    scale, cubic = (2.0 / jnp.pi) ** 0.5, 0.044715
    tanh = jnp.tanh(scale * (wide + cubic * wide**3))
    slope = 0.5 * (1.0 + tanh)
    slope = slope + 0.5 * wide * (1.0 - tanh**2) * scale * (1.0 + 3.0 * cubic * wide**2)
    return gelu(x), slope.astype(x.dtype) * dx
