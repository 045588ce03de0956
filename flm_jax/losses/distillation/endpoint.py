"""Endpoint-consistency distillation into a flow map (arXiv 2602.12233, ECLD).

The Lagrangian residual of a flow map is (delta_st - delta_tt(X_st))/(1-t) + (t-s)/(1-s) d/dt
delta_st. Its two parts are bounded separately, the first by a cross entropy, which needs no
projection:

    CE(stop-gradient delta_tt(X_st), delta_st) + ||(t-s)/(1-s) d/dt delta_st||^2.

This is a bound, not the residual: where delta_st changes with t along the true flow, the true
delta_st is not its minimum, but close to a map that changes less with t.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.core.network import Network
from flm_jax.core.types import Key, Params, States
from flm_jax.denoiser import tiled
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import Readout, expected_embedding, mixture_cross_entropy
from flm_jax.denoiser.tile_plan import plan_of
from flm_jax.flows.flow import Flow
from flm_jax.flows.shapes import over_positions
from flm_jax.losses.distillation.base import DistillationConfig, Pairs, Teacher
from flm_jax.losses.distillation.lagrangian import derivative_in_t
from flm_jax.losses.distillation.moving_target import denoiser_at_hand

# (delta_st, X_st) -> (weighted sum, values [B, L]) of the first term, nats.
Taught = Callable[[Readout, States], tuple[jax.Array, Float[Array, "b l"]]]


@dataclasses.dataclass(frozen=True)
class EndpointConfig(DistillationConfig):
    """Settings of endpoint consistency, which always has both terms."""


def endpoint_loss_at(
    params: Params,
    target_params: Params,
    pairs: Pairs,
    *,
    net: Network,
    flow: Flow,
    teacher: Teacher | None = None,
    taught: Taught | None = None,
    key: Key | None = None,
) -> tuple[jax.Array, tuple[Float[Array, "b l"], Float[Array, "b l"]]]:
    """Computes the two terms at given states and times.

    Args:
      params: parameters of the student.
      target_params: parameters for delta_tt(X_st) (no gradient, no dropout).
      pairs: states and times; with a teacher, also in its table.
      teacher: denoiser that gives D_t instead of delta_tt.
      taught: the first term from delta_st and X_st, for denoisers of another form; None for its
        cross entropy to D_t.

    Returns:
      Weighted sum; and for each token [B, L] the cross entropy (nats) and the squared norm.
    """
    fixed, still = jax.lax.stop_gradient((target_params, pairs))
    now_net, now_params, y_s = denoiser_at_hand(net, fixed, still, teacher)
    delta = forward(net, fixed, still.views[0], pairs.tau_s, pairs.tau_t)
    landed = expected_embedding(delta, now_net.table(now_params), net)
    x_t = pairs.jump(flow, y_s, landed, pairs.s, pairs.t)

    # The norm is trained too: reverse mode over forward mode.
    out, tangent = derivative_in_t(params, pairs, net=net, flow=flow, key=key)
    if taught is None:
        now = forward(now_net, now_params, x_t, pairs.tau_t, pairs.tau_t)
        target = [(jnp.ones_like(pairs.t), now)]
        ce_sum, ce = mixture_cross_entropy(out, target, pairs.weights, net)
    else:
        ce_sum, ce = taught(out, x_t)
    # w_x(s, t) is the factor (t-s)/(1-s) of the linear path.
    factor = over_positions(flow.path.weights(pairs.s, pairs.t).clean, pairs.weights.shape)
    head = (out.kernel, out.bias)
    plan = plan_of(net)
    norm = jnp.square(factor) * tiled.squared_rate(plan, out.features, tangent, head)
    return ce_sum + jnp.sum(pairs.weights * norm), (ce, jax.lax.stop_gradient(norm))
