"""Layers with derivatives of their own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.models.layers import gelu, rows_dot_general


def test_the_slope_of_gelu_is_its_derivative():
    """To 1e-6, and that of the slope to 1e-5; as XLA's own differentiation gives them."""
    x = jnp.linspace(-6.0, 6.0, 241)
    plain = lambda x: jnp.sum(jax.nn.gelu(x, approximate=True))
    own = lambda x: jnp.sum(gelu(x))
    np.testing.assert_array_equal(gelu(x), jax.nn.gelu(x, approximate=True))
    np.testing.assert_allclose(jax.grad(own)(x), jax.grad(plain)(x), rtol=0, atol=1e-6)
    second = [jax.grad(lambda x, f=f: jnp.sum(jnp.sin(jax.grad(f)(x)))) for f in (own, plain)]
    np.testing.assert_allclose(second[0](x), second[1](x), rtol=0, atol=1e-5)


def _sum(dot, x, kernel):
    return jnp.sum(jnp.sin(dot(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))))


@pytest.mark.parametrize("shape", [(2, 3, 5), (3, 5)])
def test_products_over_rows_are_the_same_products(shape):
    """Values, derivatives and second derivatives of x W to 1e-5, in [B, L, D] and other shapes."""
    x, kernel = (jax.random.normal(jax.random.key(i), s) for i, s in enumerate((shape, (5, 7))))
    for derivative in (lambda f: f, lambda f: jax.grad(f, argnums=(0, 1)), jax.hessian):
        own, plain = (
            derivative(functools.partial(_sum, dot))(x, kernel)
            for dot in (rows_dot_general, jax.lax.dot_general)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), own, plain)


def test_the_gradient_of_a_kernel_is_a_product_of_matrices():
    x, kernel = jnp.ones((2, 3, 5)), jnp.ones((5, 7))
    gradient = jax.grad(_sum, argnums=2)
    text = lambda dot: str(jax.make_jaxpr(gradient, static_argnums=0)(dot, x, kernel))
    assert "([0], [0])" in text(rows_dot_general)
    assert "([0, 1], [0, 1])" in text(jax.lax.dot_general)
