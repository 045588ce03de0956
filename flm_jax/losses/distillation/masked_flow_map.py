"""Distillation of a masked flow into its flow map, with guidance.

The flow is the probability-flow ODE of the masked bridge (arXiv 2606.27617), whose step from s to t
is w_y z + w_x D + w_m m, and whose flow map has the same weights with the two-time denoiser
delta_st, a mean of D along the way. Prompts and other visible positions are clean, and stay it; as
in training of the masked flow the network reads one time for all positions of a row.

A fraction of the rows has t = s: there delta_tt is drawn to the teacher's denoiser, guided away
from corrupted context,

    D_w = D + w (D - D'),    D' with the context drawn anew from the bridge at time t,

and projected to the simplex, which it may leave. On the other rows a route asks for delta_st with
s < t (arXiv 2602.16813v3): `semigroup` or, with D_w where the jump lands, `endpoint`. The map of
the guided flow is thus learnt with one call where the teacher takes two.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Metrics, Params, States, Times
from flm_jax.denoiser import tile_targets, tiled
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import Readout, mixture_cross_entropy
from flm_jax.denoiser.tile_plan import plan_of
from flm_jax.flows.flow import Flow
from flm_jax.flows.noising import hidden_states, with_corrupted_context
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.base import Frozen
from flm_jax.losses.distillation.base import Pairs, PairsConfig, Teacher, row_groups, split_rows
from flm_jax.losses.distillation.endpoint import endpoint_loss_at
from flm_jax.losses.distillation.moving_target import PROJECTIONS, Projection, projected
from flm_jax.losses.distillation.semigroup import SPLITS, semigroup_loss_at, split_times
from flm_jax.losses.masked_flow import HidingConfig, draw_hidden, may_be_hidden, position_weights

ROUTES = ("semigroup", "endpoint")


@dataclasses.dataclass(frozen=True)
class ContextGuidanceConfig:
    """Setting of the guidance of a masked flow that is learnt with its map."""

    context_guidance: float = setting(
        0.0,
        "Weight of the teacher's guidance away from corrupted context, which the map learns; 0 for "
        "none.",
        range="[0, inf)",
    )


@dataclasses.dataclass(frozen=True)
class MaskedMapConfig(ContextGuidanceConfig, PairsConfig, HidingConfig):
    """Settings of the distillation of a masked flow, config.adapters.base."""

    route: str = setting(
        "semigroup",
        "Identity by which the map is learnt off the diagonal: semigroup or endpoint.",
        choices=ROUTES,
    )
    split: str = setting(
        "midpoint",
        "Position of u in the interval of the semigroup, in quantiles of the distribution of "
        "times: midpoint or uniform.",
        choices=SPLITS,
    )
    projection: str = setting(
        "sparsemax",
        "Projection of the guided denoiser to the simplex: sparsemax (the nearest point), entmax15 "
        "or clip (negative entries to 0, then divided by the sum).",
        choices=PROJECTIONS[1:],
    )


class Rest(NamedTuple):
    """Rows of a batch: tokens [B, L], hidden positions, weights of the loss, key of noise."""

    tokens: Int[Array, "b l"]
    hidden: Bool[Array, "b l"]
    weights: Float[Array, "b l"]


def guided_denoiser(
    key: Key,
    teacher: Teacher,
    z_t: States,
    tau: Times,
    tokens: Int[Array, "b l"],
    hidden: Bool[Array, "b l"],
    *,
    flow: Flow,
    guidance: float,
) -> list[tuple[Times, Readout]]:
    """Parts (weight [B], readout) of D + w (D - D'), the teacher's denoiser with guidance w.

    Args:
      key: key of the noise by which D' has its context corrupted.
      teacher: network and parameters of the masked flow.
      z_t: states [B, L, D], clean where not hidden.
      tau: network time of each row [B].
      tokens: tokens, which are read where not hidden.
      hidden: mask of hidden positions.
      flow: flow of the masked bridge.
      guidance: weight w; 0 makes one call, else two.
    """
    net, params = teacher
    ones = jnp.ones_like(tau)
    plain = forward(net, params, z_t, tau, tau)
    if not guidance:
        return [(ones, plain)]
    own = (net.table(params), net.anchor(params))
    z_t = with_corrupted_context(key, flow, flow.t(tau), z_t, tokens, hidden, *own)
    return [
        ((1.0 + guidance) * ones, plain),
        (-guidance * ones, forward(net, params, z_t, tau, tau)),
    ]


def _signed_target(logits, log_z, target: tiled.Target, plan: tiled.Plan, projection: Projection):
    q, _ = tile_targets.mixture_target(logits, log_z, target, plan)
    q = projected(q, projection, plan)
    return q, jnp.sum(q * (log_z - logits), axis=-1)


def guided_cross_entropy(
    out: Readout,
    parts: list[tuple[Times, Readout]],
    weights: Float[Array, "b l"],
    net: Network,
    projection: Projection,
) -> tuple[jax.Array, Float[Array, "b l"]]:
    """Cross entropy to a sum of denoisers whose weights add up to 1 and may be negative.

    Args:
      out: readout of the student.
      parts: pairs (weight [B], readout); no gradient flows into them.
      weights: weight of each position in the sum.
      net: network, for its soft cap and tiles.
      projection: name of the projection of the sum onto the simplex.

    Returns:
      Weighted sum, differentiable in `out`, and values [B, L], nats.
    """
    if len(parts) == 1:
        return mixture_cross_entropy(out, parts, weights, net)
    fn = functools.partial(_signed_target, projection=projection)
    target = tile_targets.laid_out(parts, weights.shape)
    head = (out.kernel, out.bias)
    return tiled.weighted_cross_entropy(plan_of(net), fn, out.features, head, weights, target)


def masked_map_loss(
    params: Params,
    frozen: Frozen,
    batch: dict[str, jax.Array],
    key: Key,
    rows: Rows,
    *,
    net: Network,
    flow: Flow,
    cfg: MaskedMapConfig,
    teacher: Network,
) -> tuple[jax.Array, Metrics]:
    """Distillation loss of a masked flow over a batch: diagonal rows and the others.

    Args:
      params: all parameters of the student, a two-time network with the teacher's embeddings.
      frozen: parameters of the teacher, of the student's average (all of them), and the state of
        the teacher's learnt times.
      batch: "tokens" int32 [B, L] and "mask" [B, L]; optionally "prompt" [B, L], 1 where tokens
        stay visible.
      key: key for times, hidden positions, noise and dropout.
      rows: indices of these rows in the global batch.
      net, flow: student, and the probability-flow ODE of the masked bridge.
      teacher: network of the masked flow.

    Returns:
      The loss, with the weights of positions that the masked flow has; and metrics:
      "diagonal_nats_per_token" and the route's, means over the hidden positions of their own rows.
    """
    flow = flow.settled(frozen.tracked)
    guide = (teacher, frozen.teacher)
    d_key, p_key, share_key, hide_key, own_key = jax.random.split(key, 5)
    corrupt_key, u_key, noise_key, drop_key = jax.random.split(rows.fold(own_key), 4)
    free = may_be_hidden(batch, cfg)
    hidden, share = draw_hidden(hide_key, share_key, free, rows, cfg)
    weights, counted = position_weights(hidden, free, share, cfg.reduction)
    group, n_diag = row_groups(cfg.diagonal, free.shape[0])
    table, anchor = net.table(params), net.anchor(params)[: free.shape[1]]
    parts = [split_rows(x, group, n_diag) for x in (batch["tokens"], hidden, weights)]
    on, off = (Rest(*part) for part in zip(*parts))

    def states(number: int, t: Times, rest: Rest) -> States:
        own = jax.random.fold_in(noise_key, number)
        return hidden_states(own, flow, t, rest.tokens, rest.hidden, table, anchor)

    def taught(number: int, rest: Rest, tau: Times, out: Readout, z: States):
        own = jax.random.fold_in(corrupt_key, number)
        how = {"flow": flow, "guidance": cfg.context_guidance}
        target = guided_denoiser(own, guide, z, tau, rest.tokens, rest.hidden, **how)
        return guided_cross_entropy(out, target, rest.weights, net, cfg.projection)

    loss, metrics = 0.0, {}
    if n_diag:
        part = Rows(rows.start * n_diag // group, rows.total * n_diag // group)
        tau = flow.draw_times(d_key, len(on.tokens), part)
        z = states(0, flow.t(tau), on)
        out = forward(net, params, z, tau, tau, key=jax.random.fold_in(drop_key, 0))
        value, ce = taught(0, on, tau, out, z)
        loss, metrics = value, {"diagonal_nats_per_token": _mean(ce, on)}
    if n_diag < group:
        n_off = group - n_diag
        part = Rows(rows.start * n_off // group, rows.total * n_off // group)
        taus = flow.draw_pairs(p_key, len(off.tokens), part, cfg.boundary)
        s, t = (flow.t(tau) for tau in taus)
        z = states(1, s, off)
        pairs = Pairs((z, None), *taus, s, t, off.weights, off.hidden, anchor)
        target = frozen.average if cfg.ema_target else params
        how = {"net": net, "flow": flow, "key": jax.random.fold_in(drop_key, 1)}
        if cfg.route == "semigroup":
            tau_u = split_times(u_key, flow, *taus, cfg.split)
            value, values = _semigroup(params, target, pairs, tau_u, **how)
        else:
            asked = functools.partial(taught, 1, off, taus[1])
            value, values = _endpoint(params, target, pairs, asked, **how)
        loss = loss + value
        metrics |= {name: _mean(value, off) for name, value in values.items()}
    return loss, metrics | {"counted": counted}


def _semigroup(params: Params, target: Params, pairs: Pairs, tau_u: Times, *, net, flow, key):
    taus, times = (pairs.tau_s, tau_u, pairs.tau_t), (pairs.s, flow.t(tau_u), pairs.t)
    how = {"net": net, "flow": flow, "form": "ce", "key": key}
    jump = functools.partial(pairs.jump, flow)
    loss, ce = semigroup_loss_at(
        params, target, pairs.views[0], taus, times, pairs.weights, jump=jump, **how
    )
    return loss, {"semigroup_nats_per_token": ce}


def _endpoint(params: Params, target: Params, pairs: Pairs, taught: Callable, *, net, flow, key):
    how = {"net": net, "flow": flow, "taught": taught, "key": key}
    loss, (ce, norm) = endpoint_loss_at(params, target, pairs, **how)
    return loss, {"endpoint_nats_per_token": ce, "endpoint_squared_per_token": norm}


def _mean(values: Float[Array, "b l"], rest: Rest) -> jax.Array:
    hidden = rest.hidden.astype(jnp.float32)
    return jnp.sum(values * hidden) / jnp.maximum(jnp.sum(hidden), 1.0)
