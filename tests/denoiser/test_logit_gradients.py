"""Gradients of cross entropies in logits: the short way for columns against masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.denoiser.logit_gradients import OneHot, logit_gradients
from flm_jax.denoiser.tile_plan import Plan

SHAPE = (2, 3, 37)


def inputs(softcap):
    raw = 20.0 * jax.random.normal(jax.random.key(0), SHAPE)
    logits = softcap * jnp.tanh(raw / softcap) if softcap else raw
    log_z = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    weights = jax.random.uniform(jax.random.key(1), SHAPE[:2]).at[0, 0].set(0.0)
    # The most probable column, another one, and one that another device has.
    column = jnp.argmax(logits, axis=-1).at[1].set(5).astype(jnp.int32)
    return logits, log_z, weights, OneHot(column, jnp.ones(SHAPE[:2], bool).at[1, 2].set(False))


@pytest.mark.parametrize("softcap", [0.0, 30.0, 50.0])
def test_columns_have_the_gradients_of_their_mask(softcap):
    """To 1e-5 of the largest; caps above 40, and none, take one way for both."""
    logits, log_z, weights, q = inputs(softcap)
    plan = Plan(0, softcap)
    mask = q.dense(SHAPE[-1])
    assert int(mask.sum()) == 5
    expected, one = logit_gradients(logits, log_z, mask, weights, plan, True)
    assert one is None
    found, factor = logit_gradients(logits, log_z, q, weights, plan, True)
    assert (factor is None) == (softcap != 30.0)
    found = found if factor is None else found * factor
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * jnp.abs(expected).max())


def test_products_of_16_bit_numbers_take_normalised_gradients():
    logits, log_z, weights, q = inputs(30.0)
    assert logit_gradients(logits, log_z, q, weights, Plan(0, 30.0), False)[1] is None
