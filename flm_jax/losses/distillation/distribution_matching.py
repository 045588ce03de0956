"""Distribution matching of flow maps (Simplex-DMD, arXiv 2609.40235).

Training gives the renoised outputs of the map the distribution of renoised data. The student maps a
noisy state y_s, conditioned on (s, 1), to probabilities P at the end of the flow. Its output is
embedded by the table E of a frozen flow and noised to a later time t,

    z = a P E + c xi,  xi ~ N(0, Sigma),

Let q_t be the distribution of z and p_t that of the data at t. With m(z) the mean of the clean
embedding given z, a score is -c^-2 Sigma^-1 (z - a m(z)), so that the gradient of KL(q_t || p_t) in
P E is

    (a/c)^2 Sigma^-1 (m_auxiliary(z) - m_teacher(z)),

without any derivative of a network that computes m. The frozen flow gives m_teacher = D_t(z) E; an
auxiliary denoiser, trained on the student's outputs by cross entropy to P, gives m_auxiliary. All
arrays are [B, L, D].

How states, contexts and outputs are drawn is a function of each family: `answers` here for flows
from noise, `masked_answers` of `masked_distribution_matching` for masked flows.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Metrics, Params, States, Times
from flm_jax.denoiser.head import Readout, expected_embedding, mixture_cross_entropy
from flm_jax.denoiser.mixture import Part, product_embedding
from flm_jax.flows.flow import Flow
from flm_jax.flows.shapes import over_positions
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.base import Frozen, number_of, token_weights
from flm_jax.losses.distillation.base import Teacher
from flm_jax.losses.distillation.renoised import (
    RenoisedConfig,
    block_input,
    call_student,
    read_blocks,
)

ROW_WEIGHTINGS = ("kl", "distance")
_TINY = 1e-30
_LEAST_DISTANCE = 1e-3  # standard deviations; two models that agree have no gradient either


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """Settings of the frozen flow's answers and of the weights of rows.

    Row weighting "kl" takes the gradient above; "distance" takes Sigma^-1 (m_auxiliary - m_teacher)
    of each row, divided by the mean whitened distance of the student's outputs from m_teacher, so
    that late and early rows count equally.
    """

    teacher_temperature: float = setting(
        1.0,
        "Temperature of the frozen flow's logits; below 1 the map learns from a sharper denoiser.",
        range="(0, inf)",
    )
    row_weighting: str = setting(
        "kl",
        "Weight of each row: kl (the gradient of its divergence) or distance (divided by the "
        "mean distance between student and teacher, so that all rows count equally).",
        choices=ROW_WEIGHTINGS,
    )


@dataclasses.dataclass(frozen=True)
class MatchingConfig(TeacherConfig, RenoisedConfig):
    """Settings of distribution matching."""

    guidance: float = setting(
        1.0,
        "Weight of classifier-free guidance of the frozen flow, by a second call whose clean "
        "context is noised; 1 for none.",
        range="(-inf, inf)",
    )


class Blind(NamedTuple):
    """A second call of the teacher, away from which its answer is guided.

    Attributes:
      z: states [B, L, D] at time t whose clean positions are noised as well.
      tau: network time [B].
      guidance: weight g of the first call; the second has 1 - g.
      product: whether the two answers are multiplied, as softmax(logits)^weight; else their means
        are added, as scores are.
    """

    z: States
    tau: Times
    guidance: float
    product: bool


class Answers(NamedTuple):
    """Outputs of the student on a batch, noised again.

    Attributes:
      out: logits readout of the student, conditioned on (s, 1).
      mean: P E [B, L, D], float32, with the teacher's table; E[x] where nothing counts.
      z: states [B, L, D], the mean noised to time t, without gradient.
      tau_s, tau_t: network times [B], or [B, L] with 1 at clean positions.
      t: time of the path at tau_t.
      weights: weight of each position in the sums [B, L]; 0 where nothing counts.
      counted: number of rows or positions over which these weights are a mean.
      blind: the teacher's second call; None for no guidance.
    """

    out: Readout
    mean: States
    z: States
    tau_s: Times
    tau_t: Times
    t: Times
    weights: Float[Array, "b l"]
    counted: jax.Array | float
    blind: Blind | None = None


# (params, teacher, batch, key, rows, *, net, flow, cfg) -> Answers, as `answers`.
Draw = Callable[..., Answers]


def noised_again(
    key: Key, flow: Flow, mean: States, t: Times, table: Float[Array, "v d"]
) -> States:
    """Noises means again: z = a mean + c xi at times t [B] or [B, L]; no gradient flows into it."""
    mean, table = jax.lax.stop_gradient((mean, table))
    return flow.path.at(t, mean, flow.noise.draw(key, table, mean.shape[:2]))


def answers(
    params: Params,
    teacher: Teacher,
    batch: dict[str, jax.Array],
    key: Key,
    rows: Rows,
    *,
    net: Network,
    flow: Flow,
    cfg: MatchingConfig,
) -> Answers:
    """Draws times, contexts and states, calls the student, and noises its outputs.

    Args:
      params: parameters of the student; `out` and `mean` are differentiable in them.
      teacher: frozen flow, whose table embeds the outputs.
      batch: "tokens" int32 [B, L] and "mask" [B, L], 1 where valid.
      key: key for times, contexts and noise.
      rows: indices of these rows in their part of the batch.
      net, flow: student, and the flow whose map it learns.
    """
    how = {"net": net, "flow": flow, "cfg": cfg}
    call, table = call_student(params, batch, key, rows, **how), teacher[0].table(teacher[1])
    mean = expected_embedding(call.out, jax.lax.stop_gradient(table), net)
    mean = jnp.where(call.mask.astype(bool)[..., None], mean, table[batch["tokens"]])
    z = noised_again(call.key, flow, mean, call.t, table)
    weights, counted = token_weights(call.mask), number_of(call.mask)
    found = Answers(call.out, mean, z, call.tau_s, call.tau_t, call.t, weights, counted)
    if cfg.guidance == 1.0 or call.t.ndim == 1:
        return found
    # Clean positions are at 1, the others of a row at one time; the noise is that of z.
    tau, t = (jnp.min(x, axis=1) for x in (call.tau_t, call.t))
    blurred = noised_again(call.key, flow, mean, t, table)
    return found._replace(blind=Blind(blurred, tau, cfg.guidance, product=True))


def matching_loss_at(
    found: Answers,
    auxiliary: Params,
    teacher: Teacher,
    *,
    net: Network,
    flow: Flow,
    row_weighting: str,
) -> tuple[jax.Array, tuple[Float[Array, "b l"], Float[Array, "b l"]]]:
    """Scalar whose gradient in the student is that of the weighted KL(q_t || p_t) of positions.

    Args:
      found: outputs of the student, differentiable in its parameters.
      auxiliary: parameters of the auxiliary denoiser, a network like the student, conditioned on
        (t, s).
      teacher: frozen flow.
      net: network of the student.
      row_weighting: weighting of rows, see MatchingConfig.

    Returns:
      sum(weights * stop-gradient(g) * mean) over the positions that count; and whitened
      distances [B, L], in standard deviations of the noise: of m_auxiliary and of the student's
      outputs from m_teacher.
    """
    teacher_net, teacher_params = teacher
    table = teacher_net.table(teacher_params)
    x = block_input(teacher, found.z, found.tau_t)
    beside = read_blocks(net, auxiliary, x, found.tau_t, found.tau_s)
    right = read_blocks(teacher_net, teacher_params, x, found.tau_t, found.tau_t)
    m_auxiliary = expected_embedding(beside, table, net)
    m_teacher = _guided(found, right, teacher, table)
    whiten, _ = flow.noise.whitening(table)
    across = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    fixed = jax.lax.stop_gradient(found.mean)
    # With A the whitening, A A^T is Sigma^-1: one A here, for lengths in standard deviations of
    # the noise, and its transpose in g.
    gap = across(m_auxiliary - m_teacher, whiten)
    distance = jnp.linalg.norm(across(fixed - m_teacher, whiten), axis=-1)
    weights = found.weights
    if row_weighting == "kl":
        # Clean positions, at t = 1, weigh nothing.
        late = jnp.minimum(over_positions(found.t, weights.shape), 1.0 - 2.0**-12)
        a, _, c = flow.path.coefficients(late)
        factor = jnp.square(a / c)
    else:
        in_row = jnp.sum(weights * distance, axis=1, keepdims=True)
        in_row = in_row / jnp.maximum(jnp.sum(weights, axis=1, keepdims=True), _TINY)
        factor = 1.0 / (in_row + _LEAST_DISTANCE)
    # A constant for the student: the gradient of <g, mean> in its parameters is that of the KL.
    g = jax.lax.stop_gradient((weights * factor)[..., None] * across(gap, whiten.T))
    return jnp.sum(g * found.mean), jax.lax.stop_gradient((jnp.linalg.norm(gap, axis=-1), distance))


def _guided(found: Answers, right: Readout, teacher: Teacher, table: Float[Array, "v d"]) -> States:
    """Mean of the teacher's answer `right`, guided away from its answer without clean context."""
    net, params = teacher
    if found.blind is None:
        return expected_embedding(right, table, net)
    z, tau, guidance, product = found.blind
    without = read_blocks(net, params, block_input(teacher, z, tau), tau, tau)
    if not product:
        means = [expected_embedding(out, table, net) for out in (right, without)]
        return guidance * means[0] + (1.0 - guidance) * means[1]
    parts = [Part(guidance, right, net), Part(1.0 - guidance, without, net)]
    return product_embedding(parts, table)


def matching_loss(
    params: Params,
    frozen: Frozen,
    batch: dict[str, jax.Array],
    key: Key,
    rows: Rows,
    *,
    net: Network,
    flow: Flow,
    cfg: TeacherConfig,
    teacher: Network,
    draw: Draw = answers,
) -> tuple[jax.Array, Metrics]:
    """Loss of the student, see `matching_loss_at`.

    Args:
      params: parameters of the student (a two-time network).
      frozen: parameters of the teacher, and in `other` of the auxiliary denoiser.
      batch: "tokens" int32 [B, L] and "mask" [B, L], 1 where valid.
      key: key for times, contexts and noise.
      rows: indices of these rows in their part of the batch.
      net, flow: student, and the flow whose map it learns.
      teacher: frozen flow.
      draw: function that draws the outputs of the student.

    Returns:
      The scalar, whose value has no meaning. Metrics, sums with the loss's weights of positions, in
      standard deviations of the noise: "gap_deviations_per_token" between auxiliary and teacher,
      which goes to 0 as the distributions agree, and "student_deviations_per_token" between student
      and teacher; and "counted".
    """
    guide, flow = (teacher, frozen.teacher), flow.settled(frozen.tracked)
    found = draw(params, guide, batch, key, rows, net=net, flow=flow, cfg=cfg)
    loss, (gap, distance) = matching_loss_at(
        found, frozen.other, guide, net=net, flow=flow, row_weighting=cfg.row_weighting
    )
    metrics = {
        "gap_deviations_per_token": jnp.sum(found.weights * gap),
        "student_deviations_per_token": jnp.sum(found.weights * distance),
        "counted": found.counted,
    }
    return loss, metrics


def auxiliary_loss(
    params: Params,
    frozen: Frozen,
    batch: dict[str, jax.Array],
    key: Key,
    rows: Rows,
    *,
    net: Network,
    flow: Flow,
    cfg: TeacherConfig,
    teacher: Network,
    draw: Draw = answers,
) -> tuple[jax.Array, Metrics]:
    """Loss of the auxiliary denoiser: cross entropy to the student's probabilities P, given z.

    Its minimum is the mean of P given z, from which m_auxiliary follows as probabilities @ E.

    Args:
      params: parameters of the auxiliary denoiser, a network like the student, conditioned on the
        time of z and the student's s.
      frozen: parameters of the teacher, and in `other` of the student, without gradient.
      batch, key, rows, net, flow, cfg, teacher, draw: the same as for `matching_loss`; the key is
        for dropout too.

    Returns:
      Weighted sum over the positions that count, nats/token; metrics {"auxiliary_nats_per_token"},
      the same, and "counted".
    """
    guide, flow = (teacher, frozen.teacher), flow.settled(frozen.tracked)
    draw_key, drop_key = jax.random.split(key)
    found = draw(frozen.other, guide, batch, draw_key, rows, net=net, flow=flow, cfg=cfg)
    x = block_input(guide, found.z, found.tau_t)
    out = read_blocks(net, params, x, found.tau_t, found.tau_s, rows.fold(drop_key))
    targets = [(jnp.ones_like(found.tau_t), found.out)]
    loss, _ = mixture_cross_entropy(out, targets, found.weights, net)
    metrics = {"auxiliary_nats_per_token": loss, "counted": found.counted}
    return loss, metrics
