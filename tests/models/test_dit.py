"""The DiT as pure functions: its variants agree where they must."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.denoiser.forward import denoise
from flm_jax.interop.flm import state_dict_from_params
from flm_jax.models.dit import DiTConfig, dit
from helpers.networks import LENGTH, TINY

CONFIG = DiTConfig(
    vocab_size=11,
    length=5,
    dim=8,
    depth=2,
    heads=2,
    cond_dim=6,
    mlp_ratio=2,
    dropout=0.0,
    two_time=True,
    attention_softcap=50.0,
    logit_softcap=30.0,
    dtype="float32",
    remat="none",
    scan_blocks=True,
)
TRUNK = ("table", "time", "norm", "modulation", "head", "blocks")


def variant(**changes):
    return dit(dataclasses.replace(CONFIG, **changes))


def random_params(net, scale=0.5):
    """Every leaf random: a fresh network is constant, because its head starts at zero."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(net.init, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])


NET = variant()
PARAMS = random_params(NET)
Y = jax.random.normal(jax.random.key(2), (3, 5, 8))
S = jnp.asarray([0.1, 0.4, 0.7])
T = jnp.asarray([0.2, 0.9, 0.7])


@functools.lru_cache
def program(net):
    return jax.jit(functools.partial(denoise, net))


def logits(net, params=PARAMS, s=S, t=T, key=None, y=Y):
    return program(net)(params, y, s, t, key=key)


def test_parameter_tree():
    init = jax.jit(NET.init)
    params = init(jax.random.key(0))
    assert set(params) == {*TRUNK, "target_time"}
    assert set(jax.eval_shape(variant(two_time=False).init, jax.random.key(0))) == set(TRUNK)
    assert params["blocks"]["qkv"]["kernel"].shape == (2, 8, 24)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    again = init(jax.random.key(0))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), params, again))
    first, second = params["blocks"]["qkv"]["kernel"]
    assert (first != second).all(), "blocks start from different keys"


def test_fresh_blocks_are_identities():
    """Every gate starts at zero: the features of a fresh network are the normalised state."""
    features = jax.jit(NET.features)(jax.jit(NET.init)(jax.random.key(0)), Y, S, T)
    centred = Y - Y.mean(-1, keepdims=True)
    want = centred / jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(features, want, rtol=0, atol=1e-5)


def test_fresh_second_time_embedding_changes_nothing():
    """With the trunk's parameters of a one-time network, whatever t; not so once it is trained."""
    untrained = jax.jit(NET.init)(jax.random.key(0))["target_time"]
    fresh = {k: PARAMS[k] for k in TRUNK} | {"target_time": untrained}
    one_time = logits(variant(two_time=False), {k: PARAMS[k] for k in TRUNK})
    for t in (S, T, jnp.ones(3)):
        np.testing.assert_array_equal(logits(NET, fresh, t=t), one_time)
    assert jnp.abs(logits(NET) - one_time).max() > 0.1


def test_one_time_network_ignores_the_target_time():
    net = variant(two_time=False)
    params = {k: PARAMS[k] for k in TRUNK}
    np.testing.assert_array_equal(logits(net, params, t=S), logits(net, params, t=T))


def test_times_per_token():
    """Constant times [B, L] equal times [B]; without attention each position has its own time."""
    per_sequence = logits(NET)
    s, t = (jnp.broadcast_to(x[:, None], (3, 5)) for x in (S, T))
    np.testing.assert_allclose(logits(NET, s=s, t=t), per_sequence, rtol=0, atol=1e-5)
    blocks = PARAMS["blocks"]
    closed = PARAMS | {"blocks": blocks | {"attn_out": {"kernel": jnp.zeros((2, 8, 8))}}}
    for times in ((s.at[1, 2].add(0.3), t), (s, t.at[1, 2].add(0.1))):
        moved = jnp.abs(logits(NET, closed, *times) - logits(NET, closed)).max(axis=-1)
        assert moved[1, 2] > 1e-2
        assert moved.at[1, 2].set(0.0).max() < 1e-5


def test_positions_matter():
    """Rotary angles: swapping two positions of the input does not just swap the output."""
    order = jnp.asarray([1, 0, 2, 3, 4])
    t = jnp.zeros(3)
    swapped = logits(NET, s=t, t=t, y=Y[:, order])[:, order]
    assert jnp.abs(swapped - logits(NET, s=t, t=t)).max() > 1e-2


def value_and_gradient(net):
    def loss(params):
        return jnp.sum(jnp.sin(denoise(net, params, Y, S, T)))

    return jax.jit(jax.value_and_grad(loss))(PARAMS)


@pytest.fixture(scope="module")
def plain_gradient():
    return value_and_gradient(NET)


@pytest.mark.parametrize("remat, scan_blocks", [("matmuls", True), ("full", True), ("none", False)])
def test_remat_and_scan_change_neither_values_nor_gradients(plain_gradient, remat, scan_blocks):
    """Values within 1e-5 of them, gradients within 1e-4, where the largest are 1 to 10."""
    value, gradient = value_and_gradient(variant(remat=remat, scan_blocks=scan_blocks))
    np.testing.assert_allclose(value, plain_gradient[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(plain_gradient[1])):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_gradient_of_a_jvp_in_time_through_remat_and_scan():
    """Equal to the plain network's; the jvp itself to central differences within 1%."""

    def slope(net, params):
        def of_time(t):
            return denoise(net, params, Y, S, t)

        return jax.jvp(of_time, (T,), (jnp.ones_like(T),))[1]

    def gradient(net):
        def power(params):
            out = slope(net, params)
            return jnp.mean(out**2), out

        return jax.jit(jax.grad(power, has_aux=True))(PARAMS)

    want, exact = gradient(NET)
    got, through_remat = gradient(variant(remat="full"))
    np.testing.assert_allclose(through_remat, exact, rtol=0, atol=1e-5)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    difference = (logits(NET, t=T + 1e-2) - logits(NET, t=T - 1e-2)) / 2e-2
    assert jnp.abs(difference - exact).max() < 0.01 * jnp.abs(exact).max()


def test_bfloat16_compute():
    """Within 3% of the largest logit; parameters and logits stay float32."""
    got, want = logits(variant(dtype="bfloat16")), logits(NET)
    assert got.dtype == jnp.float32
    assert 0 < jnp.abs(got - want).max() < 0.03 * jnp.abs(want).max()


def test_dropout_needs_a_key():
    net = variant(dropout=0.5)
    np.testing.assert_array_equal(logits(net), logits(NET))
    first, second = (logits(net, key=jax.random.key(i)) for i in range(2))
    assert jnp.abs(first - second).max() > 1e-2
    np.testing.assert_array_equal(first, logits(net, key=jax.random.key(0)))
    np.testing.assert_array_equal(logits(NET, key=jax.random.key(0)), logits(NET))


@pytest.mark.parametrize("cap", [0.0, 2.0])
def test_logits_are_capped(cap):
    raw = logits(variant(logit_softcap=0.0))
    want = cap * jnp.tanh(raw / cap) if cap else raw
    assert jnp.abs(raw).max() > 2.0
    np.testing.assert_allclose(logits(variant(logit_softcap=cap)), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [1, 3])
def test_shorter_sequences(length):
    out = logits(NET, y=Y[:, :length])
    assert out.shape == (3, length, 11)


def test_unknown_remat_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'matmuls'"):
        variant(remat="matmul")


def test_learned_positions_tell_places_apart():
    cfg = dataclasses.replace(TINY, dropout=0.0)
    for net in (dit(cfg), dit(dataclasses.replace(cfg, position_table=True))):
        params = net.init(jax.random.key(0))
        half = jnp.full(1, 0.5)
        out = np.asarray(net.features(params, jnp.ones((1, LENGTH, TINY.dim)), half, half))
        same = np.allclose(out, out[:, :1], atol=1e-5)
        assert same == ("positions" not in params)
    with pytest.raises(UserError, match="position_table"):
        state_dict_from_params(params)
