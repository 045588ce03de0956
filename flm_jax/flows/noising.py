"""Noisy states y_t of the one-hot linear flow, as the embedded network sees them."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flm_jax.core.types import Key, States, Times
from flm_jax.flows.gaussian_noise import embedded_noise, joint_embedded_noise
from flm_jax.flows.interpolants import interpolate, linear

NoiseKind = Literal["projected", "onehot"]
NOISE_KINDS = ("projected", "onehot")


def states_from_onehot(
    eps: Float[Array, "b l v"], t: Times, tokens: Int[Array, "b l"], *tables: jax.Array
) -> tuple[Float[Array, "b l _"], ...]:
    """x_t = (1-t) eps + t onehot(x) in R^V, seen through each table: x_t @ E.

    The reference path: it holds x_t of [B, L, V] in float32.
    """
    clean = jax.nn.one_hot(tokens, eps.shape[-1], dtype=jnp.float32)
    x_t = interpolate(linear, t, clean, eps)
    return tuple(jnp.matmul(x_t, e, precision=jax.lax.Precision.HIGH) for e in tables)


def noisy_states(
    key: Key,
    t: Times,
    tokens: Int[Array, "b l"],
    table: Float[Array, "v d"],
    other: Float[Array, "v k"] | None = None,
    *,
    noise: NoiseKind = "projected",
) -> tuple[States, Float[Array, "b l k"] | None]:
    """Draws y_t = t E[x] + (1-t) E^T eps, eps ~ N(0, I_V) (arXiv 2602.16813v3, embedded).

    Args:
      key: used for the noise alone.
      t: interpolant times [B] or [B, L].
      tokens: clean data.
      table: E; y_t is differentiable in it through both terms.
      other: a second table E' that must see the same eps (a teacher's); no gradient.
      noise: "projected" draws E^T eps in R^D; "onehot" draws eps in R^V and holds [B, L, V].

    Returns:
      y_t [B, L, D] and, if `other` is given, the same state seen through it, else None.
    """
    if noise == "onehot":
        eps = jax.random.normal(key, (*tokens.shape, table.shape[0]))
        tables = (table,) if other is None else (table, jax.lax.stop_gradient(other))
        views = states_from_onehot(eps, t, tokens, *tables)
        return views[0], (views[1] if other is not None else None)
    if other is None:
        return interpolate(linear, t, table[tokens], embedded_noise(key, table, tokens.shape)), None
    xi, other_xi = joint_embedded_noise(key, table, other, tokens.shape)
    view = interpolate(linear, t, jax.lax.stop_gradient(other)[tokens], other_xi)
    return interpolate(linear, t, table[tokens], xi), view


def hold_given(
    y_t: States, t: Times, tokens: jax.Array, given: jax.Array, xi: States, table: jax.Array
) -> States:
    """Puts given positions on their own interpolant t E[x_l] + (1-t) xi_l with xi_l fixed.

    With t = 1 there they are clean.

    Args:
      y_t: states [B, L, D] at time t.
      tokens, given: [B, L]; `given` is True where `tokens` is prescribed.
      xi: the initial embedded noise.
    """
    held = interpolate(linear, t, table[tokens], xi)
    return jnp.where(given[..., None], held, y_t)
