"""Layers that the transformers share: norms, dropout, activation, time embedding, checkpointing."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flm_jax.core.types import Key, Times
from flm_jax.models.attention import keep_kernels

_LECUN = nnx.initializers.lecun_normal()
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
    """Inverted dropout; it is off without a key or at rate 0."""
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

    Default differentiation keeps four intermediates of the MLP's width for the backward pass, a
    third of all that a block keeps; this rule keeps the slope alone.
    """
    return jax.nn.gelu(x, approximate=True)


@gelu.defjvp
def _gelu_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    wide = x.astype(jnp.float32)
    scale, cubic = (2.0 / jnp.pi) ** 0.5, 0.044715
    tanh = jnp.tanh(scale * (wide + cubic * wide**3))
    # d/dx of x/2 (1 + tanh u) with u = scale (x + cubic x^3): the two summands of the product
    # rule.
    slope = 0.5 * (1.0 + tanh)
    slope = slope + 0.5 * wide * (1.0 - tanh**2) * scale * (1.0 + 3.0 * cubic * wide**2)
    return gelu(x), slope.astype(x.dtype) * dx


TIME_FEATURES = 256


def time_features(times: Times) -> Float[Array, "... f"]:
    """Features [cos, sin] of times * 10000^(-k/128), k = 0..127; float32 [..., 256]."""
    half = TIME_FEATURES // 2
    frequencies = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = times.astype(jnp.float32)[..., None] * jnp.expand_dims(frequencies, range(times.ndim))
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def rows_dot_general(x: jax.Array, kernel: jax.Array, dimensions, **more) -> jax.Array:
    """`jax.lax.dot_general` of x [B, L, D] and a kernel [D, K] as a product of two matrices.

    The kernel's gradient is a product over all rows. Where B and L are two axes, XLA copies one of
    its factors into a layout in which CPUs multiply two to three times slower.
    """
    if dimensions != (((2,), (0,)), ((), ())):
        return jax.lax.dot_general(x, kernel, dimensions, **more)
    rows = x.reshape(-1, x.shape[-1])
    out = jax.lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), **more)
    return out.reshape(*x.shape[:2], -1)


class TimeEmbedding(nnx.Module):
    """Sinusoidal features of network times, then a two-layer SiLU MLP; float32 [..., cond_dim].

    Args:
      cond_dim: width of the hidden layer and of the output.
      rngs: generators of the initial weights.
      hidden_init, out_init: initialisers of the two kernels.
    """

    def __init__(self, cond_dim: int, rngs: nnx.Rngs, *, hidden_init=_LECUN, out_init=_LECUN):
        self.hidden = nnx.Linear(TIME_FEATURES, cond_dim, kernel_init=hidden_init, rngs=rngs)
        self.out = nnx.Linear(cond_dim, cond_dim, kernel_init=out_init, rngs=rngs)

    def __call__(self, times: Times) -> jax.Array:
        return self.out(jax.nn.silu(self.hidden(time_features(times))))


def modulation(cond_dim: int, outputs: int, dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """Linear map from the time embedding to shifts and scales, initialised to zero."""
    zeros = nnx.initializers.zeros
    return nnx.Linear(cond_dim, outputs, kernel_init=zeros, dtype=dtype, rngs=rngs)


def recomputed(fn: Callable) -> Callable:
    """Checkpoints `fn`: differentiation keeps its arguments alone; for cheap computations.

    Matrix products at its end are not recomputed, since their derivatives do not need the result.
    """
    return jax.checkpoint(fn, prevent_cse=False)


def modulate(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns x (1 + scale) + shift, which is exactly x where both are zero."""
    return x * (1 + scale) + shift
