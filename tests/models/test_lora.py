"""Adapters: fresh ones change nothing, trained ones reach everything, merged ones agree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.models.llama import llama
from flm_jax.models.lora import AdapterConfig, join, merged, split
from helpers.llama import CONFIG, logits

ADAPTERS = AdapterConfig(4, 8.0, 3, 3.0, 0.1, 6)


def random_like(net, scale=0.3, seed=5):
    leaves, tree = jax.tree.flatten(jax.eval_shape(net.init, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    draws = [scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)]
    return tree.unflatten([d.astype(x.dtype) for d, x in zip(draws, leaves)])


BASE, ADAPTED = llama(CONFIG), llama(dataclasses.replace(CONFIG, adapters=ADAPTERS))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fresh_adapters_change_no_bit(dtype):
    base = llama(dataclasses.replace(CONFIG, dtype=dtype))
    adapted = llama(dataclasses.replace(CONFIG, dtype=dtype, adapters=ADAPTERS))
    params = base.init(jax.random.key(3))
    adapters = split(adapted.init(jax.random.key(4)))[1]
    got = logits(adapted, join(params, adapters), 0.7, key=jax.random.key(1))
    np.testing.assert_array_equal(got, logits(base, params))


def test_adapters_reach_every_matrix_and_norm():
    """A change of any one leaf of the adapters changes the logits; A alone does so beside B."""
    params = random_like(ADAPTED)
    _, adapters = split(params)
    before = logits(ADAPTED, params)
    for path, _ in jax.tree_util.tree_leaves_with_path(adapters):

        def bump(p, x, wanted=path):
            return x + 0.1 if p == wanted else x

        changed = jax.tree_util.tree_map_with_path(bump, params)
        assert np.abs(logits(ADAPTED, changed) - before).max() > 1e-5, path
    low = adapters["blocks"]["lora"]
    assert set(low) == set(CONFIG.matrices) and set(adapters["lora"]) == {"head"}


def test_times_are_read_through_adapters_alone():
    params = random_like(ADAPTED)
    assert np.abs(logits(ADAPTED, params, 0.2) - logits(ADAPTED, params, 0.8)).max() > 1e-3
    base, _ = split(params)
    np.testing.assert_array_equal(logits(BASE, base, 0.2), logits(BASE, base, 0.8))


def test_split_and_join_are_inverse():
    params = random_like(ADAPTED)
    base, adapters = split(params)
    assert jax.tree.structure(base) == jax.tree.structure(
        jax.eval_shape(BASE.init, jax.random.key(0))
    )
    again = join(base, adapters)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, again, params))


def test_merging_gives_the_same_function():
    """With the time conditioning at zero the merged base alone is the adapted network."""
    params = random_like(ADAPTED)
    zero = lambda tree: jax.tree.map(jnp.zeros_like, tree)
    params["modulation"] = zero(params["modulation"])
    params["blocks"]["modulation"] = zero(params["blocks"]["modulation"])
    base, rest = merged(params, ADAPTERS)
    assert set(rest) == {"time", "modulation", "blocks"}
    np.testing.assert_allclose(logits(BASE, base), logits(ADAPTED, params), atol=2e-4)
