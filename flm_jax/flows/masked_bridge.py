"""The masked bridge: hidden tokens on a Brownian bridge from the mask embedding to their own.

Source: arXiv 2606.27617. With m the mask embedding and sigma > 0, at time t in [0, 1]

    z_t = E[x] where visible,   z_t ~ N((1-t) m + t E[x], sigma^2 t (1-t) I) where hidden,

so that t = 0 is masked diffusion's own problem. Time is measured by gamma = log(sigma^2 (1-t)/t),
the log of noise over signal, from HIGH (t about 0) down to LOW (t about 1); a network is told the
progress (HIGH - gamma) / (HIGH - LOW) in [0, 1].
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flm_jax.core.types import Key, States, Times
from flm_jax.flows.interpolants import interpolate, masked_bridge, over_features

SIGMA = 0.2
LOW, HIGH = -10.0, 6.0


def gamma_from_t(t: Times, sigma: float = SIGMA) -> Times:
    """log(sigma^2 (1-t)/t), clipped to [LOW, HIGH]; any shape, float32."""
    t = jnp.asarray(t, jnp.float32)
    return jnp.clip(jnp.log(sigma**2) + jnp.log1p(-t) - jnp.log(t), LOW, HIGH)


def t_from_gamma(gamma: Times, sigma: float = SIGMA) -> Times:
    """t = sigma^2 / (e^gamma + sigma^2), the inverse where nothing is clipped."""
    return jax.nn.sigmoid(jnp.log(sigma**2) - jnp.asarray(gamma, jnp.float32))


def progress(gamma: Times) -> Times:
    """The time a network is told: 0 at HIGH (masks), 1 at LOW (data)."""
    return (HIGH - gamma) / (HIGH - LOW)


def gamma_at(progress: Times) -> Times:
    """The inverse of `progress`."""
    return HIGH - (HIGH - LOW) * progress


def gamma_grid(steps: int) -> Float[Array, "k"]:
    """K + 1 values, uniform from HIGH to LOW."""
    return jnp.linspace(HIGH, LOW, steps + 1)


def bridge_states(
    key: Key,
    t: Times,
    tokens: Int[Array, "b l"],
    hidden: Bool[Array, "b l"],
    table: Float[Array, "v d"],
    anchor: Float[Array, "m d"],
    sigma: float = SIGMA,
) -> States:
    """Draws z_t [B, L, D], float32.

    Args:
      key: used for the noise alone.
      t: times [B] or [B, L]; those of visible positions are not read.
      tokens: clean data; hidden: positions on the bridge.
      table, anchor: E, and the mask embedding of each position, M >= L.
      sigma: scale of the noise.
    """
    clean = table[tokens]
    noise = jax.random.normal(key, clean.shape)
    start = jnp.broadcast_to(anchor[None, : tokens.shape[1]], clean.shape)
    moving = interpolate(masked_bridge(sigma), t, clean, noise, start)
    return jnp.where(hidden[..., None], moving, clean)


def step_moments(
    z_t: States, clean: States, t: Times, t_next: Times, sigma: float = SIGMA
) -> tuple[States, Times]:
    """Mean and variance of z at t_next given z_t and the end of the bridge.

    mean = (1-t')/(1-t) z_t + (t'-t)/(1-t) clean, variance = sigma^2 (t'-t)(1-t')/(1-t), for
    t <= t' <= 1 and t < 1.

    Args:
      z_t: states; clean: E[x], or its expectation (then this is the DDPM step).
      t, t_next: [B] or [B, L].

    Returns:
      Mean [B, L, D]; variance of each coordinate, with axes to multiply states.
    """
    t, t_next = over_features(t), over_features(t_next)
    left, moved = (1.0 - t_next) / (1.0 - t), (t_next - t) / (1.0 - t)
    return left * z_t + moved * clean, sigma**2 * (t_next - t) * left
