"""Targets with the derivative of the student, and projections of them to the simplex.

The Lagrangian and the Eulerian target have the form

    q = share * D + (1 - share) * delta_st + rate * d delta_st,

with D a denoiser, and d delta_st the derivative of the two-time denoiser along a direction, found
by forward mode up to the features and in closed form through head and softmax: no array is larger
than the logits of a tile, and there is no Jacobian. Entries of q add up to 1 and may be negative.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Params, States, Times
from flm_jax.denoiser import tiled
from flm_jax.denoiser.head import Readout
from flm_jax.denoiser.tile_plan import plan_of
from flm_jax.flows.shapes import over_positions
from flm_jax.losses.distillation.base import DistillationConfig, Pairs, Teacher

Projection = Literal["none", "clip", "sparsemax", "entmax15"]
PROJECTIONS = ("none", "clip", "sparsemax", "entmax15")
Form = Literal["ce", "mse"]
_NEWTON_LIMIT = 50


@dataclasses.dataclass(frozen=True)
class TargetConfig:
    """Loss and projection of a target.

    Attributes:
      form: "ce" (cross entropy, nats) or "mse" (squared distance of the two vectors of R^V).
      projection: "none", "clip" (negative entries to 0, then divided by the sum), "sparsemax" (the
        nearest point of the simplex), "entmax15" (entmax with alpha = 1.5).
    """

    form: Form
    projection: Projection


@dataclasses.dataclass(frozen=True)
class MovingTargetConfig(DistillationConfig):
    """Settings of the routes whose targets leave the simplex."""

    form: str = setting("ce", "Loss off the diagonal: ce or mse.", choices=("ce", "mse"))
    projection: str = setting(
        "default",
        "Projection of targets to the simplex; default is none for mse, else sparsemax.",
        choices=("default", *PROJECTIONS),
    )

    def __post_init__(self):
        require(
            self.projection != "none" or self.form == "mse",
            "config.objective.projection is 'none', and the target leaves the simplex: set it to "
            "clip, sparsemax or entmax15, or config.objective.form to 'mse'.",
        )

    @property
    def target(self) -> TargetConfig:
        """Loss and projection of the targets; a squared distance needs no projection."""
        usual = "none" if self.form == "mse" else "sparsemax"
        return TargetConfig(self.form, usual if self.projection == "default" else self.projection)


def denoiser_at_hand(
    net: Network, target_params: Params, pairs: Pairs, teacher: Teacher | None
) -> tuple[Network, Params, States]:
    """Returns the denoiser for D, the teacher or the student's own diagonal, and its states."""
    if teacher is None:
        return net, target_params, pairs.views[0]
    return *teacher, pairs.views[1]


def entmax(z: Float[Array, "... v"], alpha: float, axes: tuple[str, ...] = ()) -> jax.Array:
    """Maximiser over the simplex of <p, z> + Tsallis entropy of p of order alpha in {1.5, 2}.

    It is p = max((alpha - 1) z - lambda, 0)^(1/(alpha-1)) with lambda such that p sums to 1: the
    root of a convex decreasing function, which Newton's steps reach from its left without
    overshooting. A step is one pass over z where sorting z would take dozens. At alpha = 2 it is
    sparsemax, the projection (arXiv 1602.02068); in general arXiv 1905.05702.

    Args:
      z: scores.
      alpha: 1.5 or 2.
      axes: mesh axes over which the last dimension is split.
    """
    total = functools.partial(tiled.total, axes=axes)
    high = jnp.max(z, axis=-1, keepdims=True)
    high = jax.lax.pmax(high, axes) if axes else high
    z = (alpha - 1.0) * (z - high)

    def mass(lift):
        gap = jnp.maximum(z - lift, 0.0)
        if alpha == 2.0:
            return gap, (gap > 0.0).astype(gap.dtype)
        return jnp.square(gap), 2.0 * gap

    def step(carry):
        count, lift, _ = carry
        # `mass` gives minus the derivative by lambda, hence the plus in Newton's step below.
        value, slope = (total(x) for x in mass(lift))
        move = (value - 1.0) / slope
        return count + 1, lift + move, jnp.max(move)

    def moving(carry):
        return (carry[0] < _NEWTON_LIMIT) & (carry[2] > 1e-7)

    # A multiple of high, for its shape and, under shard_map, its type.
    first = 0.0 * high - 1.0  # the largest entry alone has mass 1 there
    _, lift, _ = jax.lax.while_loop(moving, step, (0, first, jnp.max(first) + 2.0))
    value = mass(lift)[0]
    # What Newton's steps leave of the error of the sum is divided away.
    return value / total(value)


def project(
    q: Float[Array, "... v"], projection: Projection, axes: tuple[str, ...] = ()
) -> Float[Array, "... v"]:
    """Returns a point of the simplex for q, by the named projection; `axes` as in `entmax`."""
    if projection == "none":
        return q
    if projection == "clip":
        q = jnp.maximum(q, 0.0)
        return q / tiled.total(q, axes)
    return entmax(q, 2.0 if projection == "sparsemax" else 1.5, axes)


def moving_target(logits, log_z, target: tiled.Target, plan: tiled.Plan, projection: Projection):
    """Returns q of this module for `tiled.weighted_cross_entropy`, and the cross entropy to it.

    Rows are (share, features of D, rate, features of delta_st, their tangent); heads are the heads
    of D and of delta_st.
    """
    (now_head, head), (share, now, rate, features, tangent) = target
    now_logits = tiled.planned_logits(now, now_head, plan)
    denoised = jnp.exp(now_logits - tiled.log_partition(now_logits, plan.vocab_axes))
    delta, d_delta = tiled.probability_rate(features, tangent, head, plan)
    share, rate = share[..., None], rate[..., None]
    q = share * denoised + (1.0 - share) * delta + rate * d_delta
    q = projected(q, projection, plan)
    return q, jnp.sum(q * (log_z - logits), axis=-1)


def projected(q: jax.Array, projection: Projection, plan: tiled.Plan) -> jax.Array:
    """Returns `project` of a tile's q, in which rows beyond the tokens get nothing."""
    if plan.columns and projection != "none":
        own = tiled.standing(q.shape[-1], plan.columns, plan.vocab_axes)
        q = jnp.where(own, q, tiled.NONE)
    return project(q, projection, plan.vocab_axes)


def squared(target_fn: tiled.TargetFn) -> tiled.TargetFn:
    """Returns a target function for the squared distance instead of the cross entropy.

    `weighted_cross_entropy` takes softmax - q as the gradient in the logits; q is chosen so that
    this is the gradient of |softmax - target|^2, with the target of `target_fn`.
    """

    def fn(logits, log_z, target, plan):
        q, _ = target_fn(logits, log_z, target, plan)
        probs = jnp.exp(logits - log_z)
        # With p = softmax(logits), c the target and g = p - c, the derivative of p_j by logit i is
        # p_j (1[i = j] - p_i), so that
        #     d|p - c|^2 / d logits_i = sum_j 2 g_j p_j (1[i = j] - p_i) = 2 p_i (g_i - <p, g>),
        # and softmax - q is that for q = p - 2 p (g - <p, g>). The constant <p, g> keeps the sum
        # of q at 1, since a constant added to all logits changes nothing. The value is |g|^2
        # itself: the cross entropy to this q would be another number.
        gap = probs - q
        mean = tiled.total(probs * gap, plan.vocab_axes)
        return probs - 2.0 * probs * (gap - mean), jnp.sum(jnp.square(gap), axis=-1)

    return fn


def loss_to_target(
    out: Readout,
    now: Readout,
    moving: tuple[Readout, jax.Array],
    coefficients: tuple[Times, Times],
    weights: Float[Array, "b l"],
    *,
    net: Network,
    cfg: TargetConfig,
) -> tuple[jax.Array, Float[Array, "b l"]]:
    """Loss of the student to share * D + (1 - share) * delta_st + rate * d delta_st.

    Args:
      out: delta_st of the student.
      now: logits readout of D.
      moving: delta_st without gradient, and the tangent of its features.
      coefficients: pair (share, rate), each [B] or [B, L].
      weights: weight of each position in the sum.

    Returns:
      Weighted sum, differentiable in `out`; and values [B, L], nats or squared distances.
    """
    (delta, tangent), (share, rate) = moving, coefficients
    now, delta, tangent, share, rate = jax.lax.stop_gradient((now, delta, tangent, share, rate))
    fn = functools.partial(moving_target, projection=cfg.projection)
    fn = squared(fn) if cfg.form == "mse" else fn
    share, rate = (over_positions(x, weights.shape) for x in (share, rate))
    heads = ((now.kernel, now.bias), (delta.kernel, delta.bias))
    rows = (share, now.features, rate, delta.features, tangent)
    plan = plan_of(net)
    head = (out.kernel, out.bias)
    return tiled.weighted_cross_entropy(plan, fn, out.features, head, weights, (heads, rows))
