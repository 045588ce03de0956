"""A flow: a path, its noise, the distribution of its times, and the network's time variable.

Losses and samplers take a flow and no parts of it. They measure time in the network's time variable
tau in [0, 1], which increases with the path's own t: for FLM it is the clock; for flows conditioned
on gamma = log(c^2/a^2), noise over signal, it is the fraction of the way from the highest to the
lowest gamma.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flm_jax.core.types import Key, States, Times
from flm_jax.flows.clocks import Clock, t_to_tau, tau_to_t, within
from flm_jax.flows.interpolants.base import Interpolant
from flm_jax.flows.interpolants.linear import Linear
from flm_jax.flows.noise import Noise, OneHotNoise, Views
from flm_jax.flows.time_sampling import Rows, stratified_uniform, time_pairs


class Told:
    """Time variable of the network: an increasing function tau of t onto [0, 1]."""

    def tau(self, t: Times) -> Times:
        """Computes tau at the time t; any shape, float32."""
        raise NotImplementedError

    def t(self, tau: Times) -> Times:
        """Inverse of `tau`."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ClockTold(Told):
    """Time variable tau(t) of a clock."""

    clock: Clock

    def tau(self, t: Times) -> Times:
        return t_to_tau(self.clock, t)

    def t(self, tau: Times) -> Times:
        return tau_to_t(self.clock, tau)


@dataclasses.dataclass(frozen=True)
class GammaTold(Told):
    """Time variable (high - gamma) / (high - low), with gamma of a path.

    It is 0 at `high` and before, and 1 at `low` and after.
    """

    path: Interpolant
    low: float
    high: float

    def gamma(self, tau: Times) -> Times:
        """Computes gamma at tau."""
        return self.high - (self.high - self.low) * tau

    def progress(self, gamma: Times) -> Times:
        """Inverse of `gamma`."""
        return (self.high - gamma) / (self.high - self.low)

    def tau(self, t: Times) -> Times:
        lowest, highest = self.path.time_at(jnp.array([self.high, self.low]))
        return self.progress(self.path.gamma(within(t, lowest, highest)))

    def t(self, tau: Times) -> Times:
        return self.path.time_at(self.gamma(jnp.asarray(tau, jnp.float32)))


class TimeLaw:
    """Distribution of times: how training draws them, and how a sampler spaces its steps.

    Its quantile levels u in [0, 1] are the variable in which sampling grids and the ends of jumps
    are uniform.
    """

    def draw(self, key: Key, num: int, rows: Rows) -> Times:
        """Draws tau for each row, [num], low-discrepancy over the global batch."""
        raise NotImplementedError

    def quantile(self, share: Times) -> Times:
        """Computes tau at quantile level u, the fraction of the distribution below it."""
        raise NotImplementedError

    def share(self, tau: Times) -> Times:
        """Quantile level of tau, the inverse of `quantile`."""
        raise NotImplementedError

    def observe(
        self,
        tau: Times,
        values: Float[Array, "b"],
        weights: Float[Array, "b"],
        share: Float[Array, "b"] | None = None,
    ) -> Any:
        """Statistics of a batch, from cross entropies of rows at tau; None if nothing is learnt.

        Rows of weight 0 are left out. `share` is the hidden fraction of each row, for flows with
        hidden positions.
        """
        del tau, values, weights, share
        return None

    def settled(self, state: Any) -> "TimeLaw":
        """Returns the distribution at a state of its learnt part; unchanged if there is none."""
        del state
        return self


class Uniform(TimeLaw):
    """Uniform distribution of tau, U(0, 1)."""

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
      noise: distribution of xi.
      times: distribution of times.
      told: time variable of the network.
    """

    path: Interpolant
    noise: Noise
    times: TimeLaw
    told: Told

    def t(self, tau: Times) -> Times:
        """Time t of the path at tau."""
        return self.told.t(tau)

    def tau(self, t: Times) -> Times:
        """Time variable of the network at time t."""
        return self.told.tau(t)

    def slope(self, t: Times) -> Times:
        """Derivative dtau/dt, which turns derivatives in tau into derivatives in t."""
        return jax.jvp(self.told.tau, (t,), (jnp.ones_like(t),))[1]

    def settled(self, state: Any) -> "Flow":
        """Returns the flow at a state of its learnt times; None keeps its own."""
        return dataclasses.replace(self, times=self.times.settled(state))

    def draw_times(self, key: Key, num: int, rows: Rows) -> Times:
        """Draws tau for training, one for each of `num` rows."""
        return self.times.draw(key, num, rows)

    def draw_pairs(self, key: Key, num: int, rows: Rows, boundary: float) -> tuple[Times, Times]:
        """Draws tau_s <= tau_t for flow maps, as quantiles at the levels of `time_pairs`."""
        shares = time_pairs(key, num, rows, boundary)
        return self.times.quantile(shares[0]), self.times.quantile(shares[1])

    def between(self, tau_s: Times, tau_t: Times, where: Times | float) -> Times:
        """Computes tau at a fraction `where` of the quantile levels between two others."""
        low, high = self.times.share(tau_s), self.times.share(tau_t)
        # Rounding in share and quantile must not open an empty interval.
        return jnp.where(tau_s < tau_t, self.times.quantile(low + where * (high - low)), tau_t)

    def grid(self, steps: int) -> Float[Array, "k"]:
        """Returns K + 1 values of tau from 0 to 1, uniform in the quantiles of times."""
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
          key: key of the noise.
          t: times of the path, [B] or [B, L].
          tokens: clean tokens.
          table: embedding table E; y_t is differentiable in it through data and noise.
          other: second table that must see the same noise (a teacher's); no gradient.

        Returns:
          y_t [B, L, D] and, if `other` is given, the same state in its embedding, else None.
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
        """Puts prescribed positions on their own path with fixed xi; at t = 1 they are clean.

        Args:
          y_t: states [B, L, D] at time t.
          t: times of the path, [B] or [B, L].
          tokens: prescribed tokens [B, L].
          given: mask [B, L] of prescribed positions.
          xi: initial noise.
          table: embedding table E.
          anchor: m of anchored paths, else 0.
        """
        return jnp.where(given[..., None], self.path.at(t, table[tokens], xi, anchor), y_t)


def onehot_flow(clock: Clock, in_vocabulary: bool = False) -> Flow:
    """Returns the flow of FLM and FMLM: linear, one-hot noise, uniform in the clock's tau."""
    return Flow(Linear(), OneHotNoise(in_vocabulary), Uniform(), ClockTold(clock))
