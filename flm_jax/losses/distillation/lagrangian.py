"""Lagrangian distillation into a flow map (arXiv 2602.16813v3, LSD).

The flow map moves along the flow as its end time grows, d/dt X_st = b_t(X_st). In terms of the
two-time denoiser:

    delta_st(x) = D_t(X_st(x)) - w_x(s, t)/beta_t d/dt delta_st(x),

with the factor (1-t)(t-s)/(1-s) for the linear path.

The right-hand side, without gradient, is the target; at t = 1 its second term vanishes.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.core.network import Network
from flm_jax.core.types import Key, Params
from flm_jax.denoiser.forward import forward, vocabulary_head
from flm_jax.denoiser.head import Readout, expected_embedding
from flm_jax.flows.flow import Flow
from flm_jax.losses.distillation.base import Pairs, Teacher
from flm_jax.losses.distillation.moving_target import (
    MovingTargetConfig,
    TargetConfig,
    denoiser_at_hand,
    loss_to_target,
)


@dataclasses.dataclass(frozen=True)
class LagrangianConfig(MovingTargetConfig):
    """Settings of the Lagrangian route."""


def derivative_in_t(
    params: Params, pairs: Pairs, *, net: Network, flow: Flow, key: Key | None = None
) -> tuple[Readout, jax.Array]:
    """Computes delta_st at the pairs and the derivative of its features [B, L, D] in t."""
    # Clean positions, where s = t = 1, stay there while the others' end time moves.
    slope = jnp.where(pairs.s < 1.0, flow.slope(pairs.t), 0.0)
    out, tangent = jax.jvp(
        lambda tau_t: forward(net, params, pairs.views[0], pairs.tau_s, tau_t, key=key).features,
        (pairs.tau_t,),
        (slope,),
    )
    return Readout(out, *vocabulary_head(net, params)), tangent


def lagrangian_loss_at(
    params: Params,
    target_params: Params,
    pairs: Pairs,
    *,
    net: Network,
    flow: Flow,
    cfg: TargetConfig,
    teacher: Teacher | None = None,
    key: Key | None = None,
) -> tuple[jax.Array, Float[Array, "b l"]]:
    """Loss of delta_st to the Lagrangian target at given states and times.

    Args:
      params: parameters of the student.
      target_params: parameters for the target (no gradient, no dropout).
      pairs: states and times; with a teacher, also in its table.
      teacher: denoiser that gives D_t; without one the student's delta_tt does.

    Returns:
      Weighted sum and values for each token [B, L]: nats, or squared distances.
    """
    fixed, still = jax.lax.stop_gradient((target_params, pairs))
    delta, tangent = derivative_in_t(fixed, still, net=net, flow=flow)
    now_net, now_params, y_s = denoiser_at_hand(net, fixed, still, teacher)
    # X_st in the table of whichever network gives D_t: a teacher reads its own embedding.
    landed = expected_embedding(delta, now_net.table(now_params), net)
    x_t = pairs.jump(flow, y_s, landed, pairs.s, pairs.t)
    now = forward(now_net, now_params, x_t, pairs.tau_t, pairs.tau_t)
    rate = -flow.path.lagrangian_rate(pairs.s, pairs.t)
    out = forward(net, params, pairs.views[0], pairs.tau_s, pairs.tau_t, key=key)
    share = jnp.ones_like(rate)
    return loss_to_target(
        out, now, (delta, tangent), (share, rate), pairs.weights, net=net, cfg=cfg
    )
