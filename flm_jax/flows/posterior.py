"""The posterior of a token given its own noisy state, in closed form.

With y = a E[v] + c xi, xi ~ N(0, Sigma), and all tokens v equally likely,

    log p(v | y) = (a y . M[v] - a^2/2 E[v] . M[v]) / c^2 + const,  M = E Sigma^+.

The posteriors of all positions are sufficient statistics: for 0 < t < 1 no denoiser loses
information by reading E^T p(. | y) instead of y. Its advantage is that noise is weighted before the
first block: near t = 0, where a state has no information, all states enter equally, and at t = 1
tokens enter clean.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.core.types import States, Times
from flm_jax.flows.flow import Flow
from flm_jax.flows.shapes import over_positions

_LATEST = 1.0 - 2.0**-10  # later t count as this one: no two tokens are in doubt any more


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def posterior_features(
    flow: Flow, y_t: States, t: Times, table: Float[Array, "v d"]
) -> Float[Array, "b l k"]:
    """Features whose product with `posterior_kernel` has p(. | y_t) as its softmax.

    Args:
      flow: flow with a path without anchor.
      y_t: noisy states.
      t: times of the states on the path, [B] or [B, L].
      table: embedding table E.
    """
    t = jnp.minimum(over_positions(t, y_t.shape[:2]), _LATEST)[..., None]
    a, _, c = flow.path.coefficients(t)
    # Times the kernel (B; E.M) this gives a/c^2 y.M[v] - a^2/(2 c^2) E[v].M[v], with A B = M^T.
    near = a / jnp.square(c)
    # Of white numbers a product may be taken at the low precision of accelerators.
    whiten, _ = flow.noise.whitening(table.astype(jnp.float32))
    return jnp.concatenate([near * _matmul(y_t, whiten), -0.5 * a * near], axis=-1)


def posterior_kernel(flow: Flow, table: Float[Array, "v d"]) -> Float[Array, "k v"]:
    """Kernel that is multiplied with `posterior_features`; its last row is E[v] . M[v]."""
    table = table.astype(jnp.float32)
    whiten, kernel = flow.noise.whitening(table)
    leverages = jnp.sum(_matmul(whiten, kernel) * table.T, axis=0, keepdims=True)
    return jnp.concatenate([kernel, leverages])
