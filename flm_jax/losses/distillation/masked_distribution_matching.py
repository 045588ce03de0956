"""Distribution matching of masked flows: conditional answers in one call, guidance included.

It is `distribution_matching` on the masked bridge (arXiv 2606.27617). The student reads a state y_s
whose hidden positions are on the bridge and whose context is clean, is conditioned on (s, 1), and
answers with probabilities P. At the hidden positions P E is put on the bridge again, at a later
time t,

    z = t P E + (1-t) m + c xi,  xi ~ N(0, I),  c^2 = sigma^2 t (1-t),

and the context stays clean. Given it and the mean m(z) of the clean embedding, a score is -(z - t
m(z) - (1-t) m) / c^2: the anchor drops out of the difference of two, and the gradient of
KL(q_t || p_t) in P E is

    (t/c)^2 (m_auxiliary(z) - m_teacher(z)),  (t/c)^2 = t / (sigma^2 (1-t)) = e^-gamma.

The teacher is guided away from corrupted context. Scores are linear in the mean, and so m_D + w
(m_D - m_D') is that of p_t(z | context)^(1+w) p_t(z | corrupted)^-w: no projection to the simplex
is needed. All positions of a row have one time, as in the training of masked flows.
"""

import dataclasses

import jax
import jax.numpy as jnp

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Params
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import expected_embedding
from flm_jax.flows.flow import Flow
from flm_jax.flows.noising import hidden_means, hidden_states, with_corrupted_context
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.distillation.base import Teacher
from flm_jax.losses.distillation.distribution_matching import (
    ROW_WEIGHTINGS,
    Answers,
    Blind,
    TeacherConfig,
)
from flm_jax.losses.distillation.masked_flow_map import ContextGuidanceConfig
from flm_jax.losses.distillation.renoised import InTurnConfig, start_and_end
from flm_jax.losses.masked_flow import HidingConfig, draw_hidden, may_be_hidden, position_weights


@dataclasses.dataclass(frozen=True)
class MaskedMatchingConfig(ContextGuidanceConfig, TeacherConfig, InTurnConfig, HidingConfig):
    """Settings of the distribution matching of a masked flow, config.adapters.base."""

    row_weighting: str = setting(
        "distance",
        "Weight of each row: kl (the gradient of its divergence, which over the bridge grows by a "
        "factor of e^(high - low) of config.flow.law) or distance (divided by the mean distance "
        "between student and teacher, so that all rows count equally).",
        choices=ROW_WEIGHTINGS,
    )


def masked_answers(
    params: Params,
    teacher: Teacher,
    batch: dict[str, jax.Array],
    key: Key,
    rows: Rows,
    *,
    net: Network,
    flow: Flow,
    cfg: MaskedMatchingConfig,
) -> Answers:
    """Draws hidden positions, times and states, calls the student, and noises its outputs.

    Args:
      params: all parameters of the student, a two-time network with the teacher's embeddings;
        `out` and `mean` are differentiable in them.
      teacher: network and parameters of the masked flow, whose table embeds the outputs.
      batch: "tokens" int32 [B, L] and "mask" [B, L], 1 where valid; optionally "prompt" [B, L], 1
        where tokens stay visible.
      key: key for hidden positions, times and noise.
      rows: indices of these rows in their part of the batch.
      net, flow: student, and the probability-flow ODE of the masked bridge.
      cfg: settings.
    """
    time_key, share_key, hide_key, own_key = jax.random.split(key, 4)
    state_key, noise_key, corrupt_key = jax.random.split(rows.fold(own_key), 3)
    tokens, free = batch["tokens"], may_be_hidden(batch, cfg)
    hidden, share = draw_hidden(hide_key, share_key, free, rows, cfg)
    weights, counted = position_weights(hidden, free, share, cfg.reduction)
    tau_s, tau_t = start_and_end(time_key, flow, tokens.shape[0], rows, cfg.from_noise)
    t, ones = flow.t(tau_t), jnp.ones_like(tau_s)
    embeddings = net.table(params), net.anchor(params)
    y_s = hidden_states(state_key, flow, flow.t(tau_s), tokens, hidden, *embeddings)
    # Without dropout: the law to be matched is that of what the student writes.
    out = forward(net, params, y_s, tau_s, ones)
    own, frozen = teacher
    table, anchor = jax.lax.stop_gradient((own.table(frozen), own.anchor(frozen)))
    mean = expected_embedding(out, table, net)
    mean = jnp.where(hidden[..., None], mean, table[tokens])
    fixed = jax.lax.stop_gradient(mean)
    z = hidden_means(noise_key, flow, t, fixed, hidden, table, anchor)
    found = Answers(out, mean, z, tau_s, tau_t, t, weights, counted)
    if not cfg.context_guidance:
        return found
    blurred = with_corrupted_context(corrupt_key, flow, t, z, tokens, hidden, table, anchor)
    return found._replace(blind=Blind(blurred, tau_t, 1.0 + cfg.context_guidance, product=False))
