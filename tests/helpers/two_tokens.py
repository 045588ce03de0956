"""One position of two tokens, 1 and -1, whose noised laws are mixtures of two normals."""

import jax.numpy as jnp
import numpy as np

SIGNS = jnp.asarray([[1.0], [-1.0]])  # the table
LAW, LATER = (0.9, 0.1), 0.6  # of the data; the time t of the noised states
POINT = jnp.asarray([-0.2, 0.5, -0.7])  # parameters of `answer`


def normal(z, mean):
    """Density of z = LATER mean + (1 - LATER) xi, xi of variance E^T E = 2."""
    width = 2.0 * (1.0 - LATER) ** 2
    return jnp.exp(-((z - LATER * mean) ** 2) / (2 * width)) / jnp.sqrt(2 * jnp.pi * width)


def hermite(number):
    """Points and weights of the mean over xi ~ N(0, 2)."""
    points, weights = np.polynomial.hermite_e.hermegauss(number)
    return jnp.asarray(points * 2**0.5), jnp.asarray(weights / weights.sum())


def answer(w, y):
    """Half the difference of a student's two logits at y."""
    return w[0] + w[1] * y + w[2] * jnp.tanh(2 * y)


def divergence_of(q):
    """KL(q || p) in z of a density and that of the data, by quadrature."""
    z = jnp.linspace(-5, 5, 4001)
    p = LAW[0] * normal(z, 1.0) + LAW[1] * normal(z, -1.0)
    return jnp.sum(q(z) * (jnp.log(q(z)) - jnp.log(p))) * (z[1] - z[0])


def slopes(divergence):
    """Derivatives of a function of POINT, by differences."""
    step = 1e-2 * jnp.eye(3)
    return [float(divergence(POINT + e) - divergence(POINT - e)) / 2e-2 for e in step]
