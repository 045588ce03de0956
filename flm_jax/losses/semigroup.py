"""Semigroup (progressive) distillation of a flow into a flow map (arXiv 2602.16813v3).

Off the diagonal, delta_st = gamma delta_su + (1-gamma) delta_ut(X_su) for every s <= u <= t; the
right side, without gradient, is the target of the cross entropy. On the diagonal the target is the
teacher's denoiser, or the data where there is no teacher.
"""

import dataclasses
from fractions import Fraction
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flm_jax.flows.clocks import Clock, tau_to_t
from flm_jax.flows.flow_map import flow_map, semigroup_weight
from flm_jax.flows.readout import (
    cross_entropy,
    expected_embedding,
    mixture_cross_entropy,
    read,
)
from flm_jax.flows.states import NoiseKind, noisy_states
from flm_jax.flows.times import Rows, stratified_uniform, time_pairs
from flm_jax.losses.denoising import token_weights
from flm_jax.types import Key, Metrics, Network, Params, States, Times


@dataclasses.dataclass(frozen=True)
class SemigroupConfig:
    """Choices of the semigroup route.

    Attributes:
      noise: how eps is drawn, "projected" or "onehot".
      diagonal: share of the rows with t = s, a fraction with denominator at most 8.
      boundary: share of the other rows with (s, t) = (0, 1).
      split: where u lies between s and t, in tau: "midpoint" or "uniform".
    """

    noise: NoiseKind = "projected"
    diagonal: float = 0.5
    boundary: float = 1 / 32
    split: Literal["midpoint", "uniform"] = "midpoint"


def row_groups(diagonal: float, num: int) -> tuple[int, int]:
    """(rows a group, diagonal rows a group): a fixed share of each group of rows is diagonal.

    A fixed share keeps shapes static, so that teacher and targets run on their own rows only, and
    groups of neighbours keep it equal on every device.
    """
    share = Fraction(diagonal).limit_denominator(8)
    if num % share.denominator:
        raise ValueError(f"{num} rows do not split into groups of {share.denominator}")
    return share.denominator, share.numerator


def _split(x: jax.Array, group: int, diagonal: int) -> tuple[jax.Array, jax.Array]:
    x = x.reshape(-1, group, *x.shape[1:])
    first, second = x[:, :diagonal], x[:, diagonal:]
    return first.reshape(-1, *x.shape[2:]), second.reshape(-1, *x.shape[2:])


def diagonal_loss_at(
    params: Params,
    views: tuple[States, Float[Array, "b l k"] | None],
    tau: Times,
    tokens: Int[Array, "b l"],
    weights: Float[Array, "b l"],
    *,
    net: Network,
    teacher: tuple[Network, Params] | None,
    key: Key | None = None,
) -> tuple[jax.Array, Float[Array, "b l"]]:
    """CE of delta_tt to the teacher's denoiser at the same state, or to the data without one.

    Args:
      views: the state embedded by the student's table, and by the teacher's (None without one).

    Returns:
      Weighted sum and values per token [B, L], nats.
    """
    out = read(net, params, views[0], tau, tau, key=key)
    if teacher is None:
        return cross_entropy(out, tokens, weights, net)
    teacher_net, teacher_params = teacher
    target = read(teacher_net, teacher_params, views[1], tau, tau)
    return mixture_cross_entropy(out, [(jnp.ones_like(tau), target)], weights, net)


def semigroup_loss_at(
    params: Params,
    target_params: Params,
    y_s: States,
    taus: tuple[Times, Times, Times],
    times: tuple[Times, Times, Times],
    weights: Float[Array, "b l"],
    *,
    net: Network,
    key: Key | None = None,
) -> tuple[jax.Array, Float[Array, "b l"]]:
    """CE of delta_st to gamma delta_su + (1-gamma) delta_ut(X_su) at given states and times.

    Args:
      params: the student's; target_params: those of the target (no gradient, no dropout).
      y_s: states [B, L, D] at time s.
      taus: clock times (tau_s, tau_u, tau_t), each [B]; times: the same as t (s, u, t).

    Returns:
      Weighted sum and values per token [B, L], nats.
    """
    (tau_s, tau_u, tau_t), (s, u, t) = taus, times
    target_params, y_fixed = jax.lax.stop_gradient((target_params, y_s))
    first = read(net, target_params, y_fixed, tau_s, tau_u)
    delta_su = expected_embedding(first, net.table(target_params), net)
    second = read(net, target_params, flow_map(y_fixed, delta_su, s, u), tau_u, tau_t)
    gamma = semigroup_weight(s, u, t)
    out = read(net, params, y_s, tau_s, tau_t, key=key)
    targets = [(gamma, first), (1.0 - gamma, second)]
    return mixture_cross_entropy(out, targets, weights, net)


def semigroup_loss(
    params: Params,
    batch: dict[str, jax.Array],
    key: Key,
    *,
    net: Network,
    clock: Clock,
    cfg: SemigroupConfig,
    rows: Rows,
    teacher: tuple[Network, Params] | None = None,
) -> tuple[jax.Array, Metrics]:
    """Distillation loss over a batch: diagonal rows and off-diagonal rows.

    Args:
      params: the student's (a two-time network), which also gives the target.
      batch: "tokens" int32 [B, L], "mask" [B, L].
      teacher: a frozen denoiser, or None for self-distillation from data.

    Returns:
      Mean over valid tokens (nats/token) and metrics: "diagonal_nats_per_token",
      "semigroup_nats_per_token", each the mean over its own rows.
    """
    d_key, p_key, u_key, noise_key, drop_key = jax.random.split(key, 5)
    group, n_diag = row_groups(cfg.diagonal, batch["tokens"].shape[0])
    tokens_d, tokens_o = _split(batch["tokens"], group, n_diag)
    mask_d, mask_o = _split(batch["mask"], group, n_diag)
    noise_d, noise_o = jax.random.split(rows.fold(noise_key))
    drop_d, drop_o = jax.random.split(rows.fold(drop_key))
    table, total = net.table(params), jnp.maximum(jnp.sum(batch["mask"]).astype(jnp.float32), 1.0)
    loss, metrics = 0.0, {}

    if n_diag:
        part = Rows(rows.start * n_diag // group, rows.total * n_diag // group)
        tau = stratified_uniform(d_key, tokens_d.shape[0], part)
        other = None if teacher is None else teacher[0].table(teacher[1])
        views = noisy_states(noise_d, tau_to_t(clock, tau), tokens_d, table, other, noise=cfg.noise)
        weights = mask_d / total
        value, ce = diagonal_loss_at(
            params, views, tau, tokens_d, weights, net=net, teacher=teacher, key=drop_d
        )
        loss, metrics = loss + value, {"diagonal_nats_per_token": _mean(ce, mask_d)}
    if n_diag < group:
        n_off = group - n_diag
        part = Rows(rows.start * n_off // group, rows.total * n_off // group)
        tau_s, tau_t = time_pairs(p_key, tokens_o.shape[0], part, cfg.boundary)
        where = 0.5
        if cfg.split == "uniform":
            where = jax.random.uniform(rows.fold(u_key), tau_s.shape)
        taus = (tau_s, tau_s + where * (tau_t - tau_s), tau_t)
        times = tuple(tau_to_t(clock, tau) for tau in taus)
        y_s, _ = noisy_states(noise_o, times[0], tokens_o, table, noise=cfg.noise)
        value, ce = semigroup_loss_at(
            params, params, y_s, taus, times, mask_o / total, net=net, key=drop_o
        )
        loss = loss + value
        metrics["semigroup_nats_per_token"] = _mean(ce, mask_o)
    return loss, metrics


def _mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(values * token_weights(mask))
