"""Interpolants y_t = a(t) E[x] + b(t) m + c(t) xi in R^D, and everything derived from them.

E[x] is the embedding of clean data, m an anchor (the mask embedding), xi Gaussian noise, and t runs
from 0 to 1. A path defines a, b, c; kappa(t), the fraction of a state that a step keeps; 1/beta(t)
with beta = a' - a kappa'/kappa; and the odds u = a/kappa with their inverse. Its steps, its
velocity and the weights of the distillation routes are derived from these here, in the same way for
all paths.

Steps are exact in the odds: z = y/kappa obeys dz/du = D + m d(b/kappa)/du, with D the denoised
state, so that a step with D held fixed is Euler's method in u.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.core.errors import UserError
from flm_jax.core.types import States, Times
from flm_jax.flows.shapes import over_features

Coefficients = tuple[Times, Times, Times]


class Weights(NamedTuple):
    """Weights of a step, each with the shape of the times.

    Attributes:
      state, clean, anchor, noise: weights of the state at s, of the denoised state D, of m, and of
        fresh noise.
    """

    state: Times
    clean: Times
    anchor: Times
    noise: Times


def divided(numerator: Times, denominator: Times) -> Times:
    """Returns numerator / denominator, and 0 where the denominator vanishes."""
    # A second `where`: the gradient of the division would be NaN even where it is not chosen.
    safe = jnp.where(denominator > 0.0, denominator, 1.0)
    return jnp.where(denominator > 0.0, numerator / safe, 0.0)


class Interpolant:
    """A path; times are float32 [B] or [B, L], with s <= u <= t, and states are [B, L, D].

    Attributes:
      anchored: whether b is not zero, so that steps need m.
      redraws: whether a step redraws part of the noise. Otherwise kappa = c, or there is no noise:
        the noise only shrinks along the path, and the probability-flow ODE, its flow map and their
        distillation exist.
    """

    anchored: bool = False
    redraws: bool = False

    def coefficients(self, t: Times) -> Coefficients:
        """Coefficients (a, b, c) at times t, clipped to the values that the path reaches."""
        raise NotImplementedError

    def retained(self, t: Times) -> Times:
        """Retained fraction kappa(t), with kappa(1) = 0."""
        raise NotImplementedError

    def slowness(self, t: Times) -> Times:
        """Slowness 1/beta(t), finite on [0, 1], unlike beta and the velocity at t = 1."""
        raise NotImplementedError

    def odds(self, t: Times) -> Times:
        """Odds u = a/kappa at times t < 1, which increase from 0 without bound."""
        raise NotImplementedError

    def time_of(self, odds: Times) -> Times:
        """Inverse of `odds`."""
        raise NotImplementedError

    def time_at(self, gamma: Times) -> Times:
        """Time t in (0, 1) at which log(c^2/a^2), noise over signal, is `gamma`."""
        raise NotImplementedError

    def gamma(self, t: Times) -> Times:
        """Log of noise over signal, log(c^2/a^2), at times t in (0, 1); inverse of `time_at`."""
        a, _, c = self.coefficients(t)
        return 2.0 * (jnp.log(c) - jnp.log(a))

    def overshoot(self, t: Times, stochasticity: float) -> Times:
        """Time t' >= t at which kappa is sqrt(1 - g^2) kappa(t), with g the stochasticity.

        A stochastic jump to t is a jump to t', followed by noise that brings the state back to t.
        """
        raise UserError(
            f"got gamma={stochasticity}, a fraction of fresh noise, on a path of "
            f"{type(self).__name__}, which states no overshoot; expected 0."
        )

    def at(
        self,
        t: Times,
        clean: States,
        noise: jax.Array | float = 0.0,
        anchor: jax.Array | float = 0.0,
    ) -> States:
        """States y [B, L, D] at times t, for clean embeddings E[x], noise xi and anchor m."""
        a, b, c = (over_features(w) for w in self.coefficients(jnp.asarray(t, jnp.float32)))
        return a * clean + b * anchor + c * noise

    def weights(self, s: Times, t: Times, stochasticity: float = 0.0) -> Weights:
        """Weights of the step from s to t; (1, 0, 0, 0) where s = t.

        The weights are w_y = sqrt(1 - g^2) kappa_t/kappa_s, w_x = a_t - a_s w_y, w_m = b_t - b_s
        w_y and w_n^2 = c_t^2 - w_y^2 c_s^2: with the exact D the marginal of y_t is preserved.

        Args:
          stochasticity: fraction g of fresh noise, in [0, 1].
        """
        (a_s, b_s, c_s), (a_t, b_t, c_t) = self.coefficients(s), self.coefficients(t)
        kept = divided(self.retained(t), self.retained(s)) * (1.0 - stochasticity**2) ** 0.5
        kept = jnp.where(s == t, 1.0, kept)
        # Where kappa = c the difference under the root is rounding alone at g = 0.
        fresh = jnp.sqrt(jnp.maximum(c_t**2 - (kept * c_s) ** 2, 0.0))
        fresh = fresh if self.redraws else stochasticity * c_t
        return Weights(kept, a_t - a_s * kept, b_t - b_s * kept, jnp.where(s == t, 0.0, fresh))

    def step(
        self,
        y_s: States,
        denoised: States,
        s: Times,
        t: Times,
        *,
        anchor: jax.Array | float = 0.0,
        noise: States | None = None,
        stochasticity: float = 0.0,
    ) -> States:
        """Steps from y_s to y_t with an estimate D of the clean state; all samplers use this step.

        With a denoiser it is Euler's method in the odds, with a two-time denoiser the jump of the
        flow map, and with noise the step of a path that redraws it.

        Args:
          anchor: m of anchored paths, else 0.
          noise: fresh noise xi [B, L, D], required where its weight is not 0.
          stochasticity: fraction of fresh noise, see `weights`.
        """
        return self._combined(self.weights(s, t, stochasticity), y_s, denoised, anchor, noise)

    def bridge_weights(self, s: Times, t: Times) -> Weights:
        """Weights of the step from y_s to y_t given the clean state E[x] at the end of the path.

        If noise is added backwards in time by a Markov process (an Ornstein-Uhlenbeck process up to
        scale and time), y_t given y_s and E[x] is normal with these weights: that of the state is
        r c_t/c_s with r = u_s/u_t, the ratio of the odds, and the variance is c_t^2 (1 - r^2). It
        is the step of `weights` with stochasticity sqrt(1 - r^2). For the linear path w_y = s
        (1-t)^2 / (t (1-s)^2) (arXiv 2605.13681). A path that redraws its noise has this law already
        in `weights`.
        """
        plain = self.weights(s, t)
        if self.redraws:
            return plain
        (_, b_s, _), (a_t, b_t, c_t) = self.coefficients(s), self.coefficients(t)
        # With kappa = c the weights at g = 0 have w_y = c_t/c_s and w_x = a_t (1 - r).
        moved = jnp.minimum(divided(plain.clean, a_t), 1.0)
        kept = plain.state * (1.0 - moved)
        fresh = c_t * jnp.sqrt(moved * (2.0 - moved))
        return Weights(kept, plain.clean * (2.0 - moved), b_t - b_s * kept, fresh)

    def bridge(
        self,
        y_s: States,
        clean: States,
        s: Times,
        t: Times,
        *,
        anchor: jax.Array | float = 0.0,
        noise: States | None = None,
    ) -> States:
        """Draws y_t given y_s and the clean state at the end; its mean without `noise`."""
        return self._combined(self.bridge_weights(s, t), y_s, clean, anchor, noise)

    def _combined(self, weights: Weights, y_s, clean, anchor, noise) -> States:
        w = Weights(*(over_features(x) for x in weights))
        y_t = w.state * y_s + w.clean * clean
        y_t = y_t + w.anchor * anchor if self.anchored else y_t
        return y_t if noise is None else y_t + w.noise * noise

    def drift(
        self, y_t: States, denoised: States, t: Times, anchor: jax.Array | float = 0.0
    ) -> States:
        """Velocity over beta, D + (kappa'/kappa y + (b' - b kappa'/kappa) m) / beta.

        It is finite up to t = 1, where it is not used.
        """
        kappa, slope = jax.jvp(self.retained, (t,), (jnp.ones_like(t),))
        slowness = self.slowness(t)
        pull = divided(slowness * slope, kappa)
        moved = denoised + over_features(pull) * y_t
        if not self.anchored:
            return moved
        b, b_slope = jax.jvp(lambda x: self.coefficients(x)[1], (t,), (jnp.ones_like(t),))
        return moved + over_features(slowness * b_slope - b * pull) * anchor

    def velocity(
        self, y_t: States, denoised: States, t: Times, anchor: jax.Array | float = 0.0
    ) -> States:
        """Velocity dy/dt along the path with the denoised state D, for t < 1.

        For a path with kappa = c it is the velocity of the probability-flow ODE; for one that
        redraws its noise, the drift of that process.
        """
        return self.drift(y_t, denoised, t, anchor) / over_features(self.slowness(t))

    def denoiser_from_velocity(self, y_t: States, velocity: States, t: Times) -> States:
        """Denoised state D from the velocity of a path without anchor; inverse of `velocity`."""
        moved = over_features(self.slowness(t)) * velocity
        return moved - self.drift(y_t, jnp.zeros_like(y_t), t)

    def semigroup_weight(self, s: Times, u: Times, t: Times) -> Times:
        """Weight G of D_st = G D_su + (1 - G) D_ut(X_su), in [0, 1]; 0 (unused) at s = t.

        It follows from X_st = X_ut(X_su): G = w_y(u, t) w_x(s, u) / w_x(s, t).
        """
        first, second = self.weights(s, u), self.weights(u, t)
        return divided(second.state * first.clean, self.weights(s, t).clean)

    def lagrangian_rate(self, s: Times, t: Times) -> Times:
        """Factor w_x(s, t)/beta_t of dD_st/dt in D_st(y) = D_t(X_st(y)) - rate dD_st/dt."""
        return self.slowness(t) * self.weights(s, t).clean

    def eulerian_rates(self, s: Times, t: Times, bound: float) -> tuple[Times, Times]:
        """Weight of D_s and factor of G in the Eulerian target, finite up to t = 1.

        With G the derivative of D_st along the flow, over beta_s, the exact map has D_st = D_s +
        (w_x/w_y) G. The target is D_st + w (D_s + (w_x/w_y) G - D_st), with the same solution, with
        w = min(1, bound w_y): G enters with a factor of at most `bound`.
        """
        w = self.weights(s, t)
        # w w_x/w_y = w_x min(1/w_y, bound), written so that w_y = 0 is no division by zero.
        floor = jnp.maximum(w.state, 1.0 / bound)
        return w.state / floor, w.clean / floor


class Straight(Interpolant):
    """Paths with a = t and kappa = 1-t, whose weights have closed forms without cancellation."""

    def retained(self, t: Times) -> Times:
        return 1.0 - t

    def slowness(self, t: Times) -> Times:
        return 1.0 - t

    def odds(self, t: Times) -> Times:
        return t / (1.0 - t)

    def time_of(self, odds: Times) -> Times:
        return odds / (1.0 + odds)

    def overshoot(self, t: Times, stochasticity: float) -> Times:
        return 1.0 - (1.0 - t) * (1.0 - stochasticity**2) ** 0.5

    def weights(self, s: Times, t: Times, stochasticity: float = 0.0) -> Weights:
        found = super().weights(s, t, stochasticity)
        if stochasticity:
            return found
        moved = divided(t - s, 1.0 - s)
        # w_y = (1-t)/(1-s) = 1 - moved, and w_x = t - s w_y = moved.
        # b = 1-t keeps the same part of m as of the state, or is 0.
        return found._replace(state=1.0 - moved, clean=moved, anchor=jnp.zeros_like(moved))
