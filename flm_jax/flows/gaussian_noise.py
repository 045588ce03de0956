"""One-hot Gaussian noise drawn in the embedding space.

A denoiser sees the noise eps ~ N(0, I_V) only through its embedding table E [V, D], and E^T eps ~
N(0, E^T E) exactly. Drawing C z with C C^T = E^T E and z ~ N(0, I_D) gives the same distribution
(hence the same expected loss and gradient) without ever holding a [B, L, V] tensor. Both draws are
differentiable in E.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.core.types import Key

_HIGHEST = jax.lax.Precision.HIGHEST


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=_HIGHEST)


def gram(table: Float[Array, "v d"]) -> Float[Array, "d d"]:
    """Gram matrix E^T E in float32, at full matmul precision on every backend."""
    return _gram(table.astype(jnp.float32))


@jax.custom_jvp
def _gram(table: jax.Array) -> jax.Array:
    return _matmul(table.T, table)


@_gram.defjvp
def _gram_jvp(primals, tangents):
    """Derivative by one product instead of the general rule's two, since it is symmetric too.

    Unlike the matrix itself it is not factorised, and tolerates the rounding of other gradients.
    """
    (table,), (rate,) = primals, tangents
    half = jnp.matmul(table.T, rate, precision=jax.lax.Precision.HIGH)
    return _gram(table), half + half.T


def cholesky_factor(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """Lower triangular factor C with C C^T = matrix + eps32 * trace(matrix) * I.

    The jitter bounds the float32 rounding of the largest eigenvalue, so that a rank-deficient Gram
    matrix factorises; relative to the mean variance it is D * 1.2e-7.
    """
    trace = jax.lax.stop_gradient(jnp.trace(matrix))
    jitter = jnp.finfo(jnp.float32).eps * jnp.maximum(trace, jnp.finfo(jnp.float32).tiny * 1e8)
    return jnp.linalg.cholesky(matrix + jitter * jnp.eye(matrix.shape[0], dtype=matrix.dtype))


def whitened(vectors: Float[Array, "n d"], table: Float[Array, "v d"]) -> Float[Array, "n d"]:
    """Returns C^-1 y for rows y, with C C^T = E^T E: the noise E^T eps becomes N(0, I_D)."""
    factor = cholesky_factor(gram(table))
    return jax.scipy.linalg.solve_triangular(factor, vectors.T, lower=True).T


def whitening(table: Float[Array, "v d"]) -> tuple[Float[Array, "d k"], Float[Array, "k v"]]:
    """Returns A, B with A B = (E^T E)^-1 E^T such that E^T eps A is white; k = min(V, D)."""
    # V > D: C C^T = E^T E, A = C^-T and B = C^-1 E^T. Else C C^T = E E^T, which can be inverted
    # where E^T E cannot: A = E^T (E E^T)^-1, the pseudoinverse, and B = I.
    small = table.shape[0] <= table.shape[1]
    factor = cholesky_factor(gram(table.T if small else table))
    eye = jnp.eye(factor.shape[0])
    inverse = jax.scipy.linalg.solve_triangular(factor, eye, lower=True)
    across = _matmul(inverse, table if small else table.T)
    return (_matmul(across.T, inverse), jnp.eye(len(table))) if small else (inverse.T, across)


def leverages(table: Float[Array, "v d"]) -> Float[Array, "v"]:
    """Leverages E[v] (E^T E)^-1 E[v]^T of tokens, in [0, 1]; they sum to the rank of E.

    A leverage is the fraction of the squared signal-to-noise ratio r^2, r = t/(1-t), of x_t at
    token v that remains in y_t. The rank is at most D: where V > D the table determines which
    tokens can be decoded early, and not all can.
    """
    return jnp.sum(jnp.square(whitened(table.astype(jnp.float32), table)), axis=1)


def embedded_noise(
    key: Key, table: Float[Array, "v d"], shape: tuple[int, ...]
) -> Float[Array, "... d"]:
    """Draws E^T eps, eps ~ N(0, I_V), of shape [*shape, D], float32.

    The draw is in the smaller of the two spaces: for V <= 2 D the V-dimensional draw is cheaper
    than a Cholesky factor (and exact where E^T E is singular).
    """
    vocab_size, dim = table.shape
    table = table.astype(jnp.float32)
    if vocab_size <= 2 * dim:
        return _matmul(jax.random.normal(key, (*shape, vocab_size)), table)
    factor = cholesky_factor(gram(table))
    # One axis of rows: with two, XLA copies a factor of the gradient into another layout on CPUs.
    z = jax.random.normal(key, (*shape, dim)).reshape(-1, dim)
    return _matmul(z, factor.T).reshape(*shape, dim)


def joint_embedded_noise(
    key: Key,
    table: Float[Array, "v d"],
    other: Float[Array, "v k"],
    shape: tuple[int, ...],
) -> tuple[Float[Array, "... d"], Float[Array, "... k"]]:
    """Draws two embedded views (E^T eps, E'^T eps) of the same eps ~ N(0, I_V).

    The first view is the draw of `embedded_noise` for the same key, exact and differentiable in
    `table`. The second is drawn conditionally on the first, through the Cholesky factor of the Gram
    matrix of [E, E'] computed block by block; it carries no gradient (it is for a teacher).

    Returns:
      Float32 arrays [*shape, D] and [*shape, K].
    """
    vocab_size, dim = table.shape
    table, other = table.astype(jnp.float32), jax.lax.stop_gradient(other.astype(jnp.float32))
    if vocab_size <= 2 * dim:
        eps = jax.random.normal(key, (*shape, vocab_size))
        return _matmul(eps, table), _matmul(eps, other)
    factor = cholesky_factor(gram(table))
    z = jax.random.normal(key, (*shape, dim))
    fixed_table, fixed_factor = jax.lax.stop_gradient((table, factor))
    # The factor of the joint Gram matrix is [[C, 0], [cross, R]] with cross = E'^T E C^-T and
    # R R^T = E'^T E' - cross cross^T; z drives both views, z_rest the second alone.
    cross = jax.scipy.linalg.solve_triangular(
        fixed_factor, _matmul(fixed_table.T, other), lower=True
    ).T
    other_gram = gram(other)
    rest = other_gram - _matmul(cross, cross.T)
    # When E' is close to E the rest is rounding noise of the scale of other_gram: lift it by that.
    lift = 4.0 * jnp.finfo(jnp.float32).eps * jnp.trace(other_gram)
    rest_factor = jnp.linalg.cholesky(rest + lift * jnp.eye(rest.shape[0]))
    z_rest = jax.random.normal(jax.random.fold_in(key, 1), (*shape, other.shape[1]))
    return _matmul(z, factor.T), _matmul(z, cross.T) + _matmul(z_rest, rest_factor.T)
