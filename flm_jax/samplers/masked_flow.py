"""Sampler of masked language flows: DDPM steps on the masked bridge, guided, with promotion.

Source: arXiv 2606.27617. Each step asks the network for the expected ends of the bridges and moves
along by one step of the path, on a grid uniform in gamma.

- Corrupted-context guidance: v_w = v(z) + w (v(z) - v(z_corr)), where z_corr has its context, given
  tokens and promoted ones, drawn again from the bridge at time t. On hidden positions both start
  from the same z, so that the expected ends combine in the same way.
- Online promotion: a hidden position whose most probable token has probability 1 - eps or more
  takes that token and becomes clean context at once. Each time the law of the result changes by at
  most eps in total variation, so by at most eps L in all. The walk ends when no position is hidden.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Params
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import summary
from flm_jax.flows.flow import Flow
from flm_jax.flows.noising import hidden_states
from flm_jax.samplers.base import Given, SamplerConfig, Samples

EOS_POLICIES = ("free", "ordered", "never")


@dataclasses.dataclass(frozen=True)
class MaskedFlowConfig(SamplerConfig):
    """Steps of a masked language flow.

    Attributes:
      eos_id: the end-of-text token; -1 where there is none, which all policies then treat alike.
        The model's objective decides it.
    """

    context_guidance: float = setting(
        0.0,
        "weight of guidance away from corrupted context, a second network call a step; 0 for none",
    )
    promote: float = setting(
        0.0,
        "tokens of probability 1 - promote or more become context at once; 0 for none",
        range="[0, 1)",
    )
    eos: str = setting(
        "free",
        "when the end of a text is promoted: free (as any token), ordered (once all before it is "
        "context), never (at the last step alone)",
        choices=EOS_POLICIES,
    )
    eos_id: int = -1


class _State(NamedTuple):
    """Step; states z; tokens; hidden positions; read-outs after each step; network calls."""

    step: jax.Array
    z: jax.Array
    tokens: jax.Array
    hidden: jax.Array
    steps_tokens: jax.Array
    steps_confidence: jax.Array
    calls: jax.Array


def promoted(
    tokens: jax.Array, confidence: jax.Array, hidden: jax.Array, how: MaskedFlowConfig
) -> jax.Array:
    """Hidden positions [B, L] that become context, by the most probable tokens [B, L]."""
    if how.promote == 0.0:
        return jnp.zeros_like(hidden)
    sure = hidden & (confidence >= 1.0 - how.promote)
    if how.eos_id < 0 or how.eos == "free":
        return sure
    ends = tokens == how.eos_id
    if how.eos == "never":
        return sure & ~ends
    written = ~hidden | sure
    # An end counts as written only where all before it is: so the first gap stops all after it.
    before = jnp.cumprod(jnp.pad(written, ((0, 0), (1, 0)))[:, :-1].at[:, 0].set(True), axis=1)
    return sure & (~ends | (before > 0))


def sample_masked_flow(
    key: Key,
    net: Network,
    params: Params,
    *,
    flow: Flow,
    steps: int,
    given: Given,
    how: MaskedFlowConfig,
) -> Samples:
    """Draws texts in at most `steps` steps.

    Args:
      key: of the noise.
      net: a network that reads the progress of the bridge, with an anchor.
      flow: the masked bridge, with noise redrawn in each step or not.
      steps: K, static; the last one takes the most probable tokens of what is still hidden.
      given: prescribed tokens, context from the start and never changed.
      how: guidance and promotion.

    Returns:
      Samples; calls counts the network calls that were made, two a step with guidance. The read-out
      of a step that was not needed is that of the step before.
    """
    rows, length = given.tokens.shape
    table, anchor = net.table(params), net.anchor(params)
    taus = jnp.linspace(0.0, 1.0, steps + 1)
    times = flow.t(taus).at[-1].set(1.0)  # lands on the expected ends
    if flow.path.redraws:
        times = times.at[0].set(0.0)  # starts as the masks

    def ends(z, k):
        told = jnp.full(rows, taus[k])
        out = forward(net, params, z, told, told)
        return summary(out, table, net)

    def body(state: _State) -> _State:
        k = state.step
        t, t_next = jnp.full(rows, times[k]), jnp.full(rows, times[k + 1])
        step_key = jax.random.fold_in(key, k)
        walk_key, context_key = jax.random.split(step_key)
        clean, (best, confidence) = ends(state.z, k)
        best = jnp.where(state.hidden, best, state.tokens)
        confidence = jnp.where(state.hidden, confidence, 1.0)
        if how.context_guidance:
            context = ~state.hidden
            again = hidden_states(context_key, flow, t, state.tokens, context, table, anchor)
            blurred, _ = ends(jnp.where(context[..., None], again, state.z), k)
            clean = clean + how.context_guidance * (clean - blurred)
        now = promoted(best, confidence, state.hidden, how)
        now = jnp.where(k == steps - 1, state.hidden, now)
        tokens, hidden = jnp.where(now, best, state.tokens), state.hidden & ~now
        noise = flow.noise.draw(walk_key, table, tokens.shape)
        z = flow.path.step(state.z, clean, t, t_next, anchor=start, noise=noise)
        z = jnp.where(hidden[..., None], z, table[tokens])
        later = jnp.arange(steps)[:, None, None] >= k
        return _State(
            k + 1,
            z,
            tokens,
            hidden,
            jnp.where(later, best[None], state.steps_tokens),
            jnp.where(later, confidence[None], state.steps_confidence),
            state.calls + (2 if how.context_guidance else 1),
        )

    shape = (steps, rows, length)
    start = jnp.broadcast_to(anchor[None, :length], (rows, length, net.dim))
    _, b, c = flow.path.coefficients(times[0])
    z = b * start + c * flow.noise.draw(jax.random.fold_in(key, steps), table, (rows, length))
    first = _State(
        jnp.int32(0),
        jnp.where(given.mask[..., None], table[given.tokens], z),
        given.tokens,
        ~given.mask,
        jnp.broadcast_to(given.tokens, shape),
        jnp.broadcast_to(given.mask.astype(jnp.float32), shape),
        jnp.int32(0),
    )
    going = lambda state: (state.step < steps) & jnp.any(state.hidden)
    last = jax.lax.while_loop(going, body, first)
    return Samples(last.tokens, last.steps_tokens, last.steps_confidence, last.calls)


def sample(
    key: Key,
    params: Params,
    given: Given,
    extra: dict | None = None,
    *,
    net: Network,
    flow: Flow,
    steps: int,
    cfg: MaskedFlowConfig,
    objective: Any,
    **unused: Any,
) -> Samples:
    """`sample_masked_flow` as `samplers.registry.Sampler` has it."""
    del extra, unused
    how = dataclasses.replace(cfg, eos_id=objective.eos_id)
    return sample_masked_flow(key, net, params, flow=flow, steps=steps, given=given, how=how)
