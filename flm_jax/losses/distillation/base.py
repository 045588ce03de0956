"""Definitions shared by the routes to a flow map: rows, times, states, diagonal (2602.16813v3).

A fraction of the rows has t = s: their target is the teacher's denoiser, or the data without a
teacher. The others have s < t and belong to one of the routes: `semigroup`, `lagrangian`,
`eulerian`, `endpoint`.
"""

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Metrics, Params, States, Times
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import cross_entropy, mixture_cross_entropy
from flm_jax.flows.flow import Flow
from flm_jax.flows.noise import Views
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.base import Frozen, number_of, token_weights
from flm_jax.losses.clean_context import at_clean, clean_context, counted
from flm_jax.losses.flow_settings import WeightedSettings
from flm_jax.losses.time_weighting import time_weights

Teacher = tuple[Network, Params]


@dataclasses.dataclass(frozen=True)
class PairsConfig:
    """Settings of the rows and their pairs of times."""

    diagonal: float = setting(
        0.5,
        "Fraction of rows with t = s, rounded to the nearest fraction of denominator 8 or less.",
        range="[0, 1]",
    )
    boundary: float = setting(
        1 / 32, "Fraction of the other rows with (s, t) = (0, 1).", range="[0, 1]"
    )
    ema_target: bool = setting(
        False,
        "Whether targets are computed with the averaged parameters instead of the current ones.",
    )


@dataclasses.dataclass(frozen=True)
class DistillationConfig(WeightedSettings, PairsConfig):
    """Settings that all routes share."""

    teacher: str = setting(
        "", "Workdir of the flow to distil; empty for self-distillation from data."
    )
    iterations: int = setting(
        2,
        "Number of calls of a self-conditioned teacher at a state, each with the estimate of "
        "the one before.",
        range="[1, inf)",
    )


class Pairs(NamedTuple):
    """Rows off the diagonal, with s < t.

    Attributes:
      views: states [B, L, D] at time s in the student's table and, for a route that uses the
        teacher, in the teacher's table (else None).
      tau_s, tau_t: network times [B], or [B, L] with 1 at clean positions, tau_s <= tau_t.
      s, t: the same as times of the path.
      weights: weight of each position in the sum, [B, L].
      hidden: mask of the positions that move, where rows have one time although some positions are
        clean; None if all move by their own times.
      anchor: m [L, D] of an anchored path, else 0.
    """

    views: Views
    tau_s: Times
    tau_t: Times
    s: Times
    t: Times
    weights: Float[Array, "b l"]
    hidden: Bool[Array, "b l"] | None = None
    anchor: jax.Array | float = 0.0

    def jump(self, flow: Flow, y_s: States, delta: States, s: Times, t: Times) -> States:
        """State at t of the step from y_s with the denoised state delta, clean ones kept."""
        anchor = self.anchor[None] if flow.path.anchored else 0.0
        y_t = flow.path.step(y_s, delta, s, t, anchor=anchor)
        return y_t if self.hidden is None else jnp.where(self.hidden[..., None], y_t, y_s)


class Route(NamedTuple):
    """A loss off the diagonal.

    Attributes:
      loss_at: (params, target_params, pairs, *, net, flow, teacher, split_key, key) -> (weighted
        sum, values [B, L] to report by name). Targets come from target_params, without gradient and
        without dropout; `key` is for the student's dropout.
      asks_teacher: whether it calls the teacher, which then needs the states too.
    """

    loss_at: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    asks_teacher: bool


def row_groups(diagonal: float, num: int) -> tuple[int, int]:
    """Returns (rows in a group, diagonal rows in a group): a fixed fraction of rows is diagonal.

    A fixed fraction keeps shapes static, so that teacher and targets run on their own rows only,
    and groups of neighbouring rows keep the fraction equal on every device.
    """
    share = Fraction(diagonal).limit_denominator(8)
    if num % share.denominator:
        raise ValueError(f"{num} rows do not split into groups of {share.denominator}")
    return share.denominator, share.numerator


def split_rows(x: jax.Array, group: int, diagonal: int) -> tuple[jax.Array, jax.Array]:
    """Splits arrays [B, ...] into diagonal rows and the others, by `row_groups`."""
    x = x.reshape(-1, group, *x.shape[1:])
    first, second = x[:, :diagonal], x[:, diagonal:]
    return first.reshape(-1, *x.shape[2:]), second.reshape(-1, *x.shape[2:])


def diagonal_loss_at(
    params: Params,
    views: Views,
    tau: Times,
    tokens: Int[Array, "b l"],
    weights: Float[Array, "b l"],
    *,
    net: Network,
    teacher: Teacher | None,
    blind: tuple[States, Times, float] | None = None,
    key: Key | None = None,
) -> tuple[jax.Array, Float[Array, "b l"]]:
    """CE of delta_tt to the teacher's denoiser at the same state, or to the data without one.

    Args:
      views: state in the student's table, and in the teacher's (None without one).
      blind: state in the teacher's table whose context is noised like the rest, its network time,
        and the weight of classifier-free guidance of the teacher away from it, the same as in
        `samplers.prompt_guidance`; None for no guidance.

    Returns:
      Weighted sum and values per token [B, L], nats.
    """
    out = forward(net, params, views[0], tau, tau, key=key)
    if teacher is None:
        return cross_entropy(out, tokens, weights, net)
    teacher_net, teacher_params = teacher
    target = forward(teacher_net, teacher_params, views[1], tau, tau)
    if blind is None:
        return mixture_cross_entropy(out, [(jnp.ones_like(tau), target)], weights, net)
    y_blind, tau_blind, guidance = blind
    without = forward(teacher_net, teacher_params, y_blind, tau_blind, tau_blind)
    parts = [(jnp.full_like(tau, w), q) for w, q in ((guidance, target), (1 - guidance, without))]
    return mixture_cross_entropy(out, parts, weights, net, product=True)


def distillation_loss(
    params: Params,
    frozen: Frozen,
    batch: dict[str, jax.Array],
    key: Key,
    rows: Rows,
    *,
    net: Network,
    flow: Flow,
    cfg: DistillationConfig,
    route: Route,
    teacher: Network | None,
) -> tuple[jax.Array, Metrics]:
    """Distillation loss over a batch: diagonal rows and off-diagonal rows.

    Args:
      params: parameters of the student (a two-time network).
      frozen: parameters of the teacher, and the student's average.
      batch: "tokens" int32 [B, L], "mask" [B, L].
      key: key for times, noise and dropout.
      rows: indices of these rows in the global batch.
      net, flow: student, and the flow whose map it learns.
      route: loss off the diagonal.
      teacher: frozen denoiser, or None for self-distillation from data.

    Returns:
      Mean over valid tokens that are not clean, weighted over times if the network has such
      weights; and metrics: "diagonal_nats_per_token" and the route's, each the mean over its own
      rows.
    """
    flow = flow.settled(frozen.tracked)
    guide = None if teacher is None else (teacher, frozen.teacher)
    d_key, p_key, u_key, noise_key, drop_key = jax.random.split(key, 5)
    group, n_diag = row_groups(cfg.diagonal, batch["tokens"].shape[0])
    clean = clean_context(key, batch, cfg.clean, rows)
    mask = counted(batch["mask"], clean)
    tokens_d, tokens_o = split_rows(batch["tokens"], group, n_diag)
    mask_d, mask_o = split_rows(mask, group, n_diag)
    clean_d, clean_o = (None, None) if clean is None else split_rows(clean, group, n_diag)
    noise_d, noise_o = jax.random.split(rows.fold(noise_key))
    drop_d, drop_o = jax.random.split(rows.fold(drop_key))
    table, number = net.table(params), number_of(mask)
    total = jnp.maximum(number, 1.0)
    other = None if teacher is None else teacher.table(frozen.teacher)
    loss, metrics = 0.0, {}

    if n_diag:
        # The diagonal rows are numbered among themselves, and the others below, so that the times
        # of each part are stratified on their own.
        part = Rows(rows.start * n_diag // group, rows.total * n_diag // group)
        tau = flow.draw_times(d_key, tokens_d.shape[0], part)
        weights, penalty = time_weights(net, params, mask_d / total, tau, tau)
        how = {"net": net, "teacher": guide, "key": drop_d}
        weight = getattr(cfg, "guidance", 1.0)
        if clean_d is not None and weight != 1.0:
            # The same noise, so that positions that are not clean have the same state.
            _, same = flow.states(noise_d, flow.t(tau), tokens_d, table, other)
            how["blind"] = (same, tau, weight)
        tau, t = at_clean(clean_d, tau, flow.t(tau))
        views = flow.states(noise_d, t, tokens_d, table, other)
        value, ce = diagonal_loss_at(params, views, tau, tokens_d, weights, **how)
        loss, metrics = value + penalty, {"diagonal_nats_per_token": _mean(ce, mask_d)}
    if n_diag < group:
        n_off = group - n_diag
        part = Rows(rows.start * n_off // group, rows.total * n_off // group)
        taus = flow.draw_pairs(p_key, tokens_o.shape[0], part, cfg.boundary)
        weights, penalty = time_weights(net, params, mask_o / total, *taus)
        times = at_clean(clean_o, *taus, *(flow.t(tau) for tau in taus))
        seen = other if route.asks_teacher else None
        views = flow.states(noise_o, times[2], tokens_o, table, seen)
        value, values = route.loss_at(
            params,
            frozen.average if cfg.ema_target else params,
            Pairs(views, *times, weights),
            net=net,
            flow=flow,
            teacher=guide,
            split_key=rows.fold(u_key),
            key=drop_o,
        )
        loss = loss + value + penalty
        metrics |= {name: _mean(value, mask_o) for name, value in values.items()}
    return loss, metrics | {"counted": number}


def _mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.sum(values * token_weights(mask))
