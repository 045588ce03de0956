"""Random gamma = log noise over signal: uniform, normal, and learnt from the cross entropy.

The learnt component draws gamma where the cross entropy changes: its distribution function is the
mean cross entropy over gamma, smoothed over batches and scaled to [0, 1]. It is a curve fitted to
that, a generalised logistic (arXiv 2606.27617) or a Gumbel law (arXiv 2604.11748),

    F(gamma) = sigmoid((gamma - mu) / b)^a,       quantile mu - b log(u^(-1/a) - 1),
    F(gamma) = exp(-exp(-(gamma - mu) / b)),      quantile mu - b log(-log u),

or the isotonic curve itself, by its quantiles. Until there is one, the uniform takes its share.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.core.errors import require
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Times
from flm_jax.flows.flow import GammaTold, TimeLaw
from flm_jax.flows.time_sampling import Rows, stratified_uniform

_LEAST_R2, _LEAST_B, _A_RANGE = 0.95, 0.05, (0.05, 20.0)
_LEAST_BINS, _LEAST_EXAMPLES = 8, 4096.0
_KNOTS = 101
_ITERATIONS = 60
_TINY = 1e-6
FITTED = ("logistic", "gumbel")


@dataclasses.dataclass(frozen=True)
class GammaConfig:
    """A mixture of U(low, high), a clipped N(center, spread^2), and a learnt law for the rest."""

    low: float = setting(-10.0, "lowest gamma, where states are all but clean", range="[-30, 30]")
    high: float = setting(
        6.0,
        "highest gamma, where they are all but noise; sampling starts there",
        range="[-30, 30]",
    )
    uniform: float = setting(0.1, "fraction that is uniform", range="[0, 1]")
    normal: float = setting(0.2, "fraction that is normal", range="[0, 1]")
    center: float = setting(-2.5, "mean of the normal part")
    spread: float = setting(2.0, "standard deviation of the normal part", range="(0, inf)")
    learnt: str = setting(
        "logistic",
        "form of the learnt law: logistic or gumbel (fitted to the cross entropy over gamma) or "
        "empirical (its quantiles)",
        choices=(*FITTED, "empirical"),
    )
    bins: int = setting(
        64, "bins of gamma in which the cross entropy is averaged", range="[8, inf)"
    )
    decay: float = setting(0.999, "decay of these averages, per batch", range="[0, 1)")
    refit_every: int = setting(200, "batches between two fits", range="[1, inf)")
    knot_rate: float = setting(
        0.05, "fraction of the new curve in each update of the empirical quantiles", range="(0, 1]"
    )

    def __post_init__(self):
        require(
            self.uniform + self.normal <= 1.0,
            f"config.flow.law has uniform {self.uniform} and normal {self.normal}, more than 1 "
            "together; the rest is the learnt fraction.",
        )
        require(
            self.low < self.high,
            f"config.flow.law has low {self.low} and high {self.high}; expected low < high.",
        )


class GammaState(NamedTuple):
    """What is learnt, float32.

    Attributes:
      total, count: [bins], decayed sums of cross entropies (nats) and of examples.
      examples: how many were seen in all.
      shape: (mu, b, a) of the last accepted fit.
      knots: [101] quantiles of the empirical curve at 0, 0.01, ..., 1.
      r2: of the last fit, accepted or not.
      ready: 1 from the first accepted fit or curve on, else 0.
    """

    total: Float[Array, "k"]
    count: Float[Array, "k"]
    examples: jax.Array
    shape: Float[Array, "3"]
    knots: Float[Array, "n"]
    r2: jax.Array
    ready: jax.Array


def fresh_state(cfg: GammaConfig) -> GammaState:
    """Nothing seen yet."""
    zero, zeros = jnp.zeros(()), jnp.zeros(cfg.bins)
    knots = jnp.linspace(cfg.low, cfg.high, _KNOTS)
    return GammaState(zeros, zeros, zero, jnp.array([cfg.center, 1.0, 1.0]), knots, zero, zero)


def bin_centers(cfg: GammaConfig) -> Float[Array, "k"]:
    """Middles of the bins of gamma."""
    width = (cfg.high - cfg.low) / cfg.bins
    return cfg.low + width * (jnp.arange(cfg.bins) + 0.5)


def observe(
    gamma: Times, values: Float[Array, "b"], weights: Float[Array, "b"], cfg: GammaConfig
) -> tuple[Float[Array, "k"], Float[Array, "k"]]:
    """Sums of values and of weights in the bins of gamma, each [bins]; rows of weight 0 are out."""
    place = (gamma - cfg.low) / (cfg.high - cfg.low) * cfg.bins
    index = jnp.clip(place, 0, cfg.bins - 1).astype(jnp.int32)
    inside = jax.nn.one_hot(index, cfg.bins) * weights[:, None]
    return jnp.sum(inside * values[:, None], axis=0), jnp.sum(inside, axis=0)


def logistic_quantile(shape: Float[Array, "3"], u: Times) -> Times:
    """mu - b log(u^(-1/a) - 1) for u in (0, 1)."""
    mu, b, a = shape
    return mu - b * jnp.log(jnp.expm1(-jnp.log(u) / a))


def logistic_cdf(shape: Float[Array, "3"], gamma: Times) -> Times:
    """sigmoid((gamma - mu) / b)^a."""
    mu, b, a = shape
    return jnp.exp(a * jax.nn.log_sigmoid((gamma - mu) / b))


def gumbel_quantile(shape: Float[Array, "3"], u: Times) -> Times:
    """mu - b log(-log u) for u in (0, 1)."""
    return shape[0] - shape[1] * jnp.log(-jnp.log(u))


def gumbel_cdf(shape: Float[Array, "3"], gamma: Times) -> Times:
    """exp(-exp(-(gamma - mu) / b))."""
    return jnp.exp(-jnp.exp(-(gamma - shape[0]) / shape[1]))


def learnt_quantile(state: GammaState, u: Times, cfg: GammaConfig) -> Times:
    """gamma below which a share u in (0, 1) of the learnt component lies; uniform until it is
    ready."""
    if cfg.learnt == "empirical":
        learnt = jnp.interp(u, jnp.linspace(0.0, 1.0, _KNOTS), state.knots)
    else:
        of = logistic_quantile if cfg.learnt == "logistic" else gumbel_quantile
        learnt = of(state.shape, u)
    flat = cfg.low + (cfg.high - cfg.low) * u
    return jnp.clip(jnp.where(state.ready > 0, learnt, flat), cfg.low, cfg.high)


def learnt_share(state: GammaState, gamma: Times, cfg: GammaConfig) -> Times:
    """The inverse of `learnt_quantile` where that is not clipped."""
    if cfg.learnt == "empirical":
        learnt = jnp.interp(gamma, state.knots, jnp.linspace(0.0, 1.0, _KNOTS))
    else:
        of = logistic_cdf if cfg.learnt == "logistic" else gumbel_cdf
        learnt = of(state.shape, gamma)
    return jnp.where(state.ready > 0, learnt, (gamma - cfg.low) / (cfg.high - cfg.low))


def draw_gamma(
    key: Key, num: int, rows: Rows, cfg: GammaConfig, state: GammaState
) -> Float[Array, "b"]:
    """One gamma for each row, low-discrepancy over the global batch in every component.

    A single stratified u chooses the component by where it falls, and the quantile within it.

    Args:
      key: the same for every (micro)batch of one global batch.
      num: rows here; rows: their place in the global batch.
    """
    u = stratified_uniform(key, num, rows)
    first, second = cfg.uniform, cfg.uniform + cfg.normal

    def within(low: float, high: float):
        share = (u - low) / max(high - low, _TINY)
        return jnp.clip(share, _TINY, 1.0 - _TINY)

    flat = lambda v: cfg.low + (cfg.high - cfg.low) * v
    normal = cfg.center + cfg.spread * jax.scipy.special.ndtri(within(first, second))
    learnt = learnt_quantile(state, within(second, 1.0), cfg)
    gamma = jnp.where(u < first, flat(within(0.0, first)), jnp.where(u < second, normal, learnt))
    return jnp.clip(gamma, cfg.low, cfg.high)


def fit_law(
    gamma: Float[Array, "k"],
    values: Float[Array, "k"],
    weights: Float[Array, "k"],
    cfg: GammaConfig,
) -> tuple[Float[Array, "3"], jax.Array, jax.Array]:
    """Least squares of c F(gamma) + d, by Levenberg-Marquardt from several starts.

    c and d are solved for at every (mu, log b, log a), which alone are searched.

    Args:
      gamma, values, weights: points, what to fit, and how much each counts.

    Returns:
      (mu, b, a), the coefficient of determination R^2, and c; a Gumbel law leaves a alone.
    """
    cdf = logistic_cdf if cfg.learnt == "logistic" else gumbel_cdf
    # Bounds of mu, log b, log a, a little wider than what is accepted.
    box = ((cfg.low - 10.0, -3.5, -3.5), (cfg.high + 10.0, 3.0, 3.5))
    share = weights / jnp.maximum(jnp.sum(weights), 1e-12)
    middle = jnp.sum(share * values)
    spread = jnp.sum(share * (values - middle) ** 2)

    def solved(theta):
        f = cdf(jnp.stack([theta[0], jnp.exp(theta[1]), jnp.exp(theta[2])]), gamma)
        f_middle = jnp.sum(share * f)
        f = f - f_middle
        scale = jnp.sum(share * f * (values - middle)) / jnp.maximum(jnp.sum(share * f**2), 1e-12)
        return jnp.sqrt(share) * (scale * f + middle - values), scale

    residual = lambda theta: solved(theta)[0]

    def improve(_, carry):
        theta, damping, loss = carry
        slope = jax.jacfwd(residual)(theta)
        square = slope.T @ slope
        square = square + damping * (jnp.diag(jnp.diag(square)) + 1e-6 * jnp.eye(3))
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

    places = [cfg.low + share * (cfg.high - cfg.low) / 16 for share in (3, 6, 9, 12)]
    starts = jnp.stack([jnp.array([m, 0.0, a]) for m in places for a in (-1.5, 0.0, 1.5)])
    thetas, losses = jax.vmap(search)(starts)
    best = thetas[jnp.argmin(losses)]
    shape = jnp.stack([best[0], jnp.exp(best[1]), jnp.exp(best[2])])
    return shape, 1.0 - jnp.min(losses) / jnp.maximum(spread, 1e-12), solved(best)[1]


def isotonic(values: Float[Array, "k"], weights: Float[Array, "k"]) -> Float[Array, "k"]:
    """The non-decreasing curve nearest to values in weighted squares: max over j <= i of min over
    k >= i of the weighted mean of values j..k. Points of weight 0 follow their neighbours."""
    weights = jnp.maximum(weights, 1e-6 * jnp.maximum(jnp.max(weights), 1e-6))
    sums = jnp.concatenate([jnp.zeros(1), jnp.cumsum(weights * values)])
    mass = jnp.concatenate([jnp.zeros(1), jnp.cumsum(weights)])
    size = values.shape[0]
    j, k = jnp.arange(size)[:, None], jnp.arange(size)[None]
    mean = (sums[None, 1:] - sums[:-1, None]) / jnp.maximum(mass[None, 1:] - mass[:-1, None], 1e-12)
    mean = jnp.where(k >= j, mean, jnp.inf)
    after = jax.lax.cummin(mean, axis=1, reverse=True)  # over k >= i, for each j
    return jnp.max(jnp.where(j <= k, after, -jnp.inf), axis=0)


def update_state(
    state: GammaState,
    observed: tuple[Float[Array, "k"], Float[Array, "k"]],
    step: jax.Array,
    cfg: GammaConfig,
) -> GammaState:
    """Takes in one batch; refits where `step` (of this batch, from 0) completes refit_every."""
    total, count = observed
    state = state._replace(
        total=cfg.decay * state.total + (1.0 - cfg.decay) * total,
        count=cfg.decay * state.count + (1.0 - cfg.decay) * count,
        examples=state.examples + jnp.sum(count),
    )
    refit = _refit_law if cfg.learnt in FITTED else _refit_empirical
    due = (step + 1) % cfg.refit_every == 0
    return jax.lax.cond(due, lambda s: refit(s, cfg), lambda s: s, state)


def _refit_law(state: GammaState, cfg: GammaConfig) -> GammaState:
    seen = state.count > 0.0
    mean = state.total / jnp.where(seen, state.count, 1.0)
    shape, r2, scale = fit_law(bin_centers(cfg), mean, seen.astype(jnp.float32), cfg)
    _, b, a = shape
    good = (r2 >= _LEAST_R2) & (b >= _LEAST_B) & (a >= _A_RANGE[0]) & (a <= _A_RANGE[1])
    good = good & (scale > 0.0) & (jnp.sum(seen) >= _LEAST_BINS) & jnp.all(jnp.isfinite(shape))
    return state._replace(
        shape=jnp.where(good, shape, state.shape),
        r2=r2,
        ready=jnp.where(good, 1.0, state.ready),
    )


def _refit_empirical(state: GammaState, cfg: GammaConfig) -> GammaState:
    seen = state.count > 0.0
    mean = state.total / jnp.where(seen, state.count, 1.0)
    curve = isotonic(mean, state.count)
    low, high = curve[0], curve[-1]
    # A slope nowhere zero, so that quantiles are defined.
    rise = (curve - low) / jnp.maximum(high - low, 1e-12) + 1e-6 * jnp.arange(cfg.bins)
    new = jnp.interp(jnp.linspace(0.0, 1.0, _KNOTS), rise / rise[-1], bin_centers(cfg))
    rate = jnp.where(state.ready > 0.0, cfg.knot_rate, 1.0)
    good = (jnp.sum(seen) >= _LEAST_BINS) & (state.examples >= _LEAST_EXAMPLES) & (high > low)
    return state._replace(
        knots=jnp.where(good, (1.0 - rate) * state.knots + rate * new, state.knots),
        ready=jnp.where(good, 1.0, state.ready),
    )


@dataclasses.dataclass(frozen=True)
class LearntTimes(TimeLaw):
    """Times by their gamma: training draws the mixture, sampling spaces the learnt component.

    Attributes:
      cfg: the mixture.
      told: how gamma is told.
      state: what is learnt; None for nothing yet.
    """

    cfg: GammaConfig
    told: GammaTold
    state: GammaState | None = None

    def settled(self, state: GammaState | None) -> "LearntTimes":
        if state is None:
            return self
        return dataclasses.replace(self, state=jax.tree.map(jnp.asarray, state))

    @property
    def _now(self) -> GammaState:
        return fresh_state(self.cfg) if self.state is None else self.state

    def draw(self, key: Key, num: int, rows: Rows) -> Times:
        return self.told.progress(draw_gamma(key, num, rows, self.cfg, self._now))

    def quantile(self, share: Times) -> Times:
        # The network is told the progress, which falls with gamma.
        within = jnp.clip(1.0 - share, _TINY, 1.0 - _TINY)
        tau = self.told.progress(learnt_quantile(self._now, within, self.cfg))
        return jnp.where(share <= 0.0, 0.0, jnp.where(share >= 1.0, 1.0, tau))

    def share(self, tau: Times) -> Times:
        return 1.0 - learnt_share(self._now, self.told.gamma(tau), self.cfg)

    def observe(self, tau: Times, values: Float[Array, "b"], weights: Float[Array, "b"]) -> Any:
        return observe(self.told.gamma(tau), values, weights, self.cfg)
