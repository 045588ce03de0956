"""Semigroup (progressive) distillation of a flow into a flow map (arXiv 2602.16813v3, PSD).

For every s <= u <= t, delta_st = gamma delta_su + (1-gamma) delta_ut(X_su); the right-hand side,
without gradient, is the target. It stays on the simplex.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
from jaxtyping import Array, Float

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Params, States, Times
from flm_jax.denoiser import tile_targets, tiled
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import expected_embedding, mixture_cross_entropy
from flm_jax.denoiser.tile_plan import plan_of
from flm_jax.flows.flow import Flow
from flm_jax.losses.distillation.base import DistillationConfig
from flm_jax.losses.distillation.moving_target import Form, squared

Split = Literal["midpoint", "uniform"]
SPLITS = ("midpoint", "uniform")


@dataclasses.dataclass(frozen=True)
class SemigroupConfig(DistillationConfig):
    """Settings of the semigroup route."""

    form: str = setting("ce", "Loss off the diagonal: ce or mse.", choices=("ce", "mse"))
    split: str = setting(
        "midpoint",
        "Position of u in the interval, in quantiles of the distribution of times: midpoint "
        "or uniform.",
        choices=SPLITS,
    )
    guidance: float = setting(
        1.0,
        "Weight of classifier-free guidance of the teacher, by a second call whose clean context is"
        " noised; 1 for none.",
        range="(-inf, inf)",
    )


def split_times(key: Key, flow: Flow, tau_s: Times, tau_t: Times, split: Split) -> Times:
    """Returns tau_u between tau_s and tau_t, [B] or [B, L]: in the middle, or uniform (by key).

    All positions of a row split their interval at the same fraction.
    """
    shape = (tau_s.shape[0],) + (1,) * (tau_s.ndim - 1)
    where = 0.5 if split == "midpoint" else jax.random.uniform(key, shape)
    return flow.between(tau_s, tau_t, where)


def semigroup_loss_at(
    params: Params,
    target_params: Params,
    y_s: States,
    taus: tuple[Times, Times, Times],
    times: tuple[Times, Times, Times],
    weights: Float[Array, "b l"],
    *,
    net: Network,
    flow: Flow,
    form: Form,
    jump: Callable[..., States] | None = None,
    key: Key | None = None,
) -> tuple[jax.Array, Float[Array, "b l"]]:
    """Loss of delta_st to gamma delta_su + (1-gamma) delta_ut(X_su) at given states and times.

    Args:
      params: parameters of the student.
      target_params: parameters for the target (no gradient, no dropout).
      y_s: states [B, L, D] at time s.
      taus: network times (tau_s, tau_u, tau_t), each [B] or [B, L].
      times: the same as times of the path (s, u, t).
      weights: weight of each position in the sum.
      form: "ce", or "mse" for the squared distance.
      jump: function from (y_s, delta_su, s, u) to the state at u; None for the step of the path.

    Returns:
      Weighted sum and values for each token [B, L]: nats, or squared distances.
    """
    (tau_s, tau_u, tau_t), (s, u, t) = taus, times
    target_params, y_fixed = jax.lax.stop_gradient((target_params, y_s))
    first = forward(net, target_params, y_fixed, tau_s, tau_u)
    delta_su = expected_embedding(first, net.table(target_params), net)
    y_u = (jump or flow.path.step)(y_fixed, delta_su, s, u)
    second = forward(net, target_params, y_u, tau_u, tau_t)
    gamma = flow.path.semigroup_weight(s, u, t)
    out = forward(net, params, y_s, tau_s, tau_t, key=key)
    targets = [(gamma, first), (1.0 - gamma, second)]
    if form == "ce":
        return mixture_cross_entropy(out, targets, weights, net)
    plan, target = plan_of(net), tile_targets.laid_out(targets, weights.shape)
    fn, head = squared(tile_targets.mixture_target), (out.kernel, out.bias)
    return tiled.weighted_cross_entropy(plan, fn, out.features, head, weights, target)
