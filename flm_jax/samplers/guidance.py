"""Denoisers as samplers of a flow call them: plain, or guided away from a weaker one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flm_jax.core.network import Network
from flm_jax.core.types import Key, Params, States, Times
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import summary
from flm_jax.denoiser.mixture import Part, Pick, mixture
from flm_jax.flows.flow import Flow
from flm_jax.samplers.base import Given, held_times
from flm_jax.samplers.bigram import candidates_of, choose_together
from flm_jax.samplers.categorical import Choice, choose

GREEDY = Choice(temperature=0.0, top_p=1.0)


class Weak(NamedTuple):
    """A weaker denoiser of the same vocabulary and times.

    Attributes:
      net: network of the weaker denoiser; its embedding width may differ.
      params: parameters of the weaker denoiser; None for the parameters of the guided network, with
        dropout on.
    """

    net: Network
    params: Params | None = None


class Denoiser(NamedTuple):
    """The functions by which a sampler uses one or two networks; W sums their embedding widths.

    Attributes:
      table: clean embeddings [V, W]; the tables of two networks are side by side.
      anchor: m of anchored paths, [1, L, W], else 0.
      noise: function from a key to xi [B, L, W], one draw expressed in the states of both tables.
      start: function from xi to the states [B, L, W] at the first time of the flow.
      ask: (xi, y_t [B, L, W], t, (tau_now, tau_target), key, choice, estimate) -> (y_t, delta @
        table, (tokens, confidence) [B, L]). Prescribed positions of y_t are replaced: by clean
        embeddings for any-order networks, else by their path with xi. Times are scalars or [B]; the
        key is for dropout and drawn tokens; estimate is an earlier delta @ table, if
        self_conditioned.
      calls: number of network calls of one `ask`.
      two_time: whether tau_target is read.
      self_conditioned: whether `ask` takes an estimate.
    """

    table: Float[Array, "v w"]
    anchor: jax.Array | float
    noise: Callable[[Key], States]
    start: Callable[[States], States]
    ask: Callable[..., tuple[States, States, tuple[jax.Array, jax.Array]]]
    calls: int
    two_time: bool
    self_conditioned: bool = False


def picker(key: Key, choice: Choice) -> Pick:
    """Uses one key per position, so that samples do not depend on the tiling."""
    if choice.chain is not None:
        return lambda positions, scores: candidates_of(key, positions, scores, choice)

    def one(position, scores):
        return choose(jax.random.fold_in(key, position), scores, choice)

    # Over the positions, which are the second axis of scores [B, T, V]: their rows share a key.
    return jax.vmap(one, in_axes=(0, 1), out_axes=1)


def _held(net: Network, flow: Flow, given: Given, xi, y_t, t, table, anchor):
    """States with prescribed positions clean for an any-order network, else on their path.

    On an anchored path they are clean, at whatever time of the network.
    """
    if flow.path.anchored:
        return jnp.where(given.mask[..., None], table[given.tokens], y_t)
    t = held_times(net, given, t)
    return flow.held(y_t, t, given.tokens, given.mask, xi, table, anchor)


def _started(flow: Flow, xi: States, anchor) -> States:
    """State at the first time, without information about the data: pure noise at t = 0."""
    _, b, c = flow.path.coefficients(flow.t(jnp.zeros(())))
    return b * anchor + c * xi if flow.path.anchored else c * xi


def settled(
    given: Given, seen: Any, key: Key | None, choice: Choice
) -> tuple[Int[Array, "b l"], Float[Array, "b l"]]:
    """Returns tokens and confidence of all positions, the given tokens and 1 where prescribed.

    Args:
      given: prescribed tokens.
      seen: result of the pick of `choice`: tokens and confidence, or candidates of a chain.
      key: key of the draws.
      choice: rule by which tokens are chosen.
    """
    if choice.chain is not None:
        return choose_together(key, seen, choice, given)
    tokens, confidence = seen
    return jnp.where(given.mask, given.tokens, tokens), jnp.where(given.mask, 1.0, confidence)


def _anchor(net: Network, params: Params, flow: Flow, given: Given) -> jax.Array | float:
    return net.anchor(params)[None, : given.mask.shape[1]] if flow.path.anchored else 0.0


def plain(net: Network, params: Params, flow: Flow, given: Given) -> Denoiser:
    """Returns the denoiser of a network without guidance."""
    table, anchor = net.table(params), _anchor(net, params, flow, given)

    def ask(xi, y_t, t, taus, key=None, choice=GREEDY, estimate=None):
        y_t = _held(net, flow, given, xi, y_t, t, table, anchor)
        s, t = (held_times(net, given, tau) for tau in taus)
        out = forward(net, params, y_t, s, t, estimate=estimate)
        if choice.temperature == 0.0 and choice.chain is None:
            delta, seen = summary(out, table, net)
        else:
            delta, seen = mixture([Part(1.0, out, net)], table, picker(key, choice))
        return y_t, delta, settled(given, seen, key, choice)

    noise = lambda key: flow.noise.draw(key, table, given.tokens.shape)
    start = lambda xi: _started(flow, xi, anchor)
    return Denoiser(table, anchor, noise, start, ask, 1, net.two_time, net.self_conditioned)


def autoguided(
    net: Network,
    params: Params,
    weak: Weak,
    eta: float,
    flow: Flow,
    given: Given,
    product: bool = False,
) -> Denoiser:
    """Returns delta_weak + eta (delta - delta_weak), autoguidance (arXiv 2406.02507, 2602.16813v3).

    Velocities b = (delta - x)/(1-t) at one state combine in the same way. With eta > 1 the sum
    leaves the simplex; states stay linear in it, and tokens are read from its positive part.

    Args:
      weak: weaker denoiser; with dropout it sees the same state; with its own parameters the state
        is carried in both embeddings, from a joint draw of the noise.
      eta: weight of guidance; 1 for none.
      product: whether logits are combined instead of probabilities: the normalised product
        p^eta p_weak^(1 - eta).
    """
    table = net.table(params)
    other = None if weak.params is None else weak.net.table(weak.params)
    joint = table if other is None else jnp.concatenate([table, other], axis=1)
    width = table.shape[1]

    def ask(xi, y_t, t, taus, key=None, choice=GREEDY):
        y_t = _held(net, flow, given, xi, y_t, t, joint, 0.0)
        draw_key, dropout_key = jax.random.split(key)
        now = [held_times(net, given, tau) for tau in taus]
        out = forward(net, params, y_t[..., :width], *now)
        if other is None:
            # The same parameters and table, hence the same state: only dropout differs.
            second = forward(weak.net, params, y_t, *now, key=dropout_key)
        else:
            second = forward(weak.net, weak.params, y_t[..., width:], *now)
        parts = [Part(eta, out, net), Part(1.0 - eta, second, weak.net)]
        delta, seen = mixture(parts, joint, picker(draw_key, choice), product=product)
        return y_t, delta, settled(given, seen, draw_key, choice)

    def noise(key):
        if other is None:
            return flow.noise.draw(key, table, given.tokens.shape)
        views = flow.noise.draw_joint(key, table, other, given.tokens.shape)
        return jnp.concatenate(views, axis=-1)

    start = lambda xi: _started(flow, xi, 0.0)
    return Denoiser(joint, 0.0, noise, start, ask, 2, net.two_time)


def target_time(denoiser: Denoiser, tau_now: Times, tau_target: Times) -> Times:
    """Second time input of the network: the target for two-time networks, else the current time."""
    return tau_target if denoiser.two_time else tau_now
