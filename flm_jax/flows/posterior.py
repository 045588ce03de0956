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

from flm_jax.core.types import States, Times
from flm_jax.flows.gaussian_noise import cholesky_factor, gram
from flm_jax.flows.interpolants import over_positions

_LATEST = 1.0 - 2.0**-10  # later t count as this one: no two tokens are in doubt any more


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def whitening(table: Float[Array, "v d"]) -> tuple[Float[Array, "d k"], Float[Array, "k v"]]:
    """A, B with A B = M^T, k the smaller of V and D, such that y A is white for y = E^T eps.

    Of white numbers a product may be taken at the low precision of accelerators.
    """
    small = table.shape[0] <= table.shape[1]
    factor = cholesky_factor(gram(table.T if small else table))
    inverse = jax.scipy.linalg.solve_triangular(factor, jnp.eye(factor.shape[0]), lower=True)
    across = _matmul(inverse, table if small else table.T)
    return (_matmul(across.T, inverse), jnp.eye(len(table))) if small else (inverse.T, across)


def token_posterior(
    y_t: States, t: Times, table: Float[Array, "v d"]
) -> tuple[Float[Array, "b l k"], Float[Array, "k v"]]:
    """Features [B, L, k+1] and kernel [k+1, V], whose product has p(. | y_t) as its softmax.

    Args:
      y_t: states; t: their interpolant times, [B] or [B, L]; table: E. k is the smaller of V and D.
    """
    table = table.astype(jnp.float32)
    t = jnp.minimum(over_positions(t, y_t.shape[:2]), _LATEST)[..., None]
    near = t / jnp.square(1.0 - t)
    whiten, kernel = whitening(table)
    leverages = jnp.sum(_matmul(whiten, kernel) * table.T, axis=0, keepdims=True)
    features = jnp.concatenate([near * _matmul(y_t, whiten), -0.5 * t * near], axis=-1)
    return features, jnp.concatenate([kernel, leverages])
