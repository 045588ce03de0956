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
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Metrics, Params, States, Times
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import Readout, expected_embedding, mixture_cross_entropy
from flm_jax.denoiser.posterior_input import posterior_embedding
from flm_jax.flows.flow import Flow
from flm_jax.flows.shapes import over_positions
from flm_jax.flows.time_sampling import Rows, kronecker_uniform, stratified_uniform
from flm_jax.losses.base import Frozen, number_of, token_weights
from flm_jax.losses.clean_context import at_clean, clean_context, counted
from flm_jax.losses.distillation.base import Teacher
from flm_jax.losses.flow_settings import ContextSettings

ROW_WEIGHTINGS = ("kl", "distance")
_LATEST = 0.995  # of the law of times: nearer to 1 the weight (a/c)^2 grows without bound
_TINY = 1e-30
_LEAST_DISTANCE = 1e-3  # standard deviations; two models that agree have no gradient either


@dataclasses.dataclass(frozen=True)
class MatchingConfig(ContextSettings):
    """Settings of distribution matching.

    Row weighting "kl" takes the gradient above; "distance" takes Sigma^-1 (m_auxiliary - m_teacher)
    of each row, divided by the mean whitened distance of the student's outputs from m_teacher, so
    that late and early rows count equally.
    """

    teacher: str = setting("", "Workdir of the frozen flow, which is required.")
    start: str = setting(
        "",
        "Workdir of the flow, or of the flow map, that initialises the student; empty for the"
        " teacher. The auxiliary denoiser is initialised by the teacher.",
    )
    auxiliary_updates: int = setting(
        4,
        "Number of updates of the auxiliary denoiser before each update of the student; every"
        " update, the student's included, has its own equal part of train.batch.",
        range="[1, inf)",
    )
    auxiliary_lr: float = setting(
        0.0, "Peak learning rate of the auxiliary denoiser; 0 for optim.lr.", range="[0, inf)"
    )
    auxiliary_lead: int = setting(
        0,
        "Number of first steps, in which the auxiliary denoiser alone is trained.",
        range="[0, inf)",
    )
    from_noise: float = setting(
        0.0,
        "Fraction of rows whose student starts from pure noise, s = 0; for the other rows s "
        "is uniform in the quantiles of the distribution of times.",
        range="[0, 1]",
    )
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
    iterations: int = setting(
        2,
        "Number of calls of a self-conditioned teacher at a state, each with the estimate of "
        "the one before.",
        range="[1, inf)",
    )


class Answers(NamedTuple):
    """Outputs of the student on a batch, noised again.

    Attributes:
      out: logits readout of the student, conditioned on (s, 1).
      mean: P E [B, L, D], float32, with the teacher's table; E[x] where clean.
      z: states [B, L, D], the mean noised to time t, without gradient.
      tau_s, tau_t: network times [B], or [B, L] with 1 at clean positions.
      t: time of the path at tau_t.
      mask: mask of positions that count, [B, L].
    """

    out: Readout
    mean: States
    z: States
    tau_s: Times
    tau_t: Times
    t: Times
    mask: Array


def start_and_end(
    key: Key, flow: Flow, num: int, rows: Rows, from_noise: float
) -> tuple[Times, Times]:
    """Draws network times tau_s of the student's states and tau_t of its noised outputs, [B].

    In quantiles of the distribution of times, a fraction `from_noise` has u_s = 0, the others U(0,
    .995), and u_t ~ U(u_s, .995). Both are low-discrepancy over the global batch.
    """
    s_key, t_key = jax.random.split(key)
    u = stratified_uniform(s_key, num, rows)
    # One number decides both: below from_noise it is u_s = 0, above it is stretched to U(0, 1)
    # again.
    later = jnp.maximum(u - from_noise, 0.0) / max(1.0 - from_noise, 1e-6)
    u_s = _LATEST * jnp.minimum(later, 1.0)
    u_t = u_s + (_LATEST - u_s) * kronecker_uniform(t_key, num, rows)
    return flow.times.quantile(u_s), flow.times.quantile(u_t)


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
    time_key, state_key, noise_key = jax.random.split(key, 3)
    tokens, table = batch["tokens"], teacher[0].table(teacher[1])
    clean = clean_context(key, batch, cfg.clean, rows)
    taus = start_and_end(time_key, flow, tokens.shape[0], rows, cfg.from_noise)
    times = at_clean(clean, *taus, *(flow.t(tau) for tau in taus))
    tau_s, tau_t, s, t = times
    y_s, _ = flow.states(rows.fold(state_key), s, tokens, net.table(params))
    # Without dropout: the law to be matched is that of what the student writes.
    out = forward(net, params, y_s, tau_s, jnp.ones_like(tau_s))
    mean = expected_embedding(out, jax.lax.stop_gradient(table), net)
    mean = _held(clean, table[tokens], mean)
    z = noised_again(rows.fold(noise_key), flow, mean, t, table)
    return Answers(out, mean, z, tau_s, tau_t, t, counted(batch["mask"], clean))


def _held(clean: Bool[Array, "b l"] | None, given: States, mean: States) -> States:
    return mean if clean is None else jnp.where(clean[..., None], given, mean)


def _read(net: Network, params: Params, x: States, t: Times, other: Times, key=None) -> Readout:
    """Calls a network on inputs of its blocks, with times (t, other)."""
    return Readout(net.features(params, x, t, other, key=key), *net.readout(params))


def _input(teacher: Teacher, z: States, tau_t: Times) -> States:
    """Input of the blocks of auxiliary and teacher for z: the posterior, if they use it.

    It is the teacher's posterior, in whose embeddings z is expressed, at the time of z.
    """
    net, params = teacher
    return posterior_embedding(net, params, z, tau_t) if net.posterior_input else z


def matching_loss_at(
    found: Answers,
    auxiliary: Params,
    teacher: Teacher,
    *,
    net: Network,
    flow: Flow,
    row_weighting: str,
) -> tuple[jax.Array, tuple[Float[Array, "b l"], Float[Array, "b l"]]]:
    """Scalar whose gradient in the student is that of the mean KL(q_t || p_t) of a position.

    Args:
      found: outputs of the student, differentiable in its parameters.
      auxiliary: parameters of the auxiliary denoiser, a network like the student, conditioned on
        (t, s).
      teacher: frozen flow.
      net: network of the student.
      row_weighting: weighting of rows, see MatchingConfig.

    Returns:
      sum(stop-gradient(g) * mean) over the positions that count, divided by their number; and
      whitened distances [B, L], in standard deviations of the noise: of m_auxiliary and of the
      student's outputs from m_teacher.
    """
    teacher_net, teacher_params = teacher
    table = teacher_net.table(teacher_params)
    x = _input(teacher, found.z, found.tau_t)
    beside = _read(net, auxiliary, x, found.tau_t, found.tau_s)
    right = _read(teacher_net, teacher_params, x, found.tau_t, found.tau_t)
    m_auxiliary = expected_embedding(beside, table, net)
    m_teacher = expected_embedding(right, table, teacher_net)
    whiten, _ = flow.noise.whitening(table)
    across = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    fixed = jax.lax.stop_gradient(found.mean)
    # With A the whitening, A A^T is Sigma^-1: one A here, for lengths in standard deviations of
    # the noise, and its transpose in g.
    gap = across(m_auxiliary - m_teacher, whiten)
    distance = jnp.linalg.norm(across(fixed - m_teacher, whiten), axis=-1)
    weights = token_weights(found.mask)
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


def matching_loss(
    params: Params,
    frozen: Frozen,
    batch: dict[str, jax.Array],
    key: Key,
    rows: Rows,
    *,
    net: Network,
    flow: Flow,
    cfg: MatchingConfig,
    teacher: Network,
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

    Returns:
      The scalar, whose value has no meaning. Metrics, means over the positions that count, in
      standard deviations of the noise: "gap_deviations_per_token" between auxiliary and teacher,
      which goes to 0 as the distributions agree, and "student_deviations_per_token" between student
      and teacher; and "counted".
    """
    guide, flow = (teacher, frozen.teacher), flow.settled(frozen.tracked)
    found = answers(params, guide, batch, key, rows, net=net, flow=flow, cfg=cfg)
    loss, (gap, distance) = matching_loss_at(
        found, frozen.other, guide, net=net, flow=flow, row_weighting=cfg.row_weighting
    )
    weights = token_weights(found.mask)
    metrics = {
        "gap_deviations_per_token": jnp.sum(weights * gap),
        "student_deviations_per_token": jnp.sum(weights * distance),
        "counted": number_of(found.mask),
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
    cfg: MatchingConfig,
    teacher: Network,
) -> tuple[jax.Array, Metrics]:
    """Loss of the auxiliary denoiser: cross entropy to the student's probabilities P, given z.

    Its minimum is the mean of P given z, from which m_auxiliary follows as probabilities @ E.

    Args:
      params: parameters of the auxiliary denoiser, a network like the student, conditioned on the
        time of z and the student's s.
      frozen: parameters of the teacher, and in `other` of the student, without gradient.
      batch, key, rows, net, flow, teacher: the same as for `matching_loss`; the key is for dropout
        too.

    Returns:
      Mean over the positions that count, nats/token; metrics {"auxiliary_nats_per_token"}, the
      same, and "counted".
    """
    guide, flow = (teacher, frozen.teacher), flow.settled(frozen.tracked)
    draw_key, drop_key = jax.random.split(key)
    found = answers(frozen.other, guide, batch, draw_key, rows, net=net, flow=flow, cfg=cfg)
    x = _input(guide, found.z, found.tau_t)
    out = _read(net, params, x, found.tau_t, found.tau_s, rows.fold(drop_key))
    targets = [(jnp.ones_like(found.tau_t), found.out)]
    loss, _ = mixture_cross_entropy(out, targets, token_weights(found.mask), net)
    metrics = {"auxiliary_nats_per_token": loss, "counted": number_of(found.mask)}
    return loss, metrics
