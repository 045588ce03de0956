"""A flow map of two networks, and one network that replaces both (arXiv 2602.16813, appendix).

First stage, `residual`: beside a frozen flow D a second network g, a vector of R^V without softmax,
makes a map that is exact to second order from the start,

    X_st(x) = x + (t-s) v_s(x) + (t-s)^2/2 g_st(x),  v_s(x) = (D_s(x) - x)/(1-s), so that
    delta_st = D_s + c_st g_st,  c_st = (t-s)(1-s)/2.

g learns the semigroup's target gamma delta_su + (1-gamma) delta_ut(X_su), by its squared distance
in R^V; x itself drops out of both sides, so that states stay [B, L, D] here.

Second stage, `merge`: a flow map with softmax learns X_st of the two, by the squared distance of
the states in the one-hot space, ((t-s)/(1-s))^2 |delta_st - softmax|^2.

There are no rows with s = t. The head of g is the difference to the flow's head: it starts at zero,
while the rest of g is initialised by the flow's network.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Params, States, Times
from flm_jax.denoiser import tiled
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import Readout, expected_embedding
from flm_jax.denoiser.tile_plan import Plan, check_shapes, plan_of, specs
from flm_jax.flows.flow import Flow
from flm_jax.flows.shapes import over_features, over_positions
from flm_jax.losses.distillation.base import DistillationConfig, Pairs, Teacher
from flm_jax.losses.distillation.semigroup import SPLITS

RESIDUAL = "residual"  # where the parameters of g stand beside those of the flow


@dataclasses.dataclass(frozen=True)
class ResidualConfig(DistillationConfig):
    """Settings of the first stage."""

    diagonal: float = setting(
        0.0, "Fraction of rows with t = s; 0, since the correction has no such rows."
    )
    boundary: float = setting(1 / 64, "Fraction of rows with (s, t) = (0, 1).", range="[0, 1]")
    split: str = setting(
        "midpoint",
        "Position of u in the interval, in quantiles of the distribution of times: midpoint "
        "or uniform.",
        choices=SPLITS,
    )


@dataclasses.dataclass(frozen=True)
class MergeConfig(DistillationConfig):
    """Settings of the second stage."""

    residual: str = setting(
        "", "Workdir of the first stage (objective residual), which is required."
    )
    diagonal: float = setting(
        0.0, "Fraction of rows with t = s; 0, since the correction has no such rows."
    )
    boundary: float = setting(1 / 128, "Fraction of rows with (s, t) = (0, 1).", range="[0, 1]")


class Term(NamedTuple):
    """Summand of a vector in R^V: weight * softmax(logits), or weight * logits.

    Attributes:
      weight: weights [B, L].
      out: features [B, L, k] and their head.
      softcap: cap of the logits of a softmax, 0 for none; None for the logits themselves.
    """

    weight: Float[Array, "b l"]
    out: Readout
    softcap: float | None


def squared_norm(plan: Plan, terms: list[Term]) -> Float[Array, "b l"]:
    """Computes |sum of the terms|^2 of each position, tile by tile: no [B, L, V] is held.

    The result is differentiable in weights, features and heads; reverse mode recomputes each tile.
    """
    caps = [term.softcap for term in terms]

    def local(rows, heads):
        heads, rows = _varying(heads, plan.batch_axes), _varying(rows, plan.vocab_axes)

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def body(_, tile):
            whole = 0.0
            for (weight, features), head, cap in zip(tile, heads, caps):
                whole = whole + weight[..., None] * _vector(features, head, cap, plan)
            return None, tiled.total(jnp.square(whole), plan.vocab_axes)[..., 0]

        return tiled.over_tiles(body, None, rows, plan.tile)[1]

    rows = [(term.weight, term.out.features) for term in terms]
    heads = [(term.out.kernel, term.out.bias) for term in terms]
    if plan.parallel is None:
        return local(rows, heads)
    for (_, features), (kernel, _) in zip(rows, heads):
        check_shapes(plan.parallel, features, kernel)
    row, columns = specs(plan)
    inputs = ([(row, row)] * len(terms), [columns] * len(terms))
    run = jax.shard_map(local, mesh=plan.parallel.mesh, in_specs=inputs, out_specs=row)
    return run(rows, heads)


def _varying(tree: Any, axes: tuple[str, ...]) -> Any:
    """Marks arrays as differing between devices, so that their gradients are summed once."""
    return jax.lax.pcast(tree, axes, to="varying") if axes else tree


def _vector(features: jax.Array, head: tiled.Head, cap: float | None, plan: Plan) -> jax.Array:
    """Term without its weight, on this device's columns, [B, T, V]."""
    plan = dataclasses.replace(plan, softcap=cap or 0.0)
    logits = tiled.planned_logits(features, head, plan)
    if cap is not None:
        return jnp.exp(logits - tiled.log_partition(logits, plan.vocab_axes, plan.softcap))
    if not plan.columns:
        return logits
    own = tiled.standing(logits.shape[-1], plan.columns, plan.vocab_axes)
    return jnp.where(own, logits, 0.0)


def second_order(s: Times, t: Times) -> Times:
    """Coefficient c_st of delta_st = D_s + c_st g_st."""
    return 0.5 * (t - s) * (1.0 - s)


def residual_readout(
    net: Network, params: Params, y: States, tau_s: Times, tau_t: Times, flow: Teacher, key=None
) -> Readout:
    """Returns g_st(y): features with the difference of g's head to the flow's, float32.

    Args:
      net, params: network g and its parameters.
      y: states [B, L, D] in g's table.
      tau_s, tau_t: network times.
      flow: network and parameters of the flow.
      key: key that switches dropout on.
    """
    out = forward(net, params, y, tau_s, tau_t, key=key)
    kernel, bias = flow[0].readout(jax.lax.stop_gradient(flow[1]))
    own, of = (jnp.float32(out.kernel), jnp.float32(out.bias)), (jnp.float32(kernel), bias)
    return Readout(out.features, own[0] - of[0], own[1] - of[1])


def _embedded(out: Readout, table: Float[Array, "v d"]) -> States:
    """Computes logits @ E, [B, L, D], float32, through a product of head and table."""
    exact = jax.lax.Precision.HIGH
    kernel = jnp.matmul(out.kernel, table, precision=exact)
    bias = jnp.matmul(out.bias, table, precision=exact)
    return jnp.matmul(out.features.astype(jnp.float32), kernel, precision=exact) + bias[None, None]


def residual_loss_at(
    params: Params,
    target_params: Params,
    pairs: Pairs,
    tau_u: Times,
    u: Times,
    *,
    net: Network,
    flow: Flow,
    teacher: Teacher,
    key: Key | None = None,
) -> tuple[jax.Array, Float[Array, "b l"]]:
    """Loss of the first stage at given states and times.

    Args:
      params: parameters of g.
      target_params: parameters for the target (no gradient, no dropout).
      pairs: states in the tables of g and of the flow, and times.
      tau_u, u: network time and time of the path between s and t, [B] or [B, L].
      teacher: frozen flow.

    Returns:
      Weighted sum and squared distances for each token [B, L].
    """
    target_params, fixed = jax.lax.stop_gradient((target_params, pairs.views))
    teacher = (teacher[0], jax.lax.stop_gradient(teacher[1]))
    s, t, tau_s, tau_t = pairs.s, pairs.t, pairs.tau_s, pairs.tau_t
    at_s = forward(*teacher, fixed[1], tau_s, tau_s)
    g_su = residual_readout(net, target_params, fixed[0], tau_s, tau_u, teacher)
    moved = []
    for view, table in zip(fixed, (net.table(target_params), teacher[0].table(teacher[1]))):
        delta = expected_embedding(at_s, table, teacher[0])
        delta = delta + over_features(second_order(s, u)) * _embedded(g_su, table)
        moved.append(flow.path.step(view, delta, s, u))
    at_u = forward(*teacher, moved[1], tau_u, tau_u)
    g_ut = residual_readout(net, target_params, moved[0], tau_u, tau_t, teacher)
    gamma = flow.path.semigroup_weight(s, u, t)
    over = functools.partial(over_positions, shape=pairs.weights.shape)
    cap = teacher[0].logit_softcap
    # gamma (D_s + c_su g_su) + (1 - gamma) (D_u + c_ut g_ut) - (D_s + c_st g_st): the flow at s is
    # in the target and in what learns it.
    target = [
        Term(over(gamma - 1.0), at_s, cap),
        Term(over(gamma * second_order(s, u)), g_su, None),
        Term(over(1.0 - gamma), at_u, cap),
        Term(over((1.0 - gamma) * second_order(u, t)), g_ut, None),
    ]
    own = residual_readout(net, params, pairs.views[0], tau_s, tau_t, teacher, key)
    learns = Term(over(-second_order(s, t)), own, None)
    values = squared_norm(plan_of(net), [*_stopped(target), learns])
    return jnp.sum(pairs.weights * values), jax.lax.stop_gradient(values)


def merge_loss_at(
    params: Params,
    target_params: Params,
    pairs: Pairs,
    *,
    net: Network,
    flow: Flow,
    teacher: Teacher,
    key: Key | None = None,
) -> tuple[jax.Array, Float[Array, "b l"]]:
    """Loss of the second stage at given states and times.

    Args:
      params: parameters of the flow map, on which the target does not depend.
      pairs: states in its table and in the two of `teacher`, and times.
      teacher: frozen flow, whose parameters hold g's under `RESIDUAL`; its table is the tables of
        flow and g side by side (`two_tables`).

    Returns:
      Weighted sum, and squared distances of the two states in R^V for each token, [B, L].
    """
    del target_params
    frozen, views = jax.lax.stop_gradient((teacher[1], pairs.views[1]))
    flow_params, residual = parted(frozen)
    alone = (teacher[0], flow_params)
    width = net.table(residual).shape[1]
    own, other = views[..., :-width], views[..., -width:]
    s, t, tau_s, tau_t = pairs.s, pairs.t, pairs.tau_s, pairs.tau_t
    over = functools.partial(over_positions, shape=pairs.weights.shape)
    at_s = forward(*alone, own, tau_s, tau_s)
    g_st = residual_readout(net, residual, other, tau_s, tau_t, alone)
    out = forward(net, params, pairs.views[0], tau_s, tau_t, key=key)
    moved = over(flow.path.weights(s, t).clean)
    target = [
        Term(moved, at_s, teacher[0].logit_softcap),
        Term(moved * over(second_order(s, t)), g_st, None),
    ]
    learns = Term(-moved, out, net.logit_softcap)
    values = squared_norm(plan_of(net), [*_stopped(target), learns])
    return jnp.sum(pairs.weights * values), jax.lax.stop_gradient(values)


def _stopped(terms: list[Term]) -> list[Term]:
    """Returns the terms without gradient."""
    rows = jax.lax.stop_gradient([(term.weight, term.out) for term in terms])
    return [Term(*row, term.softcap) for row, term in zip(rows, terms)]


def parted(frozen: Params) -> tuple[Params, Params]:
    """Splits parameters into the flow's and g's."""
    return {key: value for key, value in frozen.items() if key != RESIDUAL}, frozen[RESIDUAL]


def two_tables(flow: Network, net: Network) -> Network:
    """Returns the flow with the tables of both networks side by side, to draw states for both.

    Args:
      flow: network of the flow.
      net: network g.
    """

    def table(frozen: Params) -> jax.Array:
        own, residual = parted(frozen)
        return jnp.concatenate([flow.table(own), net.table(residual)], axis=1)

    return dataclasses.replace(flow, table=table)
