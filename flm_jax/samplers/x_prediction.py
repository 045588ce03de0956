"""Masked diffusion decoded as a flow in which every token has its own unmasking progress t.

Source: arXiv 2606.29066. The state of position l is y_l = t_l E[x_l] + (1 - t_l) m_l, from the mask
(t_l = 0) to a token (t_l = 1). Each step asks a network of masked diffusion once, and at every
position, with x the most probable token, c its probability and a in (0, 1] the step size:

    move          y += a (E[x] - y),  t += a (1 - t)    where t < 1: dt = a (1 - t) along the
                                                        velocity (E[x] - y) / (1 - t)
    re-edit       y = c E[x] + (1 - c) m,  t = c        where c - t < -0.1
    hard commit   y = E[x],  t = 1                      at the position with the largest c among
                                                        those with t < 0.99

in this order, t being that of the line before. A text is done when all its tokens have t >= 0.99;
until then a token that has arrived may be edited again. With the hard commit alone this is
low-confidence remasking of one token a step; with a = 1 and nothing else, one greedy prediction.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Params
from flm_jax.denoiser.forward import embedded
from flm_jax.denoiser.head import read
from flm_jax.flows.interpolants.mask_anchored import MaskAnchored
from flm_jax.flows.masking import highest, mean_progress
from flm_jax.samplers.base import Given, Samples, Steps, most_calls
from flm_jax.samplers.unmasking import schedule
from flm_jax.samplers.watching import show
from flm_jax.samplers.windows import BlocksConfig, Kept, asker

DONE = 0.99  # progress at which a token counts as written
RE_EDIT = -0.1  # confidence - progress below which a token is edited again
LEAST_STEP = 1 / 256
FEATURES = 8
_TOP = 4  # probabilities among the features
_PATH = MaskAnchored()

# features [B, L, 8] of `Look` -> step sizes [B, L] in [0, 1].
Stepper = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class XPredictionConfig(BlocksConfig):
    """Masked diffusion decoded as a flow in which every token has its own progress."""

    step_size: float = setting(
        0.0,
        "Step size a of every token, at least 1/256; 0 for 1 - 0.01^(1/n), with which a token"
        " is unmasked after the n calls of its block.",
        range="[0, 1]",
    )
    re_edit: bool = setting(True, "Whether tokens whose confidence fell are edited again.")
    hard_commit: bool = setting(True, "Whether each call fixes the most confident token.")
    policy: str = setting("", "Workdir of train_policy, whose policy chooses the step sizes.")

    def __post_init__(self):
        super().__post_init__()
        require(
            self.step_size == 0.0 or self.step_size >= LEAST_STEP,
            f"got step_size={self.step_size}; expected 1/256 to 1, or 0 for the size with which a "
            "token arrives as the calls end.",
        )
        require(
            not (self.policy and self.step_size),
            f"got policy={self.policy} and step_size={self.step_size}; expected one of them.",
        )


class Walk(NamedTuple):
    """State of a batch of texts that are being decoded.

    Attributes:
      y: float32 [B, L, D], states.
      t: float32 [B, L], progress.
      tokens: int32 [B, L].
      reached: float32 [B, L], progress before the last call of a block fixed the remaining tokens.
      seen: float32 [B, L], last confidence.
      block: int32 [B], block in which a row is, see `unmasking.Schedule`; after the last one when
        it is done.
      count: int32 [B], number of calls of the row in this block.
      made: int32 [B], number of calls of the row in all blocks.
      kept: cached keys and values, None without; see `windows.Kept`.
    """

    y: Float[Array, "b l d"]
    t: Float[Array, "b l"]
    tokens: Int[Array, "b l"]
    reached: Float[Array, "b l"]
    seen: Float[Array, "b l"]
    block: Int[Array, "b"]
    count: Int[Array, "b"]
    made: Int[Array, "b"]
    kept: Kept | None = None


class Look(NamedTuple):
    """Predictions of a network call for a walk.

    Attributes:
      tokens: int32 [B, L], most probable tokens.
      confidence: float32 [B, L], their probabilities.
      features: float32 [B, L, 8]: the four largest probabilities, the entropy of these four
        (renormalised) over log 4, the first minus the second, t, and rho = step / (T - 1), the
        calls that the row has had over those that it may have in all its blocks.
      active: bool [B, L], positions of the block in which the row is, except prescribed ones; none
        in a row that is done. All others stay unchanged.
      calls: int32 [B], number of network calls of the block in which each row is.
      kept: cache of the walk after this call.
    """

    tokens: Int[Array, "b l"]
    confidence: Float[Array, "b l"]
    features: Float[Array, "b l f"]
    active: Bool[Array, "b l"]
    calls: Int[Array, "b"]
    kept: Kept | None = None

    def moves(self, walk: Walk) -> Bool[Array, "b l"]:
        """Mask of the positions at which the step size has an effect."""
        return self.active & (walk.t < 1.0)


class Decoder(NamedTuple):
    """A decoding as pure functions, which `sample_x_prediction` and `rollout` run in a loop.

    Attributes:
      start: walk before the first call.
      look: function from a walk to a Look, by one network call.
      advance: function from (walk, look, step sizes [B, L]) to the next walk.
      going: function from a walk to the mask [B] of rows that are not done.
    """

    start: Walk
    look: Callable[[Walk], Look]
    advance: Callable[[Walk, Look, jax.Array], Walk]
    going: Callable[[Walk], jax.Array]


def features(top: Float[Array, "b l k"], t: Float[Array, "b l"], share: Float[Array, "b"]):
    """Computes the 8 numbers of `Look.features`, float32 [B, L, 8].

    Args:
      top: the four largest probabilities, in decreasing order.
      t: progress.
      share: rho of each row.
    """
    four = top / jnp.maximum(jnp.sum(top, axis=-1, keepdims=True), 1e-30)
    entropy = -jnp.sum(four * jnp.log(jnp.maximum(four, 1e-30)), axis=-1) / jnp.log(float(_TOP))
    rest = (entropy, top[..., 0] - top[..., 1], t, jnp.broadcast_to(share[:, None], t.shape))
    return jnp.concatenate([top, jnp.stack(rest, axis=-1)], axis=-1)


def _top(logits: Float[Array, "b l v"]) -> tuple[Int[Array, "b l"], Float[Array, "b l k"]]:
    """Most probable token and the four largest probabilities, 0 if V is less than 4."""
    most = min(_TOP, logits.shape[-1])
    values, which = jax.lax.top_k(logits, most)
    top = jnp.exp(values - jax.nn.logsumexp(logits, axis=-1, keepdims=True))
    top = jnp.pad(top, ((0, 0), (0, 0), (0, _TOP - most)))
    return which[..., 0].astype(jnp.int32), top


def _moved(walk: Walk, look: Look, a: jax.Array, clean, anchor, how: XPredictionConfig) -> Walk:
    """Moves, edits again and commits; see the beginning of this file."""
    confidence, changed = look.confidence, look.moves(walk)
    a = jnp.where(changed, a, 0.0)
    # With a = 1 the embedding itself, bit for bit.
    t = jnp.where(a == 1.0, 1.0, jnp.clip(walk.t + a * (1.0 - walk.t), 0.0, 1.0))
    y = _PATH.step(walk.y, clean, walk.t, t, anchor=anchor)
    if how.re_edit:
        again = look.active & (confidence - t < RE_EDIT)
        edited = _PATH.at(confidence, clean, anchor=anchor)
        y, t = jnp.where(again[..., None], edited, y), jnp.where(again, confidence, t)
        changed |= again
    if how.hard_commit:
        now = highest(confidence, look.active & (t < DONE), jnp.ones(t.shape[0], jnp.int32))
        now |= look.active & (t < DONE) & (confidence > how.threshold)
        y, t = jnp.where(now[..., None], clean, y), jnp.where(now, 1.0, t)
    tokens = jnp.where(changed, look.tokens, walk.tokens)
    reached = jnp.where(look.active, t, walk.reached)
    seen = jnp.where(jnp.any(look.active, axis=1)[:, None], confidence, walk.seen)
    return walk._replace(y=y, t=t, tokens=tokens, reached=reached, seen=seen)


def decoder(
    net: Network,
    params: Params,
    *,
    steps: Steps,
    given: Given,
    how: XPredictionConfig,
    time_conditioning: bool,
) -> Decoder:
    """Builds the functions of a decoding; arguments as in `sample_x_prediction`.

    Raises:
      UserError: the network has no anchor.
    """
    rows, length = given.tokens.shape
    require(net.anchor is not None, "decoding as a flow needs a network of masked diffusion.")
    plan = schedule(net, given, steps, how.block_length)
    asked = asker(net, params, given, plan, how, time_conditioning)
    free = ~given.mask
    anchor = jnp.broadcast_to(net.anchor(params)[None, :length], (rows, length, net.dim))

    def block_of(t: jax.Array) -> jax.Array:
        return jnp.min(jnp.where(free & (t < DONE), plan.place, plan.blocks), axis=1)

    def look(walk: Walk) -> Look:
        told = mean_progress(walk.t, given.visible) if time_conditioning else jnp.zeros(rows)
        call = asked.call(walk.kept, walk.y, told, walk.block)
        tokens, top = read(call.out, net, _top)
        tokens = call.spread(tokens, walk.tokens)
        confidence = call.spread(top[..., 0], walk.seen)
        top = call.spread(top, jnp.zeros((rows, length, _TOP)))
        active = free & (plan.place == walk.block[:, None])
        _, calls = plan.span(walk.block)
        seen = features(top, walk.t, walk.made / jnp.maximum(plan.ends[:, -1] - 1, 1))
        confidence = jnp.where(free, confidence, 1.0)
        return Look(tokens, confidence, seen, active, calls, call.kept)

    def advance(walk: Walk, look: Look, a: jax.Array) -> Walk:
        clean = embedded(net, params, look.tokens)
        walk = _moved(walk, look, a, clean, anchor, how)
        # The last call of a block, after which all that is left is fixed.
        left = look.active & (walk.count == look.calls - 1)[:, None]
        t = jnp.where(left, 1.0, walk.t)
        y = jnp.where(left[..., None], embedded(net, params, walk.tokens), walk.y)
        block = block_of(t)
        count = jnp.where(block == walk.block, walk.count + 1, 0)
        made = walk.made + (walk.block < plan.blocks)
        return walk._replace(y=y, t=t, block=block, count=count, made=made, kept=look.kept)

    t = jnp.where(free, 0.0, 1.0)
    y = jnp.where(free[..., None], anchor, embedded(net, params, given.tokens))
    zeros = jnp.zeros(rows, jnp.int32)
    start = Walk(y, t, given.tokens, t, t, block_of(t), zeros, zeros, asked.start(y))
    return Decoder(start, look, advance, lambda walk: walk.block < plan.blocks)


def fixed(how: XPredictionConfig, look: Look) -> Float[Array, "b l"]:
    """Returns the constant step size of `how`; by default it follows from the block's calls."""
    # n steps of size a leave (1 - a)^n of the way, which reaches DONE after the block's calls.
    size = 1.0 - (1.0 - DONE) ** (1.0 / jnp.maximum(look.calls, 1))
    size = jnp.full(size.shape, how.step_size) if how.step_size else size
    return jnp.broadcast_to(size[:, None], look.tokens.shape)


class Rollout(NamedTuple):
    """A decoding with all data from which a policy learns.

    Attributes:
      tokens: int32 [B, L].
      reached: float32 [B, L], see `Walk`.
      calls: int32 [B], number of calls of each row.
      features: float32 [K, B, L, 8].
      moves: bool [K, B, L], positions at which the step size had an effect; none in calls that were
        not made.
      acts: actions that the actor returned in each step, leaves [K, ...].
    """

    tokens: Int[Array, "b l"]
    reached: Float[Array, "b l"]
    calls: Int[Array, "b"]
    features: Float[Array, "k b l f"]
    moves: Bool[Array, "k b l"]
    acts: Any


def rollout(
    key: Key,
    net: Network,
    params: Params,
    act: Callable[[Key, jax.Array], tuple[jax.Array, Any]],
    *,
    steps: Steps,
    given: Given,
    **settings: Any,
) -> Rollout:
    """Decodes with drawn step sizes, in one loop of at most K calls that ends with the rows.

    Args:
      key: key of the draws.
      act: function from (key, features [B, L, 8]) to step sizes [B, L], and any data to record.
      steps, given, settings: the same as for `decoder`.
    """
    made = decoder(net, params, steps=steps, given=given, **settings)

    def step(walk: Walk, k):
        look = made.look(walk)
        a, acts = act(jax.random.fold_in(key, k), look.features)
        return made.advance(walk, look, a), (look.features, look.moves(walk), acts)

    def body(state):
        walk, k, kept = state
        after, now = step(walk, k)
        return after, k + 1, jax.tree.map(lambda all, x: all.at[k].set(x), kept, now)

    most = most_calls(steps, given.mask.shape[1])
    # Shapes of the records, without a network call.
    forms = jax.eval_shape(step, made.start, jnp.int32(0))[1]
    kept = jax.tree.map(lambda x: jnp.zeros((most, *x.shape), x.dtype), forms)
    unfinished = lambda state: (state[1] < most) & jnp.any(made.going(state[0]))
    state = jax.lax.while_loop(unfinished, body, (made.start, jnp.int32(0), kept))
    walk, _, (seen, moves, acts) = state
    return Rollout(walk.tokens, walk.reached, walk.made, seen, moves, acts)


def sample_x_prediction(
    net: Network,
    params: Params,
    *,
    steps: Steps,
    given: Given,
    how: XPredictionConfig,
    time_conditioning: bool,
    stepper: Stepper | None = None,
) -> Samples:
    """Decodes in a bounded number of network calls, without random draws.

    Args:
      net: network of masked diffusion, with an anchor.
      steps: largest number of calls of each row, a number or a fraction of the tokens to generate;
        static. `schedule` spreads them over blocks. The last call of a block fixes its remaining
        tokens by their predictions.
      given: prescribed tokens, at t = 1 from the start and never changed.
      how: step size, further parts of a step, and block length; each row starts its next block by
        itself.
      time_conditioning: whether the network is conditioned on time, as in training; its time is the
        mean progress.
      stepper: function that gives the step sizes instead of how.step_size, such as a policy.

    Returns:
      Samples with steps_progress, t after each call; steps_tokens holds predictions where no token
      is fixed yet. calls is the number of network calls: none once all rows are done. A row's
      result does not depend on the other rows.

    Raises:
      UserError: the network has no anchor.
    """
    settings = dict(steps=steps, given=given, how=how)
    made = decoder(net, params, time_conditioning=time_conditioning, **settings)
    most = most_calls(steps, given.mask.shape[1])

    def body(state):
        walk, calls, paths = state
        look = made.look(walk)
        sizes = stepper(look.features) if stepper else fixed(how, look)
        after = made.advance(walk, look, sizes)
        ahead = made.going(walk)[:, None] & ~look.active & (walk.t < DONE)
        shown = (jnp.where(ahead, look.tokens, after.tokens), after.seen, after.t)
        paths = tuple(path.at[calls].set(now) for path, now in zip(paths, shown))
        follows = jnp.any(made.going(walk)) & jnp.any(made.going(after))
        return after._replace(y=show(calls, shown[0], after.y, follows)), calls + 1, paths

    def going(state):
        return jnp.any(made.going(state[0]))

    walk = made.start
    paths = tuple(jnp.tile(x[None], (most, 1, 1)) for x in (walk.tokens, walk.seen, walk.t))
    walk, calls, paths = jax.lax.while_loop(going, body, (walk, jnp.int32(0), paths))
    # Calls that were not made repeat the last one's read-out.
    index = jnp.clip(jnp.arange(most), 0, jnp.maximum(calls - 1, 0))
    tokens, confidence, progress = (path[index] for path in paths)
    return Samples(walk.tokens, tokens, confidence, calls, progress)


def sample(
    key: Key,
    params: Params,
    given: Given,
    extra: dict | None = None,
    *,
    net: Network,
    steps: Steps,
    cfg: XPredictionConfig,
    guides: Any,
    objective: Any,
    **unused: Any,
) -> Samples:
    """Samples with the signature of `samplers.registry.Sampler`; see `sample_x_prediction`."""
    del key, extra, unused
    told = objective.time_conditioning
    how = {"steps": steps, "given": given, "how": cfg, "stepper": guides.stepper}
    return sample_x_prediction(net, params, time_conditioning=told, **how)
