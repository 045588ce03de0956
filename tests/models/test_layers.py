"""Layers with derivatives of their own."""

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.models.layers import gelu


def test_the_slope_of_gelu_is_its_derivative():
    """To 1e-6, and that of the slope to 1e-5; as XLA's own differentiation gives them."""
    x = jnp.linspace(-6.0, 6.0, 241)
    plain = lambda x: jnp.sum(jax.nn.gelu(x, approximate=True))
    own = lambda x: jnp.sum(gelu(x))
    np.testing.assert_array_equal(gelu(x), jax.nn.gelu(x, approximate=True))
    np.testing.assert_allclose(jax.grad(own)(x), jax.grad(plain)(x), rtol=0, atol=1e-6)
    second = [jax.grad(lambda x, f=f: jnp.sum(jnp.sin(jax.grad(f)(x)))) for f in (own, plain)]
    np.testing.assert_allclose(second[0](x), second[1](x), rtol=0, atol=1e-5)
