"""The noise xi of a flow: draws in R^D for one table or jointly for two, and whitening.

Every kind is Gaussian with mean 0. Posteriors, likelihood bounds and gradients of rewards use its
covariance Sigma.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flm_jax.core.types import Key, States, Times
from flm_jax.flows.gaussian_noise import (
    embedded_noise,
    joint_embedded_noise,
    whitened,
    whitening,
)
from flm_jax.flows.interpolants.base import Interpolant

Views = tuple[States, Float[Array, "b l k"] | None]
Whitening = tuple[Float[Array, "d k"], Float[Array, "k v"]]


class Noise:
    """A distribution of the noise xi."""

    def draw(self, key: Key, table: Float[Array, "v d"], shape: tuple[int, ...]) -> jax.Array:
        """Draws xi of shape [*shape, D], float32, for states embedded by `table`."""
        raise NotImplementedError

    def draw_joint(
        self, key: Key, table: Float[Array, "v d"], other: Float[Array, "v k"], shape
    ) -> tuple[jax.Array, jax.Array]:
        """Draws the same noise for states of both tables; the second has no gradient."""
        raise NotImplementedError

    def states(
        self,
        key: Key,
        path: Interpolant,
        t: Times,
        tokens: Int[Array, "b l"],
        table: Float[Array, "v d"],
        other: Float[Array, "v k"] | None,
    ) -> Views:
        """Draws noisy states of tokens at times t, for `table` and, if it is given, `other`."""
        if other is None:
            return path.at(t, table[tokens], self.draw(key, table, tokens.shape)), None
        xi, other_xi = self.draw_joint(key, table, other, tokens.shape)
        view = path.at(t, jax.lax.stop_gradient(other)[tokens], other_xi)
        return path.at(t, table[tokens], xi), view

    def whitening(self, table: Float[Array, "v d"]) -> Whitening:
        """Returns A, B with A B = Sigma^-1 E^T, such that xi A is white."""
        raise NotImplementedError

    def whitened(self, vectors: Float[Array, "n d"], table: Float[Array, "v d"]) -> jax.Array:
        """Transforms rows so that xi becomes N(0, I)."""
        raise NotImplementedError

    def spread(self, gradient: States, table: Float[Array, "v d"], joint: jax.Array) -> States:
        """Returns Sigma times a gradient in states of `table`, as states of `joint`.

        The first D columns of `joint` are `table`.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class OneHotNoise(Noise):
    """Noise xi = E^T eps, eps ~ N(0, I_V), of one-hot vectors (arXiv 2602.16813v3).

    Attributes:
      in_vocabulary: whether states are drawn in R^V and then embedded, which holds [B, L, V], as in
        the reference; else they are drawn in R^D. The distribution is the same.
    """

    in_vocabulary: bool = False

    def draw(self, key, table, shape):
        return embedded_noise(key, table, shape)

    def draw_joint(self, key, table, other, shape):
        return joint_embedded_noise(key, table, other, shape)

    def states(self, key, path, t, tokens, table, other):
        if not self.in_vocabulary:
            return super().states(key, path, t, tokens, table, other)
        eps = jax.random.normal(key, (*tokens.shape, table.shape[0]))
        tables = (table,) if other is None else (table, jax.lax.stop_gradient(other))
        views = states_from_onehot(path, eps, t, tokens, *tables)
        return views[0], (views[1] if other is not None else None)

    def whitening(self, table):
        return whitening(table)

    def whitened(self, vectors, table):
        return whitened(vectors, table)

    def spread(self, gradient, table, joint):
        # Sigma = E^T E; beside the other table it becomes E^T [E, E'], the same change of x_t
        # seen in both embeddings.
        across = jnp.matmul(table.T, joint, precision=jax.lax.Precision.HIGHEST)
        return jnp.matmul(gradient, across, precision=jax.lax.Precision.HIGH)


@dataclasses.dataclass(frozen=True)
class UnitNoise(Noise):
    """Noise xi ~ N(0, I_D) of an embedding space (arXiv 2604.11748, 2606.27617).

    Two networks see the same state only if they have the same table.
    """

    def draw(self, key, table, shape):
        return jax.random.normal(key, (*shape, table.shape[1]))

    def draw_joint(self, key, table, other, shape):
        xi = self.draw(key, table, shape)
        return xi, xi

    def whitening(self, table):
        return jnp.eye(table.shape[1]), table.T

    def whitened(self, vectors, table):
        return vectors

    def spread(self, gradient, table, joint):
        return gradient


@dataclasses.dataclass(frozen=True)
class NoNoise(Noise):
    """Noise xi = 0, for paths without noise."""

    def draw(self, key, table, shape):
        return jnp.zeros((*shape, table.shape[1]))


def states_from_onehot(
    path: Interpolant,
    eps: Float[Array, "b l v"],
    t: Times,
    tokens: Int[Array, "b l"],
    *tables: jax.Array,
) -> tuple[Float[Array, "b l _"], ...]:
    """Embeds x_t = a onehot(x) + c eps in R^V with each table: x_t @ E.

    This follows the reference and holds x_t of [B, L, V] in float32.
    """
    clean = jax.nn.one_hot(tokens, eps.shape[-1], dtype=jnp.float32)
    x_t = path.at(t, clean, eps)
    return tuple(jnp.matmul(x_t, e, precision=jax.lax.Precision.HIGH) for e in tables)
