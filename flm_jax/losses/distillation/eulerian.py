"""Eulerian distillation into a flow map (arXiv 2602.16813v3, ESD).

The end of a trajectory does not change along it: (d/ds + b_s . grad) X_st = 0. In terms of the
two-time denoiser, with G the derivative along the flow (d/ds + b_s . grad) delta_st / beta_s:

    delta_st(x) = D_s(x) + w_x(s, t)/w_y(s, t) G =: q.

For the linear path b_s/beta_s = D_s(x) - x and the factor is (t-s)/(1-t). It diverges as t -> 1,
and the one-step map has t = 1. The target is therefore delta_st + w (q - delta_st) with w = min(1,
bound w_y): it has the same solution, and G enters with a factor of at most `bound`. With bound = 1
it is w_y D_s + w_x G + (1 - w_y) delta_st.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Params, States
from flm_jax.denoiser.forward import forward, vocabulary_head
from flm_jax.denoiser.head import Readout, expected_embedding
from flm_jax.flows.flow import Flow
from flm_jax.flows.shapes import over_features
from flm_jax.losses.distillation.base import Pairs, Teacher
from flm_jax.losses.distillation.moving_target import (
    MovingTargetConfig,
    TargetConfig,
    denoiser_at_hand,
    loss_to_target,
)


@dataclasses.dataclass(frozen=True)
class EulerianConfig(MovingTargetConfig):
    """Settings of the Eulerian route."""

    form: str = setting("mse", "Loss off the diagonal: mse or ce.", choices=("mse", "ce"))
    derivative_bound: float = setting(
        1.0, "Largest factor of the derivative term in the target.", range="(0, inf)"
    )


def derivative_along_flow(
    params: Params, pairs: Pairs, denoised: States, *, net: Network, flow: Flow
) -> tuple[Readout, jax.Array]:
    """Computes delta_st and the derivative of its features along (1-s, D_s - x), in one pass.

    Args:
      denoised: D_s at the pairs, as a state [B, L, D] of the student's table: in the embedding
        space the direction D_s - x has D dimensions, not V.

    Returns:
      delta_st and the tangent [B, L, D] of its features (forward mode); through the head it gives
      G.
    """
    y_s, s = pairs.views[0], pairs.s
    # Clean positions, where s = 1, do not move along the flow.
    drift = flow.path.drift(y_s, denoised, s)
    direction = jnp.where(over_features(s) < 1.0, drift, 0.0)
    out, tangent = jax.jvp(
        lambda y, tau_s: forward(net, params, y, tau_s, pairs.tau_t).features,
        (y_s, pairs.tau_s),
        # Along the flow states move at b_s and time at 1: both over beta, and time by the clock.
        (direction, flow.path.slowness(s) * flow.slope(s)),
    )
    return Readout(out, *vocabulary_head(net, params)), tangent


def eulerian_loss_at(
    params: Params,
    target_params: Params,
    pairs: Pairs,
    *,
    net: Network,
    flow: Flow,
    cfg: TargetConfig,
    bound: float,
    teacher: Teacher | None = None,
    key: Key | None = None,
) -> tuple[jax.Array, Float[Array, "b l"]]:
    """Loss of delta_st to the Eulerian target at given states and times.

    Args:
      params: parameters of the student.
      target_params: parameters for the target (no gradient, no dropout).
      pairs: states and times; with a teacher, also in its table.
      bound: largest factor of G.
      teacher: denoiser that gives D_s; without one the student's delta_ss does.

    Returns:
      Weighted sum and values for each token [B, L]: nats, or squared distances.
    """
    fixed, still = jax.lax.stop_gradient((target_params, pairs))
    now_net, now_params, y_s = denoiser_at_hand(net, fixed, still, teacher)
    now = forward(now_net, now_params, y_s, pairs.tau_s, pairs.tau_s)
    denoised = expected_embedding(now, net.table(fixed), now_net)
    moving = derivative_along_flow(fixed, still, denoised, net=net, flow=flow)
    out = forward(net, params, pairs.views[0], pairs.tau_s, pairs.tau_t, key=key)
    factors = flow.path.eulerian_rates(pairs.s, pairs.t, bound)
    return loss_to_target(out, now, moving, factors, pairs.weights, net=net, cfg=cfg)
