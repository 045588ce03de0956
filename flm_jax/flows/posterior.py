"""What a noisy state says by itself about its token: the posterior, in closed form.

With y = a E[v] + c xi, xi ~ N(0, Sigma), and every token v as likely as another,

    log p(v | y) = (a y . M[v] - a^2/2 E[v] . M[v]) / c^2 + const,  M = E Sigma^+.

The posteriors of all positions are sufficient: for 0 < t < 1 no denoiser loses anything by reading
E^T p(. | y) in the place of y. What it gains is that noise is weighed before the first block: near
t = 0, where a state says nothing, all states enter alike, and at t = 1 tokens enter clean.
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
      flow: of a path without anchor.
      y_t: states; t: their times on the path, [B] or [B, L]; table: E.
    """
    t = jnp.minimum(over_positions(t, y_t.shape[:2]), _LATEST)[..., None]
    a, _, c = flow.path.coefficients(t)
    near = a / jnp.square(c)
    # Of white numbers a product may be taken at the low precision of accelerators.
    whiten, _ = flow.noise.whitening(table.astype(jnp.float32))
    return jnp.concatenate([near * _matmul(y_t, whiten), -0.5 * a * near], axis=-1)


def posterior_kernel(flow: Flow, table: Float[Array, "v d"]) -> Float[Array, "k v"]:
    """The kernel that `posterior_features` are read by; its last row is E[v] . M[v]."""
    table = table.astype(jnp.float32)
    whiten, kernel = flow.noise.whitening(table)
    leverages = jnp.sum(_matmul(whiten, kernel) * table.T, axis=0, keepdims=True)
    return jnp.concatenate([kernel, leverages])
