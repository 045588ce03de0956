"""Uniform-state diffusion: noise replaces tokens by random tokens (arXiv 2506.10892v3).

A token x with signal a, and noise t = 1 - a, is seen as z with probability a [z = x] + t / V. The
posterior of a state z at signal a, moving to signal b > a, is

    q(z_b | z, x)  ~  (a/b [z_b = z] + (1 - a/b) / V) (b x[z_b] + (1 - b) / V),

with x a one-hot vector, or the probabilities that a network predicts.

The largest entry of a Gaussian state r onehot(x) + eps, eps ~ N(0, I_V), has the same distribution.
Its signal is the decoding-error clock (`flows.clocks`) at the time r / (1 + r): the operator T of
the paper. Gaussian states are parameterised here by gamma = -2 log r, log noise over signal.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flm_jax.core.types import Key, Times
from flm_jax.flows.clocks import Clock, t_to_tau, tau_to_t


def replaced(
    key: Key, tokens: Int[Array, "b l"], noise: Times, free: Bool[Array, "b l"], number: int
) -> Int[Array, "b l"]:
    """Replaces a fraction `noise` [B] of the free tokens by any of the first `number` tokens."""
    where_key, what_key = jax.random.split(key)
    other = jax.random.randint(what_key, tokens.shape, 0, number, tokens.dtype)
    hit = free & (jax.random.uniform(where_key, tokens.shape) < noise[:, None])
    return jnp.where(hit, other, tokens)


def posterior_logits(
    log_probs: Float[Array, "*b v"],
    state: Int[Array, "*b"],
    noise: Float[Array, "*b"],
    later: Float[Array, "*b"],
    number: int,
) -> Float[Array, "*b v"]:
    """Unnormalised logarithms of q(z_b | z, x) of this module, for b > a.

    Args:
      log_probs: log probabilities of x; -inf for columns that are no tokens.
      state: tokens z.
      noise: noise level 1 - a in (0, 1].
      later: noise level 1 - b in [0, noise).
      number: number V of tokens from which noise draws, the first ones.
    """
    noise, later = noise[..., None], later[..., None]
    index = jax.lax.broadcasted_iota(jnp.int32, log_probs.shape, log_probs.ndim - 1)
    kept = (1.0 - noise) / (1.0 - later)
    forward = jnp.where(index == state[..., None], kept, 0.0) + (1.0 - kept) / number
    spread = jnp.where(index < number, jnp.log(later / number), -jnp.inf)
    # log(b x + (1 - b) / V), also where x underflows; at b = 1 the second term is -inf.
    seen = jnp.logaddexp(jnp.log1p(-later) + log_probs, spread)
    return jnp.log(forward) + seen


class GaussianTimes(NamedTuple):
    """Times of Gaussian states, drawn uniformly in gamma, and the signal of their largest entry.

    Attributes:
      clock: decoding-error clock of the vocabulary.
      low, high: gamma of the largest and of the smallest signal.
    """

    clock: Clock
    low: jax.Array
    high: jax.Array

    def ratio(self, share: Times) -> Times:
        """Ratio r at a fraction of the way from low to high gamma."""
        return jnp.exp(-0.5 * (self.low + share * (self.high - self.low)))

    def signal(self, share: Times) -> Times:
        """Signal a at such a fraction."""
        r = self.ratio(share)
        return t_to_tau(self.clock, r / (1.0 + r))

    def signal_and_rate(self, share: Times) -> tuple[Times, Times]:
        """Signal a, and -da/dshare: the density by which an integral over a becomes a mean."""
        a, rate = jax.jvp(self.signal, (share,), (jnp.ones_like(share),))
        return a, -rate


def gaussian_times(clock: Clock, least: float, most: float) -> GaussianTimes:
    """Returns times between two signals 0 < least < most < 1."""

    def gamma(signal: float) -> jax.Array:
        t = tau_to_t(clock, jnp.float32(signal))
        return -2.0 * jnp.log(t / (1.0 - t))

    return GaussianTimes(clock, gamma(most), gamma(least))
