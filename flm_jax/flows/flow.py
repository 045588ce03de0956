"""A flow: a path, its noise, the law of its times, and what a network is told of them.

Losses and samplers take a flow and nothing else of it. They count time in what the network is told,
tau in [0, 1], which grows with the path's own t: of FLM the clock, of flows that are told gamma =
log(c^2/a^2), noise over signal, its progress from the highest to the lowest.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flm_jax.core.types import Key, States, Times
from flm_jax.flows.clocks import Clock, t_to_tau, tau_to_t
from flm_jax.flows.interpolants.base import Interpolant
from flm_jax.flows.interpolants.linear import Linear
from flm_jax.flows.noise import Noise, OneHotNoise, Views
from flm_jax.flows.time_sampling import Rows, stratified_uniform, time_pairs


class Told:
    """What a network is told of time: an increasing function of t onto [0, 1]."""

    def tau(self, t: Times) -> Times:
        """Of the time t; any shape, float32."""
        raise NotImplementedError

    def t(self, tau: Times) -> Times:
        """The inverse."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ClockTold(Told):
    """tau(t) of a clock."""

    clock: Clock

    def tau(self, t: Times) -> Times:
        return t_to_tau(self.clock, t)

    def t(self, tau: Times) -> Times:
        return tau_to_t(self.clock, tau)


@dataclasses.dataclass(frozen=True)
class GammaTold(Told):
    """The progress (high - gamma) / (high - low) of gamma on a path, 0 at `high` and before, 1 at
    `low` and after."""

    path: Interpolant
    low: float
    high: float

    def gamma(self, tau: Times) -> Times:
        """gamma at a progress."""
        return self.high - (self.high - self.low) * tau

    def progress(self, gamma: Times) -> Times:
        """The inverse of `gamma`."""
        return (self.high - gamma) / (self.high - self.low)

    def tau(self, t: Times) -> Times:
        lowest, highest = self.path.time_at(jnp.array([self.high, self.low]))
        # The derivative of a clip at its ends is a half of that from within, or 0 by rounding, and
        # flow maps start and end there: the value is clipped, the derivative is not.
        clipped, still = jax.lax.stop_gradient((jnp.clip(t, lowest, highest), t))
        return self.progress(self.path.gamma(clipped + (t - still)))

    def t(self, tau: Times) -> Times:
        return self.path.time_at(self.gamma(jnp.asarray(tau, jnp.float32)))


class TimeLaw:
    """The law of times: how training draws them, and how a sampler spaces its steps.

    It counts in shares u in [0, 1] of the law, in which sampling grids and the ends of jumps are
    uniform.
    """

    def draw(self, key: Key, num: int, rows: Rows) -> Times:
        """tau of each row, [num], low-discrepancy over the global batch."""
        raise NotImplementedError

    def quantile(self, share: Times) -> Times:
        """tau below which a share u of the law lies."""
        raise NotImplementedError

    def share(self, tau: Times) -> Times:
        """The inverse of `quantile`."""
        raise NotImplementedError

    def observe(
        self,
        tau: Times,
        values: Float[Array, "b"],
        weights: Float[Array, "b"],
        share: Float[Array, "b"] | None = None,
    ) -> Any:
        """What a batch says of the law: cross entropies of rows at tau; None where none is learnt.

        Rows of weight 0 are left out. `share` is the hidden fraction of each row, where positions
        are hidden.
        """
        del tau, values, weights, share
        return None

    def settled(self, state: Any) -> "TimeLaw":
        """The law at a state of what is learnt of it; the same where nothing is."""
        del state
        return self


class Uniform(TimeLaw):
    """U(0, 1) in what the network is told."""

    def draw(self, key: Key, num: int, rows: Rows) -> Times:
        return stratified_uniform(key, num, rows)

    def quantile(self, share: Times) -> Times:
        return share

    def share(self, tau: Times) -> Times:
        return tau


@dataclasses.dataclass(frozen=True)
class Flow:
    """A flow over embedded states, y_t = a E[x] + b m + c xi.

    Attributes:
      path: the interpolant a, b, c and its steps.
      noise: the law of xi.
      times: the law of times.
      told: what the network is told of them.
    """

    path: Interpolant
    noise: Noise
    times: TimeLaw
    told: Told

    def t(self, tau: Times) -> Times:
        """The path's time t at which a network is told tau."""
        return self.told.t(tau)

    def tau(self, t: Times) -> Times:
        """What a network is told at time t."""
        return self.told.tau(t)

    def slope(self, t: Times) -> Times:
        """dtau/dt, which turns derivatives in tau into derivatives in t."""
        return jax.jvp(self.told.tau, (t,), (jnp.ones_like(t),))[1]

    def settled(self, state: Any) -> "Flow":
        """The flow at a state of what is learnt of the law of its times; None for its own."""
        return dataclasses.replace(self, times=self.times.settled(state))

    def draw_times(self, key: Key, num: int, rows: Rows) -> Times:
        """tau of training, one for each of `num` rows."""
        return self.times.draw(key, num, rows)

    def draw_pairs(self, key: Key, num: int, rows: Rows, boundary: float) -> tuple[Times, Times]:
        """tau_s <= tau_t for flow maps, see `time_pairs`, whose uniform numbers are shares."""
        shares = time_pairs(key, num, rows, boundary)
        return self.times.quantile(shares[0]), self.times.quantile(shares[1])

    def between(self, tau_s: Times, tau_t: Times, where: Times | float) -> Times:
        """The tau at a part `where` of the law between two others."""
        low, high = self.times.share(tau_s), self.times.share(tau_t)
        return jnp.where(tau_s < tau_t, self.times.quantile(low + where * (high - low)), tau_t)

    def grid(self, steps: int) -> Float[Array, "k"]:
        """K + 1 values of tau from 0 to 1, uniform in the law of times."""
        return self.times.quantile(jnp.linspace(0.0, 1.0, steps + 1))

    def states(
        self,
        key: Key,
        t: Times,
        tokens: Int[Array, "b l"],
        table: Float[Array, "v d"],
        other: Float[Array, "v k"] | None = None,
    ) -> Views:
        """Draws noisy states y_t of a path without anchor.

        Args:
          key: used for the noise alone.
          t: times of the path, [B] or [B, L].
          tokens: clean data.
          table: E; y_t is differentiable in it through data and noise.
          other: a second table that must see the same noise (a teacher's); no gradient.

        Returns:
          y_t [B, L, D] and, if `other` is given, the same state seen through it, else None.
        """
        return self.noise.states(key, self.path, t, tokens, table, other)

    def held(
        self,
        y_t: States,
        t: Times,
        tokens: jax.Array,
        given: jax.Array,
        xi: States,
        table: jax.Array,
        anchor: jax.Array | float = 0.0,
    ) -> States:
        """Puts given positions on their own path with xi fixed; with t = 1 there they are clean.

        Args:
          y_t: states [B, L, D] at time t.
          tokens, given: [B, L]; `given` is True where `tokens` is prescribed.
          xi: the initial noise; table: E; anchor: m.
        """
        return jnp.where(given[..., None], self.path.at(t, table[tokens], xi, anchor), y_t)


def onehot_flow(clock: Clock, in_vocabulary: bool = False) -> Flow:
    """The flow of FLM and FMLM: linear, one-hot noise, uniform in a clock that is told."""
    return Flow(Linear(), OneHotNoise(in_vocabulary), Uniform(), ClockTold(clock))
