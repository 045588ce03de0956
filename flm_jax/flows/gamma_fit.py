"""Curves fitted to the mean cross entropy over gamma, and their quantiles.

The curves are generalised logistic (arXiv 2606.27617), Gumbel (arXiv 2604.11748) and isotonic:

    F(gamma) = sigmoid((gamma - mu) / b)^a,       quantile mu - b log(u^(-1/a) - 1),
    F(gamma) = exp(-exp(-(gamma - mu) / b)),      quantile mu - b log(-log u).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flm_jax.core.types import Times
from flm_jax.flows.gamma_state import KNOTS, GammaConfig

_SHAPES = np.geomspace(0.05, 20.0, 121)  # values of a that are tried
_LEAST_P, _LEAST_B, _LEAST_VARIANCE = 1e-4, 1e-8, 1e-6
_LEAST_POINTS = 4
_TINY, _GAP = 1e-6, 1e-6
_ITERATIONS = 60

Points = Float[Array, "k"]


class Fit(NamedTuple):
    """Result of a fit: (mu, b, a), the coefficient of determination R^2, and its success."""

    shape: Float[Array, "3"]
    r2: jax.Array
    found: jax.Array


def logistic_quantile(shape: Float[Array, "3"], u: Times) -> Times:
    """Quantile mu - b log(u^(-1/a) - 1) of the generalised logistic, for u in (0, 1)."""
    mu, b, a = shape
    return mu + b * _logit(jnp.log(u), a)


def _logit(log_p: jax.Array, a: jax.Array) -> jax.Array:
    """Solves p = sigmoid(y)^a for y = -log(p^(-1/a) - 1), without overflow."""
    # p = sigmoid(y)^a says s = -log p / a = -log sigmoid(y), so that sigmoid(y) = e^-s and
    # y = log(e^-s / (1 - e^-s)); p^(-1/a) = e^s itself would overflow for small a.
    s = -log_p / a
    return -s - jnp.log(-jnp.expm1(-s))


def logistic_cdf(shape: Float[Array, "3"], gamma: Times) -> Times:
    """Generalised logistic distribution function sigmoid((gamma - mu) / b)^a."""
    mu, b, a = shape
    return jnp.exp(a * jax.nn.log_sigmoid((gamma - mu) / b))


def gumbel_quantile(shape: Float[Array, "3"], u: Times) -> Times:
    """Quantile mu - b log(-log u) of the Gumbel distribution, for u in (0, 1)."""
    return shape[0] - shape[1] * jnp.log(-jnp.log(u))


def gumbel_cdf(shape: Float[Array, "3"], gamma: Times) -> Times:
    """Gumbel distribution function exp(-exp(-(gamma - mu) / b))."""
    return jnp.exp(-jnp.exp(-(gamma - shape[0]) / shape[1]))


def logistic_fit(gamma: Points, values: Points, number: Points, least_scale: float) -> Fit:
    """Fits a generalised logistic to scaled values, for the best of 121 values of a.

    For each a, mu and b result from the regression of gamma on y, where sigmoid(y)^a is the running
    maximum of values scaled to [1e-4, 1 - 1e-4]; the a with the smallest sum of squared differences
    of values is chosen. All sums are weighted by number.

    Args:
      gamma: points in ascending order.
      values: values to fit.
      number: weights, 0 for points that are left out.
      least_scale: lower bound of b.

    Returns:
      The fit; it fails for fewer than 4 points, for equal values and for decreasing ones.
    """
    seen = number > 0.0
    low = jnp.min(jnp.where(seen, values, jnp.inf))
    reach = jnp.max(jnp.where(seen, values, -jnp.inf)) - low
    scaled = jnp.where(seen, (values - low) / jnp.maximum(reach, 1e-12), 0.0)
    log_p = jnp.log(jax.lax.cummax(jnp.clip(scaled, _LEAST_P, 1.0 - _LEAST_P)))
    share = number / jnp.maximum(jnp.sum(number), 1e-12)
    mean = lambda x: jnp.sum(share * x)

    def one(a):
        y = _logit(log_p, a)
        y_mean, gamma_mean = mean(y), mean(gamma)
        variance = mean((y - y_mean) ** 2)
        b = mean((y - y_mean) * (gamma - gamma_mean)) / jnp.maximum(variance, _LEAST_VARIANCE)
        # Only the rounding of y is left where all of it is equal.
        good = (variance > _LEAST_VARIANCE * (1.0 + y_mean**2)) & (b > max(least_scale, _LEAST_B))
        shape = jnp.stack([gamma_mean - b * y_mean, jnp.where(good, b, 1.0), a])
        error = mean((values - low - reach * logistic_cdf(shape, gamma)) ** 2)
        return shape, jnp.where(good & jnp.isfinite(error), error, jnp.inf)

    shapes, errors = jax.vmap(one)(jnp.asarray(_SHAPES, gamma.dtype))
    best = jnp.argmin(errors)
    found = jnp.isfinite(errors[best]) & (reach > 1e-8) & (jnp.sum(seen) >= _LEAST_POINTS)
    spread = mean((values - mean(values)) ** 2)
    r2 = jnp.where(found, 1.0 - errors[best] / jnp.maximum(spread, 1e-12), 0.0)
    return Fit(shapes[best], r2, found)


def gumbel_fit(gamma: Points, values: Points, weights: Points, cfg: GammaConfig) -> Fit:
    """Fits c F(gamma) + d with c > 0 by least squares (Levenberg-Marquardt, several starts).

    c and d are solved for at every (mu, log b), so that the search is over these alone; a is 1.

    Args:
      gamma, values, weights: points, values to fit, and weights.
      cfg: settings, for the range of gamma and the lower bound of b.
    """
    # Bounds of mu and log b, a little wider than what is accepted.
    box = ((cfg.low - 10.0, -3.5), (cfg.high + 10.0, 3.0))
    share = weights / jnp.maximum(jnp.sum(weights), 1e-12)
    middle = jnp.sum(share * values)
    spread = jnp.sum(share * (values - middle) ** 2)
    shape_of = lambda theta: jnp.stack([theta[0], jnp.exp(theta[1]), jnp.ones(())])

    def solved(theta):
        f = gumbel_cdf(shape_of(theta), gamma)
        # At fixed (mu, b) the best c and d are those of a linear regression on F; d drops out
        # with the means.
        f = f - jnp.sum(share * f)
        scale = jnp.sum(share * f * (values - middle)) / jnp.maximum(jnp.sum(share * f**2), 1e-12)
        return jnp.sqrt(share) * (scale * f + middle - values), scale

    residual = lambda theta: solved(theta)[0]

    def improve(_, carry):
        theta, damping, loss = carry
        slope = jax.jacfwd(residual)(theta)
        square = slope.T @ slope
        square = square + damping * (jnp.diag(jnp.diag(square)) + 1e-6 * jnp.eye(2))
        step = jnp.clip(jnp.linalg.solve(square, slope.T @ residual(theta)), -2.0, 2.0)
        new = jnp.clip(theta - step, *(jnp.array(bound) for bound in box))
        new_loss = jnp.sum(residual(new) ** 2)
        better = new_loss < loss
        damping = jnp.clip(jnp.where(better, 0.3 * damping, 4.0 * damping), 1e-6, 1e6)
        return jnp.where(better, new, theta), damping, jnp.where(better, new_loss, loss)

    def search(theta):
        first = (theta, jnp.array(1e-2), jnp.sum(residual(theta) ** 2))
        theta, _, loss = jax.lax.fori_loop(0, _ITERATIONS, improve, first)
        return theta, loss

    places = [cfg.low + part * (cfg.high - cfg.low) / 16 for part in (3, 6, 9, 12)]
    thetas, losses = jax.vmap(search)(jnp.array([[place, 0.0] for place in places]))
    best = thetas[jnp.argmin(losses)]
    shape = shape_of(best)
    found = (solved(best)[1] > 0.0) & (shape[1] >= cfg.least_scale) & jnp.all(jnp.isfinite(shape))
    return Fit(shape, 1.0 - jnp.min(losses) / jnp.maximum(spread, 1e-12), found)


def isotonic(values: Points, weights: Points) -> Points:
    """Returns the non-decreasing curve nearest to values in weighted squares.

    It is the max over j <= i of the min over k >= i of the weighted mean of values j..k. Points of
    weight 0 do not count, and the result at them is undefined.
    """
    size = values.shape[0]
    first, last = jnp.arange(size)[:, None], jnp.arange(size)[None]
    within = last >= first
    # Row j, column k: weight and sum of j..k; infinite means for k < j, which no minimum takes.
    mass = jnp.cumsum(jnp.where(within, weights, 0.0), axis=1)
    sums = jnp.cumsum(jnp.where(within, weights * values, 0.0), axis=1)
    mean = jnp.where(mass > 0.0, sums / jnp.where(mass > 0.0, mass, 1.0), jnp.inf)
    after = jax.lax.cummin(mean, axis=1, reverse=True)  # over k >= i, for each j
    return jnp.max(jnp.where(first <= last, after, -jnp.inf), axis=0)


def logistic_knots(shape: Float[Array, "3"], cfg: GammaConfig) -> Float[Array, "n"]:
    """Quantiles of a generalised logistic at 0, 0.01, ..., 1, [101] from cfg.low to cfg.high."""
    u = jnp.clip(jnp.linspace(0.0, 1.0, KNOTS), _TINY, 1.0 - _TINY)
    return increasing(logistic_quantile(shape, u), cfg)


def empirical_knots(
    gamma: Points, values: Points, number: Points, cfg: GammaConfig
) -> tuple[Float[Array, "n"], jax.Array]:
    """Quantiles of the isotonic curve through values, scaled to [0, 1].

    Args:
      gamma: points in ascending order.
      values: mean cross entropies.
      number: weights, 0 for points that are left out.
      cfg: settings, for the range of gamma.

    Returns:
      Knots [101] from cfg.low to cfg.high, and whether the curve rises at all.
    """
    seen = number > 0.0
    curve = isotonic(values, number)
    low = jnp.min(jnp.where(seen, curve, jnp.inf))
    reach = jnp.max(jnp.where(seen, curve, -jnp.inf)) - low
    scaled = jnp.where(seen, (curve - low) / jnp.maximum(reach, 1e-12), 0.0)
    end = jnp.ones(1, scaled.dtype)
    share = jnp.concatenate([0.0 * end, jax.lax.cummax(scaled), end])
    place = jnp.concatenate([cfg.low * end, gamma, cfg.high * end])
    # Where the curve stands still, its first point alone counts.
    place = place[jnp.searchsorted(share, share)]
    knots = jnp.interp(jnp.linspace(0.0, 1.0, KNOTS), share, place)
    return increasing(knots, cfg), reach > 1e-8


def increasing(knots: Float[Array, "n"], cfg: GammaConfig) -> Float[Array, "n"]:
    """Clips knots to [cfg.low, cfg.high] and makes each at least 1e-6 larger than the last."""
    steps = _GAP * jnp.arange(KNOTS)
    knots = jnp.clip(knots, cfg.low, cfg.high).at[0].set(cfg.low).at[-1].set(cfg.high)
    # A running maximum of knots minus a ramp rises by at least the ramp once that is added again.
    knots = jax.lax.cummax(knots - steps) + steps
    return jnp.minimum(knots, cfg.high - steps[::-1])
