"""Distribution matching by the score function (Reinforce-DMD, arXiv 2609.40235).

The student maps a noisy state y_s, given (s, 1), to probabilities P_l of each token. Texts x are
drawn from them, embedded by the table E of a frozen flow and noised to a later time t,

    z = a E[x] + c xi,  xi ~ N(0, Sigma).

Let q_t be the distribution of z, for all y_s of that s, and p_t that of the data at t. A
discriminator with logit d(z), trained beside the student to distinguish data (1) from the
student's texts (0) at noised states, is optimal at d = log p_t - log q_t. Its negative is the
cost of a text, whose mean is KL(q_t || p_t), and the gradient of that mean is the score function's,

    E[ (cost(x) - baseline) sum_l grad log P_l(x_l) ],

since the mean of grad log q_t is 0. No gradient passes through a drawn token, the discriminator,
or the noise. K texts are drawn from each y_s, and the baseline of one is the mean cost of the
others (leave-one-out), which does not depend on it, so that the estimate stays unbiased. All texts
of a row share t and xi, so that their costs differ by the tokens alone.

The divergence KL(P || D_s(y_s)) of the student from the teacher at the same states is added:
without it, the paper says, the student collapses.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Metrics, Params, States
from flm_jax.denoiser.divergence import divergence
from flm_jax.denoiser.draws import drawn, weighted_log_likelihood
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import Readout
from flm_jax.flows.flow import Flow
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.base import Frozen, number_of, token_weights
from flm_jax.losses.distillation.base import Teacher
from flm_jax.losses.distillation.renoised import (
    Call,
    RenoisedConfig,
    block_input,
    call_student,
    read_blocks,
)


@dataclasses.dataclass(frozen=True)
class ReinforceConfig(RenoisedConfig):
    """Settings of distribution matching by the score function."""

    draws: int = setting(
        4,
        "Number of texts that are drawn from each state; the baseline of one is the mean cost of "
        "the others.",
        range="[2, inf)",
    )
    teacher_weight: float = setting(
        0.5,
        "Weight of the divergence of the student from the teacher at the same state, summed over "
        "the positions like the cost of a text; 0 for none.",
        range="[0, inf)",
    )


def leave_one_out(costs: Float[Array, "k b"]) -> Float[Array, "k b"]:
    """Costs minus the mean cost of the other texts of the same row, K >= 2."""
    number = costs.shape[0]
    return (costs - jnp.mean(costs, axis=0, keepdims=True)) * (number / (number - 1))


def policy_loss(
    out: Readout,
    texts: Int[Array, "k b l"],
    costs: Float[Array, "k b"],
    weights: Float[Array, "b l"],
    net: Network,
) -> jax.Array:
    """Scalar whose gradient in `out` estimates that of the mean cost of a text drawn from it.

    Args:
      out: readout of the student.
      texts: K texts, drawn independently for each row.
      costs: their costs, without gradient.
      weights: weight of each position: all of a row are equal, or 0 where nothing is drawn.
      net: network of the student.
    """
    gains = leave_one_out(costs) / costs.shape[0]
    return weighted_log_likelihood(out, texts, gains, weights, net)


def discrimination(
    real: Float[Array, "b"], fake: Float[Array, "b"], weights: Float[Array, "b"]
) -> jax.Array:
    """Cross entropy of a discriminator, nats per pair of texts: 2 log 2 for chance.

    Args:
      real: logits of the data.
      fake: logits of the student's texts.
      weights: weight of each row in the sum.
    """
    return jnp.sum(weights * (jax.nn.softplus(-real) + jax.nn.softplus(fake)))


def text_logit(
    discriminator: Params, z: States, call: Call, teacher: Teacher, net: Network, key=None
) -> Float[Array, "b"]:
    """Logit of a discriminator: one output of the mean feature over the positions that count.

    Args:
      discriminator: parameters of the student's network with one column in the head, conditioned on
        (t, s).
      z: states [B, L, D] of the texts at time t.
      call: times and mask.
      teacher: frozen flow, in whose embeddings z is expressed.
      net: network of the student.
      key: key that switches dropout on.
    """
    x = block_input(teacher, z, call.tau_t)
    out = read_blocks(net, discriminator, x, call.tau_t, call.tau_s, key)
    mask, exact = call.mask.astype(jnp.float32), jax.lax.Precision.HIGHEST
    total = jnp.einsum("bl,bld->bd", mask, out.features.astype(jnp.float32), precision=exact)
    number = jnp.maximum(jnp.sum(mask, axis=1), 1.0)
    return jnp.matmul(total, out.kernel, precision=exact)[:, 0] / number + out.bias[0]


def _noised(call: Call, key: Key, tokens: jax.Array, teacher: Teacher, flow: Flow):
    """Returns the function from texts [B, L] to their states z, all with the same noise.

    Where nothing counts a text has the tokens of the data.
    """
    table = jax.lax.stop_gradient(teacher[0].table(teacher[1]))
    xi = flow.noise.draw(key, table, tokens.shape)
    whole = lambda text: jnp.where(call.mask.astype(bool), text, tokens)
    return lambda text: flow.path.at(call.t, table[whole(text)], xi)


def reinforce_loss(
    params: Params,
    frozen: Frozen,
    batch: dict[str, jax.Array],
    key: Key,
    rows: Rows,
    *,
    net: Network,
    flow: Flow,
    cfg: ReinforceConfig,
    teacher: Network,
) -> tuple[jax.Array, Metrics]:
    """Loss of the student: the score function's, and the divergence from the teacher.

    Args:
      params: parameters of the student (a two-time network).
      frozen: parameters of the teacher, and in `other` of the discriminator.
      batch: "tokens" int32 [B, L] and "mask" [B, L], 1 where valid.
      key: key for times, contexts, noise and tokens.
      rows: indices of these rows in their part of the batch.
      net, flow: student, and the flow whose map it learns.
      cfg: settings.
      teacher: frozen flow.

    Returns:
      A scalar whose gradient is that of (KL(q_t || p_t) + teacher_weight sum_l KL(P_l || D_l)) of a
      row, for each position that counts; its value has no meaning. Metrics, in nats for each of
      these: "cost_nats_per_token", which estimates KL(q_t || p_t) as far as the discriminator is
      optimal; "teacher_divergence_nats_per_token"; and "counted", their number.
    """
    guide, flow = (teacher, frozen.teacher), flow.settled(frozen.tracked)
    beside = guide if cfg.teacher_weight else None
    how = {"net": net, "flow": flow, "cfg": cfg}
    call = call_student(params, batch, key, rows, beside=beside, **how)
    text_key, noise_key = jax.random.split(call.key)
    texts = drawn(text_key, jax.lax.stop_gradient(call.out), net, cfg.draws)
    at = _noised(call, noise_key, batch["tokens"], guide, flow)
    cost = lambda text: -text_logit(frozen.other, at(text), call, guide, net)
    # One after another: the states of K texts at a time would be K times the memory.
    costs = jax.lax.stop_gradient(jax.lax.map(cost, texts))
    weights, number = token_weights(call.mask), number_of(call.mask)
    loss = policy_loss(call.out, texts, costs, weights, net)
    counts = jnp.any(call.mask.astype(bool), axis=1)
    mean_cost = jnp.sum(counts * jnp.mean(costs, axis=0)) / jnp.maximum(number, 1.0)
    metrics = {"cost_nats_per_token": mean_cost, "counted": number}
    if cfg.teacher_weight:
        right = forward(teacher, frozen.teacher, call.views[1], call.tau_s, call.tau_s)
        apart, _ = divergence(call.out, right, weights, net, "reverse")
        loss = loss + cfg.teacher_weight * apart
        metrics["teacher_divergence_nats_per_token"] = apart
    return loss, metrics


def discriminator_loss(
    params: Params,
    frozen: Frozen,
    batch: dict[str, jax.Array],
    key: Key,
    rows: Rows,
    *,
    net: Network,
    flow: Flow,
    cfg: ReinforceConfig,
    teacher: Network,
) -> tuple[jax.Array, Metrics]:
    """Loss of the discriminator: the data's texts against the student's, noised to the same time.

    Args:
      params: parameters of the discriminator, see `text_logit`.
      frozen: parameters of the teacher, and in `other` of the student, without gradient.
      batch, key, rows, net, flow, cfg, teacher: the same as for `reinforce_loss`; the key is for
        dropout too.

    Returns:
      Mean over the rows in which a position counts, nats/pair; metrics {"discriminator_nats", the
      same, "discriminator_accuracy", the fraction of texts that it
      classifies correctly}, and "counted".
    """
    guide, flow = (teacher, frozen.teacher), flow.settled(frozen.tracked)
    own_key, drop_key = jax.random.split(key)
    call = call_student(frozen.other, batch, own_key, rows, net=net, flow=flow, cfg=cfg)
    text_key, noise_key = jax.random.split(call.key)
    text = drawn(text_key, call.out, net, 1)[0]
    at = _noised(call, noise_key, batch["tokens"], guide, flow)
    drops = jax.random.split(rows.fold(drop_key))
    logit = lambda text, key: text_logit(params, at(text), call, guide, net, key)
    real, fake = logit(batch["tokens"], drops[0]), logit(text, drops[1])
    counts = jnp.any(call.mask.astype(bool), axis=1).astype(jnp.float32)
    weights = counts / jnp.maximum(jnp.sum(counts), 1.0)
    loss = discrimination(real, fake, weights)
    right = 0.5 * jnp.sum(weights * ((real > 0.0) * 1.0 + (fake <= 0.0)))
    metrics = {"discriminator_nats": loss, "discriminator_accuracy": right}
    return loss, metrics | {"counted": jnp.sum(counts)}
