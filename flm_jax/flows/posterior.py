"""What a noisy state says by itself about its token: the posterior, in closed form.

With y = t E[v] + (1-t) E^T eps, eps ~ N(0, I_V), and every token v as likely as another,

    log p(v | y) = (t y . M[v] - t^2/2 E[v] . M[v]) / (1-t)^2 + const,  M = E (E^T E)^+.

The posteriors of all positions are sufficient: for 0 < t < 1 no denoiser loses anything by reading
E^T p(. | y) in the place of y. What it gains is that noise is weighed before the first block: near
t = 0, where a state says nothing, all states enter alike, and at t = 1 tokens enter clean.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.flows.gaussian import cholesky_factor, gram
from flm_jax.flows.interpolants import over_positions
from flm_jax.types import States, Times

_LATEST = 1.0 - 2.0**-10  # later t count as this one: no two tokens are in doubt any more


def dual(table: Float[Array, "v d"]) -> Float[Array, "d v"]:
    """M^T = (E (E^T E)^+)^T, float32, solved on the smaller side of E."""
    table = table.astype(jnp.float32)
    if table.shape[0] <= table.shape[1]:
        return jax.scipy.linalg.cho_solve((cholesky_factor(gram(table.T)), True), table).T
    return jax.scipy.linalg.cho_solve((cholesky_factor(gram(table)), True), table.T)


def token_posterior(
    y_t: States, t: Times, table: Float[Array, "v d"]
) -> tuple[Float[Array, "b l k"], Float[Array, "k v"]]:
    """Features [B, L, D+1] and kernel [D+1, V], whose product has p(. | y_t) as its softmax.

    Args:
      y_t: states; t: their interpolant times, [B] or [B, L]; table: E.
    """
    t = jnp.minimum(over_positions(t, y_t.shape[:2]), _LATEST)[..., None]
    near = t / jnp.square(1.0 - t)
    kernel = dual(table)
    leverages = jnp.sum(kernel * table.T, axis=0, keepdims=True)
    features = jnp.concatenate([near * y_t, -0.5 * t * near], axis=-1)
    return features, jnp.concatenate([kernel, leverages])
