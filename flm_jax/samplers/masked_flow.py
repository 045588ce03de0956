"""Sampler of masked language flows: steps along the masked bridge, guided, with promotion.

Source: arXiv 2606.27617. Each step computes the expected ends D of the bridges with the network and
moves by one step of the path. Times are spaced by the distribution that training learnt.

- Corrupted-context guidance: D_w = D + w (D - D_corr), where D_corr is the answer to a state whose
  context is drawn again from the bridge at time t. On hidden positions both start from the same z,
  so that velocities (D - z)/(1 - t) combine in the same way. The last read-out is not guided.
- Online promotion (`promotion`): sure tokens become clean context, in every step of one run
  (the paper's Algorithm 2), or after a whole run, and what is left is hidden and run anew (the
  authors' code). In steps, each promotion changes the law of the result by at most eps in total
  variation, so by at most eps L in all.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Params, States
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import Readout, summary
from flm_jax.flows.flow import Flow
from flm_jax.samplers.base import Given, SamplerConfig, Samples
from flm_jax.samplers.masked_flow_draws import Draws, make_draws
from flm_jax.samplers.promotion import EOS_POLICIES, promoted
from flm_jax.samplers.watching import show


@dataclasses.dataclass(frozen=True)
class MaskedFlowConfig(SamplerConfig):
    """Steps of a masked language flow; the defaults follow the paper's tables.

    Attributes:
      eos_id: end-of-text token; -1 where there is none, and all policies are the same. It is set
        from the model's objective.
    """

    context_guidance: float = setting(
        0.0,
        "Weight of guidance away from corrupted context, which takes a second network call in"
        " each step; 0 for none.",
    )
    corrupted: str = setting(
        "context",
        "Context that guidance corrupts: context (prompt and promoted tokens) or prompt (the "
        "prompt alone).",
        choices=("context", "prompt"),
    )
    promote: float = setting(
        0.0,
        "Tolerance of promotion: tokens of probability 1 - promote or more become context; 0 "
        "for no promotion.",
        range="[0, 1)",
    )
    promotion: str = setting(
        "steps",
        "Moment of promotion: steps (in each step) or runs (after a complete run; the "
        "remaining tokens are hidden and sampled again, with at least one token promoted in "
        "each run).",
        choices=("steps", "runs"),
    )
    reuse: bool = setting(
        False,
        "Whether a step that promotes tokens reuses the network call by which it promoted "
        "them; else it makes a second call that sees them.",
    )
    eos: str = setting(
        "free",
        "Promotion of ends of text: free (like any token), separate (ranked apart, in "
        "proportion, where a run must promote one), ordered (once all positions before are "
        "context) or never (at the end alone).",
        choices=EOS_POLICIES,
    )
    temperature: float = setting(
        1.0,
        "Temperature at which the last tokens, and the tokens of each run, are drawn; 0 for "
        "the most probable ones.",
        range="[0, inf)",
    )
    spacing: str = setting(
        "law",
        "Spacing of the times: law (quantiles of the distribution of gamma that training "
        "learnt) or uniform (in gamma).",
        choices=("law", "uniform"),
    )
    first_quantile: float = setting(
        1.0, "Quantile of that distribution at which the times begin.", range="(0, 1]"
    )
    lowest: float = setting(
        -10.0,
        "Value of gamma at which the times end; at least the distribution's lowest.",
        range="[-30, 30]",
    )
    exact_ends: bool = setting(
        True,
        "Whether sampling begins at t = 0, from the mask embedding alone, and ends at t = 1; "
        "else it begins and ends at the first and the last gamma.",
    )
    last_call: bool = setting(
        True,
        "Whether the tokens are read from a network call at the last time; else they are read"
        " from the call of the last step.",
    )
    eos_id: int = -1


class Mesh(NamedTuple):
    """Times of the K steps, K + 1 values each: the network's time input, and t of the path."""

    told: Float[Array, "k"]
    t: Float[Array, "k"]


def make_mesh(flow: Flow, steps: int, how: MaskedFlowConfig) -> Mesh:
    """Computes the times of a run.

    Args:
      flow: masked bridge with the current state of its learnt times.
      steps: number of steps K, static.
      how: spacing and ends of the times.
    """
    told = flow.told
    require(
        told.low <= how.lowest < told.high,
        f"got lowest={how.lowest}; expected a gamma from {told.low}, the law's lowest, to below "
        f"{told.high}.",
    )
    if how.spacing == "law":
        gamma = flow.times.sampling_gammas(steps, how.lowest, how.first_quantile)
    else:
        require(
            how.lowest == told.low and how.first_quantile == 1.0,
            f"got spacing='uniform' with lowest={how.lowest}, first_quantile={how.first_quantile}; "
            f"it covers all of gamma: leave them at {told.low} and 1.",
        )
        gamma = flow.told.gamma(jnp.linspace(0.0, 1.0, steps + 1))
    t = flow.path.time_at(gamma)
    if how.exact_ends:
        t = t.at[-1].set(1.0)
        # The probability-flow ODE is singular at t = 0.
        t = t.at[0].set(0.0) if flow.path.redraws else t
    return Mesh(flow.told.progress(gamma), t)


class WalkState(NamedTuple):
    """State of sampling: run, step, states z, tokens, hidden positions, records of steps, calls."""

    run: jax.Array
    step: jax.Array
    z: jax.Array
    tokens: jax.Array
    hidden: jax.Array
    steps_tokens: jax.Array
    steps_confidence: jax.Array
    calls: jax.Array


class Walk(NamedTuple):
    """Constants of all steps of a run.

    Attributes:
      given: prescribed tokens, which are context from the start.
      last: index of the time at which tokens are read, which is the number of steps before it.
    """

    net: Network
    params: Params
    flow: Flow
    table: jax.Array
    start: States
    mesh: Mesh
    given: Given
    draws: Draws
    how: MaskedFlowConfig
    last: int

    def ask(self, z: States, k: jax.Array) -> Readout:
        """Calls the network at the k-th time."""
        told = jnp.full(z.shape[0], self.mesh.told[k])
        return forward(self.net, self.params, z, told, told)

    def ends(self, z: States, k: jax.Array):
        """Expected ends of the bridges at the k-th time, and the most probable tokens."""
        return summary(self.ask(z, k), self.table, self.net)

    def begin(self, run: jax.Array, tokens: jax.Array, hidden: jax.Array) -> States:
        """Returns the states at the first time."""
        _, b, c = self.flow.path.coefficients(self.mesh.t[0])
        # Nothing is known of the data at first; where the times begin later, the anchor has a's
        # part as well.
        z = (b if self.how.exact_ends else 1.0) * self.start + c * self.draws.start(run)
        return jnp.where(hidden[..., None], z, self.table[tokens])

    def guided(self, clean: States, state: WalkState) -> States:
        """Returns the expected ends with guidance away from corrupted context."""
        w = self.how.context_guidance
        if not w:
            return clean
        context = ~state.hidden if self.how.corrupted == "context" else self.given.mask
        noise = self.draws.context(state.run, state.step)
        t = jnp.full(clean.shape[0], self.mesh.t[state.step])
        blurred = self.flow.path.at(t, self.table[state.tokens], noise, self.start)
        z = jnp.where(context[..., None], blurred, state.z)
        # At hidden positions both calls see the same state, so that ends combine as velocities
        # do.
        return clean + w * (clean - self.ends(z, state.step)[0])

    def moved(self, clean: States, state: WalkState) -> States:
        """Returns the states at the next time."""
        k, rows = state.step, clean.shape[0]
        t, t_next = (jnp.full(rows, self.mesh.t[i]) for i in (k, k + 1))
        noise = self.draws.walk(state.run, k)
        z = self.flow.path.step(state.z, clean, t, t_next, anchor=self.start, noise=noise)
        return jnp.where(state.hidden[..., None], z, self.table[state.tokens])

    def step(self, state: WalkState) -> WalkState:
        """Takes one step, with promotion if that is done in steps."""
        how = self.how
        # Each run has `last` steps and the call that reads its tokens.
        index = state.run * (self.last + 1) + state.step
        clean, (best, confidence) = self.ends(state.z, state.step)
        best = jnp.where(state.hidden, best, state.tokens)
        confidence = jnp.where(state.hidden, confidence, 1.0)
        state = self.seen(state, best, confidence)
        if how.promote and how.promotion == "steps":
            now = self.promoted(best, confidence, state.hidden)
            tokens, hidden = jnp.where(now, best, state.tokens), state.hidden & ~now
            z = jnp.where(hidden[..., None], state.z, self.table[tokens])
            state = state._replace(tokens=tokens, hidden=hidden, z=z)
            if not how.reuse:
                # Where nothing was promoted the state is the same, and so is the answer.
                again = jnp.any(now) & jnp.any(hidden)
                asked = lambda state: self.ends(state.z, state.step)[0]
                clean = jax.lax.cond(again, asked, lambda state: clean, state)
                state = state._replace(calls=state.calls + again)
        step = state.step + 1
        walked = lambda state: self.moved(self.guided(clean, state), state)
        # Guidance makes one more call where something is left to move.
        going = jnp.any(state.hidden)
        z = jax.lax.cond(going, walked, lambda state: state.z, state)
        z = show(index, best, z, going)
        calls = state.calls + (going if how.context_guidance else 0)
        return state._replace(z=z, step=step, calls=calls)

    def promoted(self, tokens, confidence, hidden) -> jax.Array:
        """Mask of the hidden positions [B, L] that become context."""
        how, runs = self.how, self.how.promotion == "runs"
        if runs and not how.promote:
            return hidden
        return promoted(
            tokens,
            confidence,
            hidden,
            threshold=1.0 - how.promote,
            least=1 if runs else 0,
            eos=how.eos,
            eos_id=how.eos_id,
        )

    def seen(self, state: WalkState, tokens, confidence) -> WalkState:
        """Records the tokens and confidence of a call, for this step and all later ones."""
        later = jnp.arange(self.last + 1)[:, None, None] >= state.step
        return state._replace(
            steps_tokens=jnp.where(later, tokens[None], state.steps_tokens),
            steps_confidence=jnp.where(later, confidence[None], state.steps_confidence),
            calls=state.calls + 1,
        )

    def read(self, state: WalkState) -> WalkState:
        """Reads tokens from a last call, without guidance, and takes those that are promoted."""
        tokens, confidence = self.draws.pick(state.run, self.ask(state.z, state.step))
        tokens = jnp.where(state.hidden, tokens, state.tokens)
        confidence = jnp.where(state.hidden, confidence, 1.0)
        state = self.seen(state, tokens, confidence)
        now = state.hidden
        if self.how.promotion == "runs":
            now = self.promoted(tokens, confidence, now)
        return state._replace(
            tokens=jnp.where(now, tokens, state.tokens), hidden=state.hidden & ~now
        )

    def one_run(self, state: WalkState) -> WalkState:
        """Runs from the first time to tokens."""
        z = self.begin(state.run, state.tokens, state.hidden)
        state = state._replace(z=z, step=jnp.int32(0))
        going = lambda s: (s.step < self.last) & jnp.any(s.hidden)
        state = jax.lax.while_loop(going, self.step, state)
        state = jax.lax.cond(jnp.any(state.hidden), self.read, lambda s: s, state)
        return state._replace(run=state.run + 1)


def begin_state(walk: Walk) -> WalkState:
    """Returns the state before the first run, with the prescribed tokens alone."""
    given = walk.given
    shape = (walk.last + 1, *given.tokens.shape)
    return WalkState(
        run=jnp.int32(0),
        step=jnp.int32(0),
        z=walk.table[given.tokens],
        tokens=given.tokens,
        hidden=~given.mask,
        steps_tokens=jnp.broadcast_to(given.tokens, shape),
        steps_confidence=jnp.broadcast_to(given.mask.astype(jnp.float32), shape),
        calls=jnp.int32(0),
    )


def sample_masked_flow(
    key: Key,
    net: Network,
    params: Params,
    *,
    flow: Flow,
    steps: int,
    given: Given,
    how: MaskedFlowConfig,
    draws: Draws | None = None,
) -> Samples:
    """Samples texts from a masked language flow.

    Args:
      key: key of the random draws.
      net: network with an anchor, conditioned on the progress of the bridge.
      flow: masked bridge with the current state of its learnt times; its noise is redrawn in each
        step or not.
      steps: number of steps K of each run, static.
      given: prescribed tokens, context from the start and never changed.
      how: guidance, promotion and times.
      draws: random numbers that replace the draws from the key.

    Returns:
      Samples; calls is the number of network calls. Tokens and confidence are those after each step
      and after the last call of the last run; a step that was not needed repeats the one before.
    """
    rows, length = given.tokens.shape
    table, anchor = net.table(params), net.anchor(params)
    last = steps if how.last_call else steps - 1
    walk = Walk(
        net=net,
        params=params,
        flow=flow,
        table=table,
        start=jnp.broadcast_to(anchor[None, :length], (rows, length, net.dim)),
        mesh=make_mesh(flow, steps, how),
        given=given,
        draws=draws or make_draws(key, net, table, flow, given, steps, how.temperature),
        how=how,
        last=last,
    )
    first = begin_state(walk)
    # Every run takes a token at least, and in steps there is one run.
    done = jax.lax.while_loop(lambda s: jnp.any(s.hidden), walk.one_run, first)
    return Samples(done.tokens, done.steps_tokens, done.steps_confidence, done.calls)


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
    """Samples with the signature of `samplers.registry.Sampler`; see `sample_masked_flow`."""
    del unused
    how = dataclasses.replace(cfg, eos_id=objective.eos_id)
    flow = flow.settled((extra or {}).get("times"))
    return sample_masked_flow(key, net, params, flow=flow, steps=steps, given=given, how=how)
