"""Uniform-state diffusion: the continuous-time NELBO and curriculum of Duo (arXiv 2506.10892v3).

With signal a, noise t = 1 - a (`flows.uniform_noise`), x_bar = V a onehot(x) + t, and p_bar the
same for the network's probabilities p(x | z, a),

    NELBO = int_0^1 da/(V a)  E_z sum_l [V/p_bar_z - V/x_bar_z
            + sum_j (x_bar_j / x_bar_z) log((x_bar_j p_bar_z) / (x_bar_z p_bar_j))],

with z the state of token l. It is smallest, and then equal to -log p(x), if p is the distribution
of x_l given the states of the other tokens alone: the reverse step already has the information of
its own state.

In the curriculum, for the first steps of training, the input of the network is
softmax(w / temperature) @ E instead of E[z], where z is the largest entry of the Gaussian state w.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Metrics, Params, States, Times
from flm_jax.denoiser import tiled
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.gaussian_tokens import softened
from flm_jax.denoiser.tile_plan import plan_of
from flm_jax.flows.masking import written_positions
from flm_jax.flows.time_sampling import Rows, stratified_uniform
from flm_jax.flows.uniform_noise import GaussianTimes, replaced
from flm_jax.losses.base import Frozen, number_of, token_weights


@dataclasses.dataclass(frozen=True)
class UniformConfig:
    """Settings that uniform-state diffusion and its distillation share."""

    time_conditioning: bool = setting(
        True, "Whether the network is conditioned on the signal a; else its time input is 0."
    )
    least_signal: float = setting(
        0.05, "Smallest signal a of times drawn in the Gaussian state.", range="(0, 1)"
    )
    most_signal: float = setting(
        0.94, "Largest signal a of times drawn in the Gaussian state.", range="(0, 1)"
    )
    prompt: int = setting(
        0,
        "Number of first positions of each sequence that stay clean and do not count in the loss.",
        unit="tokens",
        range="[0, inf)",
    )

    def __post_init__(self):
        require(
            self.least_signal < self.most_signal,
            f"config.objective.least_signal is {self.least_signal}, most_signal "
            f"{self.most_signal}; expected the first to be less.",
        )


@dataclasses.dataclass(frozen=True)
class UniformDiffusionConfig(UniformConfig):
    """Settings of uniform-state diffusion.

    The published bounds of the curriculum are gamma from -3.5 to -1.75 at V = 30,522; signals of
    0.94 and 0.05 are their equivalent for all vocabularies.
    """

    least: float = setting(
        1e-3,
        "Smallest noise and smallest signal of training without the curriculum.",
        range="[0, 0.5)",
    )
    curriculum: float = setting(
        0.5,
        "Fraction of config.train.steps, from the first step on, that has softened states.",
        range="[0, 1]",
    )
    temperature: float = setting(1e-3, "Temperature of softened states.", range="(0, inf)")


class Noisy(NamedTuple):
    """A batch of noisy tokens.

    Attributes:
      states: inputs of the network, [B, L, D].
      tokens: noisy tokens z, int32 [B, L].
      noise: noise level t [B].
      rate: density of the signal by which the mean of a batch is an integral over it, [B].
    """

    states: States
    tokens: Int[Array, "b l"]
    noise: Times
    rate: Times


def _nelbo(logits, log_z, target: tiled.Target, plan: tiled.Plan, *, number: int):
    """The bracket of the NELBO as a target of `tiled.weighted_cross_entropy`.

    Rows are the tokens x, the states z and the noise t [B, T]. With c = t / (V a + t) the sum over
    j is c (V log p_bar_z - sum_j log p_bar_j) + (V - 1) c log c where z = x, and elsewhere

        V log p_bar_z - sum_j log p_bar_j + (1/c - 1) log(p_bar_z / p_bar_x) - log(c) / c.

    Its gradient in the logits is p (g - sum p g), g = V a d/dp_bar; q here is what makes it
    softmax - q.
    """
    tokens, state, noise = target[1]
    noise = jnp.maximum(noise, 1e-12)[..., None]  # 0 where a tile is filled up
    signal, total = 1.0 - noise, functools.partial(tiled.total, axes=plan.vocab_axes)
    width = logits.shape[-1]
    index = jax.lax.broadcasted_iota(jnp.int32, (1, 1, width), 2)
    if plan.vocab_axes:
        index = index + jax.lax.axis_index(plan.vocab_axes) * width
    # p_bar_j = t + V a p_j, which is `bar` below.
    probs, gain = jnp.exp(logits - log_z), number * signal
    bar = noise + gain * probs
    here, clean = index == state[..., None], index == tokens[..., None]
    at = lambda where: total(jnp.where(where, bar, 0.0))
    bar_z, bar_x, same = at(here), at(clean), (state == tokens)[..., None]
    logs = total(jnp.where(index < number, jnp.log(bar), 0.0))
    c = noise / (gain + noise)
    many, few = jnp.where(same, c, 1.0), jnp.where(same, 0.0, gain / noise)
    value = number / bar_z - number / jnp.where(same, gain + noise, noise)
    value = value + many * (number * jnp.log(bar_z) - logs) + few * jnp.log(bar_z / bar_x)
    value = value + jnp.log(c) * jnp.where(same, (number - 1) * c, -1.0 / c)
    # The derivative of the value by p_bar_j, times V a for that by p_j. Columns that are no
    # tokens have p = 0, and so no rise.
    slope = jnp.where(here, (many * number + few) / bar_z - number / jnp.square(bar_z), 0.0)
    slope = gain * (slope - jnp.where(clean, few / bar_x, 0.0) - many / bar)
    rise = probs * slope
    q = probs - rise + probs * total(rise)
    if plan.vocab_axes:  # every device has the whole sum, and their values are added
        value = jnp.where(jax.lax.axis_index(plan.vocab_axes) == 0, value, 0.0)
    return q, value[..., 0]


@functools.lru_cache
def _nelbo_of(number: int):
    """One function object per vocabulary size, so that compiled programs are reused."""
    return functools.partial(_nelbo, number=number)


def told_signal(signal: Times, conditioned: bool) -> Times:
    """Time input of a network for signal [B]; 0 if it is not conditioned on time."""
    return signal if conditioned else jnp.zeros_like(signal)


def uniform_loss_at(
    params: Params,
    tokens: Int[Array, "b l"],
    noisy: Noisy,
    weights: Float[Array, "b l"],
    *,
    net: Network,
    cfg: UniformConfig,
    key: Key | None = None,
    visible: Bool[Array, "b l"] | None = None,
) -> tuple[jax.Array, Float[Array, "b l"]]:
    """Integrand of the NELBO at noisy tokens.

    Args:
      tokens: clean tokens x.
      noisy: noisy tokens z, and the network's inputs for them.
      weights: weight of each position in the sum; 0 at prescribed tokens.
      visible: mask of positions that may be attended to; None for all.

    Returns:
      Weighted sum (nats) and the integrand of each token [B, L] (nats, without gradient), both with
      the rate of `noisy`.
    """
    told = told_signal(1.0 - noisy.noise, cfg.time_conditioning)
    out = forward(net, params, noisy.states, told, told, key=key, visible=visible)
    number = net.token_count
    noise = jnp.broadcast_to(noisy.noise[:, None], tokens.shape)
    rate = (noisy.rate / (number * (1.0 - noisy.noise)))[:, None]
    target = ((), (tokens, noisy.tokens, noise))
    head = (out.kernel, out.bias)
    loss, values = tiled.weighted_cross_entropy(
        plan_of(net), _nelbo_of(number), out.features, head, weights * rate, target
    )
    return loss, rate * values


def replaced_batch(
    key: Key, tokens: Int[Array, "b l"], noise: Times, free: jax.Array, net: Network, table
) -> Noisy:
    """Tokens with noise t [B] at free positions, as inputs without softening; the rate is 1."""
    seen = replaced(key, tokens, noise, free, net.token_count)
    return Noisy(table[seen], seen, noise, jnp.ones_like(noise))


def softened_batch(
    key: Key,
    tokens: Int[Array, "b l"],
    share: Times,
    free: jax.Array,
    *,
    net: Network,
    cfg: UniformDiffusionConfig,
    times: GaussianTimes,
    table: Float[Array, "v d"],
) -> Noisy:
    """Tokens of the curriculum, at fractions [B] of its range of gamma."""
    signal, rate = times.signal_and_rate(share)
    states, seen = softened(
        key,
        tokens,
        times.ratio(share),
        cfg.temperature,
        table,
        number=net.token_count,
        tile=net.loss_tile,
    )
    states = jnp.where(free[..., None], states, table[tokens])
    return Noisy(states, jnp.where(free, seen, tokens), 1.0 - signal, rate)


def uniform_loss(
    params: Params,
    frozen: Frozen,
    batch: dict[str, jax.Array],
    key: Key,
    rows: Rows,
    *,
    net: Network,
    cfg: UniformDiffusionConfig,
    softened_steps: int = 0,
    times: GaussianTimes | None = None,
) -> tuple[jax.Array, Metrics]:
    """NELBO with times low-discrepancy over the global batch.

    Args:
      params: parameters of the network.
      frozen: parameters, of which the step alone is used.
      batch: "tokens" int32 [B, L] and "mask" [B, L], 1 where valid; other positions are noisy like
        the rest and do not count. Optionally "prompt" [B, L], 1 where tokens stay clean and do not
        count.
      key: key for times, noise and dropout.
      rows: indices of these rows in the global batch.
      net, cfg: network and settings.
      softened_steps: number of first steps, which belong to the curriculum.
      times: times of the curriculum, if it has steps.

    Returns:
      Mean over valid tokens, nats/token, and metrics {"nll_nats_per_token"}, the same, and
      "counted". During the curriculum the mean covers its range of times alone and is no bound.
    """
    time_key, noise_key, dropout_key = jax.random.split(key, 3)
    tokens, table, own_key = batch["tokens"], net.table(params), rows.fold(noise_key)
    share = stratified_uniform(time_key, tokens.shape[0], rows)
    free = written_positions(batch, cfg.prompt)

    def plainly(table):
        noise = cfg.least + (1.0 - 2.0 * cfg.least) * share
        return replaced_batch(own_key, tokens, noise, free, net, table)

    def softly(table):
        how = {"net": net, "cfg": cfg, "times": times, "table": table}
        return softened_batch(own_key, tokens, share, free, **how)

    if softened_steps:
        early = jnp.asarray(frozen.step) < softened_steps
        noisy = jax.lax.cond(early, softly, plainly, table)
    else:
        noisy = plainly(table)
    counted = free & batch["mask"].astype(bool)
    weights = token_weights(counted)
    loss, _ = uniform_loss_at(
        params, tokens, noisy, weights, net=net, cfg=cfg, key=rows.fold(dropout_key)
    )
    return loss, {"nll_nats_per_token": loss, "counted": number_of(counted)}
